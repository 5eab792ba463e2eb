"""What the page's tables say: final numbers, per-class IoU over steps, confusion. The looks are the template's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replaygen.report.text import deviation_of, mean_of, number
from replaygen.runs.results import RunResult, StepResult

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
    """A method's numbers after the last step, in percent; `best`: columns in which no method is better, joint aside."""

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


def final_rows(result: RunResult) -> list[Row]:
    """One row a method, in the recipe's order."""
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
