"""Task names: `15-1` is 15 classes first, then one a step."""

from __future__ import annotations

import re

from replaygen.errors import ScenarioError

_TASK = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})*", re.ASCII)


def parse_task(task: str, n_classes: int) -> tuple[int, ...]:
    """How many classes each step of `task` brings.

    `FIRST-EVERY` repeats EVERY until the classes are used up: `15-1` of 20 is (15, 1, 1, 1, 1, 1). Any other count of
    numbers is the steps themselves: `2-1-1-1` of 5 is (2, 1, 1, 1), `20` of 20 is one step.

    Raises:
        ScenarioError: no such form, or the classes are not used up exactly; says which tasks near it would work.
    """
    if n_classes < 1:
        raise ScenarioError("a scenario needs at least one class", where=f"task {task!r}", hint="list its classes")
    if not _TASK.fullmatch(task):
        raise ScenarioError(
            f"{task!r} is no task", hint="write FIRST-EVERY such as '15-1', or the size of each step such as '2-1-1-1'"
        )
    numbers = tuple(int(part) for part in task.split("-"))
    if 0 in numbers:
        raise ScenarioError(f"task {task!r} has a step without classes", hint=_nearby(numbers, n_classes))
    if len(numbers) == 2:
        first, every = numbers
        rest = n_classes - first
        if rest < every or rest % every:
            raise ScenarioError(
                f"task {task!r} does not fit {n_classes} classes: {_misfit(first, every, rest)}",
                hint=_nearby(numbers, n_classes),
            )
        return (first, *([every] * (rest // every)))
    if sum(numbers) != n_classes:
        raise ScenarioError(
            f"task {task!r} holds {sum(numbers)} classes, but there are {n_classes}", hint=_nearby(numbers, n_classes)
        )
    return numbers


def _misfit(first: int, every: int, rest: int) -> str:
    if rest <= 0:
        return f"{first} come first, so no second step has any"
    return f"{rest} remain after the first {first}, no multiple of {every}"


def _nearby(numbers: tuple[int, ...], n_classes: int) -> str:
    """Tasks that fit `n_classes`: first those that keep one of the numbers, the nearest before the others."""
    if n_classes == 1:
        return "the only task of one class is '1'"
    first, every = numbers[0], numbers[1] if len(numbers) > 1 else 1
    fitting = [(a, b) for a in range(1, n_classes) for b in range(1, n_classes - a + 1) if (n_classes - a) % b == 0]
    fitting.sort(key=lambda pair: (pair[0] != first and pair[1] != every, abs(pair[0] - first) + abs(pair[1] - every)))
    near = [f"'{a}-{b}'" for a, b in fitting[:4]]
    explicit = "" if len(numbers) <= 2 else f"; or sizes that add up to {n_classes}"
    return f"these fit: {', '.join(near)}{explicit}"
