"""A Dask cluster started by hand with Dask's own commands, as on machines of one's own, all of it on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ByHand:
    """A running cluster.

    Attributes:
        address: tls:// or tcp://.
        processes: the scheduler, then a nanny for each worker.
    """

    address: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def scheduler(self) -> subprocess.Popen[bytes]:
        """The scheduler's process."""
        return self.processes[0]


@contextmanager
def cluster_by_hand(
    folder: Path, workers: Sequence[Sequence[str]] = ((), ()), *, certificates: Path | None = None, preload: str = ""
) -> Iterator[ByHand]:
    """A scheduler and workers.

    Args:
        folder: where they run and log.
        workers: for each one, more arguments of `dask worker`, such as ("--resources", "GPU=1").
        certificates: a folder with ca.pem, cert.pem and key.pem; without it Dask talks in the clear.
        preload: a statement that every worker runs first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = folder / f"scheduler-{os.urandom(4).hex()}.json"
    each = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--no-dashboard"]
    if certificates is not None:
        each += ["--protocol", "tls"]
        for name in ("ca-file", "cert", "key"):
            each += [f"--tls-{name}", str(certificates / f"{name.removesuffix('-file')}.pem")]
    one = ["worker", *each, "--scheduler-file", str(found), "--nthreads", "1", "--memory-limit", "0"]
    one += ["--local-directory", str(folder)]
    if preload:
        one += ["--preload", preload]
    commands = [
        ["scheduler", *each, "--port", "0", "--scheduler-file", str(found)],
        *([*one, *more] for more in workers),
    ]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"dask-{number}.log").open("wb") as told:
                processes.append(subprocess.Popen(
                    [sys.executable, "-m", "dask", *command], cwd=folder, stdout=told, stderr=told,
                    start_new_session=True,
                ))  # fmt: skip
            if number == 0:
                address = _address(found, processes[0])
        yield ByHand(address, processes)
    finally:
        _end(processes)


def _address(path: Path, scheduler: subprocess.Popen[bytes], patience: float = 120.0) -> str:
    until = time.monotonic() + patience
    while time.monotonic() < until and scheduler.poll() is None:
        with suppress(OSError, ValueError):
            return str(json.loads(path.read_text(encoding="utf-8"))["address"])
        time.sleep(0.05)
    raise TimeoutError("the Dask scheduler did not start")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill them with all that they started."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
