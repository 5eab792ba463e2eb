"""A schedule for ten simulated months, with kills (row 19): how many ticks, how many of them double or lost.

The clock is played; the daemon, the processes of its ticks and the ledger are real, and are killed with SIGKILL. Then,
by the real clock: what one look of the daemon costs with 100 jobs, and how long from a tick to its run's first line.
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common import QUICK, fresh_folder, write

from replaygen.runs.ledger import Ledger
from replaygen.schedule import Job, Jobs, Ticks
from replaygen.schedule.daemon import Daemon, started
from replaygen.schedule.rehearsal import rehearse
from replaygen.store import Store

MONTHS = 1 if QUICK else 10
SEEDS = (0,) if QUICK else (0, 1)
LOOKS = 50


def months(seed: int) -> dict[str, Any]:
    """One rehearsal; in memory where that is a folder, as only processes die in it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        return rehearse(Path(folder), months=MONTHS, seed=seed).as_json()


def look_ms(jobs: int = 100) -> float:
    """CPU milliseconds of one look at a schedule where nothing is due."""
    with fresh_folder() as folder:
        store = Store(folder / "store")
        now, kept = datetime(2026, 6, 3, 12, tzinfo=UTC), Jobs(Ledger(store.root))
        for number in range(jobs):
            line = f"{number % 60} {number % 7} * * {number % 7}"
            kept.add(Job(f"job-{number}", "gc", cron=line, zone="Europe/Rome", address=store.address), now)
        later = now + timedelta(minutes=1)
        daemon = Daemon(store, started, clock=lambda: later)
        daemon.look()
        began = time.process_time()
        for _ in range(LOOKS):
            daemon.look()
        return 1000 * (time.process_time() - began) / LOOKS


def start_s() -> float:
    """Seconds from the daemon's look to the first line of the run that it starts."""
    with fresh_folder() as folder:
        store = Store(folder / "store")
        ledger = Ledger(store.root)
        job = Jobs(ledger).add(Job("gc", "gc", cron="@daily", address=store.address, folder=str(folder)), _now())
        tick = Ticks(ledger).extra(job, _now())
        daemon = Daemon(store, started, tell=lambda message, **fields: None)
        began = time.monotonic()
        daemon.look()
        while not ledger.runs():
            time.sleep(0.005)
        seconds = time.monotonic() - began
        while (ended := Ticks(ledger).get(tick.id)) is not None and ended.state != "done":
            daemon.look()
            time.sleep(0.05)
        return seconds


def _now() -> datetime:
    return datetime.now(UTC)


def main() -> None:
    """Measure and write down; exit code 1 where a tick was double or lost."""
    runs = [months(seed) for seed in SEEDS]
    totals = {
        name: sum(int(run[name]) for run in runs)
        for name in ("due", "ticks", "coalesced", "double", "lost", "overlaps")
    }
    figures = {
        **{f"ticks_{name}" if name in ("double", "lost") else name: value for name, value in totals.items()},
        "simulated_months": MONTHS * len(SEEDS), "seconds_each": [run["seconds"] for run in runs],
        "kills": {kind: sum(run["kills"][kind] for run in runs) for kind in ("daemon", "tick")},
        "look_100_jobs_cpu_ms": round(look_ms(), 2), "start_of_a_run_s": round(start_s(), 2),
    }  # fmt: skip
    write("schedule", figures)
    if figures["ticks_double"] or figures["ticks_lost"] or figures["overlaps"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
