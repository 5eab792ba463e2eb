"""Results that stand in somebody else's store, copied into one's own instead of being made again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from replaygen.errors import ObjectDamaged, ObjectMissing
from replaygen.store.facade import Store
from replaygen.store.records import Record


@dataclass(frozen=True)
class Brought:
    """What was copied: records, and the bytes of their outputs; what was there already, and what is not to be had."""

    records: int = 0
    bytes: int = 0
    here: int = 0
    absent: int = 0


def bring(store: Store, other: Store, keys: Iterable[str], *, dry_run: bool = False) -> Brought:
    """Copy the results of some tasks from another store, whose records are trusted; their bytes are hashed.

    A result comes only with its inputs, and only where it was made from the very bytes that stand here. None comes that
    holds a photo which may not be kept here.

    Args:
        store: where to.
        other: where from; it is only read.
        keys: the tasks' keys, each behind its inputs.
        dry_run: only tell.

    Raises:
        StoreError: the store cannot be written.
    """
    wanted = list(dict.fromkeys(keys))
    mine, theirs, buried = store.statuses(wanted), other.statuses(wanted), store.buried_bytes()
    standing: dict[str, str] = {}
    records = size = here = absent = 0
    for key in wanted:
        there = mine[key].state == "cached"
        record = store.get(key) if there else other.get(key) if theirs[key].state == "cached" else None
        if not there and record is not None:
            fits = _fits(record, standing, buried)
            record = record if fits and (dry_run or _copied(store, other, record)) else None
        if record is None:
            absent += 1
            continue
        standing[key] = record.outputs_digest
        here += there
        if not there:
            records += 1
            size += sum(output.size for output in record.outputs)
    return Brought(records, size, here, absent)


def _fits(record: Record, standing: dict[str, str], buried: frozenset[str]) -> bool:
    """Whether its inputs stand here, or are to come, with the bytes it was made from, and no photo in it is buried."""
    if any(standing.get(key) != digest for key, digest in record.read.items()):
        return False
    told = json.dumps([record.params, record.provenance])
    return not any(sha256 in told for sha256 in buried)


def _copied(store: Store, other: Store, record: Record) -> bool:
    """Copy a record, its objects first; False where one of them went away meanwhile or is damaged."""
    with store.lock(record.key):
        try:
            for output in record.outputs:
                if store.put_file(other.open_object(output.digest)).digest != output.digest:
                    return False
        except (ObjectMissing, ObjectDamaged):
            return False
        if store.get(record.key) is None:
            store.publish(record)
        else:
            store.replace(record)
    return True
