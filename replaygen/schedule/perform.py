"""Do one tick: in a process of its own, under its job's lock, written down as a run."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from replaygen.runs.alive import held
from replaygen.runs.ledger import Ledger
from replaygen.runs.recorder import recording, state_of_end, told_of
from replaygen.schedule.jobs import Jobs
from replaygen.schedule.ticks import Ticks, lock_of
from replaygen.store import fsops

if TYPE_CHECKING:
    from replaygen.store import Store

BUSY = 75
"""The exit code of a process that found the job, or the tick, in other hands."""


def perform(store: Store, number: int, command: Callable[[list[str]], int], *, redirect: bool = True) -> int:
    """Claim a tick, run its command, write down how it ended; what the command raises is raised again.

    Args:
        store: with the ledger.
        number: the tick's.
        command: runs `replaygen` with arguments in this process; gives its exit code.
        redirect: all that this process says from now on goes to the run's log.
    """
    ledger = Ledger(store.root)
    ticks = Ticks(ledger)
    tick = ticks.get(number)
    if tick is None:
        return BUSY
    lock = lock_of(store.root, tick.job)
    fsops.make_folder(lock.parent)
    with held(lock, note=f"tick {number} of {tick.name}") as mine:
        job = next((one for one in Jobs(ledger).all() if one.id == tick.job), None)
        if not mine or job is None or ticks.claim(number) is None:
            return BUSY
        arguments = job.arguments(tick.moment)
        try:
            told = f"replaygen {shlex.join(arguments)}"
            with recording(store, told, tick=number, redirect=redirect) as recorder:
                ticks.runs_as(number, recorder.id)
                code = command(arguments)
                if code:
                    raise SystemExit(code)
        except BaseException as error:
            state = state_of_end(error)
            ticks.end(number, state, None if state == "done" else told_of(error))
            raise
        ticks.end(number, "done")
    return 0
