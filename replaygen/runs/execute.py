"""Do one task: the same function inline and on every Dask worker. Names travel, never pixels."""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from replaygen.errors import LockTimeout, ObjectDamaged, ObjectMissing
from replaygen.holding import HELD, memory_used
from replaygen.stages import Inputs, Out, Stage, Task, stage_of
from replaygen.store import Record, Store

log = logging.getLogger("replaygen.run")

State = Literal["made", "adopted", "input-damaged"]


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        state: made here; adopted, somebody else made it first; input-damaged, an input must be rebuilt first.
        bytes: size of its outputs.
    """

    key: str
    state: State
    requested: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    bytes: int = 0
    message: str = ""


@lru_cache(maxsize=4)
def open_store(address: str) -> Store:
    """The store at `address`, opened once per process."""
    return Store(address)


def execute(address: str, task: Task) -> Outcome:
    """Do a task under its key's lock and publish its record.

    A record that stands and agrees with its inputs is adopted. A record whose objects were damaged, or whose inputs
    were rebuilt differently, is replaced.
    """
    store = open_store(address)
    with HELD.working(), _locked(store, task), _ONE_AT_A_TIME:
        try:
            standing = store.get(task.key)
            if standing is not None and store.status(task.key).state == "cached":
                return _outcome(standing, "adopted")
            record, out = _make(store, task)
        except (ObjectDamaged, ObjectMissing) as error:
            return Outcome(task.key, "input-damaged", message=str(error))
        published = store.replace(record) if standing is not None else store.publish(record)
        out.clear_partial()
    _give_back()
    return _outcome(published, "made")


_ONE_AT_A_TIME = threading.Lock()
"""Random numbers, threads and determinism are set for a whole process, so it does one task at a time."""


@contextmanager
def _locked(store: Store, task: Task) -> Iterator[None]:
    """The key's lock; while somebody else holds it, says so now and then."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(store.lock(task.key, timeout=30.0))
                break
            except LockTimeout:
                log.warning("waiting: another run is doing %s", task.slot)
        yield


def _make(store: Store, task: Task) -> tuple[Record, Out]:
    stage: Stage[Any] = stage_of(task.stage)()
    inputs, out = Inputs(store, task), Out(store, task)
    started, clock = datetime.now(UTC), time.perf_counter()
    with _threads(task.params.get("threads")):
        stage.run(parameters(stage, task.params), inputs, out)
    record = out.record(
        inputs, environment(stage.heavy), started.isoformat(timespec="seconds"), time.perf_counter() - clock
    )
    return record, out


def parameters(stage: Stage[Any], params: Mapping[str, Any]) -> Any:
    """The stage's parameter object of a task's plain parameters; lists become tuples."""
    return stage.Params(**{name: _frozen(value) for name, value in params.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _outcome(record: Record, state: State) -> Outcome:
    counts = record.counts
    return Outcome(
        record.key, state, counts.requested, counts.accepted, dict(counts.rejected), dict(counts.failed),
        record.seconds, sum(output.size for output in record.outputs),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _keep_memory() -> None:
    """Keep freed memory for the next iteration, where the C library is glibc; see `executors.KEEP_MEMORY`."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    mallopt(-3, 2**30)  # M_MMAP_THRESHOLD


def _give_back() -> None:
    """Give freed memory back to the system, on a worker whose memory is limited: it is paused for what it keeps."""
    if HELD.memory_limit and memory_used(HELD.memory_limit) > _GIVE_BACK:
        import ctypes
        import gc

        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


_GIVE_BACK = 0.6
"""Share of a worker's memory; Dask pauses it at 0.8."""


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """torch with as many CPU threads as the recipe says, for one task."""
    if wanted is None:
        yield
        return
    import torch

    _keep_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=2)
def environment(heavy: bool) -> dict[str, Any]:
    """What the numbers may depend on beside the key: device, versions, CPU capability."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    import numpy as np

    told: dict[str, Any] = {
        "replaygen": version("replaygen"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": version("pillow"),
        "machine": platform.machine(),
    }
    for package, module in (
        ("simplejpeg", "simplejpeg"),
        ("opencv-python-headless", "cv2"),
        ("ImageHash", "imagehash"),
    ):
        with suppress(PackageNotFoundError):  # OpenCV has other names too
            if find_spec(module) is not None:
                told[package] = version(package)
    if heavy:
        import torch

        told["torch"] = torch.__version__
        told["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        for package in ("transformers", "diffusers", "peft", "pytorch-pretrained-biggan"):
            if find_spec(package.replace("-", "_")) is not None:
                told[package] = version(package)
        told["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return told


def address_of(store: Store) -> str:
    """The store's address as workers open it, wherever they were started."""
    address: str = getattr(store, "address", str(store.root))
    return address if "://" in address else str(Path(address).resolve())
