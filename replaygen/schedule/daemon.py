"""The daemon: looks at the clock and the ledger, lets ticks fall due, and runs each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from replaygen.errors import ReplaygenError
from replaygen.logs import say
from replaygen.runs.alive import held, is_held
from replaygen.runs.ledger import Ledger
from replaygen.schedule.jobs import Job, Jobs
from replaygen.schedule.perform import BUSY
from replaygen.schedule.ticks import Tick, Ticks, lock_of
from replaygen.schedule.times import ScheduleError
from replaygen.schedule.watch import Watch
from replaygen.store import fsops

if TYPE_CHECKING:
    from replaygen.store import Store

POLL = 2.0
"""Seconds between looks at the clock and the ledger; models are looked at every `WATCH` seconds."""
WATCH = 20.0
PATIENCE = 6.0
"""Seconds that runs may take to put away, when the daemon stops."""
MOST_KILLED = 10
"""How often a tick whose process is killed is begun."""
MOST_STARTS = 3
"""How often a tick's process may end without having begun it."""


class Child(Protocol):
    """A process that does a tick; `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class Daemon:
    """Serves the schedule of one store. Only one at a time does; `serve` sees to it.

    Args:
        store: with the ledger.
        spawn: starts the process that does a tick, in a session of its own.
        clock: tells the time, UTC.
        at_once: how many ticks may run together, of different jobs.
        tell: tells people, or programs, what happens.
    """

    def __init__(
        self, store: Store, spawn: Callable[[Tick, Job], Child], *, clock: Callable[[], datetime] | None = None,
        at_once: int = 1, tell: Callable[..., None] = say,
    ) -> None:  # fmt: skip
        self.store = store
        self.ledger = Ledger(store.root)
        self.jobs, self.ticks = Jobs(self.ledger), Ticks(self.ledger)
        self.running: dict[int, Child] = {}
        self._spawn = spawn
        self._clock = clock or (lambda: datetime.now(UTC))
        self._at_once = at_once
        self._tell = tell
        self._watch = Watch(store)
        self._watched = -WATCH
        self._tries: dict[int, int] = {}  # of each running tick, how often it had been begun before
        self._starts: Counter[int] = Counter()
        self._odd: dict[str, str] = {}
        fsops.make_folder(store.root / "schedule")

    def serve(self, poll: float = POLL) -> None:
        """Look again and again, until something is raised, such as a signal's KeyboardInterrupt; then stop all.

        Raises:
            ScheduleError: the store's schedule is served already.
        """
        path = self.store.root / "schedule" / "serve.lock"
        with held(path, note=f"process {os.getpid()}") as mine:
            if not mine:
                who = path.read_text(errors="replace").strip()
                raise ScheduleError(f"the schedule is served already, by {who or 'another process'}", where=str(path))
            try:
                while True:
                    self.look()
                    time.sleep(poll)
            finally:
                self.stop()

    def look(self) -> None:
        """One look: what ended is put away, what fell due becomes ticks, ticks that wait are begun."""
        now = self._clock()
        jobs = {job.id: job for job in self.jobs.all()}
        self._reap()
        for job in jobs.values():
            if not job.paused:
                self._guarded(job, now)
        if time.monotonic() - self._watched >= WATCH:
            self._watched = time.monotonic()
        self._begin(jobs)

    def _guarded(self, job: Job, now: datetime) -> None:
        """Let a job fall due; what is wrong with it is said once, and no matter of the others."""
        try:
            if job.cron is not None:
                tick = self.ticks.fall_due(job, now)
            elif time.monotonic() - self._watched >= WATCH:
                seen = self._watch.look(job)
                tick = self.ticks.changed(job, seen, now) if seen != (job.seen or "") else None
            else:
                return
        except (ReplaygenError, OSError) as error:
            what = error.what if isinstance(error, ReplaygenError) else str(error)
            if self._odd.get(job.name) != what:
                self._tell(f"{job.name}: {error}", grave=True, job=job.name)
            self._odd[job.name] = what
            return
        self._odd.pop(job.name, None)
        if tick is not None:
            missed = f", and {tick.missed} before it" if tick.missed else ""
            self._tell(f"{job.name} fell due at {tick.due}{missed}", job=job.name, tick=tick.id, due=tick.due)

    def _reap(self) -> None:
        for number, child in list(self.running.items()):
            code = child.poll()
            if code is not None:
                del self.running[number]
                if code < 0:
                    kill_session(child)
                self._ended(number, code)

    def _ended(self, number: int, code: int) -> None:
        tick, tries = self.ticks.get(number), self._tries.pop(number)
        if tick is None or code == BUSY:
            return
        if tick.state in ("done", "failed"):
            self._tell(
                f"{tick.name}: {tick.state}" + (f" ({tick.error})" if tick.error else ""), tick=number, run=tick.run
            )
        elif tick.tries > tries:
            del self._starts[number]
            self._tell(f"{tick.name} ended before it was done (exit code {code})", tick=number)
        else:
            self._starts[number] += 1
            if self._starts[number] >= MOST_STARTS:
                self._fail(tick, f"its process does not start (exit code {code})")

    def _begin(self, jobs: dict[int, Job]) -> None:
        """Start processes for ticks that wait: of each job the one that fell due first, if none of it runs."""
        waiting = [tick for tick in self.ticks.open() if tick.id not in self.running]
        busy = {tick.job for number in self.running if (tick := self.ticks.get(number)) is not None}
        busy |= {job for job in {tick.job for tick in waiting} if is_held(lock_of(self.store.root, job))}
        for tick in waiting:
            if tick.job not in jobs:
                if tick.job not in busy:
                    self.ticks.end(tick.id, "dropped")
                continue
            if len(busy) >= self._at_once:
                return
            if tick.job not in busy and not jobs[tick.job].paused and self._begun(tick, jobs[tick.job]):
                busy.add(tick.job)

    def _begun(self, tick: Tick, job: Job) -> bool:
        kills = self.ticks.kills(tick)
        if kills >= MOST_KILLED:
            self._fail(tick, f"its process was killed {kills} times")
            return False
        self._tries[tick.id] = tick.tries
        try:
            self.running[tick.id] = self._spawn(tick, job)
        except ScheduleError as error:
            self._fail(tick, str(error))
            return False
        return True

    def _fail(self, tick: Tick, error: str) -> None:
        if self.ticks.end(tick.id, "failed", error):
            self._tell(f"{tick.name}: {error}", grave=True, tick=tick.id)

    def stop(self) -> None:
        """End what runs: politely, and after `PATIENCE` seconds for certain. It is begun again when served again."""
        stop_all(self.running.values())
        for number in self.running:
            self.ticks.stopped(number, self._tries[number])
        self.running.clear()
        self._tries.clear()


def started(tick: Tick, job: Job) -> Child:
    """The process that does a tick: this interpreter's `replaygen schedule tick`, in a session of its own.

    Raises:
        ScheduleError: it cannot be started, such as where the job's folder is gone.
    """
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "replaygen", "schedule", "tick", str(tick.id), "--cache", job.address],
            cwd=job.folder, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ScheduleError(
            f"the process of {job.name} does not start: {error.strerror}", where=str(error.filename or job.folder),
            hint="a job runs in the folder where it was added: put that back, or remove the job and add it elsewhere",
        ) from None  # fmt: skip


def stop_all(children: Iterable[Child]) -> None:
    """SIGTERM to each process; after `PATIENCE` seconds, or another signal, SIGKILL to what is left of its session."""
    children = list(children)
    try:
        for child in children:
            child.terminate()
        until = time.monotonic() + PATIENCE
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, until - time.monotonic()))
    finally:
        for child in children:
            kill_session(child)
            child.wait(PATIENCE)


def kill_session(child: Child) -> None:
    """SIGKILL to a child and all that it started and left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
