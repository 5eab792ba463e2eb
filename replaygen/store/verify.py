"""verify: every object hashed in full; records, refs and tombstones checked; damage goes to quarantine."""

from __future__ import annotations

from dataclasses import dataclass

from replaygen.errors import StoreError
from replaygen.store.keys import is_digest
from replaygen.store.objects import Objects
from replaygen.store.refs import Refs
from replaygen.store.shelf import Records
from replaygen.store.tombstones import Checked, Tombstones


@dataclass(frozen=True)
class Damage:
    """One damaged thing: its kind, its name, and why.

    Kinds: "object", "record", "ref", "tombstone", "checked" (`checked.json`), "stray" (a file of no store).
    """

    kind: str
    name: str
    why: str


@dataclass(frozen=True)
class VerifyReport:
    """What a full check found.

    `objects`, `records`, `refs`, `tombstones` and `bytes` count what is good; `missing` are (key, output name) whose
    object is gone; `orphans` are good objects that no record names, which gc will take.
    """

    objects: int
    records: int
    refs: int
    bytes: int
    damaged: tuple[Damage, ...]
    missing: tuple[tuple[str, str], ...]
    orphans: tuple[str, ...]
    tombstones: int = 0

    @property
    def ok(self) -> bool:
        """Nothing damaged and nothing missing."""
        return not self.damaged and not self.missing


def verify(objects: Objects, records: Records, refs: Refs, tombstones: Tombstones, checked: Checked) -> VerifyReport:
    """Check everything. Damaged objects and records are moved to quarantine (read-only: reported); all else stays."""
    damaged: list[Damage] = []
    sizes = _good_objects(objects, damaged)
    named: set[str] = set()
    missing = []
    good_records = 0
    for key, path in records.keys():  # noqa: SIM118
        if not key:
            damaged.append(Damage("stray", path.name, f"{path} is no record"))
            continue
        try:
            record = records.look(key)
        except StoreError as error:
            damaged.append(Damage("record", key, error.what))
            records.quarantine(key, error.what)
            continue
        if record is None:
            continue
        good_records += 1
        for output in record.outputs:
            named.add(output.digest)
            if sizes.get(output.digest) != output.size:
                missing.append((key, output.name))
    good_refs = 0
    for path in refs.paths():
        try:
            refs.look(path)
            good_refs += 1
        except FileNotFoundError:
            continue
        except StoreError as error:
            damaged.append(Damage("ref", f"{path.parent.name}/{path.stem}", error.what))
    good_tombstones = _good_tombstones(tombstones, damaged)
    try:
        checked.look()
    except StoreError as error:
        damaged.append(Damage("checked", "checked.json", error.what))
    return VerifyReport(
        objects=len(sizes),
        records=good_records,
        refs=good_refs,
        bytes=sum(sizes.values()),
        damaged=tuple(damaged),
        missing=tuple(missing),
        orphans=tuple(sorted(set(sizes) - named)),
        tombstones=good_tombstones,
    )


def _good_objects(objects: Objects, damaged: list[Damage]) -> dict[str, int]:
    """Size in bytes of every good object."""
    sizes = {}
    for digest, path in objects.names():
        if not is_digest(digest) or path != objects.path(digest):
            damaged.append(Damage("stray", path.name, f"{path} is no object"))
            continue
        state = objects.check(digest, full=True)
        if state == "good":
            sizes[digest] = objects.size(digest)
        elif state == "damaged":
            damaged.append(Damage("object", digest, "its bytes differ from its name"))
            objects.quarantine(digest, "its bytes differ from its name")
    return sizes


def _good_tombstones(tombstones: Tombstones, damaged: list[Damage]) -> int:
    """How many are good. A damaged one stays, and counts: its name says which photo may not come back."""
    good = 0
    for path in tombstones.paths():
        try:
            tombstones.look(path)
            good += 1
        except StoreError as error:
            damaged.append(Damage("tombstone", path.name.removesuffix(".json"), error.what))
    return good
