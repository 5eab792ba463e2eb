"""The command that writes the page of a run, sets several runs side by side, or follows one that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replaygen.cli import completing
from replaygen.cli.options import Cache, Json, Set, open_recipe, open_store

if TYPE_CHECKING:
    from replaygen.plan import Plan

Recipes = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE", help="one recipe, or several to compare", autocompletion=completing.recipes),
]


def report(
    recipes: Recipes,
    out: Annotated[Path | None, typer.Option("--out", help="the page to write")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="serve the page on this machine while a run goes on")] = False,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="of --watch; 0: any free one")] = None,
    changes: Set = None,
    cache_root: Cache = None,
    as_json: Json = False,
) -> None:
    """Write the page of a run: results, curves, replay; of several: compared. RECIPE@STORE: a run of another store."""
    if watch or port is not None:
        _watch(recipes, out, port or 0, changes, cache_root, as_json=as_json)
    elif len(recipes) == 1:
        _one(_planned(recipes[0], changes, cache_root), recipes[0], out, as_json=as_json)
    else:
        _several([_planned(name, changes, cache_root) for name in recipes], recipes, out, as_json=as_json)


def _planned(name: str, changes: list[str] | None, cache_root: str | None) -> Plan:
    """The plan of a recipe, of the store behind its `@` where it has one."""
    if "@" in name and not Path(name).is_file():
        name, cache_root = name.split("@", 1)
        open_store(cache_root, reads=True)
    found, store = open_recipe(name, changes, cache_root, reads=True)
    return found.plan(store)


def _one(planned: Plan, name: str, out: Path | None, *, as_json: bool) -> None:
    from replaygen.errors import DataError
    from replaygen.report import write_report
    from replaygen.runs import read_result

    if not planned.recipe.table.method:
        raise DataError(
            "the recipe has no [[method]], so there is nothing to report", where=str(planned.recipe.path),
            hint=f"look at what it makes: replaygen show {name} CLASS, or replaygen generator quality {name}",
        )  # fmt: skip
    if not read_result(planned).steps:
        raise DataError(
            "nothing was evaluated", where=str(planned.store.root), hint=f"run it first: replaygen run {name}"
        )
    page = write_report(planned, _place(planned, out, f"{planned.recipe.name}.html"))
    print(json.dumps({"report": str(page)}) if as_json else f"wrote {page}")


def _several(plans: list[Plan], names: list[str], out: Path | None, *, as_json: bool) -> None:
    from replaygen.errors import DataError
    from replaygen.report.compare import compared, write_comparison

    told = compared(plans)
    for name, run in zip(names, told.runs, strict=True):
        if not run.result.steps:
            raise DataError(
                f"nothing was evaluated of {name}", where=run.store, hint=f"run it first: replaygen run {name}"
            )
    page = write_comparison(told, _place(plans[0], out, "compare.html"))
    if as_json:
        print(json.dumps({"report": str(page), **told.as_json()}, ensure_ascii=False))
        return
    print("\n".join(told.lines()))
    print(f"wrote {page}")


def _place(planned: Plan, out: Path | None, name: str) -> Path:
    """Where the page goes, its folder made."""
    out = out or planned.recipe.workspace / "reports" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _watch(
    recipes: list[str], out: Path | None, port: int, changes: list[str] | None, cache_root: str | None, *, as_json: bool
) -> None:
    from replaygen.cli.stopping import stopping
    from replaygen.errors import ReplaygenError
    from replaygen.logs import say
    from replaygen.report.watch import Watch, served

    if len(recipes) > 1 or out is not None:
        what = "one run is watched at a time" if len(recipes) > 1 else "what is watched is served, and written nowhere"
        raise ReplaygenError(what, hint=f"replaygen report {recipes[0]} --watch")
    watched = Watch(_planned(recipes[0], changes, cache_root))
    try:
        with stopping(), served(watched, port) as server:
            print(json.dumps({"address": server.address}) if as_json else f"serving {server.address}", flush=True)
            say("Ctrl-C ends it; the run goes on without it")
            server.serve_forever()
    except KeyboardInterrupt:
        say("no longer served")
