"""What the page's tables say: final numbers, per-class IoU over steps, confusion. The looks are the template's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from replaygen.learn.coarse import Coarse, Groups, summarise_coarse
from replaygen.learn.metrics import over_steps
from replaygen.learn.significance import Comparison, compare_seeds
from replaygen.report.published import COMPARABILITY, Published, beside
from replaygen.report.text import deviation_of, mean_of, number
from replaygen.runs.results import RunResult, StepResult

if TYPE_CHECKING:
    from replaygen.plan.recipe import RecipeTable

LOW, HIGH = "finetune", "joint"
"""The rows between which the gap is measured, by name."""

MOST_CONFUSION = 32
"""Larger confusion matrices are shown as their largest confusions only."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; None where there is no value, or one seed."""

    mean: float | None
    deviation: float | None = None

    def __str__(self) -> str:
        return number(self.mean) + (f" ± {number(self.deviation)}" if self.deviation is not None else "")


@dataclass(frozen=True)
class Row:
    """A method's numbers after the last step, in percent; `best`: columns in which no method is better, joint aside.

    gap: share of the way from finetune to joint; to_joint: points that joint is above; coarse: over coarse classes.
    """

    method: str
    series: int
    old: Spread
    new: Spread
    all: Spread
    background: Spread
    gap: Spread
    train_seconds: float
    bound: str
    best: frozenset[str]
    to_joint: Spread = Spread(None)
    coarse: Spread = Spread(None)


def final_rows(result: RunResult, groups: Groups | None = None) -> list[Row]:
    """One row a method, in the recipe's order; groups: the recipe's coarse classes."""
    told = {method: result.last(method) for method in result.methods()}
    columns = ("old", "new", "all", "background")
    spreads = {
        method: {name: spread_of([step.metrics.get(name) for step in last]) for name in columns}
        for method, last in told.items()
    }
    best: dict[str, float] = {}
    for name in ("old", "new", "all"):
        means = [row[name].mean for method, row in spreads.items() if method != HIGH]
        best[name] = max((mean for mean in means if mean is not None), default=-1.0)
    rows = []
    for i, (method, last) in enumerate(told.items()):
        row = spreads[method]
        seconds = sum(step.train_seconds for seed in result.seeds() for step in result.of(method, seed))
        rows.append(
            Row(
                method, i, row["old"], row["new"], row["all"], row["background"], spread_of(gap_closed(result, method)),
                seconds / max(1, len(last)), {LOW: "lower bound", HIGH: "upper bound"}.get(method, ""),
                frozenset(name for name in best if method != HIGH and row[name].mean == best[name]),
                spread_of(gap_to_joint(result, method)),
                spread_of([one.all for one in coarse_of(result, method, groups or {}).values()]),
            )
        )  # fmt: skip
    return rows


def spread_of(values: Sequence[float | None]) -> Spread:
    """Mean and standard deviation of the values that are there."""
    return Spread(mean_of(values), deviation_of(values))


def gap_closed(result: RunResult, method: str) -> list[float | None]:
    """(method - finetune) / (joint - finetune) in all-class mIoU, percent, one a seed that has all three rows."""
    lows = {step.seed: step.metrics.get("all") for step in result.last(LOW)}
    highs = {step.seed: step.metrics.get("all") for step in result.last(HIGH)}
    closed: list[float | None] = []
    for step in result.last(method):
        own, low, high = step.metrics.get("all"), lows.get(step.seed), highs.get(step.seed)
        if own is not None and low is not None and high is not None and high > low:
            closed.append(100.0 * (own - low) / (high - low))
    return closed


def gap_to_joint(result: RunResult, method: str) -> list[float | None]:
    """joint - method in all-class mIoU, percent points, one a seed that has both; none for joint itself."""
    highs = final(result, HIGH, "all") if method != HIGH else {}
    return [highs[seed] - own for seed, own in final(result, method, "all").items() if seed in highs]


def final(result: RunResult, method: str, metric: str) -> dict[int, float]:
    """Seed -> a metric after the last step; seeds where it is undefined are left out."""
    told = {step.seed: step.metrics.get(metric) for step in result.last(method)}
    return {seed: float(value) for seed, value in told.items() if value is not None}


