"""Every layout is read back by the library that it is for, and says what the store says, to the pixel."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import io
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Workspace
from PIL import Image

from replaygen.datasets import open_dataset
from replaygen.exports import export
from replaygen.plan import Plan, Recipe
from replaygen.runs import ReplaySample, run
from replaygen.runs.replay import first_sets

KEPT = """
name = "kept"
title = "Kept digits"
shard = 8
[data]
kind = "folder"
path = "{data}"
[scenario]
task = "5-1"
classes = ["nine", "two", "zero", "one", "three", "four", "five", "six", "seven"]
[network]
kind = "small"
[replay.kept]
source = "exemplar"
count = 5
"""
"""Exemplars, which need no training; channels are in another order than the data set's ids."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Plan:
    recipe = Recipe.load(Workspace(tmp_path_factory.mktemp("peers") / "work", tiny_digits).recipe(KEPT))
    return run(recipe.plan(recipe.store())).plan


@pytest.fixture(scope="module")
def wanted(plan: Plan) -> dict[str, ReplaySample]:
    """What the store holds, by id."""
    return {sample.id: sample for one in first_sets(plan).values() for sample in one}


def mask_of(plan: Plan, sample: ReplaySample) -> Any:
    """A label in the data set's ids."""
    table = np.full(256, 255, np.uint8)
    table[0] = 0
    table[1 : 1 + len(plan.opened.scenario.raw)] = plan.opened.scenario.raw
    return table[sample.mask]


def same(plan: Plan, wanted: dict[str, ReplaySample], found: dict[str, tuple[Any, Any]]) -> None:
    """All ids, the image's pixels, the label's pixels."""
    assert found.keys() == wanted.keys()
    for sample, (image, mask) in found.items():
        assert np.array_equal(image, wanted[sample].image), sample
        assert np.array_equal(mask, mask_of(plan, wanted[sample])), sample


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset(plan: Plan, wanted: dict[str, ReplaySample], tmp_path: Path) -> None:
    """Read by `webdataset`: image, mask and JSON come as one sample, over several tars."""
    wds = pytest.importorskip("webdataset")
    done = export(plan, "webdataset", tmp_path / "out", shard=20)
    shards = [str(path) for path in sorted(done.out.glob("replay-*.tar"))]
    assert len(shards) == 3
    found = {}
    for image, mask, about in wds.WebDataset(shards, shardshuffle=False).to_tuple("jpg;png", "mask.png", "json"):
        told = json.loads(about)
        assert told["class"] in plan.opened.scenario.names
        assert told["visible_names"]
        found[told["id"]] = np.asarray(Image.open(io.BytesIO(image))), np.asarray(Image.open(io.BytesIO(mask)))
    gc.collect()  # webdataset leaves its tars to the collector
    same(plan, wanted, found)


def test_huggingface(plan: Plan, wanted: dict[str, ReplaySample], tmp_path: Path, monkeypatch: Any) -> None:
    """Read by `datasets.load_dataset(folder)`: one split, pictures as pictures, the card's own metadata."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    done = export(plan, "huggingface", tmp_path / "out", shard=20)
    assert [path.name for path in sorted((done.out / "data").iterdir())][-1] == "train-00002-of-00003.parquet"
    loaded = datasets.load_dataset(str(done.out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    found = {}
    for row in loaded["train"]:
        assert row["mask"].mode == "L"
        found[row["id"]] = np.asarray(row["image"]), np.asarray(row["mask"])
        assert row["class_id"] in plan.opened.scenario.raw
        assert (row["width"], row["height"]) == row["image"].size
        assert set(row["visible"]) <= set(plan.opened.scenario.raw)
    same(plan, wanted, found)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_stuff(plan: Plan, wanted: dict[str, ReplaySample], tmp_path: Path) -> None:
    """Read by `pycocotools`: the run lengths of an image's classes are its label; areas and boxes agree with it."""
    coco_api = pytest.importorskip("pycocotools.coco")
    mask_api = pytest.importorskip("pycocotools.mask")
    done = export(plan, "coco", tmp_path / "out")
    coco = coco_api.COCO(str(done.out / "annotations" / "stuff_train.json"))
    names = {row["name"]: row["id"] for row in coco.loadCats(coco.getCatIds())}
    assert names["nine"] == plan.opened.dataset.classes.by_name("nine").id
    found = {}
    for row in coco.loadImgs(coco.getImgIds()):
        mask = np.full((row["height"], row["width"]), 255, np.uint8)
        for one in coco.loadAnns(coco.getAnnIds(imgIds=[row["id"]])):
            there = coco.annToMask(one).astype(bool)
            mask[there] = one["category_id"]
            encoded = mask_api.frPyObjects(one["segmentation"], row["height"], row["width"])
            assert mask_api.area(encoded) == one["area"]
            assert mask_api.toBbox(encoded).tolist() == one["bbox"]
        image = np.asarray(Image.open(done.out / "images" / row["file_name"]))
        found[row["replay"]["id"]] = image, mask
    same(plan, wanted, found)


@pytest.mark.parametrize("processor", ["DetrImageProcessorPil", "Mask2FormerImageProcessorPil"])
def test_coco_panoptic(plan: Plan, wanted: dict[str, ReplaySample], tmp_path: Path, processor: str) -> None:
    """Read by the panoptic processors of `transformers`: the masks of an image's segments are its label."""
    transformers = pytest.importorskip("transformers")
    done = export(plan, "coco", tmp_path / "out")
    told = json.loads((done.out / "annotations" / "panoptic_train.json").read_text())
    images = {row["id"]: row for row in told["images"]}
    read = {"DetrImageProcessorPil": detr, "Mask2FormerImageProcessorPil": mask2former}[processor]
    open_processor = getattr(transformers, processor, None) or getattr(transformers, processor.removesuffix("Pil"))
    found = {}
    for row in told["annotations"]:
        about = images[row["image_id"]]
        image = Image.open(done.out / "images" / about["file_name"]).convert("RGB")
        labels, masks = read(open_processor, image, row, done.out / "annotations" / "panoptic_train")
        mask = np.full((about["height"], about["width"]), 255, np.uint8)
        for label, there in zip(labels, masks, strict=True):
            mask[np.asarray(there) > 0] = int(label)
        found[about["replay"]["id"]] = np.asarray(image), mask
    same(plan, wanted, found)


