"""Task names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaygen.errors import ScenarioError
from replaygen.scenario import parse_task


@pytest.mark.parametrize(
    ("task", "classes", "sizes"),
    [
        ("15-1", 20, (15, 1, 1, 1, 1, 1)),
        ("15-5", 20, (15, 5)),
        ("19-1", 20, (19, 1)),
        ("10-10", 20, (10, 10)),
        ("5-3", 20, (5, 3, 3, 3, 3, 3)),
        ("2-1", 20, (2, *([1] * 18))),
        ("100-50", 150, (100, 50)),
        ("2-1-1-1", 5, (2, 1, 1, 1)),
        ("4-2-4", 10, (4, 2, 4)),
        ("20", 20, (20,)),
    ],
)
def test_sizes_of_known_tasks(task: str, classes: int, sizes: tuple[int, ...]) -> None:
    """FIRST-EVERY repeats EVERY until the classes are used up; other forms are the sizes themselves."""
    assert parse_task(task, classes) == sizes


@pytest.mark.parametrize(
    ("task", "suggested"),
    [
        ("15-2", ["'15-1'", "'14-2'", "'16-2'"]),
        ("20-1", ["'19-1'"]),
        ("21-1", ["'19-1'"]),
        ("0-1", ["'1-1'"]),
        ("18-3", ["'17-3'", "'18-2'"]),
        ("2-1-1", ["'2-1'", "sizes that add up to 20"]),
        ("15-1-1-1-1-1-1", ["'15-1'"]),
        ("19", ["'19-1'"]),
    ],
)
def test_impossible_task_names_those_near(task: str, suggested: list[str]) -> None:
    """A task that does not fit 20 classes is refused with tasks that do, the nearest among them."""
    with pytest.raises(ScenarioError) as caught:
        parse_task(task, 20)
    for text in suggested:
        assert text in caught.value.hint


@pytest.mark.parametrize("task", ["", "15", "-1", "15-", "15--1", "a-b", "15-1 ", "1e1-1", "١٥-١", "15-1\n", "9" * 40])
def test_what_is_no_task_is_refused(task: str) -> None:
    """Anything but numbers joined by dashes is a ScenarioError with a way out."""
    with pytest.raises(ScenarioError) as caught:
        parse_task(task, 20)
    assert caught.value.hint


@given(st.integers(1, 40), st.integers(0, 45), st.integers(0, 45))
def test_sizes_use_up_the_classes_or_are_refused(classes: int, first: int, every: int) -> None:
    """An accepted FIRST-EVERY starts with FIRST and adds up to the classes; a refusal names a task that works."""
    try:
        sizes = parse_task(f"{first}-{every}", classes)
    except ScenarioError as error:
        near = error.hint.split("'")[1]
        assert sum(parse_task(near, classes)) == classes
    else:
        assert sizes[0] == first
        assert set(sizes[1:]) == {every}
        assert sum(sizes) == classes