def coarse_of(result: RunResult, method: str, groups: Groups) -> dict[int, Coarse]:
    """Seed -> what the confusion after the last step says of coarse classes; empty without groups."""
    last = result.last(method) if groups else ()
    return {step.seed: summarise_coarse(np.asarray(step.matrix, np.int64), step.names, groups) for step in last}


@dataclass(frozen=True)
class Course:
    """A method over all steps, in percent points, over seeds; for one trained at once there is none.

    Attributes:
        average: mean over steps of the mIoU over all seen classes.
        harmonic: harmonic mean of old and new after the last step.
        forgetting: mean over the earlier steps' classes of how far they are below their best.
        bwt: mean over them of how far they are from where they were when learnt.
    """

    method: str
    average: Spread
    harmonic: Spread
    forgetting: Spread
    bwt: Spread


def courses(result: RunResult) -> list[Course]:
    """One course a method that learnt step by step and is done."""
    found = []
    for method in result.methods():
        told = list(over_seeds(result, method).values())
        if told:
            spreads = (spread_of([one[name] for one in told]) for name in ("average", "harmonic", "forgetting", "bwt"))
            found.append(Course(method, *spreads))
    return found


def over_seeds(result: RunResult, method: str) -> dict[int, dict[str, float | None]]:
    """Seed -> average, harmonic, bwt and forgetting (mean over earlier steps) of a whole chain of steps."""
    told: dict[int, dict[str, float | None]] = {}
    for seed in result.seeds():
        steps = result.of(method, seed)
        if len(steps) < 2 or len(steps) != len(result.step_names):
            continue
        course = over_steps([step.metrics for step in steps], result.step_names)
        told[seed] = {name: course[name] for name in ("average", "harmonic", "bwt")}
        told[seed]["forgetting"] = mean_of(course["forgetting"])
    return told


@dataclass(frozen=True)
class Against:
    """A method against the best other one, joint aside, in all-class mIoU after the last step.

    The test is of these two rows; nothing is corrected for how many rows there are, or for having picked the best.
    """

    method: str
    other: str
    comparison: Comparison

    def __str__(self) -> str:
        return f"against the best other row, {self.other}: {self.comparison}"


def against_best(result: RunResult, method: str) -> Against | None:
    """The paired test over seeds; None for joint, and where there is no other row with a seed in common."""
    own = final(result, method, "all")
    others = {name: final(result, name, "all") for name in result.methods() if name not in (method, HIGH)}
    found = [
        (mean_of(list(values.values())) or 0.0, name) for name, values in others.items() if own.keys() & values.keys()
    ]
    if method == HIGH or not found:
        return None
    other = max(found, key=lambda pair: pair[0])[1]
    comparison = compare_seeds(own, others[other])
    return Against(method, other, comparison) if comparison is not None else None


def best_against(result: RunResult) -> Against | None:
    """`against_best` of the best row, joint aside."""
    means: Mapping[str, float] = {
        method: mean_of(list(final(result, method, "all").values())) or 0.0
        for method in result.methods() if method != HIGH and final(result, method, "all")
    }  # fmt: skip
    return against_best(result, max(means, key=lambda method: means[method])) if means else None


def finding(rows: Sequence[Row]) -> str:
    """The page's one sentence: the best method between the bounds against them; "" where none can be compared."""
    by_name = {row.method: row for row in rows}
    middle = [row for row in rows if row.method not in (LOW, HIGH) and row.all.mean is not None]
    if not middle or LOW not in by_name:
        return ""
    best = max(middle, key=lambda row: row.all.mean or 0.0)
    low = by_name[LOW].all.mean
    if best.all.mean is None or low is None:
        return ""
    difference = best.all.mean - low
    way = "above" if difference >= 0 else "below"
    text = (
        f"{best.method} ends at {number(best.all.mean)} % mIoU over all classes, "
        f"{number(abs(difference))} points {way} {LOW}"
    )
    if best.gap.mean is not None:
        text += f", closing {number(best.gap.mean, 0)} % of the gap to {HIGH} training"
    return text + "."


def below(table: RecipeTable, result: RunResult, *, tested: bool = False) -> list[str]:
    """What stands under a run's table in a terminal: coarse classes, published rows, the best row's paired test.

    tested: the table has every row's test already.
    """
    groups = table.coarse
    rows = [row for row in final_rows(result, groups) if row.all.mean is not None]
    lines = []
    if groups and rows:
        told = ", ".join(f"{row.method} {row.coarse}" for row in rows)
        lines.append(f"mIoU over coarse classes ({', '.join(groups)}): {told}")
    lines += published_lines(rows, {one.method: one.published for one in beside(table)})
    best = best_against(result) if not tested else None
    return [*lines, f"{best.method} {best}"] if best is not None else lines


