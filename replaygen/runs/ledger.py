"""The ledger: one SQLite file in the store's folder that knows every run, every job of the schedule, and its ticks.

Rows only: no pickles, and nothing that a run's bytes depend on. A run's row tells what was run and what became of it;
its own files lie in `runs/<id>/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replaygen.errors import StoreError
from replaygen.runs.alive import is_held
from replaygen.store import fsops

SCHEMA = 1
"""The number of the tables' form; a ledger of another one is refused."""
KEPT = 200
"""Ended runs that stay in the ledger with their files; older ones go."""
ALIVE = "alive.lock"
"""In a run's folder: held as long as the run's process lives."""

synchronous = "FULL"
"""How a transaction waits for the disk; a test or rehearsal that kills processes, not power, says OFF."""

_APPLICATION = 0x72676C31
_PATIENCE = 30.0
_STRAY = 86400.0
_TABLES = (
    """CREATE TABLE runs (
        id TEXT PRIMARY KEY, command TEXT NOT NULL, recipe TEXT, recipe_hash TEXT, started TEXT NOT NULL, ended TEXT,
        state TEXT NOT NULL, counts TEXT, error TEXT, report TEXT, tick INTEGER, who TEXT NOT NULL)""",
    """CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, do TEXT NOT NULL, recipe TEXT, cron TEXT,
        zone TEXT NOT NULL, watched TEXT, changes TEXT NOT NULL, address TEXT NOT NULL, folder TEXT NOT NULL,
        paused INTEGER NOT NULL DEFAULT 0, horizon TEXT NOT NULL, seen TEXT, made TEXT NOT NULL)""",
    """CREATE TABLE ticks (
        id INTEGER PRIMARY KEY AUTOINCREMENT, job INTEGER NOT NULL, name TEXT NOT NULL, due TEXT NOT NULL,
        state TEXT NOT NULL, missed INTEGER NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0, started TEXT,
        ended TEXT, run TEXT, error TEXT, UNIQUE (job, due))""",
)


@dataclass(frozen=True)
class RunRow:
    """A run as the ledger tells it.

    Attributes:
        state: running, done, failed, interrupted, or died: its process is gone and never said how it ended.
        recipe_hash: sha256 of what the recipe makes, changes included; `[run]` left out.
        started, ended: ISO 8601 UTC.
        counts: `Run.as_json`, where the run came to its end.
        folder: its events, log and performance report.
        tick: the schedule's tick that it was, if any.
        who: user, host and process.
    """

    id: str
    command: str
    recipe: str | None
    recipe_hash: str | None
    started: str
    ended: str | None
    state: str
    counts: dict[str, Any] | None
    error: str | None
    folder: Path
    report: str | None
    tick: int | None
    who: str


