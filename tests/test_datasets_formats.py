"""The devkits of VOC 2012 and ADE20K, digit scenes, and the packs that come with the data folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replaygen.datasets import open_dataset
from replaygen.datasets.ade20k import ade20k_names
from replaygen.errors import DataError
from replaygen.scenario import make_scenario

DATA = Path(os.environ.get("REPLAYGEN_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))


def write_pair(image: Path, mask: Path, value: int) -> None:
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(image)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(mask)


def write_voc(base: Path) -> None:
    """VOC2012 with one image in train and one in val."""
    for key, value in (("2007_000001", 1), ("2007_000002", 2)):
        write_pair(base / "JPEGImages" / f"{key}.jpg", base / "SegmentationClass" / f"{key}.png", value)
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000001\n")
    (lists / "val.txt").write_text("2007_000002\n")
    (lists / "test.txt").write_text("2008_000001\n")


@pytest.mark.parametrize("inner", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_found_in_its_devkit(tmp_path: Path, inner: str) -> None:
    """VOC 2012 opens from the folder that holds VOCdevkit, from VOCdevkit, and from VOC2012 itself."""
    write_voc(tmp_path / "voc" / inner)
    data = open_dataset("voc", tmp_path / "voc", cache_dir=tmp_path / "cache")
    assert data.splits == ("train", "val")
    assert data.classes.by_name("tvmonitor").id == 20
    assert data.present(data.split("val")) == {"2007_000002": frozenset({2})}


def test_voc_without_augmented_masks_says_what_to_download(tmp_path: Path) -> None:
    """Asking for train_aug without SegmentationClassAug says what to put where."""
    write_voc(tmp_path / "voc")
    (tmp_path / "voc" / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("2007_000009\n")
    data = open_dataset("voc", tmp_path / "voc", cache_dir=tmp_path / "cache")
    with pytest.raises(DataError) as caught:
        data.split("train_aug")
    assert "SegmentationClassAug" in caught.value.hint


def test_voc_prefers_augmented_masks(tmp_path: Path) -> None:
    """A mask comes from SegmentationClassAug where it is there, from SegmentationClass otherwise."""
    base = tmp_path / "voc"
    write_voc(base)
    write_pair(base / "JPEGImages" / "2007_000003.jpg", base / "SegmentationClassAug" / "2007_000003.png", 5)
    write_pair(base / "JPEGImages" / "2007_000001.jpg", base / "SegmentationClassAug" / "2007_000001.png", 7)
    listed = "/JPEGImages/2007_000003.jpg /SegmentationClassAug/2007_000003.png\n2007_000001 7\n2007_000002 2\n"
    (base / "ImageSets" / "Segmentation" / "trainaug.txt").write_text(listed)
    data = open_dataset("voc", base, cache_dir=tmp_path / "cache")
    found = data.present(data.split("train_aug"))
    assert found == {"2007_000003": frozenset({5}), "2007_000001": frozenset({7}), "2007_000002": frozenset({2})}


def test_voc_takes_a_list_file(tmp_path: Path) -> None:
    """The option train_aug names a list file anywhere; a list whose masks are missing says what to download."""
    base = tmp_path / "voc"
    write_voc(base)
    (tmp_path / "mine.txt").write_text("2007_000002 2\n2007_000001 1\n")
    data = open_dataset("voc", base, cache_dir=tmp_path / "cache", train_aug=tmp_path / "mine.txt")
    assert data.split("train_aug") == ("2007_000002", "2007_000001")
    (tmp_path / "mine.txt").write_text("2007_000777\n")
    with pytest.raises(DataError, match="no image for '2007_000777'") as caught:
        open_dataset("voc", base, cache_dir=tmp_path / "cache", train_aug=tmp_path / "mine.txt")
    assert "SegmentationClassAug" in caught.value.hint


@pytest.mark.parametrize(("kind", "archive"), [("voc", "VOCtrainval"), ("ade20k", "ADEChallengeData2016.zip")])
def test_missing_devkit_says_what_to_download(tmp_path: Path, kind: str, archive: str) -> None:
    """An absent or empty folder is refused with the archive to download."""
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError) as caught:
            open_dataset(kind, path, cache_dir=tmp_path)
        assert archive in caught.value.hint


def write_ade(base: Path) -> None:
    for split, key, value in (
        ("training", "ADE_train_1", 13),
        ("training", "ADE_train_2", 1),
        ("validation", "ADE_val_1", 0),
    ):
        write_pair(base / "images" / split / f"{key}.jpg", base / "annotations" / split / f"{key}.png", value)


def test_ade20k_has_150_classes_and_other(tmp_path: Path) -> None:
    """ADE20K's 0 is channel 0, "other"; its classes are 1..150 by the benchmark's names."""
    write_ade(tmp_path / "ADEChallengeData2016")
    data = open_dataset("ade20k", tmp_path, cache_dir=tmp_path / "cache")
    assert data.classes.names[:2] == ("other", "wall")
    assert len(data.classes) == 151
    assert data.split("train") == ("ADE_train_1", "ADE_train_2")
    assert data.present(data.split("val")) == {"ADE_val_1": frozenset()}
    assert ade20k_names()[12] == "person"
    assert ade20k_names()[149] == "flag"


def test_ade20k_leaves_unlabelled_pixels_out_of_evaluation(tmp_path: Path) -> None:
    """Raw 0 is channel 0 in training and ignored in evaluation, as the benchmark has it."""
    write_ade(tmp_path)
    data = open_dataset("ade20k", tmp_path, cache_dir=tmp_path / "cache")
    scenario = make_scenario(data, "1-1", "overlapped", ["wall", "person"])
    assert scenario.names == ("other", "wall", "person")
    assert scenario.step_table(0)[0] == 0
    assert scenario.eval_table(0)[[0, 1, 13, 255]].tolist() == [255, 1, 0, 255]


def test_digits_are_composed_where_there_are_none(tmp_path: Path) -> None:
    """The kind `digits` composes its scenes on first opening and opens them as they are after that."""
    pytest.importorskip("sklearn", reason="digit scenes need scikit-learn")
    options = {"size": 32, "train": 12, "val": 4, "photos": 2, "seed": 1}
    data = open_dataset("digits", tmp_path / "digits", cache_dir=tmp_path / "cache", **options)
    assert len(data.split("train")) == 12
    data.validate()
    again = open_dataset("digits", tmp_path / "digits", cache_dir=tmp_path / "cache", **options)
    assert again.digest == data.digest
    with pytest.raises(DataError, match="other arguments"):
        open_dataset("digits", tmp_path / "digits", cache_dir=tmp_path / "cache", **(options | {"seed": 2}))


@pytest.mark.parametrize(("name", "train", "background"), [("voc_animals", 870, 0), ("camvid", 367, None)])
def test_shipped_packs_are_valid(tmp_path: Path, name: str, train: int, background: int | None) -> None:
    """The real packs open, pass full validation, and open again in a moment with the same digest."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in REPLAYGEN_DATA")
    data = open_dataset("folder", DATA / name, cache_dir=tmp_path)
    data.validate()
    assert len(data.split("train")) == train
    assert data.background == background
    started = time.perf_counter()
    again = open_dataset("folder", DATA / name, cache_dir=tmp_path)
    again.validate()
    assert again.digest == data.digest
    assert time.perf_counter() - started < 1.0


def test_masks_agree_with_the_published_class_lists(tmp_path: Path) -> None:
    """On every image of voc_animals, the classes found in the mask are those that voc_splits lists, or a subset where
    the smaller copy lost a sliver."""
    if not (DATA / "voc_animals").is_dir() or not (DATA / "voc_splits").is_dir():
        pytest.skip("no voc_animals or voc_splits in REPLAYGEN_DATA")
    data = open_dataset("folder", DATA / "voc_animals", cache_dir=tmp_path)
    lines = (DATA / "voc_splits" / "train_aug.txt").read_text().splitlines()
    listed = {line.split()[0]: {int(word) for word in line.split()[1:]} for line in lines}
    found = data.present(data.split("train"))
    assert all(classes <= listed[key] for key, classes in found.items())
    assert sum(found[key] == listed[key] for key in found) >= 0.98 * len(found)
