"""status: is this cached? Reads records and asks the index; runs, moves and rebuilds nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from replaygen.errors import StoreError
from replaygen.store.index import VerifiedIndex
from replaygen.store.keys import check_digest
from replaygen.store.objects import Objects
from replaygen.store.shelf import Records


@dataclass(frozen=True)
class CacheStatus:
    """Whether a task's result can be used.

    Args:
        state: "cached": the record and each of its objects are there and right; "missing": there is no record;
            "damaged": the record, or an object that it names, is damaged or gone, or an input was rebuilt differently.
        detail: why it is damaged.
        changed: the input keys whose record is no longer the one that this result was made from.
    """

    state: Literal["cached", "missing", "damaged"]
    detail: str = ""
    changed: tuple[str, ...] = ()


class Statuses:
    """The answers to one question about many keys; a record is read once."""

    def __init__(self, objects: Objects, records: Records, index: VerifiedIndex) -> None:
        self._objects = objects
        self._records = records
        self._index = index
        self._made: dict[str, str] = {}
        self._brought: frozenset[str] = frozenset()
        self._sizes: dict[str, int] = {}

    def of(self, keys: Iterable[str]) -> dict[str, CacheStatus]:
        """The status of each key. StoreError where one is no key."""
        self._index.refresh()
        found: dict[str, CacheStatus] = {}
        read: dict[str, dict[str, str]] = {}
        wanted = list(keys)
        if self._objects.in_bucket and len(wanted) > _FEW:
            self._records.bring(check_digest(key, "key") for key in wanted)
            self._brought = frozenset(wanted)
            self._sizes = self._objects.listed()
        for key in wanted:
            found[key] = self._of(check_digest(key, "key"), read)
        for key, inputs in read.items():
            changed = tuple(input_key for input_key, digest in inputs.items() if self._changed(input_key, digest))
            if changed and found[key].state == "cached":
                found[key] = CacheStatus("damaged", f"input {changed[0][:12]} was rebuilt differently", changed)
        return found

    def _of(self, key: str, read: dict[str, dict[str, str]]) -> CacheStatus:
        try:
            record = self._records.glance(key, brought=key in self._brought)
            if record is None:
                return CacheStatus("missing")
            self._made[key] = record.outputs_digest
            if record.read:
                read[key] = record.read
            for name, digest, size in record.objects():
                if self._sizes.get(digest) == size if self._brought else self._objects.known(digest, size):
                    continue
                state = self._objects.check(digest, size)
                if state != "good":
                    return CacheStatus("damaged", f"output {name!r} (object {digest[:12]}) is {state}")
        except StoreError as error:
            return CacheStatus("damaged", error.what)
        return _CACHED

    def _changed(self, key: str, digest: str) -> bool:
        """Whether the record of an input now names other bytes than those that were read. Missing is not changed."""
        if key not in self._made:
            try:
                record = self._records.glance(check_digest(key, "key"), brought=key in self._brought)
                self._made[key] = record.outputs_digest if record is not None else ""
            except StoreError:
                self._made[key] = ""
        return self._made[key] not in {"", digest}


_FEW = 8
"""Keys that are asked for one by one in a bucket; more are answered by one listing of it."""

_CACHED = CacheStatus("cached")
