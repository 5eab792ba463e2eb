"""What a plan, a run, its results and its replay look like in a notebook. Each HTML stands alone.

Called by name from the objects' own `_repr_html_` (`replaygen.shown`), never imported by their rooms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaygen.report.curves import curves_svg
from replaygen.report.page import render
from replaygen.report.planned import plan_picture
from replaygen.report.sheets import Tile, refusals, sheet
from replaygen.report.tables import HIGH, final_rows, heats
from replaygen.runs.behind import ancestors

if TYPE_CHECKING:
    from replaygen.learn.buffer import ReplayBuffer
    from replaygen.plan import Plan
    from replaygen.runs import ReplaySet, Run, RunResult

FIRST = 4
"""Samples shown beside each replay set."""


def plan(shown: Plan) -> str:
    """Tasks by stage, how many are cached and why the others would run; the plan as a picture."""
    waiting = len(shown.to_run())
    head = f"{len(shown.tasks)} tasks: {len(shown.tasks) - waiting} cached, {waiting} to run"
    return render(
        "notebook.html", kind="plan", name=shown.recipe.table.title or shown.recipe.name,
        head=head + (f"; {shown.estimate}" if waiting else "."), stages=shown.summary(), waiting=waiting,
        notes=shown.notes(), picture=plan_picture(shown),
    )  # fmt: skip


def run(shown: Run) -> str:
    """What was done, then the results."""
    return render("notebook.html", kind="run", run=shown, **_result(shown.result))


def result(shown: RunResult) -> str:
    """mIoU after the last step, curves over steps, and each class after each step."""
    return render("notebook.html", kind="result", **_result(shown))


def _result(shown: RunResult) -> dict[str, Any]:
    from markupsafe import Markup

    rows = final_rows(shown) if any(map(shown.last, shown.methods())) else []
    metrics = [name for name in ("all", "old") if any(step.metrics.get(name) is not None for step in shown.steps)]
    return {
        "result": shown, "rows": rows, "compared": sum(row.method != HIGH for row in rows) > 1,
        "charts": [Markup(curves_svg(shown, [metric])) for metric in metrics if shown.methods()],
        "heats": heats(shown), "counted": any(step.metrics.get("background_counted") for step in shown.steps),
    }  # fmt: skip


def replay_set(shown: ReplaySet) -> str:
    """Its contact sheet."""
    return sheet(shown)._repr_html_()


@dataclass(frozen=True)
class SetLine:
    """One replay set in a table of several; no tiles of photos of other people, whom a table cannot credit."""

    name: str
    source: str
    made: int
    wanted: int
    refused: int
    tiles: tuple[Tile, ...]


def replay_sets(shown: Mapping[str, ReplaySet]) -> str:
    """A line a class with its first samples."""
    return render("notebook.html", kind="sets", sets=[_line(name, found) for name, found in shown.items()])


def _line(name: str, found: ReplaySet) -> SetLine:
    manifest = found.manifest
    others = any(record.stage == "fetch" for record in ancestors(found.store, found.record))
    return SetLine(
        name, str(manifest["source"]), len(found), int(manifest["wanted"]), sum(refusals(found).values()),
        () if others else sheet(found, FIRST).tiles,
    )  # fmt: skip


def buffer(shown: ReplayBuffer) -> str:
    """How many samples of each class, and what a sample is."""
    counted = Counter(shown.classes.tolist())
    rows = [(shown.names.get(channel, f"channel {channel}"), channel, count)
            for channel, count in sorted(counted.items())]  # fmt: skip
    return render("notebook.html", kind="buffer", buffer=shown, rows=rows)
