"""Tests of the digit scenes."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replaygen.datasets import digits
from replaygen.datasets.digits import DIGIT_NAMES, Handwriting, build_digit_scenes
from replaygen.errors import DataError

ARGUMENTS = {"train": 24, "val": 12, "photos": 3, "seed": 5}
ID = re.compile(r"[a-z0-9_-]+")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pack, built once."""
    return build_digit_scenes(tmp_path_factory.mktemp("digits") / "pack", **ARGUMENTS)


@pytest.fixture(scope="module")
def material() -> Handwriting:
    """The raw digits and photographs, read once."""
    return digits.load_handwriting()


def fingerprint(root: Path) -> dict[str, str]:
    """Return the hash of every file under a folder by its relative name."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def split_ids(root: Path, part: str) -> list[str]:
    """Return the ids of a split."""
    return (root / "splits" / f"{part}.txt").read_text(encoding="ascii").split("\n")[:-1]


def used(scenes: list[digits.Scene]) -> set[int]:
    """Return the handwriting which scenes show."""
    return {stamp.handwriting for scene in scenes for stamp in scene.stamps}


def test_same_arguments_give_same_bytes(pack: Path, tmp_path: Path) -> None:
    """Two builds with the same arguments agree in every file name and byte."""
    assert fingerprint(build_digit_scenes(tmp_path / "again", **ARGUMENTS)) == fingerprint(pack)


def test_seed_changes_the_scenes(pack: Path, tmp_path: Path) -> None:
    """Another seed composes other pictures."""
    other = build_digit_scenes(tmp_path / "other", **{**ARGUMENTS, "seed": 6})
    name = "images/train-00000.png"
    assert fingerprint(other)[name] != fingerprint(pack)[name]


def test_handwriting_is_disjoint(material: Handwriting) -> None:
    """No handwriting is in two parts, every part has each digit, and together they hold all of it."""
    parts = digits.split_handwriting(material.labels, seed=3)
    everything = np.concatenate([indices for part in digits.PARTS for indices in parts[part]])
    assert np.array_equal(np.sort(everything), np.arange(len(material.labels)))
    for part in digits.PARTS:
        for digit, indices in enumerate(parts[part]):
            assert len(indices) >= 20
            assert set(material.labels[indices].tolist()) == {digit}
    total = len(material.labels)
    assert sum(map(len, parts["photos"])) == pytest.approx(total / 2, abs=5)


def test_scenes_keep_to_their_handwriting(material: Handwriting) -> None:
    """Train scenes, val scenes and replay photographs show handwriting of their own part only."""
    parts = digits.split_handwriting(material.labels)
    photos = [scene for d in range(10) for scene in digits.plan_photos(d, 30, parts["photos"])]
    shown = {
        "train": used(digits.plan_scenes("train", 200, parts["train"])),
        "val": used(digits.plan_scenes("val", 100, parts["val"])),
        "photos": used(photos),
    }
    for part, handwriting in shown.items():
        assert handwriting <= set(np.concatenate(parts[part]).tolist())
        assert len(handwriting) > 100
    assert not shown["train"] & shown["val"]
    assert not shown["photos"] & (shown["train"] | shown["val"])


def test_files_come_from_the_plan(pack: Path, material: Handwriting) -> None:
    """The written pictures are those which the plan of their own part draws."""
    parts = digits.split_handwriting(material.labels, ARGUMENTS["seed"])
    for part in ("train", "val"):
        scenes = digits.plan_scenes(part, ARGUMENTS[part], parts[part], seed=ARGUMENTS["seed"])
        assert [scene.id for scene in scenes] == split_ids(pack, part)
        for scene in scenes:
            picture, mask = digits.render_scene(scene, material)
            with Image.open(pack / "images" / f"{scene.id}.png") as image:
                assert np.array_equal(np.asarray(image), picture)
            with Image.open(pack / "masks" / f"{scene.id}.png") as image:
                assert np.array_equal(np.asarray(image), mask)
    for digit, name in enumerate(DIGIT_NAMES):
        for scene in digits.plan_photos(digit, ARGUMENTS["photos"], parts["photos"], seed=ARGUMENTS["seed"]):
            with Image.open(pack / "photos" / name / f"{scene.id}.png") as image:
                assert np.array_equal(np.asarray(image), digits.render_scene(scene, material)[0])


def test_masks_match_classes(pack: Path, material: Handwriting) -> None:
    """Every mask holds exactly the classes which its scene shows, each inside the box of a digit of that class."""
    parts = digits.split_handwriting(material.labels, ARGUMENTS["seed"])
    for scene in digits.plan_scenes("train", ARGUMENTS["train"], parts["train"], seed=ARGUMENTS["seed"]):
        with Image.open(pack / "masks" / f"{scene.id}.png") as image:
            assert image.mode == "P"
            mask = np.asarray(image).copy()
        assert mask.dtype == np.uint8
        assert set(np.unique(mask).tolist()) == {0} | {stamp.digit + 1 for stamp in scene.stamps}
        for stamp in scene.stamps:
            assert material.labels[stamp.handwriting] == stamp.digit
            box = mask[stamp.top : stamp.top + stamp.side, stamp.left : stamp.left + stamp.side]
            assert set(np.unique(box).tolist()) == {0, stamp.digit + 1}
            box[...] = 0
        assert not mask.any()


def test_ink_is_brighter_than_background(pack: Path) -> None:
    """In every training scene the digits are much brighter than the dimmed photograph."""
    for name in split_ids(pack, "train"):
        with Image.open(pack / "images" / f"{name}.png") as image, Image.open(pack / "masks" / f"{name}.png") as mask:
            light = np.asarray(image).mean(axis=2)
            ink = np.asarray(mask) > 0
        assert light[ink].mean() > light[~ink].mean() + 60


def test_files_pair_up(pack: Path) -> None:
    """Ids are well-formed and unique, and images, masks and splits name the same ones."""
    train, val = split_ids(pack, "train"), split_ids(pack, "val")
    assert (len(train), len(val)) == (ARGUMENTS["train"], ARGUMENTS["val"])
    scenes = set(train) | set(val)
    assert len(scenes) == len(train) + len(val)
    for folder in ("images", "masks"):
        assert {path.name for path in (pack / folder).iterdir()} == {f"{name}.png" for name in scenes}
    assert {path.name for path in (pack / "photos").iterdir()} == set(DIGIT_NAMES)
    photos = sorted(path.stem for path in (pack / "photos").glob("*/*.png"))
    assert len(set(photos)) == len(photos) == 10 * ARGUMENTS["photos"]
    assert all(ID.fullmatch(name) for name in [*scenes, *photos])
    for path in (pack / "images").iterdir():
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (64, 64))


def test_classes_file(pack: Path) -> None:
    """The class table names background and the ten digits by id, and the mask palette has its colours."""
    table = json.loads((pack / "classes.json").read_text(encoding="utf-8"))
    assert (table["ignore_id"], table["background_id"]) == (255, 0)
    assert [entry["id"] for entry in table["classes"]] == list(range(11))
    assert [entry["name"] for entry in table["classes"]] == ["background", *DIGIT_NAMES]
    colors = [tuple(entry["color"]) for entry in table["classes"]]
    assert len(set(colors)) == 11
    mask = next((pack / "masks").iterdir())
    with Image.open(mask) as image:
        palette = image.getpalette()
    assert palette is not None
    assert palette[:33] == [value for color in colors for value in color]
    assert mask.read_bytes()[24] == 8


def test_photos_show_their_class(material: Handwriting) -> None:
    """A replay photograph shows one to three digits of its class, and a minority also one digit of another class."""
    parts = digits.split_handwriting(material.labels)
    mixed = 0
    scenes = digits.plan_photos(7, 200, parts["photos"])
    for scene in scenes:
        own = sum(stamp.digit == 7 for stamp in scene.stamps)
        others = len(scene.stamps) - own
        assert 1 <= own <= 3
        assert others <= 1
        mixed += others
    assert 0.05 < mixed / len(scenes) < 0.35


def test_other_counts_and_sizes(material: Handwriting, tmp_path: Path) -> None:
    """More scenes keep the first ones, and boxes stay inside pictures of any size."""
    pool = digits.split_handwriting(material.labels)["train"]
    assert digits.plan_scenes("train", 5, pool) == digits.plan_scenes("train", 9, pool)[:5]
    for size in (32, 100):
        for scene in digits.plan_scenes("val", 20, pool, size=size):
            assert all(min(s.top, s.left) >= 0 for s in scene.stamps)
            assert all(max(s.top, s.left) + s.side <= size for s in scene.stamps)
    wide = build_digit_scenes(tmp_path / "wide", size=96, train=1, val=1, photos=0)
    with Image.open(wide / "images" / "train-00000.png") as image:
        assert image.size == (96, 96)


def test_complete_pack_is_left_alone(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call on a complete pack returns at once and composes nothing."""

    def refuse() -> Handwriting:
        raise AssertionError("composed again")

    monkeypatch.setattr(digits, "load_handwriting", refuse)
    before = fingerprint(pack)
    assert build_digit_scenes(pack, **ARGUMENTS) == pack
    assert fingerprint(pack) == before


