"""A Dask cluster that is started by hand, as on machines of one's own: a scheduler and workers, reached by address."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """A Dask cluster started by hand on this machine, as its address."""
    found = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    listen = ["--host", "127.0.0.1", "--no-dashboard"]
    commands = [[*dask, "scheduler", *listen, "--port", "0", "--scheduler-file", str(found)]]
    one = [*dask, "worker", *listen, "--scheduler-file", str(found), "--nthreads", "1", "--memory-limit", "0"]
    commands += [one] * workers
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            started.append(subprocess.Popen(command, **quiet))  # type: ignore[call-overload]
        address = _address(found)
        _wait_for_workers(address, workers)
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=60)


def _address(path: Path, patience: float = 120.0) -> str:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with suppress(OSError, ValueError):
            return str(json.loads(path.read_text(encoding="utf-8"))["address"])
        time.sleep(0.2)
    raise TimeoutError("the Dask scheduler did not start")


def _wait_for_workers(address: str, workers: int) -> None:
    from distributed import Client

    with Client(address, timeout=60) as client:
        client.wait_for_workers(workers, timeout=120)
