"""The first thing on the page: one method's old / new / all mIoU, between the bounds and beside its paper's row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replaygen.report.published import Published
from replaygen.report.tables import HIGH, LOW, Row, Spread

METRICS = (("old", "old classes"), ("new", "new classes"), ("all", "all classes"))


@dataclass(frozen=True)
class Mark:
    """One value on the scale of a number: who has it, percent, and how it is drawn (own, low, high or paper)."""

    who: str
    value: float
    kind: str


@dataclass(frozen=True)
class Number:
    """One large number with the scale under it; `marks` are in the order in which they are told."""

    title: str
    spread: Spread
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Headline:
    """A method's numbers after the last step; `paper`: the published row of the same method, None without one."""

    method: str
    numbers: tuple[Number, ...]
    paper: Published | None


def headline(rows: Sequence[Row], published: Mapping[str, Published]) -> Headline | None:
    """The best method between the bounds by all-class mIoU; the best of all where there are only bounds.

    None where nothing is done.
    """
    done = [row for row in rows if row.all.mean is not None]
    between = [row for row in done if row.method not in (LOW, HIGH)] or done
    if not between:
        return None
    own = max(between, key=lambda row: row.all.mean or 0.0)
    others = {row.method: row for row in done if row.method in (LOW, HIGH) and row is not own}
    paper = published.get(own.method)
    numbers = []
    for name, title in METRICS:
        spread = _spread(own, name)
        if spread.mean is None:
            continue
        told = [(method, _spread(row, name).mean, "low" if method == LOW else "high") for method, row in others.items()]
        told += [("published", getattr(paper, name), "paper")] if paper is not None else []
        marks = [Mark(own.method, spread.mean, "own")]
        marks += [Mark(who, value, kind) for who, value, kind in told if value is not None]
        numbers.append(Number(title, spread, tuple(marks)))
    return Headline(own.method, tuple(numbers), paper)


def _spread(row: Row, name: str) -> Spread:
    found: Spread = getattr(row, name)
    return found
