"""Which images each step sees."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from replaygen.datasets import SegmentationDataset, open_dataset
from replaygen.datasets.voc import VOC_CLASSES
from replaygen.errors import DataError, ScenarioError
from replaygen.scenario import Scenario, build_scenario, make_scenario

DATA = Path(os.environ.get("REPLAYGEN_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
NAMES = ["background", "cow", "sheep", "dog"]
PRESENT = {"only1": [1], "only2": [2], "1and2": [1, 2], "2and3": [2, 3], "only3": [3], "none": [], "1and3": [1, 3]}


def toy(
    present: Mapping[str, Sequence[int]] = PRESENT, names: Sequence[str] = NAMES, **options: Any
) -> SegmentationDataset:
    return SegmentationDataset.from_entries("toy", names, {"train": list(present)}, present, **options)


def step_ids(scenario: Scenario) -> list[tuple[str, ...]]:
    return [step.ids for step in scenario.steps]


def test_overlapped_has_every_image_with_a_class_of_the_step() -> None:
    """Overlapped: an image is in each step that brings one of its classes, in the split's order."""
    scenario = make_scenario(toy(), "1-1", "overlapped")
    assert step_ids(scenario) == [
        ("only1", "1and2", "1and3"),
        ("only2", "1and2", "2and3"),
        ("2and3", "only3", "1and3"),
    ]


@pytest.mark.parametrize("setting", ["disjoint", "sequential"])
def test_disjoint_has_no_class_of_a_later_step(setting: str) -> None:
    """Disjoint and sequential: an image with a class of the step and none of a later one."""
    scenario = make_scenario(toy(), "1-1", setting)
    assert step_ids(scenario) == [("only1",), ("only2", "1and2"), ("2and3", "only3", "1and3")]


def test_partitioned_has_every_image_once_in_blocks() -> None:
    """Partitioned: contiguous blocks in the split's order, every image in exactly one step."""
    present = {f"v{n:03}": [1, 2, 3] for n in range(10)}
    scenario = make_scenario(toy(present), "1-1", "partitioned")
    assert [len(ids) for ids in step_ids(scenario)] == [3, 4, 3]
    assert [key for ids in step_ids(scenario) for key in ids] == list(present)


def test_shares_set_the_length_of_blocks() -> None:
    """Partitioned blocks are as long as their shares say."""
    present = {f"v{n:03}": [1, 2, 3] for n in range(100)}
    scenario = make_scenario(toy(present), "1-1", "partitioned", shares=[2, 1, 1])
    assert [len(ids) for ids in step_ids(scenario)] == [50, 25, 25]


def test_classes_left_out_do_not_count() -> None:
    """A class that the scenario leaves out is background: it neither brings an image in nor keeps it out."""
    scenario = make_scenario(toy(), "1-1", "disjoint", ["sheep", "cow"])
    assert scenario.names == ("background", "sheep", "cow")
    assert step_ids(scenario) == [("only2", "2and3"), ("only1", "1and2", "1and3")]


def test_channels_follow_the_order_of_learning() -> None:
    """Steps list channels 1..C in learning order: new, old and seen."""
    scenario = make_scenario(toy(), "2-1", "overlapped", ["dog", "cow", "sheep"])
    assert [step.new for step in scenario.steps] == [(1, 2), (3,)]
    assert scenario.step(1).old == (1, 2)
    assert scenario.step(1).seen == (1, 2, 3)
    assert scenario.raw == (3, 1, 2)


def test_holdout_is_outside_every_step() -> None:
    """Held-out images are those whose id's sha256 says so; no step has them."""
    present = {f"im{n}": [1, 2, 3] for n in range(200)}
    scenario = make_scenario(toy(present), "1-1", "overlapped", holdout=(5, 2))
    held = set(scenario.holdout_ids)
    assert held == {key for key in present if int(hashlib.sha256(key.encode()).hexdigest(), 16) % 5 == 2}
    assert 20 < len(held) < 60
    assert all(held.isdisjoint(ids) and len(ids) == 200 - len(held) for ids in step_ids(scenario))


def test_holdout_does_not_depend_on_the_other_images() -> None:
    """An image's side stays the same when others join the split."""
    present = {f"im{n}": [1, 2, 3] for n in range(100)}
    half = dict(list(present.items())[:50])
    whole = make_scenario(toy(present), "1-1", "overlapped", holdout=(4, 0)).holdout_ids
    part = make_scenario(toy(half), "1-1", "overlapped", holdout=(4, 0)).holdout_ids
    assert part == tuple(key for key in whole if key in half)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setting": "overlap"}, "no setting called 'overlap'"),
        ({"classes": ["cow", "shep", "dog"]}, "no class called 'shep'"),
        ({"classes": ["cow", "cow", "dog"]}, "listed twice"),
        ({"classes": ["background", "cow", "dog"]}, "is the background"),
        ({"holdout": (1, 0)}, "no pair"),
        ({"holdout": (5, 5)}, "no pair"),
        ({"holdout": (5,)}, "no pair"),
        ({"holdout": (5.0, 0)}, "no pair"),
        ({"shares": [1, 1, 1]}, "has no shares"),
        ({"setting": "partitioned", "shares": [1, 1]}, "do not fit 3 steps"),
        ({"setting": "partitioned", "shares": [1, 0, 1]}, "do not fit 3 steps"),
        ({"setting": "partitioned", "shares": [1, float("nan"), 1]}, "do not fit 3 steps"),
        ({"task": "2-2"}, "does not fit 3 classes"),
        ({"task": "3-1", "classes": ["cow"]}, "does not fit 1 classes"),
    ],
)
def test_impossible_scenario_is_refused(options: dict[str, Any], message: str) -> None:
    """What a data set cannot be cut into is a ScenarioError with a way out."""
    with pytest.raises(ScenarioError, match=message) as caught:
        make_scenario(toy(), **({"task": "1-1", "setting": "overlapped"} | options))
    assert caught.value.hint


