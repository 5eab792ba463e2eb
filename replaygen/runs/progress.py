"""Progress of a run: per stage done / to do, rate and time left. In a terminal a live table, elsewhere lines."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol, TextIO

from replaygen.plan import Plan, Task
from replaygen.plan.estimate import duration
from replaygen.runs.execute import Outcome

if TYPE_CHECKING:
    from rich.progress import TaskID


class Progress(Protocol):
    """Told when a run starts, when each task is done, and when it ends."""

    def start(self, plan: Plan) -> None: ...

    def done(self, task: Task, outcome: Outcome) -> None: ...

    def close(self) -> None: ...


class Quiet:
    """Says nothing."""

    def start(self, plan: Plan) -> None:
        """Nothing."""

    def done(self, task: Task, outcome: Outcome) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines:
    """A line every few seconds, and one for every trained step; for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, every: float = 15.0) -> None:
        self._stream = stream or sys.stderr
        self._every = every
        self._last = self._begun = time.monotonic()
        self._todo: Counter[str] = Counter()
        self._did: Counter[str] = Counter()

    def start(self, plan: Plan) -> None:
        self._todo = Counter(task.stage for task in plan.to_run())
        self._begun = time.monotonic()

    def done(self, task: Task, outcome: Outcome) -> None:
        self._did[task.stage] += 1
        now = time.monotonic()
        if task.stage == "train":
            print(f"{duration(now - self._begun):>12}  {task.slot} in {outcome.seconds:.0f} s", file=self._stream)
        if now - self._last >= self._every:
            self._last = now
            parts = [
                f"{stage} {self._did[stage]}/{max(count, self._did[stage])}" for stage, count in self._todo.items()
            ]
            print(f"{duration(now - self._begun):>12}  " + "  ".join(parts), file=self._stream)

    def close(self) -> None:
        self._stream.flush()


class Live:
    """A live table in a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        self._rows: dict[str, TaskID] = {}
        self._samples: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()

    def start(self, plan: Plan) -> None:
        for stage, count in Counter(task.stage for task in plan.to_run()).items():
            self._rows.setdefault(stage, self._bars.add_task(stage, total=count, rate=""))
        self._bars.start()

    def done(self, task: Task, outcome: Outcome) -> None:
        if task.stage not in self._rows:
            self._rows[task.stage] = self._bars.add_task(task.stage, total=1, rate="")
        self._samples[task.stage] += outcome.requested
        self._seconds[task.stage] += outcome.seconds  # type: ignore[assignment]
        rate = self._samples[task.stage] / max(self._seconds[task.stage], 1e-9)
        self._bars.update(self._rows[task.stage], advance=1, rate=f"{rate:8.0f}/s")

    def close(self) -> None:
        self._bars.stop()


def for_stream(stream: TextIO) -> Progress:
    """A live table where `stream` is a terminal, lines elsewhere."""
    return Live() if stream.isatty() else Lines(stream)
