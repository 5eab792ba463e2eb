"""Ticks: each time that a job falls due is one row, which can exist once, is claimed, done, and never done again."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from replaygen.runs.ledger import Ledger, now_text, text_of
from replaygen.schedule.jobs import Job
from replaygen.schedule.times import Cron

KEPT = 5000
"""Ended ticks that stay in the ledger."""

_OPEN = "('due', 'running', 'interrupted')"


@dataclass(frozen=True)
class Tick:
    """A tick.

    Attributes:
        job: the job's number; name: what it was called.
        due: when it fell due, ISO 8601 UTC; a job has at most one tick of each moment.
        state: due: waits; running; done; failed; interrupted: stopped in order, goes on when the schedule is served
            again; coalesced: a later tick of the job was done in its place; dropped: its job was removed.
        missed: how many earlier due times this one stands for.
        tries: how often it was begun; more than once where it was killed or interrupted.
        run: the id of its last run.
    """

    id: int
    job: int
    name: str
    due: str
    state: str
    missed: int
    tries: int
    started: str | None
    ended: str | None
    run: str | None
    error: str | None

    @property
    def moment(self) -> datetime:
        """When it fell due."""
        return datetime.fromisoformat(self.due)


@lru_cache(maxsize=256)
def cron_of(line: str, zone: str) -> Cron:
    """A cron line, read once."""
    return Cron(line, zone)


def lock_of(root: Path, job: int) -> Path:
    """The file whose lock a tick of a job holds while it runs: a job never overlaps itself."""
    return root / "schedule" / f"job-{job}.lock"


class Ticks:
    """The ticks of a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def fall_due(self, job: Job, now: datetime) -> Tick | None:
        """The new tick of a job whose cron line fell due since the last look, if any; all that was missed is one.

        Where the clock was set back, the job goes on from there: a moment that has its tick gets no other.
        """
        assert job.cron is not None
        if now < job.horizon:
            with self.ledger.change() as rows:
                _moved(rows, job, now)
            return None
        found = cron_of(job.cron, job.zone).latest(job.horizon, now)
        if found is None:
            return None
        due, count = found
        with self.ledger.change() as rows:
            return _new(rows, job, due, count - 1) if _moved(rows, job, due) else None

    def changed(self, job: Job, seen: str, now: datetime) -> Tick | None:
        """The new tick of a job whose model is another one than at the last look."""
        with self.ledger.change() as rows:
            told = rows.execute(
                "UPDATE jobs SET seen = ? WHERE id = ? AND seen IS ? AND paused = 0", (seen, job.id, job.seen)
            )
            return _new(rows, job, now, 0) if told.rowcount else None

    def extra(self, job: Job, now: datetime) -> Tick:
        """A tick out of turn."""
        with self.ledger.change() as rows:
            rows.execute(
                "INSERT INTO ticks (job, name, due, state) VALUES (?, ?, ?, 'due')", (job.id, job.name, text_of(now))
            )
            return _tick(rows.execute("SELECT * FROM ticks WHERE id = last_insert_rowid()").fetchone())

    def get(self, number: int) -> Tick | None:
        """A tick by its number."""
        found = self.ledger.ask("SELECT * FROM ticks WHERE id = ?", (number,))
        return _tick(found[0]) if found else None

    def open(self) -> list[Tick]:
        """Ticks that have not come to their end, those that fell due first before others."""
        found = self.ledger.ask(f"SELECT * FROM ticks WHERE state IN {_OPEN} ORDER BY due, id")
        return [_tick(row) for row in found]

    def claim(self, number: int) -> Tick | None:
        """Begin a tick; None where there is nothing to do. Hold the job's lock: nobody else is at it then.

        A tick whose run came to its end, but whose process was killed before that was written here, is ended as its
        run was.
        """
        with self.ledger.change() as rows:
            row = rows.execute(f"SELECT * FROM ticks WHERE id = ? AND state IN {_OPEN}", (number,)).fetchone()
            if row is None:
                return None
            last = rows.execute("SELECT * FROM runs WHERE id = ?", (row["run"],)).fetchone()
            if row["state"] == "running" and last is not None and last["state"] in ("done", "failed"):
                _end(rows, number, last["state"], last["error"])
                return None
            rows.execute(
                "UPDATE ticks SET state = 'running', tries = tries + 1, started = coalesce(started, ?) WHERE id = ?",
                (now_text(), number),
            )
            return _tick(rows.execute("SELECT * FROM ticks WHERE id = ?", (number,)).fetchone())

    def runs_as(self, number: int, run: str) -> None:
        """Note which run a claimed tick is."""
        with self.ledger.change() as rows:
            rows.execute("UPDATE ticks SET run = ? WHERE id = ?", (run, number))

    def end(self, number: int, state: str, error: str | None = None) -> bool:
        """Write down how a tick ended that has not ended; whether it was this call that did it.

        An interrupted one stays open, to be begun again.
        """
        with self.ledger.change() as rows:
            return _end(rows, number, state, error)

    def kills(self, tick: Tick) -> int:
        """How often the process of a tick that nobody is at was killed; 0 where it came to an end of its own.

        Stops in order do not count: their runs are `interrupted`.
        """
        if tick.state != "running":
            return 0
        runs = {row["id"]: row["state"] for row in self.ledger.ask("SELECT * FROM runs WHERE tick = ?", (tick.id,))}
        ended = runs.get(tick.run) in ("done", "failed")
        return 0 if ended else tick.tries - list(runs.values()).count("interrupted")

    def stopped(self, number: int, tries: int) -> None:
        """Write down that a tick's process was stopped in order; of its run too, where that had no time to.

        Args:
            number: the tick's.
            tries: how often it had been begun before that process.
        """
        with self.ledger.change() as rows:
            if _end(rows, number, "interrupted", "the daemon stopped"):
                rows.execute(
                    "UPDATE runs SET state = 'interrupted', error = 'the daemon stopped', ended = ? WHERE state ="
                    " 'running' AND id = (SELECT run FROM ticks WHERE id = ? AND tries > ?)",
                    (now_text(), number, tries),
                )

    def history(self, name: str | None = None, limit: int = 50) -> list[Tick]:
        """The newest ticks, newest first, of one job or of all."""
        where, values = ("WHERE name = ? ", [name]) if name is not None else ("", [])
        found = self.ledger.ask(f"SELECT * FROM ticks {where}ORDER BY id DESC LIMIT ?", (*values, limit))
        return [_tick(row) for row in found]