def test_class_without_image_is_named() -> None:
    """A class that no image of the split has is refused by name."""
    with pytest.raises(ScenarioError, match="no image has dog"):
        make_scenario(toy({"x": [1], "y": [2]}), "1-1", "overlapped")


def test_step_without_its_class_is_named() -> None:
    """A step whose own images lack one of its classes is refused by step and name."""
    with pytest.raises(ScenarioError, match="step 0 has no image with cow"):
        make_scenario(toy({"x": [1, 2], "y": [2, 3]}), "1-1", "disjoint")


def test_missing_split_is_refused() -> None:
    """A split that the data set does not have is a DataError."""
    with pytest.raises(DataError, match="no split called 'val'"):
        make_scenario(toy(), "1-1", "overlapped", split="val")


def test_class_named_as_channel_0_is_refused() -> None:
    """A data set without background may not have a class called "other"."""
    with pytest.raises(ScenarioError, match="share its name with channel 0"):
        make_scenario(toy({"a": [0], "b": [1]}, ["sky", "other"], background=None), "1-1", "overlapped")


def test_more_classes_than_a_mask_holds_are_refused() -> None:
    """255 classes without background would need channel 255, which means ignore."""
    names = [f"c{n}" for n in range(255)]
    with pytest.raises(ScenarioError, match="255 classes"):
        make_scenario(toy({"a": range(255)}, names, background=None), "1-1", "overlapped")


def test_images_without_known_classes_are_refused() -> None:
    """Every id of the split needs its classes."""
    classes = toy().classes
    with pytest.raises(ScenarioError, match="'x' are not known"):
        build_scenario(classes, 0, ["x"], {}, task="1-1", setting="overlapped")


@pytest.mark.parametrize(
    "changed",
    [
        {"task": "2-1"},
        {"setting": "disjoint"},
        {"setting": "sequential"},
        {"classes": ["sheep", "cow", "dog"]},
        {"holdout": (3, 0)},
    ],
)
def test_digest_follows_every_choice(changed: dict[str, Any]) -> None:
    """Another task, setting, order or holdout is another digest; the same choices are the same one."""
    present = {f"{key}-{n}": ids for n in range(6) for key, ids in PRESENT.items()}
    base: dict[str, Any] = {"task": "1-1", "setting": "overlapped"}
    one = make_scenario(toy(present), **base)
    assert one.digest == make_scenario(toy(present), **base).digest
    assert one.digest != make_scenario(toy(present), **(base | changed)).digest


@pytest.mark.parametrize("setting", ["disjoint", "overlapped"])
@pytest.mark.parametrize("task", ["19-1", "15-5", "15-1", "10-10", "10-5", "10-1", "5-3", "2-1"])
def test_voc_steps_equal_the_published_lists(task: str, setting: str) -> None:
    """On train_aug, every step's ids equal the published lists, id by id and in order."""
    if not (DATA / "voc_splits").is_dir():
        pytest.skip("no voc_splits in REPLAYGEN_DATA")
    lines = [line.split() for line in (DATA / "voc_splits" / "train_aug.txt").read_text().splitlines()]
    present = {words[0]: [int(word) for word in words[1:]] for words in lines}
    classes = SegmentationDataset.from_entries("voc", VOC_CLASSES, {"train": ["x"]}, {"x": [1]}).classes
    scenario = build_scenario(classes, 0, list(present), present, task=task, setting=setting)
    published = [
        tuple((DATA / "voc_splits" / task / setting / f"step{k}.txt").read_text().split())
        for k in range(len(scenario.steps))
    ]
    assert len(list((DATA / "voc_splits" / task / setting).iterdir())) == len(published)
    assert step_ids(scenario) == published


def test_real_animals_are_cut_as_documented(tmp_path: Path) -> None:
    """voc_animals with sheep last has the image counts of its tasks.json, from the masks themselves."""
    if not (DATA / "voc_animals").is_dir():
        pytest.skip("no voc_animals in REPLAYGEN_DATA")
    data = open_dataset("folder", DATA / "voc_animals", cache_dir=tmp_path)
    order = ["cat", "cow", "dog", "horse", "person", "sheep"]
    counts = {
        setting: [len(step.ids) for step in make_scenario(data, "5-1", setting, order).steps]
        for setting in ("disjoint", "overlapped")
    }
    assert counts == {"disjoint": [571, 299], "overlapped": [632, 299]}
