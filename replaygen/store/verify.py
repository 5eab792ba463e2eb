"""verify: every object hashed in full, every record and ref checked; what is damaged goes to quarantine."""

from __future__ import annotations

from dataclasses import dataclass

from replaygen.errors import StoreError
from replaygen.store.keys import is_digest
from replaygen.store.objects import Objects
from replaygen.store.refs import Refs
from replaygen.store.shelf import Records


@dataclass(frozen=True)
class Damage:
    """One damaged thing: "object", "record", "ref" or "stray" (a file that belongs to no store), its name, and why."""

    kind: str
    name: str
    why: str


@dataclass(frozen=True)
class VerifyReport:
    """What a full check found.

    `objects`, `records`, `refs` and `bytes` count what is good; `missing` are (key, output name) whose object is gone;
    `orphans` are good objects that no record names, which gc will take.
    """

    objects: int
    records: int
    refs: int
    bytes: int
    damaged: tuple[Damage, ...]
    missing: tuple[tuple[str, str], ...]
    orphans: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Nothing damaged and nothing missing."""
        return not self.damaged and not self.missing


def verify(objects: Objects, records: Records, refs: Refs) -> VerifyReport:
    """Check everything. Damaged objects and records are moved to quarantine (read-only: reported); refs stay."""
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
    return VerifyReport(
        objects=len(sizes),
        records=good_records,
        refs=good_refs,
        bytes=sum(sizes.values()),
        damaged=tuple(damaged),
        missing=tuple(missing),
        orphans=tuple(sorted(set(sizes) - named)),
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
            sizes[digest] = path.stat().st_size
        elif state == "damaged":
            damaged.append(Damage("object", digest, "its bytes differ from its name"))
            objects.quarantine(digest, "its bytes differ from its name")
    return sizes
