"""Stages without any meaning, to try what carries them: runs, stores and clusters, at any size.

`registered()` makes them known in this process. Dask workers make them known with `PRELOAD`, one of the entries of
Dask's own `distributed.worker.preload`.
"""

from __future__ import annotations

import hashlib
import os
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from replaygen.plan import Plan, Recipe
from replaygen.plan.build import Built, Opened
from replaygen.plan.recipe import check_recipe
from replaygen.plan.rows import resolve_rows
from replaygen.stages import STAGES, Inputs, Out, Stage, Task

if TYPE_CHECKING:
    from replaygen.store import Store

PRELOAD = "from replaygen.testing import toys; toys.register()"

_RECIPE = """
name = "toys"
[data]
path = "nowhere"
[scenario]
task = "1"
[network]
kind = "small"
[replay.none]
source = "folder"
path = "nowhere"
"""


@dataclass(frozen=True)
class ToyParams:
    """number: which one; samples: how many it counts; seconds: how long it takes; bytes: of each sample it stores."""

    number: int
    samples: int = 64
    seconds: float = 0.0
    bytes: int = 0
    name: str = ""


class NothingStage(Stage[ToyParams]):
    """Does nothing, and counts its samples."""

    name = "toy-nothing"
    version = 1
    seconds_per_sample = 1e-5
    bytes_per_sample = 0
    Params = ToyParams

    def run(self, params: ToyParams, inputs: Inputs, out: Out) -> None:
        """Count."""
        out.accept(params.samples)


class SleepStage(NothingStage):
    """Waits."""

    name = "toy-sleep"

    def run(self, params: ToyParams, inputs: Inputs, out: Out) -> None:
        """Sleep for `seconds`; the provenance says which process did, and from when to when by the machine's clock."""
        out.provenance["process"], out.provenance["began"] = os.getpid(), time.monotonic()
        time.sleep(params.seconds)
        out.provenance["ended"] = time.monotonic()
        out.accept(params.samples)


class SpinStage(NothingStage):
    """Computes: always the same work, whatever else the machine does."""

    name = "toy-spin"
    BLOCKS_A_SECOND = 1300
    """MiB of sha256 that one core does in about a second."""

    def run(self, params: ToyParams, inputs: Inputs, out: Out) -> None:
        """Hash `seconds` x BLOCKS_A_SECOND MiB."""
        block, digest = bytes(1 << 20), hashlib.sha256()
        for _ in range(int(params.seconds * self.BLOCKS_A_SECOND)):
            digest.update(block)
        out.accept(params.samples)


class ShardStage(NothingStage):
    """Stores a shard: the bytes of its samples come from its number, or from those of its inputs."""

    name = "toy-shard"
    bytes_per_sample = 1000

    def run(self, params: ToyParams, inputs: Inputs, out: Out) -> None:
        """One shard, `images.tar`, of `samples` samples of `bytes` bytes."""
        time.sleep(params.seconds)
        seed = hashlib.sha256(str(params.number).encode())
        for record in inputs.records("images"):
            for _, members in inputs.shard(record, "images"):
                seed.update(b"".join(members.values()))
        out.shard("images", [
            (f"s{index:04d}", {"bin": hashlib.shake_128(seed.digest() + bytes([index])).digest(params.bytes)})
            for index in range(params.samples)
        ])  # fmt: skip
        out.accept(params.samples)


class ReadStage(ShardStage):
    """As `toy-shard`, under a name that asks for a worker with the resource IO."""

    name = "toy-read"
    resource = "IO"


class DrawStage(ShardStage):
    """As `toy-shard`, under a name that asks for a worker with the resource GPU."""

    name = "toy-draw"
    resource = "GPU"


class DeadlyStage(NothingStage):
    """Ends its process, as the kernel does where memory is out."""

    name = "toy-deadly"

    def run(self, params: ToyParams, inputs: Inputs, out: Out) -> None:
        """SIGKILL to itself, after `seconds`."""
        time.sleep(params.seconds)
        os.kill(os.getpid(), 9)


TOYS: tuple[type[Stage[Any]], ...] = (
    NothingStage, SleepStage, SpinStage, ShardStage, ReadStage, DrawStage, DeadlyStage,
)  # fmt: skip


def register(others: Mapping[str, type[Stage[Any]]] | None = None) -> None:
    """Make the toys known in this process, and `others` under the names given."""
    STAGES.update({stage.name: stage for stage in TOYS})
    STAGES.update(others or {})


@contextmanager
def registered(others: Mapping[str, type[Stage[Any]]] | None = None) -> Iterator[None]:
    """The toys are known within; afterwards the stages are those of before."""
    before = dict(STAGES)
    register(others)
    try:
        yield
    finally:
        STAGES.clear()
        STAGES.update(before)


def toy(stage: type[Stage[Any]], number: int, inputs: Iterable[Task] = (), **params: Any) -> Task:
    """A task of a toy stage; it reads the shards of `inputs`."""
    told = {"number": number, "samples": 64, "seconds": 0.0, "bytes": 0, "name": "", **params}
    return stage.task(
        told, inputs=[("images", task.key) for task in inputs], slot=f"{stage.name}/{told['name']}{number:05d}",
        requested=told["samples"],
    )  # fmt: skip


def toy_plan(store: Store, tasks: Iterable[Task], **run: Any) -> Plan:
    """A plan of these tasks, each behind its inputs; `run` are keys of the recipe's `[run]`."""
    table = check_recipe({**tomllib.loads(_RECIPE), "run": run}, where="toys", text=_RECIPE)
    here = Path("toys.toml").absolute()
    recipe = Recipe(table, here, here.parent)
    nothing = cast(Any, None)
    opened = Opened(
        dataset=nothing, scenario=nothing, photos={}, generators={}, network={}, encoder={},
        rows=resolve_rows(table, workspace=here.parent, where="toys"), where={},
    )  # fmt: skip
    found = {task.key: task for task in tasks}
    return Plan(recipe, store, opened, Built(found, {task.slot: key for key, task in found.items()}))
