"""Images and masks from somebody who means no good, or does not know better: nothing hangs, leaks or vanishes."""

from __future__ import annotations

import json
import os
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_import import draw

from replaygen.classes import slug
from replaygen.errors import DataError
from replaygen.exports import importing, incoming
from replaygen.exports.importing import Imported, import_masks, read_mask_classes
from replaygen.sample import decode_mask, encode_png
from replaygen.stages.masks import GivenLabelParams, _mapped


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Three pictures of a cow with masks, in a folder of the class."""
    root = tmp_path / "theirs"
    for i in range(3):
        draw(root / "images" / "cow", root / "masks" / "cow", f"{i}", 3)
    (root / "classes.txt").write_text("0 background\n3 cow\n4 Cow\n")
    return root


def taken(theirs: Path) -> Imported:
    return import_masks(
        theirs / "images", theirs / "masks", read_mask_classes(theirs / "classes.txt"), theirs.parent / "pack"
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG of one 8-bit channel whose header promises many pixels, with none behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# links, pipes, sizes


def test_no_link_is_followed_and_no_pipe_waited_for(theirs: Path, tmp_path: Path) -> None:
    """Images, masks, folders of both: each is counted, and no byte from elsewhere is in the pack."""
    images, masks, secret = theirs / "images", theirs / "masks", tmp_path / "secret"
    draw(secret, secret / "masks", "0", 3)
    (secret / "0.png").write_bytes(encode_png(np.full((40, 64, 3), 77, np.uint8)))
    for name in ("link", "pipe", "loop", "linked mask", "piped mask"):
        draw(images / "cow", masks / "cow", name, 3)
    for path in (images / "cow/link.png", images / "cow/pipe.png", images / "cow/loop.png",
                 masks / "cow/linked mask.png", masks / "cow/piped mask.png"):  # fmt: skip
        path.unlink()
    (images / "cow/link.png").symlink_to("../../../secret/0.png")
    (images / "cow/loop.png").symlink_to("loop.png")
    os.mkfifo(images / "cow/pipe.png")
    (masks / "cow/linked mask.png").symlink_to(secret / "masks/0.png")
    os.mkfifo(masks / "cow/piped mask.png")
    (images / "Cow").symlink_to(secret)
    (images / "self").symlink_to("self")
    done = taken(theirs)
    assert dict(done.rejected) == {
        "cow/link.png": "not-a-file", "cow/pipe.png": "not-a-file", "cow/loop.png": "not-a-file",
        "cow/linked mask.png": "mask-not-a-file", "cow/piped mask.png": "mask-not-a-file", "Cow": "linked-folder",
        "self": "not-a-file",
    }  # fmt: skip
    assert done.samples == {"cow": 3}
    hidden = (secret / "0.png").read_bytes()
    assert all(path.read_bytes() != hidden for path in done.out.rglob("*") if path.is_file())


def test_a_linked_folder_of_masks_is_refused(theirs: Path, tmp_path: Path) -> None:
    """The folders that are named may be links; none below them."""
    (theirs / "masks" / "cow").rename(tmp_path / "elsewhere")
    (theirs / "masks" / "cow").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no image could be taken in") as error:
        taken(theirs)
    assert error.value.hint == "mask-not-a-file 3"
    (theirs / "masks" / "cow").unlink()
    (theirs / "masks" / "cow").mkdir()
    (theirs / "masks").rename(tmp_path / "before")
    (theirs / "masks").symlink_to(tmp_path / "before")
    for path in (tmp_path / "elsewhere").iterdir():
        path.rename(tmp_path / "before" / path.name)
    assert taken(theirs).samples == {"cow": 3}


def test_what_is_too_large_is_not_read(theirs: Path) -> None:
    """Files of more bytes than any image that is taken has, which may well be holes."""
    for path in (theirs / "images/cow/0.png", theirs / "masks/cow/1.png"):
        os.truncate(path, incoming.MOST_BYTES + 1)
    done = taken(theirs)
    assert dict(done.rejected) == {"cow/0.png": "too-large", "cow/1.png": "mask-too-large"}
    assert done.samples == {"cow": 1}


def test_what_is_written_is_what_was_checked(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes after it was looked at leaves no unchecked byte in the pack."""
    good = (theirs / "images/cow/0.png").read_bytes()
    real = importing.decode_image

    def changed_now(data: bytes) -> Any:
        for path in (theirs / "images" / "cow").iterdir():
            path.write_bytes(b"something else")
        return real(data)

    monkeypatch.setattr(importing, "decode_image", changed_now)
    done = taken(theirs)
    assert done.samples == {"cow": 1}
    assert [path.read_bytes() for path in (done.out / "cow").iterdir()] == [good]


# bombs


@pytest.mark.parametrize("size", [(13000, 13000), (10000, 5001), (60000, 60000)])
def test_a_large_mask_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    """By its header, in our words, and without Pillow's warning."""
    with pytest.raises(DataError, match=r"^mask (of \d+ x \d+ pixels )?is too large"):
        decode_mask(bomb(*size))


