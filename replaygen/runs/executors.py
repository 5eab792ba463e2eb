"""Where tasks are done: in this process, or on Dask workers. Neither decides what is done, nor tries again."""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from replaygen.errors import ReplaygenError
from replaygen.runs.execute import Outcome, execute
from replaygen.stages import Task, stage_of

if TYPE_CHECKING:
    from distributed import Client


log = logging.getLogger("replaygen.run")


class Executor(Protocol):
    """Takes tasks, gives them back done."""

    @property
    def slots(self) -> int:
        """How many tasks may be with it at once, now."""

    def takes(self, task: Task) -> bool:
        """Whether there is room for a task of this kind, now."""

    def submit(self, task: Task, attempt: int) -> None:
        """Take a task whose inputs stand."""

    def next_done(self) -> tuple[Task, Outcome | BaseException]:
        """Wait for a task that is done: its outcome, or the error it died of."""


class Inline:
    """One task at a time, in this process."""

    slots = 1

    def __init__(self, address: str) -> None:
        self._address = address
        self._waiting: list[Task] = []

    def takes(self, task: Task) -> bool:
        """It does every kind."""
        return not self._waiting

    def submit(self, task: Task, attempt: int) -> None:
        self._waiting.append(task)

    def next_done(self) -> tuple[Task, Outcome | BaseException]:
        task = self._waiting.pop(0)
        try:
            return task, execute(self._address, task)
        except Exception as error:
            failed = error
        interrupt = _interrupt_behind(failed)
        if interrupt is not None:
            raise interrupt
        return task, failed


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C that an error was made of: Python itself makes a RuntimeError of one in a class's `__set_name__`."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