def _moved(rows: sqlite3.Connection, job: Job, horizon: datetime) -> bool:
    """Whether the job was looked at up to `horizon` by this call, and not by another one at the same time."""
    told = rows.execute(
        "UPDATE jobs SET horizon = ? WHERE id = ? AND horizon = ? AND paused = 0",
        (text_of(horizon), job.id, text_of(job.horizon)),
    )
    return told.rowcount > 0


def _new(rows: sqlite3.Connection, job: Job, due: datetime, missed: int) -> Tick | None:
    """A new tick in place of those that still wait; None where that moment has had its tick."""
    told = rows.execute(
        "INSERT OR IGNORE INTO ticks (job, name, due, state, missed) VALUES (?, ?, ?, 'due', ?)",
        (job.id, job.name, text_of(due), missed),
    )
    if not told.rowcount:
        return None
    number = told.lastrowid
    waiting = rows.execute(
        "SELECT count(*), coalesce(sum(missed), 0) FROM ticks WHERE job = ? AND state = 'due' AND id != ?",
        (job.id, number),
    ).fetchone()
    rows.execute("UPDATE ticks SET missed = missed + ? WHERE id = ?", (sum(waiting), number))
    rows.execute(
        "UPDATE ticks SET state = 'coalesced', ended = ? WHERE job = ? AND state = 'due' AND id != ?",
        (now_text(), job.id, number),
    )
    rows.execute(f"DELETE FROM ticks WHERE id <= ? AND state NOT IN {_OPEN}", ((number or 0) - KEPT,))
    return _tick(rows.execute("SELECT * FROM ticks WHERE id = ?", (number,)).fetchone())


def _end(rows: sqlite3.Connection, number: int, state: str, error: str | None) -> bool:
    told = rows.execute(
        f"UPDATE ticks SET state = ?, error = ?, ended = ? WHERE id = ? AND state IN {_OPEN}",
        (state, error, now_text(), number),
    )
    return told.rowcount > 0


def _tick(row: sqlite3.Row) -> Tick:
    return Tick(**dict(row))
