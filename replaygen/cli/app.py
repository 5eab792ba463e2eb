"""The commands that plan, run, train, show and report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaygen.cli import (
    bench,
    cache,
    cluster,
    completing,
    crawl,
    exporting,
    generator,
    importing,
    places,
    reporting,
    runs,
    schedule,
    showing,
)  # fmt: skip
from replaygen.cli.ending import Commands
from replaygen.cli.options import Cache, Cluster, Json, RecipeName, Set, Workers, asked, open_recipe
from replaygen.cli.stopping import resumable

if TYPE_CHECKING:
    from replaygen.plan import Plan, Recipe
    from replaygen.runs import Run
    from replaygen.store import Store

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Replay data for class-incremental semantic segmentation: make it, label it, train on it.",
)
app.add_typer(cache.app, name="cache")
app.add_typer(places.recipes, name="recipes")
app.add_typer(generator.app, name="generator")
app.add_typer(crawl.app, name="crawl")
app.add_typer(bench.app, name="bench")
app.add_typer(schedule.app, name="schedule")
app.add_typer(runs.app, name="runs")
app.add_typer(cluster.app, name="cluster")
app.command()(places.init)
app.command()(places.doctor)
app.command()(exporting.export)
app.command("import")(importing.import_)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"replaygen {version('replaygen')}")
        raise typer.Exit


@app.callback()
def main(
    log: Annotated[
        str | None,
        typer.Option(
            "--log", metavar="FORM", help="text, or json: one object a line on standard error",
            autocompletion=completing.words("text", "json"),
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="say which version this is, and exit", is_eager=True, callback=_version)
    ] = False,
) -> None:  # fmt: skip
    """Replay data for class-incremental semantic segmentation: make it, label it, train on it."""
    if log is not None:
        from replaygen.logs import start

        start(log)


def how(workers: int | None, cluster: str | None) -> dict[str, Any]:
    """`--workers` and `--cluster` as changes of a recipe."""
    changes: dict[str, Any] = {}
    if workers is not None:
        changes["run.workers"] = workers
    if cluster is not None:
        changes["run.cluster"] = cluster
    return changes


@app.command()
def plan(
    recipe: RecipeName,
    changes: Set = None,
    cache_root: Cache = None,
    tasks: Annotated[bool, typer.Option("--tasks", help="one line a task, with its reason")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="draw it, one box a stage, in this .svg or .html file")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a run would do, and why; nothing runs."""
    found, store = open_recipe(recipe, changes, cache_root, reads=True)
    planned = found.plan(store)
    if picture is not None:
        from replaygen.report.planned import write_picture

        write_picture(planned, picture)
    if as_json:
        print(json.dumps(planned.as_json() | {"picture": str(picture) if picture else None}, ensure_ascii=False))
        return
    print(planned)
    if picture is not None:
        print(f"wrote {picture}")
    if tasks:
        for key, task in planned.tasks.items():
            status = planned.status[key]
            print(f"{key[:12]}  {status.state:<6}  {task.slot}  {status.reason}")