class OnDask:
    """On the workers of a Dask cluster, which may come and go.

    At most twice as many tasks as workers are sent ahead, and of a kind that only some workers have the resource for,
    twice as many as these. A kind that no worker has the resource for goes to any.

    Args:
        address: the store's, as workers open it.
        most: workers that an adaptive cluster may grow to: so much is sent ahead that it has a reason to.
        patience: seconds to wait while the cluster has no worker at all; None: for ever, as in a batch system's queue.
        note: is told what a person wants to know.
    """

    PATIENCE = 600.0
    LOOK = 1.0
    """Seconds between two looks at which workers there are."""
    STRANDED = 30.0
    """Seconds after which tasks whose kind of worker went away are given to any other."""
    STUCK = 20.0
    """Seconds without a result after which workers that are paused for memory, and do nothing, are started anew."""

    def __init__(
        self, address: str, client: Client, *, most: int = 0, patience: float | None = PATIENCE,
        note: Callable[[str], None] = log.info,
    ) -> None:  # fmt: skip
        self._address, self._client, self._note = address, client, note
        self._most, self._patience = most, patience
        self._run = uuid.uuid4().hex[:12]  # two runs on one scheduler never share a task
        self._tasks: dict[str, tuple[Any, Task, str, int]] = {}
        self._of_kind: Counter[str] = Counter()
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._results: list[tuple[Task, Outcome | BaseException]] = []
        self._workers: dict[str, frozenset[str]] = {}
        self._looked = self._seen = self._heard = time.monotonic()
        self._missing: dict[str, float] = {}
        self._alone = False
        self._look_now()

    @property
    def slots(self) -> int:
        self._look()
        return max(2, 2 * len(self._workers), 2 * self._most)

    def takes(self, task: Task) -> bool:
        kind = self._kind(task)
        return self._of_kind[kind] < self._room(kind)

    def submit(self, task: Task, attempt: int) -> None:
        self._send(task, self._kind(task), attempt)

    def next_done(self) -> tuple[Task, Outcome | BaseException]:
        while not self._results:
            self._results = self._gather(self._wait())
        return self._results.pop(0)

    # tasks

    def _kind(self, task: Task) -> str:
        """The resource that a task is sent with: its stage's, where some worker has it."""
        self._look()
        wanted: str = stage_of(task.stage).resource
        return wanted if any(wanted in has for has in self._workers.values()) else ""

    def _room(self, kind: str) -> int:
        able = sum(kind in has for has in self._workers.values()) if kind else len(self._workers)
        return self.slots if able == len(self._workers) else 2 * able

    def _send(self, task: Task, kind: str, attempt: int, again: str = "") -> None:
        name = f"{task.stage}-{task.key[:16]}-{self._run}-{attempt}{again}"
        try:
            future = self._client.submit(
                execute, self._address, task, key=name, pure=False, retries=0, resources={kind: 1} if kind else None
            )
        except Exception as error:
            raise self._lost() if self._client.status != "running" else error from None
        self._tasks[name] = future, task, kind, attempt
        self._of_kind[kind] += 1
        future.add_done_callback(lambda future: self._done.put(future.key))

    def _drop(self, name: str) -> tuple[Any, Task, str, int]:
        dropped = self._tasks.pop(name)
        self._of_kind[dropped[2]] -= 1
        return dropped

    # results

    def _wait(self) -> list[str]:
        """The names of some tasks that are done."""
        while True:
            try:
                names = [self._done.get(timeout=self.LOOK)]
            except queue.Empty:
                self._look()
                self._look_after()
                continue
            while not self._done.empty():
                names.append(self._done.get())
            self._heard = time.monotonic()
            return [name for name in names if name in self._tasks]

    def _gather(self, names: Iterable[str]) -> list[tuple[Task, Outcome | BaseException]]:
        done = [self._drop(name)[:2] for name in names]
        made = [future for future, _ in done if future.status == "finished"]
        try:
            outcomes = dict(zip((future.key for future in made), self._asked(self._client.gather, made), strict=True))
        except Exception as error:
            log.debug("asking for each alone: %s", error)
            outcomes = {future.key: self._alone_of(future) for future in made}
        return [(task, outcomes[f.key] if f.key in outcomes else self._error(f)) for f, task in done]

    def _alone_of(self, future: Any) -> Outcome | BaseException:
        try:
            outcome: Outcome = self._asked(future.result)
        except Exception as error:
            if self._client.status != "running":
                raise self._lost() from None
            return error
        return outcome

    def _error(self, future: Any) -> BaseException:
        if future.status == "error":
            error: BaseException = future.exception()
            return error
        if self._client.status != "running":
            raise self._lost()
        return RuntimeError(f"Dask gave the task up: {future.status}")

    # workers

    def _look(self) -> None:
        if time.monotonic() - self._looked >= self.LOOK and self._client.status == "running":
            self._look_now()

    def _look_now(self) -> None:
        """Which workers there are, and their resources where these may have changed."""
        try:
            there = self._asked(self._client.nthreads)
            if there.keys() != self._workers.keys():
                told = self._asked(self._client.scheduler_info, -1)["workers"]
                self._workers = {
                    name: frozenset(kind for kind, amount in about["resources"].items() if amount >= 1)
                    for name, about in told.items()
                }
        except Exception as error:  # it is `_look_after` that decides whether the scheduler is gone
            log.debug("cannot look at the workers: %s", error)
        self._looked = time.monotonic()
        if self._workers:
            self._seen = self._looked

    def _look_after(self) -> None:
        """While nothing is done: is the scheduler there, are there workers, and of the right kind?"""
        if self._client.status != "running":
            raise self._lost()
        now = time.monotonic()
        if self._alone and self._workers:
            self._note(f"{len(self._workers)} Dask workers are here")
            self._alone = False
        elif not self._workers and now - self._seen >= 5:
            if not self._alone:
                self._note("the Dask cluster has no workers; waiting for some")
            self._alone = True
            if self._patience is not None and now - self._seen >= self._patience:
                raise ReplaygenError(
                    f"the Dask cluster has had no worker for {now - self._seen:.0f} s",
                    hint="start workers and run the recipe again; what was made is kept",
                )
        self._free_stranded(now)
        if now - self._heard >= self.STUCK:
            self._heard = now
            self._restart_paused()

    def _restart_paused(self) -> None:
        """A worker that is paused for its memory, and does nothing, may stay so for ever."""
        try:
            workers = self._asked(self._client.scheduler_info, -1)["workers"]
            paused = [
                name for name, about in workers.items()
                if about["status"] == "paused" and not about["metrics"]["task_counts"].get("executing")
            ]  # fmt: skip
            if paused:
                self._note(f"{len(paused)} Dask workers are out of memory and do nothing: they are started anew")
                self._asked(lambda: self._client.restart_workers(paused, timeout=60, raise_for_error=False))
        except ReplaygenError:
            raise
        except Exception as error:  # a worker without a nanny cannot be
            log.warning("paused workers cannot be started anew: %s", error)

    def _free_stranded(self, now: float) -> None:
        """Tasks that wait for a kind of worker that went away are given to any other after a while."""
        there = {kind for has in self._workers.values() for kind in has}
        gone = {kind for kind in +self._of_kind if kind and kind not in there} if self._workers else set()
        self._missing = {kind: self._missing.get(kind, now) for kind in gone}
        for name in [name for name, (_, _, kind, _) in self._tasks.items() if kind in gone]:
            if now - self._missing[self._tasks[name][2]] >= self.STRANDED:
                future, task, kind, attempt = self._drop(name)
                log.warning("%s: no worker with %s is left, any other may do it", task.slot, kind)
                future.cancel()
                self._send(task, "", attempt, again="-any")

    def _asked(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """What a call of the client gives, unless the connection is lost meanwhile: it would wait for that by itself
        for much longer."""
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def wait() -> None:
            try:
                answer.put((ask(*arguments), None))
            except BaseException as error:
                answer.put((None, error))

        threading.Thread(target=wait, name="replaygen-asks-dask", daemon=True).start()
        while True:
            try:
                given, error = answer.get(timeout=self.LOOK)
            except queue.Empty:
                if self._client.status == "running":
                    continue
                raise self._lost() from None
            if error is not None:
                raise error
            return given

    def _lost(self) -> ReplaygenError:
        return ReplaygenError(
            "the connection to the Dask scheduler was lost",
            hint="what was made is kept; when it is there again, run the recipe again",
        )
