"""Metrics on small matrices that can be checked by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from replaygen.errors import DataError, RecipeError
from replaygen.learn import Confusion, confusion_rate, over_steps, summarise
from replaygen.learn.coarse import coarse_matrix, known_groups, summarise_coarse
from replaygen.report.tables import courses, gap_to_joint, over_seeds
from replaygen.runs.results import RunResult, StepResult


@dataclass(frozen=True)
class Classes:
    """The classes of a step."""

    old: tuple[int, ...]
    new: tuple[int, ...]


NAMES = ["background", "cat", "dog", "cow"]


@pytest.fixture
def confusion() -> Confusion:
    """Background 8/10, cat 3/4 (one pixel taken for background, none wrongly cat), dog 0/3 (taken for cow), no cow."""
    told = Confusion(4)
    true = np.array([[0] * 8 + [255, 255], [1, 1, 1, 1, 2, 2, 2, 0, 0, 255]])
    pred = np.array([[0] * 8 + [3, 1], [1, 1, 1, 0, 3, 3, 3, 1, 0, 0]])
    told.update(pred.astype(np.uint8), true.astype(np.uint8))
    return told


def test_matrix_counts_pixels_without_ignored_ones(confusion: Confusion) -> None:
    """Rows are truth, columns prediction; the three pixels of 255 are nowhere."""
    assert confusion.matrix.tolist() == [[9, 1, 0, 0], [1, 3, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]]


def test_summary_by_hand(confusion: Confusion) -> None:
    """background 9/11, cat 3/5, dog 0/3, cow 0/3; background is in old and all."""
    told = summarise(confusion.matrix, Classes((1, 2), (3,)), NAMES)
    background, cat = 900 / 11, 60.0
    assert told["background"] == pytest.approx(background)
    assert told["per_class"] == pytest.approx({"background": background, "cat": cat, "dog": 0.0, "cow": 0.0})
    assert told["old"] == pytest.approx((background + cat) / 3)
    assert told["old_without_background"] == pytest.approx(30.0)
    assert told["new"] == 0
    assert told["all"] == pytest.approx((background + cat) / 4)
    assert told["all_without_background"] == pytest.approx(20.0)
    assert told["background_counted"] is True


def test_class_absent_from_truth_and_prediction_is_left_out() -> None:
    """It has no IoU, is named as absent, and lowers no mean."""
    matrix = np.diag([5, 5, 0]).astype(np.int64)
    told = summarise(matrix, Classes((), (1, 2)), NAMES[:3])
    assert told["per_class"]["dog"] is None
    assert told["absent"] == ["dog"]
    assert told["new"] == told["all"] == 100
    assert told["old"] is None


def test_other_is_outside_the_mean() -> None:
    """Where channel 0 is "other" and no background, it counts nowhere."""
    matrix = np.array([[1, 9, 0], [0, 10, 0], [0, 0, 10]])
    told = summarise(matrix, Classes((1,), (2,)), ["other", "sky", "road"])
    assert told["background"] is None
    assert told["all"] == pytest.approx((1000 / 19 + 100) / 2)
    assert "other" not in told["per_class"]
    assert told["background_counted"] is False


def test_confusion_rate() -> None:
    """The share of a's pixels that were predicted as b."""
    matrix = np.array([[8, 2], [0, 0]])
    assert confusion_rate(matrix, 0, 1) == 20
    assert confusion_rate(matrix, 1, 0) is None


@pytest.mark.parametrize(("pred", "true"), [([4], [0]), ([0], [4]), ([0, 0], [0])])
def test_values_outside_are_refused(pred: list[int], true: list[int]) -> None:
    """A label beyond the channels, or arrays of two sizes, is an error and not a wrong number."""
    with pytest.raises(DataError):
        Confusion(4).update(np.array(pred, np.uint8), np.array(true, np.uint8))


def test_over_steps_by_hand() -> None:
    """cat falls from 80 to 50 over three steps, dog rises from 40 to 60."""
    summaries: list[dict[str, Any]] = [
        {"all": 80.0, "old": None, "new": 80.0, "per_class": {"cat": 80.0}},
        {"all": 50.0, "old": 60.0, "new": 40.0, "per_class": {"cat": 60.0, "dog": 40.0}},
        {"all": 60.0, "old": 55.0, "new": 70.0, "per_class": {"cat": 50.0, "dog": 60.0, "cow": 70.0}},
    ]
    told = over_steps(summaries, [["cat"], ["dog"], ["cow"]])
    assert told["forgetting"] == [30.0, 0.0]
    assert told["bwt"] == pytest.approx((-30 + 20) / 2)
    assert told["average"] == pytest.approx(190 / 3)
    assert told["harmonic"] == pytest.approx(2 * 55 * 70 / 125)
    assert told["by_step"] == [[80.0], [60.0, 40.0], [50.0, 60.0, 70.0]]


