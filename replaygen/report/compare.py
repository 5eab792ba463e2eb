"""Several runs side by side: what they reached, whether that is beyond chance, and in which settings they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.errors import ReplaygenError
from replaygen.learn.significance import Comparison, compare_seeds
from replaygen.report.compare_curves import together_svg
from replaygen.report.files import check_folder, write_text
from replaygen.report.published import COMPARABILITY, Published, beside
from replaygen.report.summary import summary
from replaygen.report.tables import HIGH, LOW, Row, Spread, final, final_rows, spread_of
from replaygen.report.text import number, plain, stripped
from replaygen.runs.results import RunResult, read_result

if TYPE_CHECKING:
    from replaygen.plan import Plan

LETTERS = "ABCDEFGH"
"""What the runs are called; there is a colour for each, and no more are compared at once."""

METRICS = ("old", "new", "all")

MOST_COLUMNS, MOST_CLASSES = 12, 60
"""Rows of methods whose classes are shown side by side, and classes; the others are left out, and that is said."""

LONGEST = 160


@dataclass(frozen=True)
class Compared:
    """One of the runs.

    Attributes:
        letter: what it is called on the page.
        store: the address of its store.
        scene: what has to be equal for numbers to be compared: data set, task, setting, the steps' classes.
        settings: the recipe as it was read, dotted key -> value, without name, title and `[run]`.
        versions: of packages and machines, as its records tell.
        published: method row -> the same method in a paper.
    """

    letter: str
    name: str
    store: str
    result: RunResult
    rows: tuple[Row, ...]
    scene: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    published: Mapping[str, Published]
    last: str
    command: str

    @property
    def images(self) -> int:
        """How many it was evaluated on, at most."""
        return max((step.images for step in self.result.steps), default=0)

    def row(self, method: str) -> Row | None:
        """A method's numbers after the last step."""
        return next((row for row in self.rows if row.method == method), None)


@dataclass(frozen=True)
class Line:
    """A method's row of one run, against the same row of the first run that has it.

    Attributes:
        first: the letter of the run it is compared with; "" where there is none.
        tests: old, new, all -> the paired test of this row minus that one over the seeds of both.
    """

    run: Compared
    row: Row
    first: str = ""
    tests: Mapping[str, Comparison] = field(default_factory=dict)

    def said(self, metric: str) -> str:
        """A metric's test in words; "" where there is none."""
        test = self.tests.get(metric)
        if test is None:
            return ""
        same = test.difference == 0 and test.p == 1
        return f"as {self.first} in each of {test.pairs} seeds" if same else f"to {self.first}: {test}"


