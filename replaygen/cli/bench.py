"""The command that compares every method of the field on one recipe's data, and says which is better beyond chance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaygen.cli.options import Cache, Cluster, Json, RecipeName, Set, Workers, open_recipe
from replaygen.cli.stopping import resumable

if TYPE_CHECKING:
    from replaygen.plan import Recipe
    from replaygen.plan.tables import MethodTable, TrainTable
    from replaygen.runs import Run
    from replaygen.runs.results import RunResult
    from replaygen.store import Store

FIELD = (
    "finetune", "frozen", "lwf", "ilt", "mib", "sdr", "plop", "ewf", "recall", "recall_plus", "replaygen", "joint",
)  # fmt: skip
"""The trainers of the field's comparison, in the table's order."""

REPLAYED = frozenset({"recall", "recall_plus", "replaygen"})
"""Those that are given replay where the recipe has no row of theirs."""

COLUMNS = ("old", "new", "all", "forgetting", "seconds")

app = typer.Typer(no_args_is_help=True, help="Compare methods on the data of one recipe.")


@app.callback()
def main() -> None:
    """Compare methods on the data of one recipe."""


@app.command()
def methods(
    recipe: RecipeName,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="how many seeds, from 0")] = 3,
    only: Annotated[
        str | None, typer.Option("--only", metavar="A,B", help="these methods, or rows of the recipe, alone")
    ] = None,
    changes: Set = None,
    cache_root: Cache = None,
    workers: Workers = None,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    """Train every method of the field on a recipe's data and print the table; rows of the recipe keep their options."""
    from replaygen.cli.app import executed, how
    from replaygen.logs import say

    with resumable():
        found, store = open_recipe(recipe, changes, cache_root, how(workers, cluster))
        names = chosen(only, str(found.path), [row.name for row in found.table.method])
        field, left_out = field_recipe(found, store, names, range(seeds))
        for note in left_out:
            say(note)
        done = executed(field, store, as_json=as_json)
        print(json.dumps(as_figures(done), ensure_ascii=False) if as_json else "\n" + "\n".join(lines(done)))


def chosen(only: str | None, where: str, rows: Sequence[str] = ()) -> tuple[str, ...]:
    """The methods asked for, in the table's order; then rows of the recipe that were asked for, one's own method say.

    Raises:
        RecipeError: no such method or row.
    """
    from replaygen.classes import nearest_hint
    from replaygen.errors import RecipeError

    if only is None:
        return FIELD
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in FIELD and name not in rows:
            raise RecipeError(
                f"--only names no method of the field and no row of the recipe: {name!r}", where=where,
                hint=nearest_hint(name, [*FIELD, *rows]),
            )  # fmt: skip
    if not names:
        raise RecipeError("--only names no method", where=where, hint=f"some of {', '.join(FIELD)}")
    return tuple(name for name in dict.fromkeys((*FIELD, *rows)) if name in names)


def field_recipe(recipe: Recipe, store: Store, names: tuple[str, ...], seeds: range) -> tuple[Recipe, list[str]]:
    """The recipe with one row a method, under the method's name, and what was left out for want of replay.

    A method takes its row from the recipe: its `[methods.NAME]`, else the row of its name, else the first of its
    trainer. Where there is none of them it gets its trainer's defaults; those in REPLAYED the recipe's first replay
    source too, and joint training the settings of `[train.base]` for as many iterations as a chain of steps has.
    """
    from replaygen.classes import nearest_hint
    from replaygen.errors import RecipeError

    table, rows, left_out = recipe.table, [], []
    for name in table.methods:
        if name not in FIELD:
            raise RecipeError(
                f"[methods.{name}] is no method of the field", where=str(recipe.path), hint=nearest_hint(name, FIELD)
            )
    for name in names:
        own = table.field_rows().get(name) or _own_row(table.method, name)
        if own is None and name in REPLAYED and not table.replay and _needs_replay(recipe, name):
            left_out.append(f"{name} is left out: it needs replay, and the recipe declares no [replay.NAME]")
            continue
        rows.append(own or _default_row(recipe, store, name))
    changed = table.model_copy(
        update={"method": tuple(rows), "train": table.train.model_copy(update={"seeds": tuple(seeds)})}
    )
    return replace(recipe, table=changed, partial=True), left_out


