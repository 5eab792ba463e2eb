"""Months of a schedule in a minute, with kills: the clock is played, the daemon, its ticks and its ledger are real.

The daemon lives in a process of its own, each tick in another one. Both are killed with SIGKILL at random borders of
the ledger's transactions; between lives of the daemon the clock goes on.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from replaygen.runs import ledger as ledgers
from replaygen.runs.alive import held, is_held
from replaygen.runs.ledger import Ledger
from replaygen.schedule.daemon import Daemon
from replaygen.schedule.jobs import Job, Jobs
from replaygen.schedule.perform import perform
from replaygen.schedule.ticks import Tick, Ticks
from replaygen.store import Store, fsops

JOBS = (
    ("recrawl", "0 3 * * 0", "Europe/Rome"),
    ("nightly", "30 2 * * *", "Europe/Rome"),
    ("often", "15 */12 * * *", "America/New_York"),
)
"""Weekly at three, nightly at an hour that the clock skips in spring and doubles in autumn, and twice a day."""
BEGIN = datetime(2026, 2, 1, tzinfo=UTC)

_PROBABLE = (0.1, 0.1)
"""How probable it is that a process of a tick, and a day of the daemon's, ends by SIGKILL."""


@dataclass
class Rehearsal:
    """What came of it.

    Attributes:
        due: moments when a job fell due, counted minute by minute.
        ticks: ticks that were done; coalesced: due moments that a later tick stood for.
        double: ticks that were begun again though they were done, or ran twice at once.
        lost: due moments that neither have a done tick nor are counted by a later one.
        overlaps: processes that met another one of their job.
        kills: SIGKILLs, of daemons and of ticks.
    """

    months: float
    due: int = 0
    ticks: int = 0
    coalesced: int = 0
    double: int = 0
    lost: int = 0
    overlaps: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        """Plain data."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}


def rehearse(
    folder: Path, *, months: float = 10, seed: int = 0, jobs: Sequence[tuple[str, str, str]] = JOBS
) -> Rehearsal:
    """Play a schedule for some months of 30 days.

    Args:
        folder: an empty one; the store is made in it.
        months: how long.
        seed: of the kills, of how long ticks run, and of how often the daemon looks.
        jobs: name, cron line, time zone; missed times must stay below `times.MOST_COUNTED`.
    """
    began = time.monotonic()
    with _no_waiting_for_the_disk():
        told = _played(folder, months, seed, jobs)
    told.months, told.seconds = months, time.monotonic() - began
    return told


def _played(folder: Path, months: float, seed: int, jobs: Sequence[tuple[str, str, str]]) -> Rehearsal:
    store = Store(folder / "store")
    ledger = Ledger(store.root)
    for name, line, zone in jobs:
        Jobs(ledger).add(Job(name, "gc", cron=line, zone=zone, address=store.address, folder=str(folder)), BEGIN)
    end = BEGIN + timedelta(days=30 * months)
    stage = _Stage(folder, random.Random(seed))
    while stage.now < end:
        stage.life(store, end)
        if stage.now < end:
            stage.now += timedelta(hours=stage.random.choice((0, 0, 1, 9, 40)))
    stage.last(store)
    return _judged(ledger, folder, stage.now, jobs)


@contextlib.contextmanager
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A killed process loses nothing of what it wrote: only a power cut would."""
    before = ledgers.synchronous, fsops.trace
    ledgers.synchronous, fsops.trace = "OFF", _skip_syncs
    try:
        yield
    finally:
        ledgers.synchronous, fsops.trace = before


def _skip_syncs(op: fsops.Op, act: Callable[[], None]) -> None:
    if op.kind not in ("fsync", "fsync_dir"):
        act()


