"""Where tasks are done: in this process, or on Dask workers. Neither decides what is done, nor tries again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from replaygen.errors import ReplaygenError
from replaygen.runs.execute import Outcome, execute
from replaygen.stages import Task

if TYPE_CHECKING:
    from distributed import Client


KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": 2**31 - 1, "MALLOC_MMAP_THRESHOLD_": 2**30}
"""glibc gives freed memory back to the system at once by Dask's default, and training, which frees and takes the same
buffers in every iteration, then spends half of its time in page faults."""


class Executor(Protocol):
    """Takes tasks, gives them back done."""

    slots: int
    """How many tasks may be with it at once."""

    def submit(self, task: Task, attempt: int) -> None:
        """Take a task whose inputs stand."""

    def next_done(self) -> tuple[Task, Outcome | BaseException]:
        """Wait for a task that is done: its outcome, or the error it died of."""


class Inline:
    """One task at a time, in this process."""

    slots = 1

    def __init__(self, root: str) -> None:
        self._root = root
        self._waiting: list[Task] = []

    def submit(self, task: Task, attempt: int) -> None:
        self._waiting.append(task)

    def next_done(self) -> tuple[Task, Outcome | BaseException]:
        task = self._waiting.pop(0)
        try:
            return task, execute(self._root, task)
        except Exception as error:
            return task, error


class OnDask:
    """On the workers of a Dask cluster; at most twice as many tasks as threads are sent ahead."""

    def __init__(self, root: str, client: Client) -> None:
        self._root = root
        self._client = client
        self._futures: dict[str, tuple[Any, Task]] = {}
        self._done: Any = None
        threads = sum(client.nthreads().values())
        if threads == 0:
            raise ReplaygenError("the Dask cluster has no workers", hint="start workers, or use workers = N in [run]")
        self.slots = 2 * threads

    def submit(self, task: Task, attempt: int) -> None:
        from distributed import as_completed

        name = f"{task.stage}-{task.key[:20]}-{attempt}"
        future = self._client.submit(execute, self._root, task, key=name, pure=False, retries=0)
        self._futures[name] = (future, task)
        if self._done is None:
            self._done = as_completed([future])
        else:
            self._done.add(future)

    def next_done(self) -> tuple[Task, Outcome | BaseException]:
        future = next(self._done)
        _, task = self._futures.pop(future.key)
        if future.status == "finished":
            return task, future.result()
        error = future.exception()
        return task, error if error is not None else RuntimeError(f"Dask gave the task up: {future.status}")


@contextlib.contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """A Dask cluster of `workers` one-thread processes on loopback, for the length of a run."""
    import logging

    import dask
    from distributed import Client, LocalCluster

    quiet = {
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1, "MALLOC_ARENA_MAX": 1, **KEEP_MEMORY},
        "distributed.worker.memory.terminate": False,
        "distributed.scheduler.allowed-failures": 3,
        "distributed.admin.large-graph-warning-threshold": "100MB",
    }
    with dask.config.set(quiet), LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1",
        dashboard_address="127.0.0.1:0", memory_limit=0, silence_logs=logging.CRITICAL,
    ) as cluster, Client(cluster) as client:  # fmt: skip
        yield client
