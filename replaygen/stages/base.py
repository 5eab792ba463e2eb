"""What a stage is: a name, a version, parameters, and `run(params, inputs, out)`.

A stage touches the world only through `inputs` and `out`. What decides its numbers is in its parameters, its seed and
its input keys, and so in its key; what only says *how* (paths, device) is in `inputs.where`, and in no key.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from replaygen.errors import ObjectMissing
from replaygen.store import Counts, OutputObject, Record, Shard, Store, task_key, write_shard

P = TypeVar("P")

NETWORK_MODULES = (
    "replaygen.learn.networks",
    "replaygen.learn.heads",
    "replaygen.learn.encoders",
    "replaygen.learn.oplist",
    "replaygen.learn.specs",
    "replaygen.learn.samples",
    "replaygen.learn.views",
)
"""What decides a network's output, for `Stage.modules`."""

DATA_MODULES = (
    "replaygen.scenario.scenario",
    "replaygen.scenario.cut",
    "replaygen.scenario.tasks",
    "replaygen.datasets.base",
)
"""What decides which images and labels a step has, for `Stage.modules`."""


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work, planned before anything runs.

    `slot` is the human name of the place it fills in a recipe ("label/web/cow/0003/recall/seed0"); `where` holds what
    is in no key; `requested` is the number of samples it is asked for.
    """

    key: str
    stage: str
    version: int
    params: dict[str, Any]
    seed: int | None
    inputs: tuple[tuple[str, str], ...]
    slot: str
    where: dict[str, Any] = field(default_factory=dict)
    requested: int = 1


class Inputs:
    """The read side of a running task."""

    def __init__(self, store: Store, task: Task) -> None:
        self._store = store
        self.store_root = store.root
        self.where: Mapping[str, Any] = task.where
        self.seed = task.seed
        self.slot = task.slot
        self._records: dict[str, Record] = {}
        self._roles: dict[str, list[str]] = {}
        for role, key in task.inputs:
            self._roles.setdefault(role, []).append(key)
            if key in self._records:
                continue
            record = store.get(key)
            if record is None:
                raise ObjectMissing(f"input {role} {key[:12]} of {task.slot} is not in the store")
            self._records[key] = record
        self.read_digests = {key: record.outputs_digest for key, record in self._records.items()}

    def records(self, role: str) -> list[Record]:
        """The records of the inputs that play `role`, in plan order (empty where there is none)."""
        return [self._records[key] for key in self._roles.get(role, [])]

    def record(self, role: str) -> Record:
        """The one input that plays `role`."""
        (record,) = self.records(role)
        return record

    def read(self, record: Record, name: str) -> bytes:
        """The bytes of an input's output, checked against their digest."""
        return self._store.read(record.output(name).digest)

    def read_json(self, record: Record, name: str) -> Any:
        """A JSON output of an input."""
        return json.loads(self.read(record, name))

    def shard(self, record: Record, name: str) -> Shard:
        """A shard of an input, its bytes checked against their digest."""
        return Shard(self.read(record, f"{name}.tar"), self.read(record, f"{name}.index.json"))

    def read_object(self, digest: str) -> bytes:
        """An object named inside an input (a manifest's member), checked against its digest."""
        return self._store.read(digest)

    def buried(self) -> frozenset[str]:
        """The ids of the photos that were purged from this store and may never come back."""
        return frozenset(self._store.tombstones())

    def buried_bytes(self) -> frozenset[str]:
        """The sha256 of the raw bytes of those photos, as far as known: the same file at another address is one too."""
        return self._store.buried_bytes()

    def open_object(self, digest: str) -> Path:
        """The path of an object that was found right, for reading parts of it."""
        return self._store.open_object(digest)


