"""Commands about runs: which there were, what became of one, what it said."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaygen.cli import completing
from replaygen.cli.options import Json, Root, open_store

if TYPE_CHECKING:
    from replaygen.runs.ledger import Ledger, RunRow

app = typer.Typer(no_args_is_help=True, help="What was run with this store: ls, show, logs.")

RunId = Annotated[
    str,
    typer.Argument(
        metavar="[ID]", help="a run's id, or its beginning; last: the newest", autocompletion=completing.run_ids
    ),
]
_AGAIN = 0.5


def _ledger(root: str) -> Ledger:
    from replaygen.runs.ledger import Ledger

    return Ledger(open_store(root, readonly=True).root, readonly=True)


@app.command()
def ls(
    limit: Annotated[int, typer.Option("--limit", min=1, help="only the newest")] = 20,
    root: Root = "cache",
    as_json: Json = False,
) -> None:
    """The newest runs: when, what, and what became of them."""
    from replaygen.report.text import plain

    rows = _ledger(root).runs(limit)
    if as_json:
        print(json.dumps({"runs": [_plain(row) for row in rows]}, ensure_ascii=False))
        return
    for row in rows:
        print(plain(f"{row.id}  {row.state:<12}{_took(row):>10}  {row.recipe or '-':<20} {row.command}"))


@app.command()
def show(run: RunId = "last", root: Root = "cache", as_json: Json = False) -> None:
    """What a run did: its recipe, counts by stage, failures, and where its files are."""
    from replaygen.report.text import plain

    row = _ledger(root).run(run)
    events = _events(row)
    failures = [event for event in events if event.get("event") == "failed"]
    stages = Counter(str(event.get("stage")) for event in events if event.get("event") == "task")
    if as_json:
        print(json.dumps({**_plain(row), "tasks": stages, "failures": failures}, ensure_ascii=False))
        return
    print(plain(f"{row.id}: {row.state}" + (f" after {_took(row)}" if row.ended else "")))
    told = {"command": row.command, "recipe": row.recipe, "hash": row.recipe_hash, "started": row.started,
            "ended": row.ended, "by": row.who, "tick": row.tick, "report": row.report, "files": row.folder}  # fmt: skip
    for name, value in told.items():
        if value is not None:
            print(plain(f"  {name:<10}{value}"))
    for stage, count in stages.items():
        print(plain(f"  {count:>6} tasks done of {stage}"))
    for event in failures:
        print(plain(f"  failed    {event.get('slot')}: {event.get('error')}"))
    if row.error:
        print("  error     " + "\n            ".join(plain(line) for line in row.error.splitlines()))


@app.command()
def logs(
    run: RunId = "last",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the run has ended")] = False,
    root: Root = "cache",
    as_json: Json = False,
) -> None:
    """What a run said; with --json its events, one object a line."""
    from replaygen.runs.recorder import EVENTS, LOG

    ledger = _ledger(root)
    row = ledger.run(run)
    path, read = row.folder / (EVENTS if as_json else LOG), 0
    while True:
        ended = ledger.run(row.id).state != "running"
        read += _print_from(path, read, whole=ended)
        if ended or not follow:
            return
        time.sleep(_AGAIN)


def _print_from(path: Path, start: int, *, whole: bool) -> int:
    """Print a file's lines from a position on, an unfinished last one only if `whole`; how many bytes these were."""
    from replaygen.report.text import plain

    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return 0
    if not whole:
        data = data[: data.rfind(b"\n") + 1]
    for line in data.decode("utf-8", "replace").splitlines():
        print(plain(line))
    sys.stdout.flush()
    return len(data)


def _events(row: RunRow) -> list[dict[str, Any]]:
    """A run's events; a line that was cut by a crash is left out."""
    from replaygen.runs.recorder import EVENTS

    found = []
    try:
        lines = (row.folder / EVENTS).read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found


def _plain(row: RunRow) -> dict[str, Any]:
    return {**asdict(row), "folder": str(row.folder)}


def _took(row: RunRow) -> str:
    from datetime import datetime

    from replaygen.plan.estimate import duration

    if row.ended is None:
        return "-"
    return duration((datetime.fromisoformat(row.ended) - datetime.fromisoformat(row.started)).total_seconds())