def published_lines(rows: Sequence[Row], published: Mapping[str, Published]) -> list[str]:
    """The run's rows beside published ones, aligned, and what keeps them from being comparable; none without any."""
    cells = [["", "old", "new", "all", "published", "old", "new", "all", ""]]
    for row in rows:
        if (paper := published.get(row.method)) is not None:
            theirs = [number(value) for value in (paper.old, paper.new, paper.all)]
            cells.append([row.method, str(row.old), str(row.new), str(row.all), paper.method, *theirs, paper.note])
    if len(cells) == 1:
        return []
    words = (0, 4, 8)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) if i in words else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
             for line in cells]  # fmt: skip
    return [*lines, COMPARABILITY]


def comparison_json(table: RecipeTable, result: RunResult) -> dict[str, Any]:
    """What `below` says, of every row, as plain data with stable keys."""
    groups = table.coarse
    tests = {method: against_best(result, method) for method in result.methods()}
    return {
        "published": {
            one.method: {"method": one.published.method, "old": one.published.old, "new": one.published.new,
                         "all": one.published.all, "network": one.published.network, "note": one.published.note}
            for one in beside(table)
        },
        "coarse": {
            method: {str(seed): one.as_json() for seed, one in coarse_of(result, method, groups).items()}
            for method in result.methods() if groups
        },
        "against_best": {
            method: {"other": one.other, **one.comparison.as_json()} for method, one in tests.items() if one is not None
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Heat:
    """One method's IoU of each class after each step, in percent, mean over seeds.

    Attributes:
        columns: the steps.
        rows: (class name, step that learnt it or None for background, one value a step or None).
    """

    method: str
    columns: tuple[int, ...]
    rows: tuple[tuple[str, int | None, tuple[float | None, ...]], ...]


def heats(result: RunResult) -> list[Heat]:
    """Class x step tables, one a method."""
    learnt = {name: k for k, names in enumerate(result.step_names) for name in names}
    found = []
    for method in result.methods():
        runs = [result.of(method, seed) for seed in result.seeds()]
        steps = sorted({step.step for run in runs for step in run})
        names = list(dict.fromkeys(name for run in runs for step in run for name in step.metrics["per_class"]))
        rows = []
        for name in names:
            values = tuple(
                mean_of([step.metrics["per_class"].get(name) for run in runs for step in run if step.step == k])
                for k in steps
            )
            rows.append((name, learnt.get(name), values))
        found.append(Heat(method, tuple(steps), tuple(rows)))
    return found


@dataclass(frozen=True)
class ConfusionTable:
    """Where the true pixels of each class went after the last step, in percent of the row, summed over seeds.

    Attributes:
        cells: [true][predicted]; an absent class has None; empty where there are too many classes to show.
        largest: (true, predicted, percent) off the diagonal, largest first.
    """

    method: str
    names: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]
    largest: tuple[tuple[str, str, float], ...]


def confusions(result: RunResult) -> list[ConfusionTable]:
    """Row-normalised confusion matrices, one a method."""
    return [confusion_table(method, result.last(method)) for method in result.methods() if result.last(method)]


def confusion_table(method: str, last: Sequence[StepResult]) -> ConfusionTable:
    """The table of one method's last steps, one a seed (those of the newest step, where seeds are not equally far)."""
    newest = max(step.step for step in last)
    last = [step for step in last if step.step == newest]
    names = last[0].names
    size = range(len(names))
    counts = [[sum(step.matrix[i][j] for step in last) for j in size] for i in size]
    cells: list[tuple[float | None, ...]] = []
    for row in counts:
        total = sum(row)
        cells.append(tuple(100.0 * count / total if total else None for count in row))
    pairs = [(names[i], names[j], value) for i in size for j in size
             if i != j and (value := cells[i][j]) is not None and value >= 1.0]  # fmt: skip
    pairs.sort(key=lambda pair: -pair[2])
    shown = tuple(cells) if len(names) <= MOST_CONFUSION else ()
    return ConfusionTable(method, names, shown, tuple(pairs[: 3 if shown else 40]))