# coarse classes

GROUPS = {"animal": ["cat", "dog"], "vehicle": ["car", "bus"]}
PIXELS = np.array([[8, 1, 0, 1], [0, 3, 2, 0], [1, 4, 5, 0], [2, 0, 0, 6]], dtype=np.int64)
"""Channels background, cat, dog, car; cat and dog are taken for each other, a bus was not learnt yet."""


def test_coarse_matrix_sums_rows_and_columns() -> None:
    """animal = cat + dog, on both sides; a group of which one class is there is that class."""
    summed, order = coarse_matrix(PIXELS, ["background", "cat", "dog", "car"], GROUPS)
    assert order == ("background", "animal", "vehicle")
    assert summed.tolist() == [[8, 1, 1], [1, 14, 0], [2, 0, 6]]
    assert summed.sum() == PIXELS.sum()


def test_coarse_summary_by_hand() -> None:
    """background 8 / 13, animal 14 / 16, vehicle 6 / 9: what is confused within a group is no mistake."""
    told = summarise_coarse(PIXELS, ["background", "cat", "dog", "car"], GROUPS)
    expected = {"background": 800 / 13, "animal": 1400 / 16, "vehicle": 600 / 9}
    assert told.per_class == pytest.approx(expected)
    assert told.all == pytest.approx(sum(expected.values()) / 3)


def test_coarse_classes_of_one_class_each_change_nothing() -> None:
    """Without groups, or with groups of one, the means are those over the classes."""
    names = ["background", "cat", "dog", "car"]
    fine = summarise(PIXELS, Classes((1, 2), (3,)), names)
    for groups in ({}, {"pet": ["cat"], "wheels": ["car"]}):
        assert summarise_coarse(PIXELS, names, groups).all == pytest.approx(fine["all"])


def test_other_is_no_coarse_class() -> None:
    """Channel 0 without a background counts nowhere, though its pixels count against those that were taken for them."""
    told = summarise_coarse(PIXELS, ["other", "cat", "dog", "car"], GROUPS)
    assert told.per_class == pytest.approx({"animal": 1400 / 16, "vehicle": 600 / 9})


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"animal": ["cat", "dgo"]}, "'dgo'"),
        ({"background": ["cat", "dog"]}, "'background'"),
        ({"car": ["cat", "dog"]}, "'car'"),
        ({"animal": ["background"]}, "'background'"),
    ],
)
def test_groups_of_unknown_classes_are_refused(groups: dict[str, list[str]], said: str) -> None:
    """A misspelt class, and a group that would swallow a class of the same name, are errors before any work."""
    with pytest.raises(RecipeError, match=said):
        known_groups(groups, ["background", "cat", "dog", "car"], "recipe.toml")


# over seeds and methods


def _step(method: str, step: int, per_class: dict[str, float], seed: int = 0) -> StepResult:
    values = list(per_class.values())
    told = {"all": float(np.mean(values)), "old": float(np.mean(values[:-1])) if step else None, "new": values[-1]}
    names = ("other", *per_class)
    return StepResult(method, seed, step, names, (step + 1,), tuple(range(1, step + 1)),
                      {**told, "per_class": per_class}, [], 1, 1.0, method == "joint")  # fmt: skip


def _run() -> RunResult:
    return RunResult("r", "R", "1-1", "overlapped", (("cat",), ("dog",)), (
        _step("base", 0, {"cat": 80.0}), _step("mib", 1, {"cat": 50.0, "dog": 70.0}),
        _step("joint", 1, {"cat": 90.0, "dog": 80.0}), _step("base", 0, {"cat": 70.0}, 1),
        _step("mib", 1, {"cat": 60.0, "dog": 60.0}, 1), _step("joint", 1, {"cat": 75.0, "dog": 85.0}, 1),
        _step("mib", 1, {"cat": 99.0, "dog": 99.0}, 2),
    ))  # fmt: skip


def test_gap_to_joint_is_per_seed() -> None:
    """Points that joint is above, of the seeds that have both; joint has no gap to itself."""
    assert gap_to_joint(_run(), "mib") == pytest.approx([25.0, 20.0])
    assert gap_to_joint(_run(), "joint") == []


def test_courses_are_of_whole_chains() -> None:
    """Forgetting and averages need step 0: a seed without it, and joint training, have none."""
    told = over_seeds(_run(), "mib")
    assert {seed: row["forgetting"] for seed, row in told.items()} == {0: 30.0, 1: 10.0}
    (course,) = courses(_run())
    assert course.method == "mib"
    assert (course.forgetting.mean, course.bwt.mean) == pytest.approx((20.0, -20.0))
    assert course.average.mean == pytest.approx(((80 + 60) / 2 + (70 + 60) / 2) / 2)
