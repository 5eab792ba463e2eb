"""purge: take photos out of the store, with all that was made from them, so that they never come back.

Tombstones come first and are durable, so that every later plan leaves the photos out. Then what need not be lost is
derived anew, then everything that holds a photo goes, what was made last first. Killed at any instruction, the next
purge finds the tombstones that are not done, and does the rest.
"""

from __future__ import annotations

import html
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from replaygen.errors import ObjectMissing, StoreError
from replaygen.store import fsops
from replaygen.store.derive import BEFORE, SEARCH_STAGES, SLICES, Derived, without_metadata, without_photos
from replaygen.store.doomed import Found, find
from replaygen.store.gc import remove_durably, remove_published
from replaygen.store.index import VerifiedIndex
from replaygen.store.keys import is_digest
from replaygen.store.layout import Layout
from replaygen.store.locks import Locks
from replaygen.store.objects import Objects, log, size_of
from replaygen.store.records import Record
from replaygen.store.refs import Refs
from replaygen.store.shelf import Records
from replaygen.store.tombstones import Checked, Tombstone, Tombstones, photos_of

TASK = "task.json"
"""In a folder of unfinished work: {stage, slot, inputs} of its task."""

_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class PurgeReport:
    """What a purge took, or would take.

    Attributes:
        photos: the photos that were asked for, and those that an earlier purge left undone.
        weights: slots of the trained weights that were made from them.
        records, objects, partial: keys, digests, and keys of unfinished work.
        pages: reports that show, or may show, one of the photos.
        quarantine: damaged files, all of them: they may hold a photo.
        derived: keys under which slices stand without the photos, so that nobody is asked for the others again.
        searches: keys of searches whose lists keep nothing of the photos but their ids.
        unknown: photos that were asked for, and that no record, search or tombstone names.
        bytes: what all that is gone held.
    """

    dry_run: bool
    photos: tuple[str, ...]
    weights: tuple[str, ...]
    records: tuple[str, ...]
    objects: tuple[str, ...]
    pages: tuple[str, ...]
    partial: tuple[str, ...]
    quarantine: tuple[str, ...]
    derived: tuple[str, ...]
    searches: tuple[str, ...]
    unknown: tuple[str, ...]
    bytes: int


class _Inside(Locks):
    """The locks as they are inside `collecting`: nobody else writes, so nothing is waited for."""

    @contextmanager
    def key(self, key: str, timeout: float | None) -> Iterator[None]:
        yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        yield

    @contextmanager
    def alone(self, timeout: float) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class _Doom:
    """What is to be done, known before anything is changed."""

    found: Found
    records: set[str]
    derived: dict[str, str]
    searches: list[str]
    objects: list[tuple[str, Path]]
    partial: list[Path]
    pages: list[Path]
    quarantine: list[Path]

    @property
    def files(self) -> list[Path]:
        """Every file and folder that goes, but objects."""
        paths = self.found.paths
        return [
            *(paths[key] for key in sorted(self.records | self.found.damaged)),
            *self.partial, *self.pages, *self.quarantine,
        ]  # fmt: skip


