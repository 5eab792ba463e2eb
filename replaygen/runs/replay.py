"""Replay sets as a run leaves them: a handle by class, read on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from replaygen.errors import DataError
from replaygen.plan import Plan
from replaygen.sample import decode_image, decode_mask
from replaygen.shown import Printer, notebook_html
from replaygen.store import Record, Shard, Store

if TYPE_CHECKING:
    from replaygen.learn.buffer import ReplayShard
    from replaygen.sample import Image8, Mask8


@dataclass(frozen=True)
class ReplaySample:
    """One replay image with its label.

    Attributes:
        image: uint8 [H, W, 3].
        mask: uint8 [H, W], channels, 255 = ignore.
        about: the image's side-car (class, source, file, sha256, licence, ...).
        label: the label's side-car (visible, scores, labeler).
    """

    id: str
    image: Image8
    mask: Mask8
    about: dict[str, Any]
    label: dict[str, Any]


@dataclass(frozen=True)
class ReplaySet:
    """All replay of one class: its record in the store, its samples, and the recipe's name of where they come from."""

    store: Store
    record: Record
    names: tuple[str, ...]
    source: str

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """class, channel, source, samples, wanted, shortfall, shards."""
        found: dict[str, Any] = json.loads(self.store.read(self.record.output("manifest.json").digest))
        return {**found, "source": self.source}

    def shards(self) -> list[ReplayShard]:
        """Its shards, opened for reading by offset; cached features are left out."""
        from replaygen.learn.buffer import ReplayShard

        found = []
        for part in self.manifest["shards"]:
            images, labels = (
                Shard(self.store.open_object(part[name]), self.store.read(part[f"{name}_index"]))
                for name in ("images", "labels")
            )
            kept = tuple(part["kept"]) if "kept" in part else None
            found.append(ReplayShard(images, labels, None, self.manifest["channel"], part["samples"], kept))
        return found

    def __len__(self) -> int:
        return int(self.manifest["samples"])

    def __iter__(self) -> Iterator[ReplaySample]:
        for shard in self.manifest["shards"]:
            images = Shard(self.store.read(shard["images"]), self.store.read(shard["images_index"]))
            labels = Shard(self.store.read(shard["labels"]), self.store.read(shard["labels_index"]))
            for sample in shard.get("kept", labels.ids[: shard["samples"]]):
                extension = "png" if "png" in images.extensions(sample) else "jpg"
                yield ReplaySample(
                    sample,
                    decode_image(images.read(sample, extension), where=sample),
                    decode_mask(labels.read(sample, "mask.png"), where=sample),
                    json.loads(images.read(sample, "json")),
                    json.loads(labels.read(sample, "label.json")),
                )

    def _repr_html_(self) -> str | None:
        return notebook_html("replay_set", self)

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(f"replay of {self.manifest['class']!r} from {self.source}: {len(self)} samples")


class ReplaySets(dict[str, ReplaySet]):
    """Replay sets by class name."""

    def _repr_html_(self) -> str | None:
        return notebook_html("replay_sets", self)

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text("replay: " + ", ".join(f"{name} {len(found)}" for name, found in self.items()))


def replay_sets(plan: Plan) -> dict[str, ReplaySet]:
    """Slot ("replay/web/recall/seed0/cow") -> replay set, of every set of the plan that stands in the store."""
    found = {}
    for slot, key in plan.slots.items():
        if slot.startswith("replay/"):
            record = plan.store.get(key)
            if record is not None:
                found[slot] = ReplaySet(plan.store, record, plan.opened.scenario.names, slot.split("/")[1])
    return found


def first_sets(plan: Plan) -> Mapping[str, ReplaySet]:
    """By class name, the sets of the plan's first replay source, each by its first method and seed.

    Raises:
        DataError: the plan has no replay, or none was made yet.
    """
    sets = ReplaySets()
    for found in replay_sets(plan).values():
        if not sets or found.source == next(iter(sets.values())).source:
            sets.setdefault(found.record.params["class_name"], found)
    if not sets:
        raise DataError(
            "no replay set was made", where=plan.recipe.name, hint="run a recipe with a [replay.NAME] table"
        )
    return sets
