"""What is left of a record when photos are taken out of it, without asking anybody for the others again.

A slice of photos gets the key that a plan gives to it once the photos are buried; a search keeps its key, and each
photo its place in the order, so that no slice moves. Whatever is not exactly as expected gives None: it is deleted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from replaygen.classes import slug
from replaygen.errors import DataError, StoreError
from replaygen.store.keys import sha256_hex, task_key
from replaygen.store.records import Counts, OutputObject, Record
from replaygen.store.shards import Shard, write_shard

IMAGES = "images.tar"
INDEX = "images.index.json"
REFUSED = "refused.json"
CANDIDATES = "candidates.json"

SEARCH_STAGES = frozenset({"flickr-search", "url-list"})
"""Stages whose record names photos, and holds none."""

BEFORE = "outputs_before_purge"
"""In a search's provenance: the outputs digests that it had, which readers of the old list still name."""

Params = dict[str, Any]
Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Slice:
    """A stage whose tasks each take a slice of a list of photos, and say themselves which.

    Attributes:
        asked: (params, provenance) -> the photos that a task was asked for, as far as it tells, and the file of each.
        raw: (params, provenance) -> the sha256 of each photo's bytes as they came, where it is told.
        without: (params, photos) -> the parameters of the same task once these photos are buried.
    """

    asked: Callable[[Params, Mapping[str, Any]], dict[str, str]]
    raw: Callable[[Params, Mapping[str, Any]], dict[str, str]]
    without: Callable[[Params, Collection[str]], Params]


def _fetched(params: Params, provenance: Mapping[str, Any]) -> dict[str, str]:
    return dict.fromkeys(provenance.get("photos", ()), "")


def _fetched_bytes(params: Params, provenance: Mapping[str, Any]) -> dict[str, str]:
    return {photo: proof["sha256"] for photo, proof in provenance.get("photos", {}).items() if "sha256" in proof}


def _fetch_without(params: Params, gone: Collection[str]) -> Params:
    return {**params, "without": sorted({*params["without"], *gone})}


def _folder_sample(params: Params, sha256: str) -> str:
    return f"{slug(params['class_name'])}-{sha256[:16]}"


def _of_folder(params: Params, provenance: Mapping[str, Any]) -> dict[str, str]:
    return {_folder_sample(params, sha256): name for name, sha256 in params["files"]}


def _folder_bytes(params: Params, provenance: Mapping[str, Any]) -> dict[str, str]:
    return {_folder_sample(params, sha256): sha256 for _, sha256 in params["files"]}


def _folder_without(params: Params, gone: Collection[str]) -> Params:
    return {**params, "files": [file for file in params["files"] if _folder_sample(params, file[1]) not in gone]}


SLICES = {
    "fetch": Slice(_fetched, _fetched_bytes, _fetch_without),
    "photos": Slice(_of_folder, _folder_bytes, _folder_without),
}


@dataclass(frozen=True)
class Derived:
    """A record that can be published once `files` are put."""

    record: Record
    files: tuple[bytes, ...]


def holds(sample: str, about: bytes, photos: Collection[str]) -> set[str]:
    """Which of the photos a sample is: by the photo that its side-car names, or by its own id.

    Raises:
        ValueError: the side-car is no JSON.
    """
    told = json.loads(about)
    photo = told.get("photo") if isinstance(told, dict) else None
    if isinstance(photo, str) and (photo in photos or sample in photos):
        return {photo}
    return {sample} if sample in photos else set()


