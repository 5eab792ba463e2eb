"""Progress of a run: per stage done / to do, rate and time left. In a terminal a live table, elsewhere lines."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from replaygen.logs import in_json
from replaygen.plan import Plan, Task
from replaygen.plan.estimate import duration
from replaygen.runs.execute import Outcome

if TYPE_CHECKING:
    from rich.progress import TaskID

log = logging.getLogger("replaygen.runs.progress")


class Progress(Protocol):
    """Told when a run starts, when each task is done or fails, and when it ends.

    start: before the first task. done: a task's record stands. failed: a task raised `error`; `again` where it is
    tried once more. note: anything that a person wants to know (a dashboard's address), with the same as `fields`
    for programs; may come before `start`. close: no more tasks.
    """

    def start(self, plan: Plan) -> None: ...

    def done(self, task: Task, outcome: Outcome) -> None: ...

    def failed(self, task: Task, error: BaseException, again: bool) -> None: ...

    def note(self, message: str, **fields: Any) -> None: ...

    def close(self) -> None: ...


class Quiet:
    """Says nothing."""

    def start(self, plan: Plan) -> None:
        """Nothing."""

    def done(self, task: Task, outcome: Outcome) -> None:
        """Nothing."""

    def failed(self, task: Task, error: BaseException, again: bool) -> None:
        """Nothing."""

    def note(self, message: str, **fields: Any) -> None:
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

    def failed(self, task: Task, error: BaseException, again: bool) -> None:
        """Nothing: the run logs it."""

    def note(self, message: str, **fields: Any) -> None:
        print(message, file=self._stream, flush=True)

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

    def failed(self, task: Task, error: BaseException, again: bool) -> None:
        """Nothing: the run logs it."""

    def note(self, message: str, **fields: Any) -> None:
        self._bars.console.print(message, markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()


class Logged:
    """One log record an event, for logs that are JSON lines."""

    def start(self, plan: Plan) -> None:
        log.info("the run starts", extra={"event_kind": "start", "tasks": len(plan.tasks)})

    def done(self, task: Task, outcome: Outcome) -> None:
        told = {"slot": task.slot, "key": task.key, "state": outcome.state, "seconds": round(outcome.seconds, 3)}
        log.info("%s is done", task.slot, extra={"event_kind": "task", **told})

    def failed(self, task: Task, error: BaseException, again: bool) -> None:
        """Nothing: the run logs it."""

    def note(self, message: str, **fields: Any) -> None:
        log.info("%s", message, extra={"event_kind": "note", **fields})

    def close(self) -> None:
        log.info("no more tasks", extra={"event_kind": "close"})


def for_stream(stream: TextIO, *, quiet: bool = False) -> Progress:
    """A live table where `stream` is a terminal, lines elsewhere, log records where logs are JSON; else quiet."""
    if in_json():
        return Logged()
    if quiet:
        return Quiet()
    return Live() if stream.isatty() else Lines(stream)
