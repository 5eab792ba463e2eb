"""What stands behind a replay set: its images and labels back to where they began, and the selections on the way.

The walk of a sample: images, the screens at the door ("select"), labels, the screens on labels ("trust"), erasing
("erase": images and labels anew), and what later steps add to the labels ("knowledge").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from replaygen.runs.replay import ReplaySet
from replaygen.store import Record, Shard, Store


class Made(Protocol):
    """What is needed of a record, or of a planned task, to walk back from it."""

    @property
    def stage(self) -> str: ...
    @property
    def inputs(self) -> tuple[tuple[str, str], ...]: ...


M = TypeVar("M", bound=Made)


def line(find: Callable[[str], M | None], key: str, role: str) -> Iterator[M]:
    """A record or task, and what it was made of in the same role, back to where that began.

    Args:
        find: by key, such as `Store.get`; None where there is none, and the walk ends.
        role: "images" or "labels".
    """
    found = find(key)
    while found is not None:
        yield found
        before = played(found, role) if found.stage in ("erase", "knowledge") else []
        found = find(before[0]) if before else None


def played(made: Made, role: str) -> list[str]:
    """The keys of the inputs that play a role, in plan order."""
    return [key for name, key in made.inputs if name == role]


@dataclass(frozen=True)
class Slice:
    """The i-th part of a set: its images and labels as they were made, and as the set has them now."""

    index: int
    images: Record
    labels: Record
    last_images: Record
    last_labels: Record

    def erases(self) -> bool:
        """Whether something may have been erased from its images."""
        return self.last_images.key != self.images.key


def ancestors(store: Store, record: Record) -> Iterator[Record]:
    """The image and label records behind a replay set, changed and unchanged, each once; images first."""
    seen: set[str] = set()
    for role in ("images", "labels"):
        for key in played(record, role):
            for found in line(store.get, key, role):
                if found.key not in seen:
                    seen.add(found.key)
                    yield found


def slices_of(store: Store, record: Record) -> tuple[Slice, ...]:
    """The parts of a set as far as their records stand, in order."""
    found = []
    for i, (images, labels) in enumerate(zip(played(record, "images"), played(record, "labels"), strict=False)):
        image_line, label_line = list(line(store.get, images, "images")), list(line(store.get, labels, "labels"))
        if image_line and label_line:
            found.append(Slice(i, image_line[-1], label_line[-1], image_line[0], label_line[0]))
    return tuple(found)


def verdicts(store: Store, record: Record, stage: str) -> list[Record]:
    """The selections of a stage ("select" or "trust") that a set, its images or its labels were made by."""
    keys = dict.fromkeys(key for one in (record, *ancestors(store, record)) for role, key in one.inputs
                         if role in ("selection", "trusted", "trust"))  # fmt: skip
    return [found for found in map(store.get, keys) if found is not None and found.stage == stage]


def is_judged(replay_set: ReplaySet) -> bool:
    """Whether labels were screened, or images changed, on the way into a set."""
    store, record = replay_set.store, replay_set.record
    changed = any(slice_.erases() for slice_ in slices_of(store, record))
    return changed or bool(verdicts(store, record, "trust"))


def identity(replay_set: ReplaySet) -> tuple[str, ...]:
    """Equal for the sets of one source that differ only in what later steps added to their labels."""
    store, record = replay_set.store, replay_set.record
    parts = [key for one in slices_of(store, record) for key in (one.last_images.key, one.labels.key)]
    return (replay_set.source, *(parts or [record.key]), *(one.key for one in verdicts(store, record, "trust")))


def open_shard(store: Store, record: Record, name: str) -> Shard:
    """A shard of a record, for reading parts of it."""
    tar, index = record.output(f"{name}.tar"), record.output(f"{name}.index.json")
    return Shard(store.open_object(tar.digest), store.read(index.digest))


def read_json(store: Store, record: Record, name: str) -> Any:
    """A JSON output of a record; None where it has none of that name."""
    found = [output.digest for output in record.outputs if output.name == name]
    return json.loads(store.read(found[0])) if found else None
