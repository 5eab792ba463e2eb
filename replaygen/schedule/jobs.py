"""Jobs of the schedule: what is done again and again, and when. Rows of the ledger."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast, get_args

from replaygen.classes import nearest_hint
from replaygen.runs.ledger import Ledger, text_of
from replaygen.schedule.times import Cron, ScheduleError

__all__ = ["Do", "Job", "Jobs", "ScheduleError"]

Do = Literal["run", "verify", "gc", "revalidate"]

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_LOOKED_AT = "0.4"
"""Days that a photo counts as looked at; no sum of times between ticks, such as 0.5 or 1, that seconds would decide."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}")


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        id: never used again, also when the job is removed.
        do: run a recipe, verify the store, gc it, or ask again for every photo of a recipe.
        recipe: a recipe's file, or the name of an installed one, for run and revalidate.
        cron: a cron line; None where a model is waited for.
        zone: the time zone of `cron` and of `{date}`.
        watched: the recipe whose trained models are waited for; "" for the own recipe's `train.base_model`; None
            where `cron` says when.
        changes: KEY=VALUE of `--set`; `{date}` in one is the day when the tick was due.
        address: the store.
        folder: where the command runs.
        horizon: up to where due times were looked at.
        seen: of a watched model, what stood at the last look.
    """

    name: str
    do: Do
    recipe: str | None = None
    cron: str | None = None
    zone: str = "UTC"
    watched: str | None = None
    changes: tuple[str, ...] = ()
    address: str = "cache"
    folder: str = "."
    paused: bool = False
    horizon: datetime = _BEGINNING
    seen: str | None = None
    id: int = 0

    def arguments(self, due: datetime) -> list[str]:
        """The command of a tick, as `replaygen` takes it."""
        store = ["--cache", self.address]
        if self.do in ("verify", "gc"):
            return ["cache", self.do, *store]
        told = ["run"] if self.do == "run" else ["crawl", "revalidate", "--older-than", _LOOKED_AT]
        changes = [part for change in self.changes_on(due) for part in ("--set", change)]
        return [*told, self.recipe or "", *store, *changes]

    def changes_on(self, due: datetime) -> list[str]:
        """The KEY=VALUEs of a tick, with its day in place of `{date}`."""
        date = due.astimezone(Cron("@daily", self.zone).at).date().isoformat()
        return [change.replace("{date}", date) for change in self.changes]

    def when(self) -> str:
        """When it runs, for people."""
        if self.cron is not None:
            return f"{self.cron} ({self.zone})"
        return f"when {self.watched} has a new model" if self.watched else "when its base model changes"


class Jobs:
    """The jobs of a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def add(self, job: Job, now: datetime) -> Job:
        """Take in a job; from `now` on it falls due.

        Raises:
            ScheduleError: a setting that cannot be, or the name is taken.
        """
        check(job)
        with self.ledger.change() as rows:
            try:
                rows.execute(
                    "INSERT INTO jobs (name, do, recipe, cron, zone, watched, changes, address, folder, horizon, seen,"
                    " made) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (job.name, job.do, job.recipe, job.cron, job.zone, job.watched, json.dumps(job.changes),
                     job.address, job.folder, text_of(now), job.seen, text_of(now)),
                )  # fmt: skip
            except sqlite3.IntegrityError:
                raise ScheduleError(
                    f"there is a job {job.name!r} already", where=str(self.ledger.path),
                    hint=f"choose another name, or remove it: replaygen schedule rm {job.name}",
                ) from None  # fmt: skip
        return self.named(job.name)

    def all(self) -> list[Job]:
        """Every job, by name."""
        return [_job(row) for row in self.ledger.ask("SELECT * FROM jobs ORDER BY name")]

    def named(self, name: str) -> Job:
        """A job by its name.

        Raises:
            ScheduleError: there is none.
        """
        jobs = {job.name: job for job in self.all()}
        if name not in jobs:
            hint = nearest_hint(name, jobs) if jobs else "there are none: `replaygen schedule add`"
            raise ScheduleError(f"no job {name!r}", where=str(self.ledger.path), hint=hint)
        return jobs[name]

    def remove(self, name: str) -> None:
        """Remove a job; what of it is running ends as it will, and its history stays."""
        job = self.named(name)
        with self.ledger.change() as rows:
            rows.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
            rows.execute(
                "UPDATE ticks SET state = 'dropped' WHERE job = ? AND state IN ('due', 'interrupted')", (job.id,)
            )

    def pause(self, name: str) -> Job:
        """Let a job rest; what waits or runs of it ends as it will."""
        job = self.named(name)
        with self.ledger.change() as rows:
            rows.execute("UPDATE jobs SET paused = 1 WHERE id = ?", (job.id,))
        return replace(job, paused=True)

    def resume(self, name: str, now: datetime, seen: str | None = None) -> Job:
        """Let a job go on; what fell due while it rested is not made up for.

        Args:
            name: of the job.
            now: from here on it falls due again.
            seen: of a watched model, what stands now.
        """
        job = self.named(name)
        if not job.paused:
            return job
        with self.ledger.change() as rows:
            rows.execute("UPDATE jobs SET paused = 0, horizon = ?, seen = ? WHERE id = ?", (text_of(now), seen, job.id))
        return replace(job, paused=False, horizon=now, seen=seen)


def check(job: Job) -> None:
    """Refuse a job that cannot be.

    Raises:
        ScheduleError: says which setting, and why.
    """
    if not _NAME.fullmatch(job.name):
        raise ScheduleError(f"a job cannot be called {job.name!r}", hint="small letters, digits, - and _, at most 60")
    if job.do not in get_args(Do):
        raise ScheduleError(f"--do {job.do}: no such work", hint=nearest_hint(job.do, get_args(Do)))
    if (job.cron is None) == (job.watched is None):
        raise ScheduleError("a job needs --cron LINE or --on model, one of them", where=job.name)
    if job.do in ("run", "revalidate") and job.recipe is None:
        raise ScheduleError(f"--do {job.do} needs a recipe", where=job.name)
    if job.do in ("verify", "gc") and (job.recipe is not None or job.changes):
        raise ScheduleError(f"--do {job.do} is about the whole store: it takes no recipe and no --set", where=job.name)
    if job.watched == "" and job.recipe is None:
        raise ScheduleError("--on model needs --of RECIPE where the job has no recipe", where=job.name)
    Cron(job.cron or "@daily", job.zone)


def _job(row: sqlite3.Row) -> Job:
    told = dict(row)
    told.pop("made")
    return Job(
        **{**told, "do": cast(Do, told["do"]), "changes": tuple(json.loads(told["changes"])),
           "paused": bool(told["paused"]), "horizon": datetime.fromisoformat(told["horizon"])}
    )  # fmt: skip


def kept(recipe: Path) -> str:
    """A recipe's file as a job keeps it: an installed one by its name, for installations move; others whole."""
    from replaygen.plan.workspace import shipped

    path = recipe.resolve()
    return path.stem if path.parent == shipped() / "pipelines" else str(path)
