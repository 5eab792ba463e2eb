"""Workers that die: SIGKILL in the middle of tasks of chosen stages, so often and no more.

Armed in a Dask worker by `preload`, one of the entries of Dask's own `distributed.worker.preload`. A death comes at an
operation of the store that is drawn: while the stage runs, or while what it made is published.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from replaygen.stages import STAGES, Inputs, Out, Stage
from replaygen.store import fsops

_PUBLISHING = 6
"""Operations that publishing a record takes at least."""


def preload(folder: Path, times: Mapping[str, int], seed: int = 0) -> str:
    """What a worker runs first, to die `times[stage]` times in a stage, over all workers that share `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return f"from replaygen.testing import deaths; deaths.arm({str(folder)!r}, {dict(times)!r}, {seed})"


def arm(folder: str, times: Mapping[str, int], seed: int) -> None:
    """Wrap the stages of this process; Dask may run a preload twice."""
    for name, count in times.items():
        if STAGES[name].__module__ == __name__:
            continue
        stage = STAGES[name]
        dying = type(
            stage.__name__,
            (stage,),
            {
                "run": partial(_run, stage, Path(folder), count, seed),
                "__module__": __name__,
            },
        )
        STAGES[name] = dying


def _run(
    stage: type[Stage[Any]], folder: Path, count: int, seed: int, params: Any, inputs: Inputs, out: Out
) -> None:  # fmt: skip
    fsops.trace = None
    _note(folder / "runs", inputs.slot)
    draw = _claim(folder, stage.name, inputs.slot, count, seed)
    if draw is None:
        stage().run(params, inputs, out)
        return
    if draw.random() < 0.6:
        fsops.trace = _killer(draw.randrange(12))
        stage().run(params, inputs, out)
        os.kill(os.getpid(), signal.SIGKILL)  # it did fewer operations
    stage().run(params, inputs, out)
    fsops.trace = _killer(draw.randrange(_PUBLISHING))


def _killer(number: int) -> Callable[[fsops.Op, Callable[[], None]], None]:
    left = [number]

    def act_or_die(op: fsops.Op, act: Callable[[], None]) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        act()

    return act_or_die


def _claim(folder: Path, stage: str, slot: str, count: int, seed: int) -> random.Random | None:
    """The dice of a death that nobody else has died yet; no task dies twice."""
    name = hashlib.sha256(slot.encode()).hexdigest()[:16]
    if (folder / f"task-{name}").exists():
        return None
    for number in range(count):
        try:
            os.close(os.open(folder / f"death-{stage}-{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        (folder / f"task-{name}").write_text(slot)
        return random.Random(f"{seed}/{stage}/{number}")
    return None


def _note(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with open(descriptor, "w") as file:
        file.write(line + "\n")


def deaths(folder: Path) -> Counter[str]:
    """Deaths so far, by stage."""
    return Counter(path.name.split("-", 1)[1].rsplit("-", 1)[0] for path in folder.glob("death-*"))


def done_twice(folder: Path) -> list[str]:
    """Tasks that were begun more often than they died and once more."""
    begun = Counter((folder / "runs").read_text().splitlines())
    died = {path.read_text() for path in folder.glob("task-*")}
    return [slot for slot, count in begun.items() if count > 1 + (slot in died)]