@dataclass(frozen=True)
class Comparisons:
    """Runs side by side; see the properties."""

    runs: tuple[Compared, ...]

    def methods(self) -> tuple[str, ...]:
        """Every run's rows, each once, in the order of the first run that has it."""
        return tuple(dict.fromkeys(row.method for run in self.runs for row in run.rows))

    @cached_property
    def comparable(self) -> bool:
        """Whether all were evaluated on the same data, task, setting and classes."""
        return len({run.scene for run in self.runs}) == 1

    def lines(self) -> list[str]:
        """The final table in plain text, and each row against the first run's."""
        told = [f"{run.letter}  {run.name}: {run.result.task} {run.result.setting}, {run.store}" for run in self.runs]
        told += ["", "mIoU in percent after the last step: old, new, all; against the first run's row in all"]
        for method, lines in self.table().items():
            for line in lines:
                cells = "  ".join(f"{getattr(line.row, name)!s:>12}" for name in METRICS)
                told.append(f"{plain(method):<16}{line.run.letter}{cells}  {line.said('all')}".rstrip())
        return [*map(stripped, told), *([] if self.comparable else [NOT_COMPARABLE])]

    def table(self) -> dict[str, list[Line]]:
        """Method -> its line of each run that has it."""
        return {method: list(self._lines(method)) for method in self.methods()}

    def _lines(self, method: str) -> Iterator[Line]:
        first: Compared | None = None
        for run in self.runs:
            row = run.row(method)
            if row is None:
                continue
            if first is None or not self.comparable:
                yield Line(run, row)
            else:
                yield Line(run, row, first.letter, paired(run, method, first, method))
            first = first or run

    @cached_property
    def best(self) -> list[tuple[Compared, str, Line]]:
        """Each later run's best row, joint aside, against the first run's best: (run, the first's method, line)."""
        first, *others = self.runs
        theirs = best_row(first.rows)
        found = []
        for run in others if theirs is not None and self.comparable else ():
            own = best_row(run.rows)
            if own is not None and theirs is not None:
                tests = paired(run, own.method, first, theirs.method)
                found.append((run, theirs.method, Line(run, own, first.letter, tests)))
        return found

    def differences(self) -> list[tuple[str, tuple[str, ...]]]:
        """(dotted key, its value in each run as JSON, "–" where it has none) of the settings that differ."""
        return differing([run.settings for run in self.runs])

    def versions(self) -> list[tuple[str, tuple[str, ...], bool]]:
        """(what, its version in each run, whether these differ)."""
        names = dict.fromkeys(name for run in self.runs for name in run.versions)
        told = [(name, tuple(run.versions.get(name, "–") for run in self.runs)) for name in names]
        return [(name, values, len(set(values)) > 1) for name, values in told]

    def classes(self) -> tuple[list[tuple[str, str]], list[tuple[str, list[float | None]]]]:
        """IoU of each class after the last step: columns (letter, method), rows (class, percent or None)."""
        columns = [(run, line.row.method) for lines in self.table().values() for line in lines for run in [line.run]]
        columns = columns[:MOST_COLUMNS]
        lasts = [run.result.last(method) for run, method in columns]
        names = dict.fromkeys(name for last in lasts for step in last for name in step.metrics["per_class"])
        rows = [
            (name, [spread_of([step.metrics["per_class"].get(name) for step in last]).mean for last in lasts])
            for name in list(names)[:MOST_CLASSES]
        ]
        return [(run.letter, method) for run, method in columns], rows

    def as_json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "runs": [
                {"letter": run.letter, "recipe": run.name, "store": run.store, "task": run.result.task,
                 "setting": run.result.setting, "seeds": list(run.result.seeds())} for run in self.runs
            ],
            "comparable": self.comparable,
            "rows": [
                {
                    "method": method, "run": line.run.letter, "against": line.first or None,
                    **{name: _spread_json(getattr(line.row, name)) for name in METRICS},
                    "tests": {name: test.as_json() for name, test in line.tests.items()},
                }
                for method, lines in self.table().items() for line in lines
            ],
            "differences": [{"key": key, "values": list(values)} for key, values in self.differences()],
            "versions": [{"name": name, "values": list(values)} for name, values, _ in self.versions()],
        }  # fmt: skip


NOT_COMPARABLE = (
    "These runs differ in data, task, setting or classes: their numbers stand side by side, and no test is made."
)


def compared(plans: Sequence[Plan]) -> Comparisons:
    """Read what several runs reached, from their stores; nothing runs.

    Raises:
        ReplaygenError: fewer than two, or more than there are letters for.
    """
    if not 2 <= len(plans) <= len(LETTERS):
        raise ReplaygenError(
            f"{len(plans)} runs cannot be compared",
            hint=f"name 2 to {len(LETTERS)} recipes; RECIPE@STORE for another's",
        )
    return Comparisons(tuple(_read(plan, letter) for plan, letter in zip(plans, LETTERS, strict=False)))


def _read(plan: Plan, letter: str) -> Compared:
    result, told, table = read_result(plan), summary(plan), plan.recipe.table
    settings = table.model_dump(mode="json", exclude={"run", "name", "title"})
    return Compared(
        letter, plan.recipe.name, str(plan.store.address), result,
        tuple(row for row in final_rows(result, table.coarse) if row.all.mean is not None),
        scene_of(plan), flat(settings), dict(told.versions),
        {one.method: one.published for one in beside(table)}, told.last, told.command,
    )  # fmt: skip