@app.command()
def run(
    recipe: RecipeName,
    changes: Set = None,
    cache_root: Cache = None,
    workers: Workers = None,
    cluster: Cluster = None,
    tensorboard: Annotated[Path | None, typer.Option(help="a folder for TensorBoard: curves, predictions")] = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="where to write the page")] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe: make what is missing, rebuild what is damaged, then print the table and write the page."""
    board = {"run.tensorboard": str(tensorboard.resolve())} if tensorboard is not None else {}
    with resumable():
        found, store = open_recipe(recipe, changes, cache_root, {**how(workers, cluster), **board})
        _run(found, store, as_json=as_json, report_to=report_to)


@app.command()
def train(
    recipe: RecipeName,
    method: Annotated[
        list[str],
        typer.Option("--method", help="rows of the recipe to train; repeatable", autocompletion=completing.rows),
    ],
    seed: Annotated[list[int] | None, typer.Option("--seed", help="seeds; default: the recipe's")] = None,
    changes: Set = None,
    cache_root: Cache = None,
    workers: Workers = None,
    save: Annotated[Path | None, typer.Option("--save", help="copy the trained models to this folder")] = None,
    as_json: Json = False,
) -> None:
    """Train some methods of a recipe, with all that they need."""
    from replaygen.logs import say

    with resumable():
        found, store = open_recipe(recipe, changes, cache_root, how(workers, None))
        done = _run(found.narrowed(methods=method, seeds=seed), store, as_json=as_json, report_to=None)
        if save is not None:
            for folder in done.save_models(save):
                say(f"saved {folder}", folder=str(folder))


def _run(recipe: Recipe, store: Store, *, as_json: bool, report_to: Path | None) -> Run:
    from replaygen.plan.estimate import duration
    from replaygen.report.tables import below, comparison_json
    from replaygen.runs import table
    from replaygen.runs.recorder import recording

    with recording(store, asked()) as recorder:
        done = executed(recipe, store, as_json=as_json)
        page = _page(done.plan, done, report_to)
        recorder.reported(page)
    if as_json:
        told = {
            "result": done.result.as_json(), "comparison": comparison_json(recipe.table, done.result),
            "tally": done.as_json(), "report": str(page) if page else None,
        }  # fmt: skip
        print(json.dumps(told, ensure_ascii=False))
        return done
    print("\n".join(["", table(done.result), *below(recipe.table, done.result), ""]))
    print(duration(done.seconds) + (f"; look at {page}" if page else ""))
    return done


def executed(recipe: Recipe, store: Store, *, as_json: bool) -> Run:
    """Plan a recipe, say what is to do, do it and say what was done; with `as_json` nothing is said."""
    from replaygen.learn.coarse import known_groups
    from replaygen.runs import run as execute
    from replaygen.runs.progress import for_stream
    from replaygen.runs.recorder import recording

    with recording(store, asked(), shown=for_stream(sys.stderr, quiet=as_json)) as recorder:
        recorder.recipe(recipe)
        planned = recipe.plan(store)
        known_groups(recipe.table.coarse, planned.opened.scenario.names, str(recipe.path))
        if not as_json:
            print(planned, flush=True)
        done = execute(planned, progress=recorder, folder=recorder.folder)
        recorder.finished(done)
    for line in () if as_json else done.lines():
        print(line)
    return done


def _page(planned: Plan, done: Run, report_to: Path | None) -> Path | None:
    """Write the page, unless it stands already for these very results, or its packages are not installed."""
    from importlib.util import find_spec

    from replaygen.canonical import digest_of

    if find_spec("jinja2") is None or find_spec("matplotlib") is None:
        return None
    if not done.result.steps:
        return None
    out = report_to or planned.recipe.workspace / "reports" / f"{planned.recipe.name}.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    table = planned.recipe.table
    shown = [table.title, planned.slots, table.coarse, table.compare and table.compare.dataset]
    seal = f"<!-- shows {digest_of(shown)} -->\n"
    if done.tally.made == 0 and done.tally.adopted == 0 and out.is_file():
        with out.open("rb") as page:
            page.seek(max(0, out.stat().st_size - len(seal)))
            if page.read() == seal.encode():
                return out
    from replaygen.report import write_report

    written = write_report(planned, out)
    with written.open("a", encoding="utf-8") as page_end:
        page_end.write(seal)
    return written


app.command()(reporting.report)
app.command()(showing.show)


_DEMO = """\
Ten handwritten digits on photographs: five classes first, then one a step. Fine-tuning sees only the
new digit; RECALL replays pictures of the old ones that the model labelled itself; joint saw everything.
"""
_MEANWHILE = "To see it grow, in another terminal in this folder: replaygen report digits --watch\n"


def _all_of_the_demo() -> None:
    """Ask for all packages of the demo at once, before it starts."""
    from importlib.util import find_spec

    from replaygen.errors import DataError

    missing = [name for name, extra in places.PACKAGES.items() if extra in places.DEMO and find_spec(name) is None]
    if missing:
        raise DataError(f"the demo needs packages that are not here: {', '.join(missing)}",
                        hint="pip install 'replaygen[demo]'")  # fmt: skip


@app.command()
def demo(
    cache_root: Cache = None,
    workers: Workers = None,
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Watch a model forget under fine-tuning and remember under RECALL: digit scenes, offline, a few minutes."""
    _all_of_the_demo()
    with resumable():
        found, store = open_recipe("digits", changes, cache_root, how(workers, None))
        if not as_json:
            print(_DEMO if changes or cache_root else _DEMO + _MEANWHILE)
        done = _run(found, store, as_json=as_json, report_to=None)
        closed = done.result.gap_closed("recall")
        if closed and not as_json:
            print(f"RECALL closes {sum(closed) / len(closed):.0f} % of the gap between fine-tuning and joint training.")