class Purger:
    """purge over one open store.

    Args:
        layout: the store.
        pages: folders of reports; those that are not there are passed over.
        dry_run: change nothing.
    """

    def __init__(self, layout: Layout, *, pages: Iterable[Path], dry_run: bool) -> None:
        inside = _Inside(layout)
        index = VerifiedIndex(layout.verified, layout.tmp, readonly=dry_run)
        self._layout = layout
        self._pages = list({os.path.realpath(folder): folder for folder in pages}.values())
        self._dry_run = dry_run
        self._locks = Locks(layout)
        self._objects = Objects(layout, index, readonly=dry_run)
        self._records = Records(layout, self._objects, inside, readonly=dry_run)
        self._refs = Refs(layout, inside)
        self._tombstones = Tombstones(layout, inside)
        self._checked = Checked(layout, inside)

    def run(self, photos: Iterable[str], reason: str) -> PurgeReport:
        """Purge; see `Store.purge`."""
        named = photos_of(photos)
        new = {photo for photo in named if not os.path.lexists(self._tombstones.path(photo))}
        with fsops.explained("purge", self._layout.root):
            if self._dry_run:
                buried = self._tombstones.all()
                begun = _begun(buried) | named
                return self._report(self._doom(buried.keys() | named, begun), begun, new)
            with self._locks.collecting(_WAIT_SECONDS):
                self._refuse_live()
                self._tombstones.bury(named, reason)
                buried = self._tombstones.all()
                begun = _begun(buried)
                doom = self._doom(set(buried), begun)
                report = self._report(doom, begun, new)
                self._tombstones.note_bytes(doom.found.raw)
                self._keep_the_rest(doom, set(buried))
                self._remove(doom, begun)
                self._tombstones.finish(begun)
        return report

    def _refuse_live(self) -> None:
        live, _ = self._locks.leases()
        names = [path.name.removesuffix(".lock") for path in sorted(self._layout.locks.glob("*.lock"))]
        if live or any(is_digest(name) and self._locks.is_held(name) for name in names):
            raise StoreError(
                "a run is using the store, so nothing was purged", where=str(self._layout.root),
                hint="wait until it has ended, or stop it, and purge again",
            )  # fmt: skip

    # what is to be done

    def _doom(self, buried: set[str], begun: set[str]) -> _Doom:
        """All that must go because of any tombstone: a photo that came back under an old plan goes again."""
        found = find(self._records, self._objects, buried)
        outputs = dict(found.outputs)
        searches = []
        for key in sorted(found.searches):
            cleaned = self._cleaned(key, buried)
            if cleaned is None:
                found.unknown.add(key)
            elif cleaned.files:
                searches.append(key)
                outputs[key] = tuple(output.digest for output in cleaned.record.outputs)
        doomed = found.doomed()
        derived: dict[str, str] = {}
        used: set[str] = set()
        for key in sorted(found.gone):
            slice_ = self._derived(found, key, doomed)
            if slice_ is not None:
                derived[key] = slice_.record.key
                used.update(output.digest for output in slice_.record.outputs)
        used.update(digest for key in found.inputs if key not in doomed for digest in outputs[key])
        objects = [
            (digest, path) for digest, path in self._objects.names()
            if is_digest(digest) and path == self._objects.path(digest) and digest not in used
        ]  # fmt: skip
        quarantine = [path for path in sorted(self._layout.quarantine.iterdir()) if not path.name.startswith("ref-")]
        searches = [key for key in searches if key not in doomed]
        standing = (found.inputs.keys() - doomed) | set(derived.values())
        partial = [folder for folder in _folders(self._layout.partial) if self._must_go(folder, found, standing)]
        return _Doom(
            found, doomed, derived, searches, objects, partial, self._showing(found, doomed, begun), quarantine
        )

    def _derived(self, found: Found, key: str, doomed: set[str]) -> Derived | None:
        """The slice without the photos that are gone; None where it can only be deleted."""
        record = self._record(key)
        if record is None or doomed.intersection(found.inputs[key]):
            return None
        derived = without_photos(record, found.gone[key], self._objects.read)
        return None if derived is None or derived.record.key in doomed else derived

    def _cleaned(self, key: str, buried: set[str]) -> Derived | None:
        """The search without what it told of buried photos; None where it can only be deleted."""
        record = self._record(key)
        try:
            return None if record is None else without_metadata(record, buried, self._objects.read)
        except StoreError:  # an object of it is gone, so it must be searched again anyway
            return None if record is None else Derived(record, ())

    def _record(self, key: str) -> Record | None:
        try:
            return self._records.look(key)
        except StoreError:
            return None

    def _must_go(self, folder: Path, found: Found, standing: set[str]) -> bool:
        """Whether unfinished work may come from a photo: its task reads what goes, asks for photos, or is unknown."""
        if folder.name in found.searches or (folder.name in found.inputs and folder.name not in standing):
            return True
        try:
            told = json.loads((folder / TASK).read_bytes())
            stage, inputs = told["stage"], set(told["inputs"])
        except FileNotFoundError:
            return any(folder.iterdir())
        except (ValueError, KeyError, TypeError):
            return True
        return stage in SEARCH_STAGES or stage in SLICES or not inputs <= standing

    def _showing(self, found: Found, doomed: set[str], begun: set[str]) -> list[Path]:
        """Pages that name one of the photos, and those of recipes whose results go."""
        names = sorted({*begun, *(html.escape(name) for name in found.files)})
        text = b"|".join(re.escape(name.encode("utf-8", "surrogateescape")) for name in names)
        pattern = re.compile(rb"(?<![a-z0-9])(?:%s)(?![a-z0-9])" % text)
        refs = [(recipe, data.get("slots", {}).values()) for recipe, _, data in self._refs.all()]
        recipes = {f"{recipe}.html" for recipe, keys in refs if doomed.intersection(keys)}
        pages = {
            (os.path.realpath(path.parent), path.name): path
            for folder in self._pages for path in sorted(folder.rglob("*.html")) if path.is_file()
        }  # fmt: skip
        return [path for path in pages.values() if path.name in recipes or (names and _contains(path, pattern))]

    def _report(self, doom: _Doom, begun: set[str], new: set[str]) -> PurgeReport:
        slots = doom.found.weights
        known = doom.found.mentioned | self._checked.all().keys()
        return PurgeReport(
            dry_run=self._dry_run,
            photos=tuple(sorted(begun)),
            weights=tuple(sorted(slots[key] for key in doom.records & slots.keys())),
            records=tuple(sorted(doom.records | doom.found.damaged)),
            objects=tuple(digest for digest, _ in doom.objects),
            pages=tuple(str(path) for path in doom.pages),
            partial=tuple(folder.name for folder in doom.partial),
            quarantine=tuple(path.name for path in doom.quarantine),
            derived=tuple(sorted(set(doom.derived.values()))),
            searches=tuple(doom.searches),
            unknown=tuple(sorted(new - known)),
            bytes=sum(_bytes(path) for path in doom.files) + sum(self._objects.size(name) for name, _ in doom.objects),
        )

    # doing it

    def _keep_the_rest(self, doom: _Doom, buried: set[str]) -> None:
        """Publish slices without the photos, and cut searches down, before anything goes."""
        for key, derived_key in sorted(doom.derived.items()):
            derived = self._derived(doom.found, key, doom.records)
            if derived is not None and not self._stands(derived_key):
                for data in derived.files:
                    self._objects.put(data)
                self._records.publish(derived.record)
        for key in doom.searches:
            cleaned = self._cleaned(key, buried)
            if cleaned is not None and cleaned.files:
                for data in cleaned.files:
                    self._objects.put(data)
                self._records.replace(cleaned.record)
        for key in sorted(doom.found.searches.keys() - doom.records):
            self._tell_readers(key, doom)

    def _stands(self, key: str) -> bool:
        record = self._records.get(key)
        return record is not None and all(
            self._objects.check(output.digest, output.size) == "good" for output in record.outputs
        )

    def _tell_readers(self, search: str, doom: _Doom) -> None:
        """Whoever read a search before it was cut down counts as having read what stands now: the same photos."""
        record = self._record(search)
        before = set(record.provenance.get(BEFORE, ())) if record is not None else set()
        if record is None or not before:
            return
        now = record.outputs_digest
        for key in sorted({*doom.found.readers(search), *doom.derived.values()} - doom.records):
            reader = self._record(key)
            if reader is None or reader.read.get(search, now) not in before - {now}:
                continue
            try:
                self._records.replace(replace(reader, read={**reader.read, search: now}))
            except ObjectMissing:  # it must be made again anyway
                log.warning("record %s has lost an output and stays as it is", key)

    def _remove(self, doom: _Doom, begun: set[str]) -> None:
        """What leads to other things goes after them, so that a purge that was killed finds the rest again."""
        remove_durably(doom.pages)
        self._drop_slots(doom)
        remove_durably(doom.partial)
        self._checked.drop(begun)
        for layer in doom.found.layers(doom.records):
            remove_published(self._layout, (doom.found.paths[key] for key in layer))
        remove_published(self._layout, (doom.found.paths[key] for key in sorted(doom.found.damaged)))
        remove_published(self._layout, (path for _, path in doom.objects))
        remove_durably(doom.quarantine)
        remove_durably(sorted(self._layout.tmp.iterdir()))
        remove_durably(self._locks.leases()[1])

    def _drop_slots(self, doom: _Doom) -> None:
        """The slot of a slice names what is left of it, so that gc keeps that; any other slot that goes is dropped."""
        for recipe, name, data in list(self._refs.all()):
            slots = data.get("slots", {})
            kept = {
                slot: doom.derived.get(key, key) for slot, key in slots.items()
                if key not in doom.records or key in doom.derived
            }  # fmt: skip
            if kept != slots:
                self._refs.write(recipe, name, {**data, "slots": kept})


def _begun(buried: Mapping[str, Tombstone]) -> set[str]:
    return {photo for photo, tombstone in buried.items() if not tombstone.done}


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not path.is_symlink()]


def _contains(path: Path, pattern: re.Pattern[bytes]) -> bool:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return pattern.search(data) is not None


def _bytes(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(one) for one in path.rglob("*") if not one.is_dir())
    return size_of(path)