def _own_row(rows: tuple[MethodTable, ...], name: str) -> MethodTable | None:
    found = [row for row in rows if row.name == name] or [row for row in rows if row.trainer == name]
    return found[0].model_copy(update={"name": name}) if found else None


def _needs_replay(recipe: Recipe, name: str) -> bool:
    from replaygen.plan.method import read_method
    from replaygen.plan.workspace import find_trainer

    return read_method(find_trainer(name, recipe.workspace)).replay is True


def _default_row(recipe: Recipe, store: Store, name: str) -> MethodTable:
    from replaygen.plan.tables import MethodTable

    told: dict[str, Any] = {"name": name, "trainer": name}
    if name in REPLAYED and recipe.table.replay:
        told["replay"] = next(iter(recipe.table.replay))
    if name == "joint":
        told |= _joint_fit(recipe.table.train, len(recipe.open(store).scenario.steps))
    return MethodTable.model_validate(told)


def _joint_fit(train: TrainTable, steps: int) -> dict[str, Any]:
    """Joint training starts from nothing, as step 0 does, and is as long as the whole chain."""
    from replaygen.learn.specs import HOW

    base = {name: value for name, value in train.base.items() if name not in HOW}
    return base | {"iterations": base.get("iterations", train.fit.iterations) + (steps - 1) * train.fit.iterations}


@dataclass(frozen=True)
class Figures:
    """A method's numbers, one a seed; None where a number is undefined (joint training forgets nothing)."""

    old: list[float | None]
    new: list[float | None]
    all: list[float | None]
    forgetting: list[float | None]
    seconds: list[float | None]


def figures(result: RunResult) -> dict[str, Figures]:
    """Method -> its numbers after the last step, mIoU and points in percent, and the seconds of all its trainings."""
    from replaygen.report.tables import over_seeds

    told = {}
    for method in result.methods():
        last, course = result.last(method), over_seeds(result, method)
        seconds = {step.seed: sum(each.train_seconds for each in result.of(method, step.seed)) for step in last}
        told[method] = Figures(
            old=[step.metrics.get("old") for step in last],
            new=[step.metrics.get("new") for step in last],
            all=[step.metrics.get("all") for step in last],
            forgetting=[course[step.seed]["forgetting"] if step.seed in course else None for step in last],
            seconds=[round(seconds[step.seed], 2) for step in last],
        )
    return told


def as_figures(done: Run) -> dict[str, Any]:
    """The comparison as plain data with stable keys: `figures.<method>.<column>` are lists over `seeds`."""
    from replaygen.report.tables import comparison_json

    result = done.result
    return {
        "recipe": result.recipe, "task": result.task, "setting": result.setting, "seeds": list(result.seeds()),
        "figures": {
            method: {name: getattr(one, name) for name in COLUMNS} for method, one in figures(result).items()
        },
        "comparison": comparison_json(done.plan.recipe.table, result), "tally": done.as_json(),
    }  # fmt: skip


def lines(done: Run) -> list[str]:
    """The table, mean ± standard deviation over seeds, with each row's paired test; then what `run` says below it."""
    from replaygen.report.tables import HIGH, against_best, below, gap_to_joint, spread_of
    from replaygen.report.text import number

    result = done.result
    told = [["method", *COLUMNS[:4], "to joint", "seconds", "all, against the best other row"]]
    for method, one in figures(result).items():
        spreads = [str(spread_of(getattr(one, name))) for name in COLUMNS[:4]]
        seconds = spread_of(one.seconds)
        spent = number(seconds.mean, 0) + (
            f" ± {number(seconds.deviation, 0)}" if seconds.deviation is not None else ""
        )
        against = against_best(result, method)
        test = f"{against.other}: {against.comparison}" if against else "upper bound" if method == HIGH else ""
        told.append([method, *spreads, str(spread_of(gap_to_joint(result, method))), spent, test])
    widths = [max(len(row[column]) for row in told) for column in range(len(told[0]))]
    words = (0, len(widths) - 1)
    count = len(result.seeds())
    about = f"{count} seeds, mean ± standard deviation; p of the paired t test" if count > 1 else "1 seed"
    head = f"{result.title}: {result.task} {result.setting}, mIoU in percent after the last step; {about}"
    table = ["  ".join(cell.ljust(width) if i in words else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
             for row in told]  # fmt: skip
    return [head, *table, *below(done.plan.recipe.table, result, tested=True)]
