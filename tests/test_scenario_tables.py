"""From raw mask values to channels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from replaygen.datasets import SegmentationDataset
from replaygen.errors import ScenarioError
from replaygen.scenario import Scenario, make_scenario

NAMES = ["background", "cow", "sheep", "dog", "cat"]


def scenario(setting: str = "overlapped", background: int | None = 0) -> Scenario:
    """dog, cow and sheep, one a step; cat is left out. Channels 1, 2, 3 are raw 3, 1, 2."""
    data = SegmentationDataset.from_entries(
        "toy", NAMES, {"train": ["a", "b", "c"]}, {key: [0, 1, 2, 3, 4] for key in "abc"}, background=background
    )
    return make_scenario(data, "1-1", setting, ["dog", "cow", "sheep"])


RAW = [0, 1, 2, 3, 4, 255]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("overlapped", [[0, 0, 0, 1, 0, 255], [0, 2, 0, 0, 0, 255], [0, 0, 3, 0, 0, 255]]),
        ("partitioned", [[0, 0, 0, 1, 0, 255], [0, 2, 0, 0, 0, 255], [0, 0, 3, 0, 0, 255]]),
    ],
)
def test_step_table_keeps_only_the_new_classes(setting: str, expected: list[list[int]]) -> None:
    """Step k's masks keep C_k; old, later and left-out classes are background; ignore stays."""
    cut = scenario(setting)
    assert [cut.step_table(k)[RAW].tolist() for k in range(3)] == expected


def test_sequential_step_table_keeps_the_seen_classes() -> None:
    """In the sequential setting, labels of all classes seen so far are kept, and visible."""
    data = SegmentationDataset.from_entries("toy", NAMES, {"train": ["a", "b"]}, {"a": [1], "b": [1, 2]})
    cut = make_scenario(data, "1-1", "sequential", ["cow", "sheep"])
    assert cut.step_table(1)[RAW].tolist() == [0, 1, 2, 0, 0, 255]
    assert cut.visible(1) == (1, 2)


def test_visible_is_the_new_classes() -> None:
    """Outside the sequential setting, a step's masks can be trusted for its new classes only."""
    assert [scenario().visible(k) for k in range(3)] == [(1,), (2,), (3,)]


def test_eval_table_hides_unseen_classes() -> None:
    """After step 1, unseen classes are background by default and ignored by the protocol `ignore`; left-out classes
    are background in both."""
    cut = scenario()
    assert cut.eval_table(1)[RAW].tolist() == [0, 2, 0, 1, 0, 255]
    assert cut.eval_table(1, "ignore")[RAW].tolist() == [0, 2, 255, 1, 0, 255]


def test_last_eval_table_is_the_full_table() -> None:
    """After the last step nothing is hidden, by either protocol."""
    cut = scenario()
    assert cut.full_table()[RAW].tolist() == [0, 2, 3, 1, 0, 255]
    for protocol in ("background", "ignore"):
        assert np.array_equal(cut.eval_table(2, protocol), cut.full_table())


def test_data_set_without_background_moves_raw_0_up() -> None:
    """Without a background class, channel 0 is "other", and raw id 0 gets a channel of its own."""
    data = SegmentationDataset.from_entries(
        "street", ["sky", "road", "car"], {"train": ["a", "b"]}, {"a": [0, 1], "b": [0, 1, 2]}, background=None
    )
    cut = make_scenario(data, "2-1", "overlapped")
    assert cut.names == ("other", "sky", "road", "car")
    assert cut.step_table(0)[[0, 1, 2, 255]].tolist() == [1, 2, 0, 255]
    assert cut.step_table(1)[[0, 1, 2, 255]].tolist() == [0, 0, 3, 255]
    assert cut.eval_table(0, "ignore")[[0, 1, 2, 255]].tolist() == [1, 2, 255, 255]


def test_apply_maps_a_mask() -> None:
    """A uint8 mask [H, W] is mapped to a uint8 mask of the same shape; other types are refused."""
    cut = scenario()
    mask = np.array([[0, 1], [3, 255]], np.uint8)
    mapped = cut.apply(cut.full_table(), mask)
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [[0, 2], [1, 255]]
    with pytest.raises(ScenarioError, match="dtype int64"):
        cut.apply(cut.full_table(), mask.astype(np.int64))


def test_steps_out_of_range_and_unknown_protocols_are_refused() -> None:
    """There is no step -1 or 3 of three, and no protocol but two."""
    cut = scenario()
    for k in (-1, 3):
        with pytest.raises(ScenarioError, match=f"no step {k}"):
            cut.step_table(k)
    with pytest.raises(ScenarioError, match="no protocol"):
        cut.eval_table(0, "mib")  # type: ignore[arg-type]


def test_planning_imports_neither_numpy_nor_pillow() -> None:
    """Cutting a scenario loads no array library, so that a plan stays instant."""
    code = (
        "import sys\n"
        "from replaygen.datasets import SegmentationDataset\n"
        "from replaygen.scenario import make_scenario\n"
        "d = SegmentationDataset.from_entries('t', ['background', 'x'], {'train': ['a']}, {'a': [1]})\n"
        "make_scenario(d, '1', 'overlapped').digest\n"
        "sys.exit(', '.join(sorted({'numpy', 'PIL', 'torch'} & sys.modules.keys())) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