class Ledger:
    """The ledger of a store.

    Args:
        root: the store's local folder.
        readonly: nothing is written; a ledger that is not there is empty.

    Raises:
        StoreError: a ledger of another form, or one that cannot be opened.
    """

    def __init__(self, root: Path, *, readonly: bool = False) -> None:
        self.root = root
        self.readonly = readonly
        self.path = root / "ledger.sqlite"
        if not readonly:
            with fsops.explained("make the ledger", self.path):
                os.close(fsops.open_lock_file(self.path))  # with the store's modes; an empty file is an empty ledger
            with self.change() as rows:
                _lay_out(rows, self.path)
        elif self.path.is_file() and self.path.stat().st_size:
            with self._open() as rows:
                _check(rows, self.path)

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it stands, or nothing."""
        with self._open() as rows:
            rows.execute("BEGIN IMMEDIATE")
            try:
                yield rows
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    rows.execute("ROLLBACK")
                raise
            rows.execute("COMMIT")

    def ask(self, query: str, values: Iterable[Any] = ()) -> list[sqlite3.Row]:
        """The rows that a query gives."""
        if self.readonly and not (self.path.is_file() and self.path.stat().st_size):
            return []
        with self._open() as rows:
            return rows.execute(query, tuple(values)).fetchall()

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        mode = "ro" if self.readonly else "rw"
        try:
            rows = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_PATIENCE, isolation_level=None
            )
            try:
                rows.row_factory = sqlite3.Row
                rows.execute(f"PRAGMA synchronous = {synchronous}")
                yield rows
            finally:
                rows.close()
        except sqlite3.Error as error:
            raise StoreError(
                f"the ledger cannot be used: {error}", where=str(self.path),
                hint="is the disk full, or the file damaged? The store works without it: move it away to begin anew",
            ) from None  # fmt: skip

    # runs

    def folder(self, run: str) -> Path:
        """Where a run's own files lie."""
        return self.root / "runs" / run

    def begin(self, run: str, command: str, *, who: str, tick: int | None = None) -> None:
        """Write down a run that starts now; the oldest ended ones beyond `KEPT` go, files included."""
        with self.change() as rows:
            rows.execute(
                "INSERT INTO runs (id, command, started, state, tick, who) VALUES (?, ?, ?, 'running', ?, ?)",
                (run, command, now_text(), tick, who),
            )
        self._trim()

    def about(self, run: str, **told: Any) -> None:
        """Set columns of a run: recipe, recipe_hash, counts, report, state, error, ended."""
        names = ", ".join(f"{name} = ?" for name in told)
        values = [json.dumps(value) if isinstance(value, dict) else value for value in told.values()]
        with self.change() as rows:
            rows.execute(f"UPDATE runs SET {names} WHERE id = ?", (*values, run))

    def runs(self, limit: int = -1) -> list[RunRow]:
        """The newest runs, newest first; all of them with a negative limit."""
        return [self._row(row) for row in self.ask("SELECT * FROM runs ORDER BY rowid DESC LIMIT ?", (limit,))]

    def run(self, name: str) -> RunRow:
        """A run by its id or a beginning of it; `last` is the newest.

        Raises:
            StoreError: none, or several.
        """
        if name == "last":
            found = self.runs(1)
        else:
            rows = self.ask("SELECT * FROM runs WHERE substr(id, 1, ?) = ? ORDER BY id", (len(name), name))
            found = [self._row(row) for row in rows]
        if len(found) != 1:
            what = "no run" if not found else f"{len(found)} runs"
            raise StoreError(f"{what} {name!r}", where=str(self.path), hint="`replaygen runs ls` tells the ids")
        return found[0]

    def _row(self, row: sqlite3.Row) -> RunRow:
        told = dict(row)
        folder = self.folder(told["id"])
        if told["state"] == "running" and not is_held(folder / ALIVE):
            told["state"] = "died"
        counts = told.pop("counts")
        return RunRow(**told, counts=json.loads(counts) if counts else None, folder=folder)

    def _trim(self) -> None:
        for row in map(self._row, self.ask("SELECT * FROM runs ORDER BY rowid DESC LIMIT -1 OFFSET ?", (KEPT,))):
            if row.state != "running":
                _clear(row.folder)
                with self.change() as rows:
                    rows.execute("DELETE FROM runs WHERE id = ?", (row.id,))
        for folder in self._strays():
            _clear(folder)

    def _strays(self) -> list[Path]:
        """Folders of runs that no row tells of, as a kill leaves them, a day old."""
        known = {row["id"] for row in self.ask("SELECT id FROM runs")}
        try:
            found = list(os.scandir(self.root / "runs"))
        except OSError:
            return []
        return [
            Path(entry.path) for entry in found
            if entry.name not in known and _is_old_folder(entry) and not is_held(Path(entry.path, ALIVE))
        ]  # fmt: skip


def _is_old_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False) and time.time() - entry.stat().st_mtime > _STRAY
    except OSError:
        return False


def _clear(folder: Path) -> None:
    """Remove a run's folder as far as this user may; what is left is no fault of the run that starts now."""
    with contextlib.suppress(OSError):
        fsops.remove_tree(folder)


def now_text() -> str:
    """This moment as the ledger writes it."""
    return text_of(datetime.now(UTC))


def text_of(moment: datetime) -> str:
    """A moment as the ledger writes it: ISO 8601, UTC, to the microsecond, so that texts sort as moments do."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _lay_out(rows: sqlite3.Connection, path: Path) -> None:
    if rows.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        _check(rows, path)
        return
    for table in _TABLES:
        rows.execute(table)
    rows.execute(f"PRAGMA application_id = {_APPLICATION}")
    rows.execute(f"PRAGMA user_version = {SCHEMA}")


def _check(rows: sqlite3.Connection, path: Path) -> None:
    application = rows.execute("PRAGMA application_id").fetchone()[0]
    schema = rows.execute("PRAGMA user_version").fetchone()[0]
    if application != _APPLICATION:
        raise StoreError("this file is no ledger of replaygen", where=str(path), hint="move it away")
    if schema != SCHEMA:
        raise StoreError(
            f"the ledger has form {schema}, this replaygen reads {SCHEMA}", where=str(path),
            hint="use the replaygen that wrote it, or move the file away: only the schedule and history are in it",
        )  # fmt: skip
