"""Which samples of a replay set are shown: some of all, evenly chosen, and only those are read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, Protocol

from replaygen.report.text import count
from replaygen.runs.replay import ReplaySample, ReplaySet
from replaygen.sample import decode_image, decode_mask
from replaygen.store import Shard


class Replay(Protocol):
    """What a sheet needs of a replay set; `replaygen.runs.replay.ReplaySet` is one."""

    @property
    def manifest(self) -> dict[str, Any]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[ReplaySample]: ...


def evenly(total: int, most: int) -> list[int]:
    """At most so many of the places 0..total-1, evenly spread, the first and the last among them where two may be."""
    if most >= total:
        return list(range(max(0, total)))
    if most <= 1:
        return [0] * max(0, most)
    return [i * (total - 1) // (most - 1) for i in range(most)]


def chosen(replay_set: Replay, most: int) -> Iterator[ReplaySample]:
    """At most so many samples of a set, evenly chosen, in its order; the shards of others are not opened.

    Raises:
        StoreError, DataError: an object is missing or damaged.
    """
    places = evenly(len(replay_set), most)
    if not isinstance(replay_set, ReplaySet):
        wanted = set(places)
        last = max(wanted, default=-1) + 1
        yield from (one for i, one in enumerate(itertools.islice(replay_set, last)) if i in wanted)
        return
    for images, labels, sample in _named(replay_set, places):
        extension = "png" if "png" in images.extensions(sample) else "jpg"
        yield ReplaySample(
            sample,
            decode_image(images.read(sample, extension), where=sample),
            decode_mask(labels.read(sample, "mask.png"), where=sample),
            json.loads(images.read(sample, "json")),
            json.loads(labels.read(sample, "label.json")),
        )


def chosen_labels(replay_set: ReplaySet, most: int) -> Iterator[tuple[Shard, str]]:
    """The label shards and names of the samples that `chosen` takes; no image is read."""
    for _, labels, sample in _named(replay_set, evenly(len(replay_set), most)):
        yield labels, sample


def _named(replay_set: ReplaySet, places: list[int]) -> Iterator[tuple[Shard, Shard, str]]:
    """(images, labels, name) at these places of a set, in order."""
    store, first, waiting = replay_set.store, 0, iter(places)
    place = next(waiting, None)
    for part in replay_set.manifest["shards"]:
        size = len(part["kept"]) if "kept" in part else int(part["samples"])
        if place is not None and place < first + size:
            images, labels = (
                Shard(store.open_object(part[name]), store.read(part[f"{name}_index"])) for name in ("images", "labels")
            )
            kept = part.get("kept", labels.ids[:size])
            while place is not None and place < first + size:
                yield images, labels, str(kept[place - first])
                place = next(waiting, None)
        first += size


def told_choice(shown: int, total: int) -> str:
    """ "Showing 60 of 2,000, evenly chosen."; "" where all are shown."""
    return f"Showing {count(shown)} of {count(total)}, evenly chosen." if 0 < shown < total else ""
