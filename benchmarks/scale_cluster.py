"""A Dask cluster for measuring: a scheduler in a process of its own that counts its bytes, and many small workers.

The workers are forked from one process that has imported everything, so that 64 of them fit where 64 machines are not.
Workers do not sample their own profile, as 64 of them would keep two cores busy with it; nothing else is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

HERE = Path(__file__).resolve().parent
moved = {"in": 0, "out": 0, "messages": 0}
"""Bytes that came to and left the process that counts, and how many messages they were."""


@dataclass(frozen=True)
class Seen:
    """What the scheduler's process has used so far: CPU seconds, resident bytes, bytes and messages moved."""

    cpu: float
    resident: int
    bytes: int
    messages: int


@dataclass(frozen=True)
class Cluster:
    """A running cluster and a client of it."""

    client: Client
    scheduler: int
    """The scheduler's process id."""
    workers: int
    """The process id of the workers' parent."""

    def seen(self) -> Seen:
        """What the scheduler has used so far."""
        return Seen(**self.client.run_on_scheduler(look))

    def workers_cpu(self) -> float:
        """CPU seconds of all workers."""
        import psutil

        found = psutil.Process(self.workers).children(recursive=True)
        return sum(sum(process.cpu_times()[:2]) for process in found)


def look() -> dict[str, Any]:
    """Run on the scheduler: the fields of `Seen`."""
    import psutil
    import scale_cluster  # as imported by name: when this file is the program, its counter lives there

    usage = psutil.Process()
    return {
        "cpu": sum(usage.cpu_times()[:2]), "resident": usage.memory_info().rss,
        "bytes": scale_cluster.moved["in"] + scale_cluster.moved["out"], "messages": scale_cluster.moved["messages"],
    }  # fmt: skip


@contextmanager
def cluster(folder: Path, workers: int, *setup: str) -> Iterator[Cluster]:
    """A scheduler and `workers` one-thread workers on loopback; `setup` are statements that workers run first."""
    from distributed import Client

    found = folder / f"scheduler-{os.urandom(4).hex()}.json"
    environment = {
        **os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "critical",
    }  # fmt: skip
    mine = [sys.executable, str(HERE / "scale_cluster.py")]
    started = [subprocess.Popen([*mine, "scheduler", str(found)], env=environment)]
    try:
        address = _wait_for(found)
        command = [*mine, "workers", address, str(workers), str(folder), *setup]
        started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        with Client(address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=300)
            yield Cluster(client, started[0].pid, started[1].pid)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=60)


def _wait_for(path: Path, patience: float = 120.0) -> str:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with suppress(OSError, ValueError):
            return str(json.loads(path.read_text())["address"])
        time.sleep(0.1)
    raise TimeoutError("the Dask scheduler did not start")


def _count_bytes() -> None:
    """Count what this process' connections carry, at the one place where Dask makes frames of messages."""
    import scale_cluster
    from distributed.comm import tcp
    from distributed.utils import nbytes

    carried: Any = tcp
    to_frames, from_frames = carried.to_frames, carried.from_frames

    async def sent(*args: Any, **options: Any) -> Any:
        frames = await to_frames(*args, **options)
        scale_cluster.moved["out"] += sum(map(nbytes, frames))
        scale_cluster.moved["messages"] += 1
        return frames

    async def received(frames: Any, *args: Any, **options: Any) -> Any:
        scale_cluster.moved["in"] += sum(map(nbytes, frames))
        scale_cluster.moved["messages"] += 1
        return await from_frames(frames, *args, **options)

    carried.to_frames, carried.from_frames = sent, received


async def _schedule(found: Path) -> None:
    from distributed import Scheduler

    async with Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0") as scheduler:
        temp = found.with_suffix(".new")
        temp.write_text(json.dumps({"address": scheduler.address}))
        temp.rename(found)
        with suppress(asyncio.CancelledError):
            await scheduler.finished()


async def _work(address: str, name: str, folder: str) -> None:
    from distributed import Worker

    worker = Worker(
        address, nthreads=1, name=name, memory_limit=0, host="127.0.0.1", dashboard=False,
        dashboard_address=None, local_directory=folder, silence_logs=50,
    )  # fmt: skip
    async with worker:
        await worker.finished()


def _fork_workers(address: str, count: int, folder: str, setup: list[str]) -> None:
    import dask
    import distributed  # noqa: F401

    import replaygen.runs.execute
    import replaygen.stages  # noqa: F401

    dask.config.set({"distributed.worker.profile.enabled": False})
    for statement in setup:
        exec(statement, {})
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(_work(address, f"w{number}", folder))
            os._exit(0)
        children.append(child)

    def end(*_: Any) -> None:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    for child in children:
        os.waitpid(child, 0)


def main() -> None:
    """Be a scheduler, or the workers."""
    verb, *arguments = sys.argv[1:]
    if verb == "scheduler":
        _count_bytes()
        asyncio.run(_schedule(Path(arguments[0])))
    else:
        address, count, folder, *setup = arguments
        _fork_workers(address, int(count), folder, setup)


if __name__ == "__main__":
    main()
