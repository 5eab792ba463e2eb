"""Folders of unlabelled photos."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replaygen.datasets import FolderPhotos
from replaygen.errors import DataError

DATA = Path(os.environ.get("REPLAYGEN_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))


def write_photos(root: Path) -> Path:
    """Two classes and a distractor, one folder with things that are no photos."""
    for name, side in (("cow/b.jpg", 30), ("cow/a.PNG", 10), ("sheep/x.jpg", 20), ("_goat/y.jpg", 20)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, 40, 3), 9, np.uint8)).save(root / name)
    (root / "cow" / "notes.txt").write_text("no photo")
    (root / "cow" / ".hidden.jpg").write_bytes(b"x")
    (root / "cow" / "deeper").mkdir()
    (root / "manifest.csv").write_text("file,class")
    (root / ".git").mkdir()
    return root


def test_classes_leave_out_underscored_folders(tmp_path: Path) -> None:
    """Folders are classes; one that starts with `_` is none, but can be asked for."""
    photos = FolderPhotos(write_photos(tmp_path / "p"), tmp_path / "cache")
    assert photos.classes == ("cow", "sheep")
    assert photos.folders == ("_goat", "cow", "sheep")
    assert [entry[0] for entry in photos.entries("_goat")] == ["_goat/y.jpg"]


def test_entries_are_sorted_and_hashed(tmp_path: Path) -> None:
    """Entries come in the order of file names, with size and sha256, and give their bytes back."""
    root = write_photos(tmp_path / "p")
    photos = FolderPhotos(root, tmp_path / "cache")
    names = [entry[0] for entry in photos.entries("cow")]
    assert names == ["cow/a.PNG", "cow/b.jpg"]
    data = (root / "cow" / "b.jpg").read_bytes()
    assert photos.entries("cow")[1] == ("cow/b.jpg", len(data), hashlib.sha256(data).hexdigest())
    assert photos.read("cow/b.jpg") == data


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """Nothing in a folder vanishes: what is no photo is counted by reason."""
    photos = FolderPhotos(write_photos(tmp_path / "p"), tmp_path / "cache")
    assert photos.left_out("cow") == {"no photo by its ending": 1, "hidden": 1, "a folder below the class": 1}
    assert photos.left_out("sheep") == {}


def test_name_that_is_not_utf8_is_counted(tmp_path: Path) -> None:
    """A file name that is not UTF-8 is left out and counted."""
    root = write_photos(tmp_path / "p")
    try:
        with open(os.fsencode(root / "sheep") + b"/\xff.jpg", "wb"):
            pass
    except OSError:
        pytest.skip("this file system refuses such names")
    photos = FolderPhotos(root, tmp_path / "cache")
    assert photos.left_out("sheep") == {"a name that is not UTF-8": 1}


def test_min_side_reads_headers_only_when_asked(tmp_path: Path) -> None:
    """With min_side, photos with a shorter side are left out and counted; an unreadable one stays for its source."""
    root = write_photos(tmp_path / "p")
    (root / "cow" / "broken.jpg").write_bytes(b"no photo at all")
    for _ in range(2):  # the second time from memory
        photos = FolderPhotos(root, tmp_path / "cache", min_side=15)
        assert [entry[0] for entry in photos.entries("cow")] == ["cow/b.jpg", "cow/broken.jpg"]
        assert photos.left_out("cow")["a side below 15 pixels"] == 1


def test_missing_class_names_the_nearest(tmp_path: Path) -> None:
    """A class without folder is refused with the nearest name, and no path gets outside the root."""
    photos = FolderPhotos(write_photos(tmp_path / "p"), tmp_path / "cache")
    with pytest.raises(DataError) as caught:
        photos.entries("sheeps")
    assert caught.value.hint == "did you mean 'sheep'?"
    for name in ("..", "../p/cow", "", "."):
        with pytest.raises(DataError):
            photos.entries(name)
    for name in ("cow/../sheep/x.jpg", "cow/notes.txt", "/etc/hostname", "manifest.csv"):
        with pytest.raises(DataError):
            photos.read(name)


def test_changed_photo_is_refused(tmp_path: Path) -> None:
    """A photo that changes after it was hashed is not read under its old hash."""
    root = write_photos(tmp_path / "p")
    photos = FolderPhotos(root, tmp_path / "cache")
    photos.entries("cow")
    (root / "cow" / "b.jpg").write_bytes(b"other")
    with pytest.raises(DataError, match="changed after"):
        photos.read("cow/b.jpg")


def test_photos_in_memory() -> None:
    """Photos made of entries list and digest them, sorted, but read nothing."""
    files = [("cow/2.jpg", 5, "b" * 64), ("cow/1.jpg", 4, "a" * 64)]
    photos = FolderPhotos.from_entries({"cow": files, "_x": []})
    assert photos.classes == ("cow",)
    assert photos.entries("cow")[0] == ("cow/1.jpg", 4, "a" * 64)
    assert photos.digest("cow") == FolderPhotos.from_entries({"cow": files[::-1]}).digest("cow")
    with pytest.raises(DataError, match="without files"):
        photos.read("cow/1.jpg")


def test_missing_root_is_refused(tmp_path: Path) -> None:
    """A root that is not there is a DataError."""
    with pytest.raises(DataError, match="folder not found"):
        FolderPhotos(tmp_path / "nowhere", tmp_path)


def test_web_animals_are_listed(tmp_path: Path) -> None:
    """The real web pack lists 551 cows and keeps the distractors apart."""
    if not (DATA / "web_animals").is_dir():
        pytest.skip("no web_animals in REPLAYGEN_DATA")
    photos = FolderPhotos(DATA / "web_animals", tmp_path)
    assert photos.classes == ("cat", "cow", "dog", "horse", "sheep")
    assert len(photos.entries("cow")) == 551
    assert len(photos.entries("_distractor_llama")) == 40


def test_unlike_names_stay_apart(tmp_path: Path) -> None:
    """Class folders whose names look alike, or are no plain names, each keep their own photos and memory."""
    names = ["caf\u00e9", "cafe\u0301", "cafe", "Cafe", "a b", "a-b", "\u202ecow", "x" * 200, "c:\\o", "$(id)", "a\nb"]
    root = tmp_path / "p"
    for number, name in enumerate(names):
        try:
            (root / name).mkdir(parents=True)
        except OSError:
            pytest.skip("this file system refuses such names")
        (root / name / "one.jpg").write_bytes(b"%d" % number)
    for _ in range(2):
        photos = FolderPhotos(root, tmp_path / "cache")
        assert len(photos.classes) == len(names)
        for number, name in enumerate(names):
            assert photos.read(photos.entries(name)[0][0]) == b"%d" % number
    assert {path.name for path in tmp_path.iterdir()} <= {"p", "cache"}
