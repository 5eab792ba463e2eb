"""What a purge takes: which records hold photos, and all that was made from them. Reads only; changes nothing.

What holds a photo says so itself: image shards list their samples, fetches keep a proof for each photo, slices of a
folder name their files. Everything below them is followed through inputs. A record whose input is gone, or damaged,
cannot be shown to be free of the photo, so it goes too, unless it is such a slice.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from sys import intern
from typing import Any

from replaygen.errors import DataError, StoreError
from replaygen.store.derive import CANDIDATES, IMAGES, INDEX, SLICES, holds, offered
from replaygen.store.keys import is_digest
from replaygen.store.objects import Objects, log
from replaygen.store.records import Glance
from replaygen.store.shards import Shard
from replaygen.store.shelf import Records

_MEASURED = ("features", "vectors")
"""What names of .safetensors begin with that hold numbers of images, and no weights."""


@dataclass
class Found:
    """The store's records as a purge sees them.

    Attributes:
        paths: every record's file; damaged: those that cannot be read.
        inputs, outputs: key -> input keys, digests of outputs.
        gone: key -> the photos that its record holds and may not.
        unknown: records that hold photos nobody can list.
        searches: key -> the ids of its candidates.
        slices: key of a fetch -> its search, the places of its candidates, and the photos that it leaves out.
        sliced: records that say themselves which photos they hold; files: names of photos of folders that go.
        weights: key -> slot of each record with trained weights.
        mentioned: the photos that any record or search names, those that a search refused included.
        raw: photo -> the sha256 of its bytes as they came, by whatever held it.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    slices: dict[str, tuple[str, int, int, frozenset[str]]] = field(default_factory=dict)
    sliced: set[str] = field(default_factory=set)
    gone: dict[str, set[str]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    searches: dict[str, list[str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    weights: dict[str, str] = field(default_factory=dict)
    mentioned: set[str] = field(default_factory=set)
    raw: dict[str, set[str]] = field(default_factory=dict)

    def note_bytes(self, photo: str, sha256: Any) -> None:
        """Keep what a photo's raw bytes were, where that is a sha256."""
        if isinstance(sha256, str) and is_digest(sha256):
            self.raw.setdefault(photo, set()).add(sha256)

    def readers(self, key: str) -> list[str]:
        """The records that have this key among their inputs."""
        return self._readers().get(key, [])

    def doomed(self) -> set[str]:
        """All records that hold a photo that is gone, and all that was made from them."""
        readers = self._readers()
        ahead = [*self.gone, *self.unknown, *self._of_unknown_origin()]
        found: set[str] = set()
        while ahead:
            key = ahead.pop()
            if key not in found:
                found.add(key)
                ahead += readers.get(key, [])
        return found

    def layers(self, doomed: Collection[str]) -> Iterator[list[str]]:
        """The doomed keys, those that nothing was made from first: cut short, the rest is still found from its root."""
        sorter = TopologicalSorter({key: [one for one in self.inputs[key] if one in doomed] for key in doomed})
        sorter.prepare()
        layers = []
        while sorter.is_active():
            ready = sorter.get_ready()
            layers.append(sorted(ready))
            sorter.done(*ready)
        yield from reversed(layers)

    def _readers(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key, inputs in self.inputs.items():
            for source in set(inputs):
                found.setdefault(source, []).append(key)
        return found

    def _of_unknown_origin(self) -> Iterator[str]:
        for key, inputs in self.inputs.items():
            lost = [source for source in inputs if source not in self.inputs]
            if lost and key not in self.sliced:
                log.warning(
                    "record %s goes too: its input %s is gone, so what it was made from is unknown", key, lost[0]
                )
                yield key


def find(records: Records, objects: Objects, photos: Collection[str]) -> Found:
    """Look at every record once, and into those that hold photos; no shard is read but the side-cars of what matches.

    Args:
        photos: photo ids, and sample ids of photos of folders.
    """
    found = Found()
    for key, path in records.keys():  # noqa: SIM118
        if not key:
            continue
        found.paths[key] = path
        try:
            seen = records.glance(key)
            if seen is not None:
                _take(found, seen, {name: digest for name, digest, _ in seen.objects()}, objects, photos)
        except (StoreError, KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("record %s is damaged and goes, with what was made from it: %s", key, error)
            found.damaged.add(key)
            found.inputs.pop(key, None)
    for key, (search, start, end, without) in found.slices.items():
        held = found.gone.get(key, set()) | photos_in(found.searches.get(search, [])[start:end], photos)
        found.gone[key] = held - without
    found.gone = {key: held for key, held in found.gone.items() if held and key not in found.damaged}
    found.unknown -= found.damaged
    return found


def photos_in(ids: Collection[str], photos: Collection[str]) -> set[str]:
    """Those of `ids` that are among `photos`."""
    return {photo for photo in ids if photo in photos}


def _take(found: Found, seen: Glance, held: dict[str, str], objects: Objects, photos: Collection[str]) -> None:
    key, task, made = intern(seen.key), seen.task, seen.made
    stage, params = str(task["stage"]), task["params"]
    found.inputs[key] = tuple(intern(source) for _, source in task["inputs"])
    found.outputs[key] = tuple(held.values())
    if any(name.endswith(".safetensors") and not name.startswith(_MEASURED) for name in held):
        found.weights[key] = str(made["slot"]) or key[:16]
    if CANDIDATES in held:
        found.searches[key], refused = _offered(held[CANDIDATES], objects)
        found.mentioned |= photos_in([*found.searches[key], *refused], photos)
        return
    gone: set[str] = set()
    if stage in SLICES:
        found.sliced.add(key)
        asked = _asked(stage, seen)
        gone |= photos_in(asked, photos)
        found.mentioned |= photos_in(params.get("without", ()), photos)
        for photo, sha256 in _raw(stage, seen).items():
            if photo in photos:
                found.note_bytes(photo, sha256)
        found.files.update(file for photo, file in asked.items() if photo in gone and file)
        if stage == "fetch" and {"slice", "size", "without"} <= set(params) and found.inputs[key]:
            start = int(params["slice"]) * int(params["size"])
            found.slices[key] = (found.inputs[key][0], start, start + int(params["size"]), frozenset(params["without"]))
    if INDEX in held:
        listed = _in_shard(held, objects, photos, found)
        if listed is None and stage not in SLICES:
            found.unknown.add(key)
        gone |= listed or set()
    if gone:
        found.gone[key] = gone
        found.mentioned |= gone


def _asked(stage: str, seen: Glance) -> dict[str, str]:
    try:
        return SLICES[stage].asked(seen.task["params"], seen.made["provenance"])
    except (KeyError, TypeError, ValueError):
        return {}


def _raw(stage: str, seen: Glance) -> dict[str, str]:
    try:
        return SLICES[stage].raw(seen.task["params"], seen.made["provenance"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _offered(digest: str, objects: Objects) -> tuple[list[str], list[str]]:
    """The ids of a search's candidates, and of what it refused."""
    try:
        told = json.loads(objects.read(digest))
        candidates = offered(told)
    except (StoreError, ValueError):
        return [], []
    try:
        return candidates, [str(one["id"]) for one in told["rejected"]]
    except (KeyError, TypeError):
        return candidates, []


def _in_shard(held: dict[str, str], objects: Objects, photos: Collection[str], told: Found) -> set[str] | None:
    """The photos that an image shard holds, by its side-cars; None where nobody can tell any more."""
    try:
        index: bytes | None = objects.read(held[INDEX])
        samples = list(json.loads(index or b"{}"))
    except (StoreError, ValueError):
        try:
            index, samples = None, list(Shard(objects.open(held[IMAGES])).ids)
        except (StoreError, DataError, KeyError):
            return None
    matching = {sample: named for sample in samples if (named := _named(sample, photos))}
    if not matching:
        return set()
    found: set[str] = set()
    for sample, named in matching.items():
        try:
            about = Shard(objects.path(held[IMAGES]), index).read(sample, "json")
            here = holds(sample, about, photos)
            found |= here
            for photo in photos_in({*here, sample}, photos):
                told.note_bytes(photo, dict(json.loads(about)).get("sha256"))
        except (DataError, ValueError, KeyError, TypeError):
            found |= named
    return found


def _named(sample: str, photos: Collection[str]) -> set[str]:
    """The photos that a sample's id may stand for: itself, or what is behind one of its dashes."""
    parts = sample.split("-")
    return photos_in({"-".join(parts[i:]) for i in range(len(parts))}, photos)