def test_sizes_are_compared_before_a_mask_is_decoded(theirs: Path) -> None:
    """On the way in, and where labels are made of masks: what it would hold is never looked at."""
    (theirs / "masks/cow/0.png").write_bytes(bomb(7000, 7000))
    (theirs / "masks/cow/1.png").write_bytes(bomb(13000, 13000))
    assert dict(taken(theirs).rejected) == {"cow/0.png": "mask-of-another-size", "cow/1.png": "mask-unreadable"}
    params = GivenLabelParams("cow", 1, (), ((0, 0), (3, 1)), 255, (1,), 0.0, False, False, {}, 1)
    image = np.zeros((40, 64, 3), np.uint8)
    assert _mapped(bomb(7000, 7000), image, params) == (None, "mask-of-another-size")
    assert _mapped(bomb(64, 40), image, params) == (None, "mask-unreadable")


# nothing vanishes


def test_what_lies_elsewhere_is_counted(theirs: Path) -> None:
    """Beside the class folders, below them, with another ending; hidden things alone do not exist."""
    images = theirs / "images"
    (images / "cow" / "sub" / "more").mkdir(parents=True)
    for name in ("loose.png", "notes.txt", "cow/x.tiff", "cow/sub/deep.png", "cow/sub/more/deeper.png", ".hidden.png",
                 "cow/.DS_Store"):  # fmt: skip
        (images / name).write_bytes(b"x")
    (images / "_old").mkdir()
    (images / "cow" / "sub" / "away").symlink_to("/")
    with open(os.fsencode(images) + b"/cow/\xff.png", "wb"):
        pass
    done = taken(theirs)
    assert done.samples == {"cow": 3}
    assert dict(done.rejected) == {
        "loose.png": "outside-a-class-folder", "notes.txt": "not-an-image", "cow/x.tiff": "not-an-image",
        "cow/sub/deep.png": "too-deep", "cow/sub/more/deeper.png": "too-deep", "cow/sub/away": "linked-folder",
        "cow/\udcff.png": "name-not-utf-8",
    }  # fmt: skip
    told = json.loads((done.out / "import.json").read_text())
    assert len(told["refused"]) == len(done.rejected)


def test_a_flat_folder_tells_what_is_no_image(theirs: Path) -> None:
    (theirs / "images/cow/notes.md").write_text("x")
    for kind in ("images", "masks"):
        (theirs / kind / "cow").rename(theirs / "flat")
        (theirs / kind).rmdir()
        (theirs / "flat").rename(theirs / kind)
    done = taken(theirs)
    assert (done.samples, done.rejected) == ({"cow": 3}, [("notes.md", "not-an-image")])


def test_an_image_that_its_exif_turns_is_refused(theirs: Path) -> None:
    """It would be made upright, and its mask would not: half a turn would fit the size, and be wrong."""
    exif = Image.Exif()
    for name, ending, turn in (("half", "jpg", 3), ("mirror", "png", 2), ("upright", "jpg", 1), ("odd", "jpg", 0)):
        draw(theirs / "images/cow", theirs / "masks/cow", name, 3)
        picture = Image.open(theirs / "images/cow" / f"{name}.png")
        exif[0x0112] = turn
        picture.save(theirs / "images/cow" / f"{name}.{ending}", exif=exif.tobytes())
        if ending != "png":
            (theirs / "images/cow" / f"{name}.png").unlink()
    done = taken(theirs)
    assert dict(done.rejected) == {"cow/half.jpg": "turned", "cow/mirror.png": "turned"}
    assert done.samples == {"cow": 5}


# names


def test_names_that_a_disk_may_not_tell_apart_get_their_own_folders(tmp_path: Path) -> None:
    """Capitals, and letters with their accent apart: the first keeps its name, the others become slugs."""
    names = ["Cow", "cow", "é", unicodedata.normalize("NFD", "é"), "É", "STRASSE", "straße"]
    names.insert(0, f"class-{slug('straße')}")
    rows = [{"id": 0, "name": "background"}, *({"id": i + 1, "name": name} for i, name in enumerate(names))]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": rows, "background_id": 0}))
    for i in range(len(names)):
        draw(tmp_path / "in", tmp_path / "masks", f"{i}", i + 1)
    done = import_masks(
        tmp_path / "in", tmp_path / "masks", read_mask_classes(tmp_path / "classes.json"), tmp_path / "pack"
    )
    folders = [path.name for path in done.out.iterdir() if path.is_dir() and path.name != "_masks"]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in folders}) == len(names) == len(folders)
    assert {"Cow", "é", "STRASSE"} <= set(folders)
    assert set(done.folders) == set(names) - {"Cow", "é", "STRASSE"}
    assert done.samples == dict.fromkeys(names, 1)
