"""Where tasks are done: in this process, or on Dask workers. Neither decides what is done, nor tries again."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from replaygen.errors import ReplaygenError
from replaygen.runs.execute import Outcome, execute
from replaygen.stages import Task

if TYPE_CHECKING:
    from distributed import Client


log = logging.getLogger("replaygen.run")

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": 2**31 - 1, "MALLOC_MMAP_THRESHOLD_": 2**30}
"""glibc gives freed memory back to the system at once by Dask's default, and training, which frees and takes the same
buffers in every iteration, then spends half of its time in page faults."""

LEAVE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""What a worker does first: a terminal sends Ctrl-C to every process, and it is the run that stops its workers."""


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
    """On the workers of a Dask cluster; at most twice as many tasks as workers are sent ahead."""

    PATIENCE = 600.0
    """Seconds to wait while the cluster has no worker at all."""

    def __init__(self, root: str, client: Client) -> None:
        self._root = root
        self._client = client
        self._run = uuid.uuid4().hex[:12]  # two runs on one scheduler never share a task
        self._tasks: dict[Any, Task] = {}
        workers = len(client.nthreads())
        if workers == 0:
            raise ReplaygenError("the Dask cluster has no workers", hint="start workers, or use workers = N in [run]")
        self.slots = 2 * workers

    def submit(self, task: Task, attempt: int) -> None:
        name = f"{task.stage}-{task.key[:16]}-{self._run}-{attempt}"
        future = self._client.submit(execute, self._root, task, key=name, pure=False, retries=0)
        self._tasks[future] = task

    def next_done(self) -> tuple[Task, Outcome | BaseException]:
        future = self._wait()
        task = self._tasks.pop(future)
        if future.status == "finished":
            return task, future.result()
        error = future.exception() if future.status == "error" else None
        return task, error if error is not None else RuntimeError(f"Dask gave the task up: {future.status}")

    def _wait(self) -> Any:
        from distributed import wait

        alone = 0.0
        while True:
            try:
                done, _ = wait(list(self._tasks), timeout=10, return_when="FIRST_COMPLETED")
                return next(future for future in self._tasks if future in done)
            except TimeoutError:
                if self._client.status != "running":
                    raise ReplaygenError(
                        "the Dask scheduler went away", hint="what was made is kept; run the recipe again"
                    ) from None
                alone = 0.0 if self._client.nthreads() else alone + 10
                if alone >= self.PATIENCE:
                    raise ReplaygenError(
                        f"the Dask cluster has had no worker for {alone:.0f} s",
                        hint="start workers and run the recipe again; what was made is kept",
                    ) from None
                if alone:
                    log.warning("the Dask cluster has no workers; waiting")


@contextlib.contextmanager
def remote_client(address: str) -> Iterator[Client]:
    """A client of a running cluster.

    Raises:
        ReplaygenError: nothing answers at the address.
    """
    from distributed import Client

    try:
        client = Client(address, timeout=20)
    except (OSError, ValueError) as error:
        raise ReplaygenError(
            f"no Dask scheduler answers: {error}", where=address, hint="is it running, and is the address right?"
        ) from None
    with client:
        yield client


@contextlib.contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """A Dask cluster of `workers` one-thread processes on loopback, for the length of a run."""
    import dask
    from distributed import Client, LocalCluster

    first = dask.config.get("distributed.worker.preload")
    quiet = {
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1, "MALLOC_ARENA_MAX": 1, **KEEP_MEMORY},
        "distributed.worker.memory.terminate": False,
        "distributed.worker.preload": [*([first] if isinstance(first, str) else first), LEAVE_CTRL_C],
        "distributed.scheduler.allowed-failures": 3,
        "distributed.admin.large-graph-warning-threshold": "100MB",
    }
    with dask.config.set(quiet), LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1",
        dashboard_address="127.0.0.1:0", memory_limit=0, silence_logs=logging.CRITICAL,
    ) as cluster, Client(cluster) as client:  # fmt: skip
        yield client