def without_photos(record: Record, gone: Collection[str], read: Read) -> Derived | None:
    """The record of the same slice without some photos, under the key that the slice then has.

    A photo that is taken out is counted nowhere; image bytes, proofs and refusals of the others stay as they are.

    Args:
        record: of a stage in `SLICES`.
        gone: the photos that the slice may no longer hold.
        read: the bytes of an object by its digest.
    """
    held = {output.name: output for output in record.outputs}
    if record.stage not in SLICES or not {IMAGES, INDEX} <= set(held) <= {IMAGES, INDEX, REFUSED}:
        return None
    try:
        shard = Shard(read(held[IMAGES].digest), read(held[INDEX].digest))
        refused = json.loads(read(held[REFUSED].digest)) if REFUSED in held else {"rejected": [], "failed": []}
        if _counts(len(shard), refused) != record.counts:
            return None
        kept = [(sample, members) for sample, members in shard if not holds(sample, members["json"], gone)]
        refused = {kind: [one for one in refused[kind] if one["id"] not in gone] for kind in ("rejected", "failed")}
        params = SLICES[record.stage].without(record.params, gone)
        tar, index = write_shard(kept)
        made = {IMAGES: (tar, len(kept)), INDEX: (index, 0)}
        if refused["rejected"] or refused["failed"]:
            made[REFUSED] = (to_json(refused), 0)
        provenance = {**record.provenance, "derived_from_purge": True}
        if "photos" in provenance:
            photos = provenance["photos"].items()
            provenance["photos"] = {photo: proof for photo, proof in photos if photo not in gone}
        counts = _counts(len(kept), refused)
        key = task_key(record.stage, record.version, params, record.seed, record.inputs)
    except (StoreError, DataError, ValueError, KeyError, TypeError, AttributeError):
        return None
    outputs = tuple(
        OutputObject(name, sha256_hex(made[name][0]), len(made[name][0]), made[name][1])
        for name in held if name in made
    )  # fmt: skip
    derived = replace(record, key=key, params=params, outputs=outputs, counts=counts, provenance=provenance)
    return Derived(derived, tuple(data for data, _ in made.values()))


def offered(told: Any) -> list[str]:
    """The ids of a search's candidates in their order. ValueError where it is no such list."""
    try:
        return [str(one["photo"]) for one in told["candidates"]]
    except (KeyError, TypeError):
        raise ValueError("not a list of candidates") from None


def without_metadata(record: Record, gone: Collection[str], read: Read) -> Derived | None:
    """A search's record with nothing of some photos but their ids, each at its place; itself where it names none.

    Raises:
        StoreError: an object of it is missing or damaged, so it must be searched again anyway.
    """
    made: dict[str, bytes] = {}
    outputs = []
    for output in record.outputs:
        if output.name not in (CANDIDATES, REFUSED):
            return None
        try:
            told = json.loads(read(output.digest))
            cleaned = {name: _cleaned(part, gone) for name, part in told.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if cleaned != told:
            data = made[output.name] = to_json(cleaned)
            output = replace(output, digest=sha256_hex(data), size=len(data))
        outputs.append(output)
    if not made:
        return Derived(record, ())
    before = sorted({*record.provenance.get(BEFORE, ()), record.outputs_digest})
    changed = replace(record, outputs=tuple(outputs), provenance={**record.provenance, BEFORE: before})
    return Derived(changed, tuple(made.values()))


def _cleaned(part: Any, gone: Collection[str]) -> Any:
    """A list of photos with the entries of those that are gone cut down; anything else as it is."""
    return [_entry(one, gone) for one in part] if isinstance(part, list) else part


def _entry(one: dict[str, Any], gone: Collection[str]) -> dict[str, Any]:
    if one.get("photo") in gone:
        return {"photo": one["photo"], "purged": True}
    if one.get("id") in gone:
        return {"id": one["id"], "reason": one["reason"], "purged": True}
    return one


def _counts(accepted: int, refused: dict[str, list[dict[str, Any]]]) -> Counts:
    rejected, failed = (dict(Counter(one["reason"] for one in refused[kind])) for kind in ("rejected", "failed"))
    return Counts(accepted + sum(rejected.values()) + sum(failed.values()), accepted, rejected, failed)


def to_json(value: Any) -> bytes:
    """JSON as stages write it: keys sorted, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
