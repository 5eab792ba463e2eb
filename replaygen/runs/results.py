"""A run's metrics, read from its records: old / new / all mIoU, per-class IoU and confusion after every step."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from replaygen.plan import Plan
from replaygen.shown import Printer, notebook_html


@dataclass(frozen=True)
class StepResult:
    """One evaluation.

    Attributes:
        method: the recipe's row, "base" for the shared step 0.
        names: channel names, index = channel, 0 = background or "other".
        new, old: channels learnt at this step, and before.
        metrics: percent: all, old, new, background, old_without_background, per_class {name: IoU}, ...
        matrix: confusion counts [true][predicted] over the channels.
        train_seconds: what the step's training took.
        together: all classes were trained at once (joint), so there is no earlier step.
    """

    method: str
    seed: int
    step: int
    names: tuple[str, ...]
    new: tuple[int, ...]
    old: tuple[int, ...]
    metrics: dict[str, Any]
    matrix: list[list[int]]
    images: int
    train_seconds: float
    together: bool = False

    def rate(self, true: str, predicted: str) -> float:
        """Share in percent of the true pixels of one class that were predicted as another."""
        row = self.matrix[self.names.index(true)]
        total = sum(row)
        return 100.0 * row[self.names.index(predicted)] / total if total else float("nan")


@dataclass(frozen=True)
class RunResult:
    """All evaluations of a recipe that stand in the store."""

    recipe: str
    title: str
    task: str
    setting: str
    step_names: tuple[tuple[str, ...], ...]
    steps: tuple[StepResult, ...]

    def methods(self) -> tuple[str, ...]:
        """The recipe's rows, in its order, without the shared base."""
        return tuple(dict.fromkeys(step.method for step in self.steps if step.method != "base"))

    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run."""
        return tuple(dict.fromkeys(step.seed for step in self.steps))

    def of(self, method: str, seed: int) -> tuple[StepResult, ...]:
        """A method's evaluations of one seed, by step; the shared step 0 stands first where the method used it."""
        found = [step for step in self.steps if step.method == method and step.seed == seed]
        if found and found[0].step == 1 and not found[0].together:
            found = [step for step in self.steps if step.method == "base" and step.seed == seed] + found
        return tuple(sorted(found, key=lambda step: step.step))

    def last(self, method: str) -> tuple[StepResult, ...]:
        """A method's evaluation after the last step, one a seed; seeds that are not that far are left out."""
        ends = [self.of(method, seed) for seed in self.seeds()]
        return tuple(end[-1] for end in ends if end and end[-1].step == len(self.step_names) - 1)

    def mean(self, method: str, metric: str) -> tuple[float, float]:
        """Mean and standard deviation (0 for one seed) over seeds of a metric after the last step, in percent."""
        values = [float(step.metrics[metric]) for step in self.last(method)]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def gap_closed(self, method: str, low: str = "finetune", high: str = "joint") -> list[float] | None:
        """(method - low) / (high - low) in all-class mIoU, percent, one a seed.

        None where a row is missing; a seed whose `high` is not above its `low` has no gap and is left out.
        """
        rows = {step.seed: step for step in self.last(method)}
        lows = {step.seed: step for step in self.last(low)}
        highs = {step.seed: step for step in self.last(high)}
        both = [seed for seed in rows if seed in lows and seed in highs]
        seeds = [seed for seed in both if highs[seed].metrics["all"] > lows[seed].metrics["all"]]
        if not seeds:
            return None
        return [
            100.0 * (rows[seed].metrics["all"] - lows[seed].metrics["all"])
            / (highs[seed].metrics["all"] - lows[seed].metrics["all"])
            for seed in seeds
        ]  # fmt: skip

    def _repr_html_(self) -> str | None:
        return notebook_html("result", self)

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(table(self))

    def as_json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "recipe": self.recipe, "task": self.task, "setting": self.setting,
            "steps": [list(names) for names in self.step_names],
            "results": [
                {
                    "method": step.method, "seed": step.seed, "step": step.step, "metrics": step.metrics,
                    "names": list(step.names), "confusion": step.matrix, "images": step.images,
                    "train_seconds": round(step.train_seconds, 2),
                }
                for step in self.steps
            ],
        }  # fmt: skip


def read_result(plan: Plan) -> RunResult:
    """Gather every evaluation of a plan that stands in the store; a run that is half done gives what is there."""
    scenario = plan.opened.scenario
    names = scenario.names
    return RunResult(
        recipe=plan.recipe.name, title=plan.recipe.table.title or plan.recipe.name,
        task=plan.recipe.table.scenario.task, setting=plan.recipe.table.scenario.setting,
        step_names=tuple(tuple(names[channel] for channel in step.new) for step in scenario.steps),
        steps=tuple(_evaluations(plan)),
    )  # fmt: skip


def _evaluations(plan: Plan) -> Iterator[StepResult]:
    places = {slot: key for slot, key in plan.slots.items() if slot.startswith("evaluate/")}
    standing = plan.store.statuses(set(places.values()))
    for slot, key in places.items():
        record = plan.store.get(key) if standing[key].state == "cached" else None
        if record is None:
            continue
        told = json.loads(plan.store.read(record.output("result.json").digest))
        per_class = told["metrics"]["per_class"]
        told["metrics"]["per_class"] = {name: per_class[name] for name in told["names"] if name in per_class}
        _, method, seed, step = slot.split("/")
        (model,) = (source for role, source in record.inputs if role == "model")
        trained = plan.store.get(model)
        yield StepResult(
            method=method, seed=int(seed.removeprefix("seed")), step=int(step.removeprefix("step")),
            names=tuple(told["names"]), new=tuple(told["new"]), old=tuple(told["old"]), metrics=told["metrics"],
            matrix=told["matrix"], images=told["images"], train_seconds=trained.seconds if trained else 0.0,
            together=bool(told.get("trained_together")),
        )  # fmt: skip


def table(result: RunResult) -> str:
    """The final table in plain text: one row a method, old / new / all mIoU in percent, mean over seeds."""
    if not result.methods():
        return "nothing was trained: the recipe has no [[method]]"
    rows = [["method", "old", "new", "all", "background", "gap closed", "train s"]]
    for method in result.methods():
        last = result.last(method)
        if not last:
            rows.append([method, *["-"] * (len(rows[0]) - 1)])
            continue
        closed = result.gap_closed(method)
        seconds = sum(step.train_seconds for seed in result.seeds() for step in result.of(method, seed))
        rows.append([
            method, _percent(last, "old"), _percent(last, "new"), _percent(last, "all"),
            _percent(last, "background"),
            f"{statistics.fmean(closed):.0f} %" if closed else "-",
            f"{seconds / max(1, len(last)):.0f}",
        ])  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    seeds = result.seeds()
    head = f"{result.title}: {result.task} {result.setting}, mIoU in percent after the last step"
    about = f"{len(seeds)} seeds, mean ± standard deviation" if len(seeds) > 1 else "1 seed"
    counted = any(step.metrics["background_counted"] for step in result.steps)
    lines = [head + f", {about}" + ("; background counted in old and all" if counted else "")]
    for row in rows:
        lines.append("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths, strict=True))))  # fmt: skip
    return "\n".join(lines)


def _percent(last: Sequence[StepResult], metric: str) -> str:
    values = [float(step.metrics[metric]) for step in last if step.metrics[metric] is not None]
    if not values:
        return "-"
    return _spread((statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0))


def _spread(value: tuple[float, float]) -> str:
    mean, deviation = value
    return f"{mean:.1f} ± {deviation:.1f}" if deviation else f"{mean:.1f}"