def detr(open_processor: Any, image: Image.Image, row: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    """(category ids, masks) as DETR's processor prepares a COCO panoptic annotation."""
    processor = open_processor(
        format="coco_panoptic", do_resize=False, do_rescale=False, do_normalize=False, do_pad=False
    )
    ready = processor(images=image, annotations=row, masks_path=folder, return_tensors="pt")["labels"][0]
    return ready["class_labels"].tolist(), np.asarray(ready["masks"])


def mask2former(open_processor: Any, image: Image.Image, row: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    """(category ids, masks) as Mask2Former's processor takes a segmentation map and its segments."""
    rgb = np.asarray(Image.open(folder / row["file_name"]), np.int64)
    segments = (rgb * (1, 256, 65536)).sum(-1)
    processor = open_processor(do_resize=False, do_rescale=False, do_normalize=False, ignore_index=None, size_divisor=1)
    categories = {one["id"]: one["category_id"] for one in row["segments_info"]} | {0: 255}
    ready = processor(
        images=[image], segmentation_maps=[segments.astype(np.int32)], instance_id_to_semantic_id=categories,
        return_tensors="pt",
    )  # fmt: skip
    return ready["class_labels"][0].tolist(), np.asarray(ready["mask_labels"][0])


def test_voc_by_the_rules_of_the_devkit(plan: Plan, wanted: dict[str, ReplaySample], tmp_path: Path) -> None:
    """Lists, JPEGs, and palette PNGs with VOC's colours: id 1 is dark red, 255 the cream of "void"."""
    base = export(plan, "voc", tmp_path / "out").out / "VOCdevkit" / "VOC2012"
    ids = (base / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    assert ids == (base / "ImageSets" / "Segmentation" / "trainval.txt").read_text().split()
    assert (base / "ImageSets" / "Segmentation" / "val.txt").read_text() == ""
    assert set(ids) == wanted.keys()
    for sample in ids:
        image, mask = (
            Image.open(base / "JPEGImages" / f"{sample}.jpg"),
            Image.open(base / "SegmentationClass" / f"{sample}.png"),
        )
        assert (image.format, image.mode, mask.format, mask.mode) == ("JPEG", "RGB", "PNG", "P")
        near(np.asarray(image), wanted[sample].image)
        assert np.array_equal(np.asarray(mask), mask_of(plan, wanted[sample]))
        colors = mask.getpalette()
        assert colors is not None
        assert colors[3:6] == [128, 0, 0]
        assert colors[765:768] == [224, 224, 192]
    first = (base / "labelmap.txt").read_text().splitlines()
    assert first[1:3] == ["background:0,0,0::", "zero:128,0,0::"]


def near(image: Any, other: Any) -> None:
    """Equal but for what JPEG of quality 95 changes."""
    assert image.shape == other.shape
    assert np.abs(image.astype(int) - other.astype(int)).mean() < 3


@pytest.fixture
def torchvision_voc() -> Iterator[Any]:
    """`torchvision.datasets.voc`, without torchvision's compiled part: its wheel of PyPI wants another torch."""
    given = os.environ.get("REPLAYGEN_TORCHVISION")
    spec = importlib.util.find_spec("torchvision")
    place = Path(given) if given else Path(spec.origin).parent if spec is not None and spec.origin else None
    if place is None:
        pytest.skip("torchvision is not installed; REPLAYGEN_TORCHVISION names its unpacked folder")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "torchvision"}
    for name, folder in (("torchvision", place), ("torchvision.datasets", place / "datasets")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    sys.modules["torchvision"]._is_tracing = lambda: False  # type: ignore[attr-defined]
    sys.modules["torchvision"].datasets = sys.modules["torchvision.datasets"]  # type: ignore[attr-defined]
    try:
        yield importlib.import_module("torchvision.datasets.voc")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules.update(before)


def test_voc_by_torchvision(
    plan: Plan, wanted: dict[str, ReplaySample], tmp_path: Path, torchvision_voc: Any
) -> None:  # fmt: skip
    """Read by torchvision's own `VOCSegmentation`."""
    done = export(plan, "voc", tmp_path / "out")
    data = torchvision_voc.VOCSegmentation(str(done.out), year="2012", image_set="train", download=False)
    assert len(data) == len(wanted)
    for i, (image, mask) in enumerate(data):
        sample = Path(data.images[i]).stem
        near(np.asarray(image), wanted[sample].image)
        assert np.array_equal(np.asarray(mask), mask_of(plan, wanted[sample]))


def test_folders_are_a_folder_pack(plan: Plan, wanted: dict[str, ReplaySample], tmp_path: Path) -> None:
    """Read by replaygen as a data set of its own, class names included."""
    done = export(plan, "folders", tmp_path / "out")
    pack = open_dataset("folder", str(done.out), cache_dir=tmp_path / "cache")
    pack.validate()
    assert set(pack.classes.names) == set(plan.opened.scenario.names)
    assert pack.background == 0
    same(plan, wanted, {sample: (pack.image(sample), pack.mask(sample)) for sample in pack.split("train")})
    lines = (done.out / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(pack.split("train"))