class Out:
    """The write side of a running task: outputs, and a count for every sample that was asked for."""

    def __init__(self, store: Store, task: Task) -> None:
        self._store = store
        self._task = task
        self._outputs: list[OutputObject] = []
        self._accepted = 0
        self._rejected: list[dict[str, Any]] = []
        self._failed: list[dict[str, Any]] = []
        self._unnamed: Counter[str] = Counter()
        self.provenance: dict[str, Any] = {}

    def put(self, name: str, data: bytes, samples: int = 0) -> None:
        """Store one output; durable when this returns."""
        ref = self._store.put(data)
        self._outputs.append(OutputObject(name=name, digest=ref.digest, size=ref.size, samples=samples))

    def put_json(self, name: str, value: Any) -> None:
        """Store a value as JSON with sorted keys."""
        self.put(name, json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())

    def shard(self, name: str, items: Iterable[tuple[str, dict[str, bytes]]]) -> None:
        """Store samples as one shard and its offset index."""
        items = list(items)
        tar, index = write_shard(items)
        self.put(f"{name}.tar", tar, samples=len(items))
        self.put(f"{name}.index.json", index)

    def accept(self, count: int = 1) -> None:
        """Count samples that were made."""
        self._accepted += count

    def reject(self, sample: str, reason: str, **scores: float) -> None:
        """Count a sample that was looked at and refused, with its named reason."""
        self._rejected.append({"id": sample, "reason": reason, **scores})

    def reject_unnamed(self, reason: str, count: int) -> None:
        """Count samples that were refused, where they are too many to be named."""
        self._unnamed[reason] += count

    def fail(self, sample: str, reason: str) -> None:
        """Count a sample that could not be looked at (unreadable, gone)."""
        self._failed.append({"id": sample, "reason": reason})

    def partial(self) -> Path:
        """A folder that survives a kill, for the checkpoints of a running fit; it tells what it comes from."""
        task = self._task
        about = {"stage": task.stage, "slot": task.slot, "inputs": [key for _, key in task.inputs]}
        return self._store.partial(task.key, about)

    def clear_partial(self) -> None:
        """Drop the folder once the record stands."""
        self._store.clear_partial(self._task.key)

    def record(self, inputs: Inputs, environment: dict[str, Any], started: str, seconds: float) -> Record:
        """The record of what was made; requested = accepted + rejected + failed always holds."""
        if self._rejected or self._failed:
            self.put_json("refused.json", {"rejected": self._rejected, "failed": self._failed})
        task = self._task
        rejected = Counter(item["reason"] for item in self._rejected) + self._unnamed
        failed = Counter(item["reason"] for item in self._failed)
        requested = self._accepted + rejected.total() + failed.total()
        return Record(
            key=task.key, stage=task.stage, version=task.version, params=task.params, seed=task.seed,
            inputs=task.inputs, slot=task.slot, outputs=tuple(self._outputs),
            counts=Counts(requested=requested, accepted=self._accepted, rejected=dict(rejected), failed=dict(failed)),
            read=inputs.read_digests, provenance=self.provenance, environment=environment,
            started=started, seconds=seconds,
        )  # fmt: skip


class Stage(ABC, Generic[P]):
    """One kind of work.

    Attributes:
        name: the stage's name, in every key of its tasks.
        version: raised whenever the numbers it makes may change; CI compares a digest of `modules` with it.
        modules: the modules, beside the stage's own, that decide its numbers.
        seconds_per_sample: what to expect before anything was measured.
        bytes_per_sample: likewise, on disk.
        heavy: whether it holds a model and wants a GPU where there is one.
        resource: what a worker should have to do it: "GPU" (as `heavy`), "IO" where it waits for the network, "" where
            any worker will do. In no key.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    modules: ClassVar[tuple[str, ...]] = ()
    seconds_per_sample: ClassVar[float] = 0.01
    bytes_per_sample: ClassVar[int] = 1000
    heavy: ClassVar[bool] = False
    resource: ClassVar[Literal["", "GPU", "IO"]] = ""
    Params: type[P]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.heavy and "resource" not in vars(cls):
            cls.resource = "GPU"

    @classmethod
    def task(
        cls, params: dict[str, Any], *, inputs: Iterable[tuple[str, str]] = (), seed: int | None = None,
        slot: str, where: dict[str, Any] | None = None, requested: int = 1,
    ) -> Task:  # fmt: skip
        """A planned task of this stage; its key covers all but `slot`, `where` and `requested`."""
        inputs = tuple(inputs)
        key = task_key(cls.name, cls.version, params, seed, inputs)
        return Task(key, cls.name, cls.version, params, seed, inputs, slot, where or {}, requested)

    @classmethod
    def api_calls(cls, task: Task) -> int:
        """Calls of outside services to expect of a task."""
        return 0

    @abstractmethod
    def run(self, params: P, inputs: Inputs, out: Out) -> None:
        """Do the work: read from `inputs`, write to `out`, count every sample."""