class _Stage:
    """The played clock, shared by all processes, and the dice."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder, self.random = folder, dice
        self._shared = mmap.mmap(-1, 8)
        self.now = BEGIN

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(struct.unpack("d", self._shared[:])[0], UTC)

    @now.setter
    def now(self, moment: datetime) -> None:
        self._shared[:] = struct.pack("d", moment.timestamp())

    def life(self, store: Store, end: datetime) -> None:
        """One life of the daemon: until the end, or until it is killed."""
        dice = random.Random(self.random.getrandbits(64))
        child = _Forked(lambda: self._live(store, end, dice))
        if child.wait() < 0:
            self.note("kill", "daemon")
        for pid, tick in self.left_behind():  # ticks of a killed daemon go on, or die with it
            if self.random.random() < 0.5:
                self.note("killed", tick)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _live(self, store: Store, end: datetime, dice: random.Random) -> int:
        days = dice.expovariate(_PROBABLE[1])
        if days < 60:
            _kill_at(int(days * 3) + dice.randrange(12))  # a day has about three transactions of the daemon
        daemon = Daemon(
            store, lambda tick, job: self._tick(store, tick, dice), clock=lambda: self.now, at_once=2, tell=_silent
        )
        while self.now < end:
            daemon.look()
            self.now += timedelta(minutes=dice.randrange(10, 90))
        return 0

    def _tick(self, store: Store, tick: Tick, dice: random.Random) -> _Forked:
        hours, border = dice.choice((0, 0, 0, 0, 1, 3, 8)), dice.randrange(9)
        killed = dice.random() < _PROBABLE[0]
        until = self.now + timedelta(hours=hours)

        def command(arguments: list[str]) -> int:
            self.note("begin", tick.id)
            with held(self.folder / f"busy-{tick.job}", note=f"{os.getpid()} {tick.id}") as mine:
                if not mine:
                    self.note("overlap", tick.id)
                patience = time.monotonic() + 0.2
                while self.now < until and time.monotonic() < patience:
                    time.sleep(0.001)
                self.note("did", tick.id)
            return 0

        def act() -> int:
            Ledger.change = _CHANGE  # type: ignore[method-assign]
            if killed:
                _kill_at(border, lambda: self.note("killed", tick.id))
            return perform(store, tick.id, command, redirect=False)

        return _Forked(act)

    def left_behind(self) -> list[tuple[int, int]]:
        """Processes of ticks that are at work, and their ticks."""
        found = []
        for mark in sorted(self.folder.glob("busy-*")):
            if is_held(mark) and (told := mark.read_text().split()):
                found.append((int(told[0]), int(told[1])))
        return found

    def last(self, store: Store) -> None:
        """A quiet end: what is open is brought to its end."""
        daemon = Daemon(
            store, lambda tick, job: self._tick(store, tick, _Kind(0)), clock=lambda: self.now, tell=_silent
        )
        daemon.look()
        while daemon.ticks.open():
            daemon.look()
            self.now += timedelta(seconds=1)
            time.sleep(0.005)

    def note(self, event: str, about: int | str) -> None:
        """Write down what happened, for the judge."""
        with (self.folder / "events.jsonl").open("a", buffering=1) as file:
            file.write(json.dumps([event, about]) + "\n")


def _silent(message: str, **fields: object) -> None:
    """Nobody listens."""


class _Kind(random.Random):
    """Dice that kill nobody and keep nobody waiting."""

    def random(self) -> float:
        return 0.999999

    def choice(self, seq: Sequence[int]) -> int:  # type: ignore[override]
        return 0


class _Forked:
    """A forked process in a session of its own, with the face of `subprocess.Popen`."""

    def __init__(self, act: object) -> None:
        self.pid = os.fork()
        self._code: int | None = None
        if self.pid == 0:
            code = 70
            with contextlib.suppress(BaseException):
                os.setsid()
                code = act()  # type: ignore[operator]
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, if it has ended; the signal's number, negative, where one killed it."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def terminate(self) -> None:
        """SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended."""
        while (code := self.poll()) is None:
            time.sleep(0.002)
        return code


def _kill_at(border: int, before: object = None) -> None:
    """Let this process be killed at a border of the ledger's transactions: even ones before, odd ones after."""
    left = [border]

    def step() -> None:
        if left[0] == 0:
            if callable(before):
                before()
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    @contextlib.contextmanager
    def changed(self: Ledger) -> Iterator[object]:
        step()
        with _CHANGE(self) as rows:
            yield rows
        step()

    Ledger.change = changed  # type: ignore[assignment, method-assign]


_CHANGE = Ledger.change


def due_moments(line: str, zone: str, begin: datetime, end: datetime) -> list[datetime]:
    """When a line of numbers, `*`, `*/n` and lists falls due in (begin, end]: by looking at every minute."""
    at, fields = (
        ZoneInfo(zone),
        [_values(text, low, high) for text, (low, high) in zip(line.split(), _RANGES, strict=True)],
    )
    found, minute = [], timedelta(minutes=1)
    moment = begin.replace(second=0, microsecond=0)
    before = moment.astimezone(at).replace(tzinfo=None)
    while moment < end:
        moment += minute
        local = moment.astimezone(at)
        wall = local.replace(tzinfo=None, fold=0)
        shown = [wall]
        while wall - before > minute and len(shown) < 2000:  # minutes that the clock skips
            before += minute
            shown.append(before)
        if not local.fold and any(_fits(one, fields) for one in shown):
            found.append(moment)
        before = wall
    return found


_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


def _values(text: str, low: int, high: int) -> set[int]:
    if text.startswith("*"):
        return set(range(low, high + 1, int(text[2:] or 1)))
    return {int(part) for part in text.split(",")}


def _fits(wall: datetime, fields: Sequence[set[int]]) -> bool:
    told = (wall.minute, wall.hour, wall.day, wall.month, wall.isoweekday() % 7)
    return all(value in wanted for value, wanted in zip(told, fields, strict=True))


def _judged(ledger: Ledger, folder: Path, end: datetime, jobs: Sequence[tuple[str, str, str]]) -> Rehearsal:
    told, ticks = Rehearsal(0.0), Ticks(ledger).history(limit=-1)
    counts: Counter[tuple[str, object]] = Counter()
    for line in (folder / "events.jsonl").read_text().splitlines():
        event, about = json.loads(line)
        counts[event, about] += 1
    for tick in ticks:
        begun, killed = counts["begin", tick.id], counts["killed", tick.id]
        told.double += max(0, begun - 1 - killed) if tick.state == "done" else 0
        told.lost += tick.state not in ("done", "coalesced") or (tick.state == "done" and not counts["did", tick.id])
    for name, line, zone in jobs:
        due = due_moments(line, zone, BEGIN, end)
        mine = [tick for tick in ticks if tick.name == name and tick.state == "done"]
        missing = {tick.moment for tick in mine} - set(due)
        stood_for = sum(tick.missed for tick in mine)
        told.due += len(due)
        told.ticks += len(mine)
        told.coalesced += stood_for
        told.double += max(0, len(mine) + stood_for - len(due)) + len(missing)
        told.lost += max(0, len(due) - len(mine) - stood_for)
    told.overlaps = sum(count for (event, _), count in counts.items() if event == "overlap")
    ticks_killed = sum(count for (event, _), count in counts.items() if event == "killed")
    told.kills = {"daemon": counts["kill", "daemon"], "tick": ticks_killed}
    return told