def scene_of(plan: Plan) -> str:
    """What a run's numbers were measured on, as JSON: data, task, classes, images, and how these were predicted."""
    scenario, table = plan.opened.scenario, plan.recipe.table
    images = list(scenario.holdout_ids) if table.scenario.holdout else table.data.val
    told = [plan.opened.dataset.digest, table.scenario.task, table.scenario.setting, list(scenario.names), images]
    return json.dumps([*told, table.scenario.protocol, table.flip], sort_keys=True)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; tables of an array go by their `name`, where each has one of its own."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        named = {str(item["name"]): {key: inner for key, inner in item.items() if key != "name"} for item in value}
        value = named if len(named) == len(value) else value
    if not isinstance(value, dict) or not value:
        return {name: value} if name else {}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{name}.{key}" if name else str(key))
    return found


def differing(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[str, ...]]]:
    """The keys whose values are not the same everywhere, with the values as JSON, cut; a missing or null one is "–"."""
    found = []
    for key in dict.fromkeys(key for one in settings for key in one):
        values = tuple(_shown(one.get(key)) for one in settings)
        if len(set(values)) > 1:
            found.append((key, tuple(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in values)))
    return found


def _shown(value: Any) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)


def paired(run: Compared, method: str, other: Compared, theirs: str) -> dict[str, Comparison]:
    """Old, new, all -> the paired test of a row minus another one, over the seeds that both were run with."""
    tests = {
        metric: compare_seeds(final(run.result, method, metric), final(other.result, theirs, metric))
        for metric in METRICS
    }
    return {metric: test for metric, test in tests.items() if test is not None}


def best_row(rows: Sequence[Row]) -> Row | None:
    """The row with the highest mIoU over all classes, joint aside."""
    own = [row for row in rows if row.method != HIGH]
    return max(own, key=lambda row: row.all.mean or 0.0, default=None)


def finding(told: Comparisons) -> str:
    """The page's one sentence: the first run's best row, and how the best of the others stands to it."""
    first = best_row(told.runs[0].rows)
    if not told.best or first is None or all(row.method in (LOW, HIGH) for run in told.runs for row in run.rows):
        return ""
    run, theirs, line = max(told.best, key=lambda one: one[2].row.all.mean or 0.0)
    difference = (line.row.all.mean or 0.0) - (first.all.mean or 0.0)
    test = line.tests.get("all")
    way = f"{number(abs(difference))} points {'above' if difference > 0 else 'below'}"
    text = f"{run.letter}'s best row, {line.row.method}, ends at {number(line.row.all.mean)} % mIoU over all classes, "
    text += f"{way if abs(difference) >= 0.05 else 'as'} "
    text += f"{told.runs[0].letter}'s best, {theirs}"
    if test is None or test.p is None:
        return text + "; with less than two seeds in common there is no test."
    return text + (": beyond chance" if test.beyond_chance else ": within chance") + f" over {test.pairs} seeds."


def write_comparison(told: Comparisons, out: Path) -> Path:
    """Write the page that sets the runs side by side: one file that asks for nothing outside itself.

    Raises:
        ReplaygenError: the place cannot be written.
    """
    check_folder(out)
    return write_text(out, comparison_page(told))


def comparison_page(told: Comparisons) -> str:
    """The page as HTML text; the same runs give the same text."""
    from markupsafe import Markup

    from replaygen.report.page import render

    runs = [(run.letter, run.result) for run in told.runs]
    steps = [step for run in told.runs for step in run.result.steps]
    metrics = [name for name in ("all", "old", "new") if any(step.metrics.get(name) is not None for step in steps)]
    columns, classes = told.classes()
    return render(
        "compare.html", told=told, runs=told.runs, table=told.table(), finding=finding(told), metrics=METRICS,
        charts=[Markup(together_svg(runs, metric)) for metric in metrics], columns=columns, classes=classes,
        tested=any(line.tests for lines in told.table().values() for line in lines), not_comparable=NOT_COMPARABLE,
        seeds=max((len(run.result.seeds()) for run in told.runs), default=0), comparability=COMPARABILITY,
        published={method: run.published[method] for run in told.runs for method in run.published},
        settings=len({key for run in told.runs for key in run.settings}),
    )  # fmt: skip


def _spread_json(value: Spread) -> dict[str, float | None]:
    return {"mean": value.mean, "deviation": value.deviation}
