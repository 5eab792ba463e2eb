"""Photos that are held more than once: the very bytes under another id, of another source, or of another address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from replaygen.classes import slug
from replaygen.errors import StoreError
from replaygen.store.records import Record
from replaygen.store.shelf import Records
from replaygen.store.tombstones import photos_of


def copies(records: Records, names: Iterable[str], buried: frozenset[str] = frozenset()) -> dict[str, str]:
    """Photos of a store whose raw bytes are those of others: id -> sha256 of the bytes.

    Args:
        records: of the store.
        names: photo or sample ids; they themselves are not told.
        buried: sha256 of bytes that may not be kept, whoever has them.
    """
    wanted = photos_of(names)
    held: dict[str, str] = {}
    for key, _ in records.keys():  # noqa: SIM118
        try:
            record = records.look(key) if key else None
        except StoreError:  # damaged: the purge itself says what becomes of it
            continue
        if record is not None:
            held.update(_held(record))
    digests = buried | {sha256 for photo, sha256 in held.items() if photo in wanted}
    return {photo: sha256 for photo, sha256 in held.items() if sha256 in digests and photo not in wanted}


def _held(record: Record) -> Iterator[tuple[str, str]]:
    """(photo id, sha256 of its raw bytes) of the photos in a record's image shard."""
    if record.stage == "fetch":
        for photo, proof in record.provenance.get("photos", {}).items():
            if "derived_sha256" in proof and "sha256" in proof:
                yield photo, proof["sha256"]
    elif record.stage == "photos":
        for _, sha256 in record.params["files"]:
            yield f"{slug(record.params['class_name'])}-{sha256[:16]}", sha256