def test_foreign_folder_is_refused(pack: Path, tmp_path: Path) -> None:
    """A folder with other content or other arguments is neither overwritten nor taken for the pack."""
    with pytest.raises(DataError, match="other arguments"):
        build_digit_scenes(pack, **{**ARGUMENTS, "train": 25})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    with pytest.raises(DataError, match="not a pack"):
        build_digit_scenes(tmp_path / "mine", **ARGUMENTS)
    assert fingerprint(tmp_path / "mine").keys() == {"note.txt"}


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build which fails half-way leaves neither the folder nor anything beside it."""

    def fail(mask: object, path: Path) -> None:
        raise OSError(f"no room for {path.name}")

    monkeypatch.setattr(digits, "_save_mask", fail)
    with pytest.raises(OSError, match="no room"):
        build_digit_scenes(tmp_path / "pack", **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("size", 16), ("train", -1), ("val", -1), ("photos", -1), ("seed", -1)])
def test_numbers_out_of_range(name: str, value: int, tmp_path: Path) -> None:
    """A number out of range is refused before anything is written."""
    with pytest.raises(DataError, match=name):
        build_digit_scenes(tmp_path / "pack", **{**ARGUMENTS, name: value})
    assert list(tmp_path.iterdir()) == []


def test_source_gives_credit(pack: Path) -> None:
    """The source note credits the handwriting and both photographs with their licence and links."""
    note = (pack / "SOURCE.md").read_text(encoding="utf-8")
    for credit in (
        "Optical Recognition of Handwritten Digits",
        "CC BY 2.0",
        "https://creativecommons.org/licenses/by/2.0/",
        "danielbuechele/6061409035",
        "vultilion/6056698931",
    ):
        assert credit in note


def test_missing_scikit_learn_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn the error says what to install, and nothing is written."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'replaygen\[digits\]'"):
        build_digit_scenes(tmp_path / "pack", **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []


def test_import_is_light() -> None:
    """Importing the module does not import scikit-learn."""
    code = "import sys, replaygen.datasets.digits; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
