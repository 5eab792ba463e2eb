"""Do one task: the same function inline and on every Dask worker. Names travel, never pixels."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from replaygen.errors import ObjectDamaged, ObjectMissing
from replaygen.stages import Inputs, Out, Stage, Task, stage_of
from replaygen.store import Record, Store

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
def open_store(root: str) -> Store:
    """The store at `root`, opened once per process."""
    return Store(root)


def execute(root: str, task: Task) -> Outcome:
    """Do a task under its key's lock and publish its record.

    A record that stands and agrees with its inputs is adopted. A record whose objects were damaged, or whose inputs
    were rebuilt differently, is replaced.
    """
    store = open_store(root)
    with store.lock(task.key):
        try:
            standing = store.get(task.key)
            if standing is not None and store.status(task.key).state == "cached":
                return _outcome(standing, "adopted")
            record, out = _make(store, task)
        except (ObjectDamaged, ObjectMissing) as error:
            return Outcome(task.key, "input-damaged", message=str(error))
        published = store.replace(record) if standing is not None else store.publish(record)
        out.clear_partial()
    return _outcome(published, "made")


def _make(store: Store, task: Task) -> tuple[Record, Out]:
    stage: Stage[Any] = stage_of(task.stage)()
    if "threads" in task.params:
        _set_threads(int(task.params["threads"]))
    inputs, out = Inputs(store, task), Out(store, task)
    started, clock = datetime.now(UTC), time.perf_counter()
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


def _set_threads(threads: int) -> None:
    import torch

    _keep_memory()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@lru_cache(maxsize=2)
def environment(heavy: bool) -> dict[str, Any]:
    """What the numbers may depend on beside the key: device, versions, CPU capability."""
    from importlib.metadata import version

    import numpy as np

    told: dict[str, Any] = {
        "replaygen": version("replaygen"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    if heavy:
        import torch

        told["torch"] = torch.__version__
        told["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        told["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return told


def root_of(store: Store) -> str:
    """The store's root as workers open it."""
    return str(Path(store.root).resolve())
