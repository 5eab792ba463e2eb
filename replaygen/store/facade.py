"""The store: the only durable state. Immutable objects, the records that name them, refs, locks and leases.

Everything that is published is complete and durable: a process may be killed, and the power may fail, at any
instruction. `Store` only gathers the parts; each verb lives in a file of its own name.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from replaygen.errors import StoreError
from replaygen.store import fsops
from replaygen.store.copies import copies
from replaygen.store.du import DuReport, du
from replaygen.store.gc import Collector, GcReport
from replaygen.store.index import VerifiedIndex
from replaygen.store.keys import canonical, check_digest
from replaygen.store.layout import FORMAT, open_layout
from replaygen.store.locks import Locks
from replaygen.store.mirror import open_mirror
from replaygen.store.objects import Objects, OutputRef
from replaygen.store.purge import TASK, Purger, PurgeReport
from replaygen.store.records import Record
from replaygen.store.refs import Refs
from replaygen.store.remote import parse_address
from replaygen.store.shelf import Records
from replaygen.store.status import CacheStatus, Statuses
from replaygen.store.tombstones import Checked, Tombstone, Tombstones
from replaygen.store.verify import VerifyReport, verify
from replaygen.store.why import WhyReport, why


class Store:
    """A store in a folder, or in a bucket.

    Args:
        address: a folder, made where it is missing; or "s3://bucket/prefix".
        readonly: hits work, every write raises a StoreError, and damage is reported instead of moved.

    Attributes:
        address: what opens this store again, here or elsewhere.
        root: a local folder: the store itself, or of a bucket its local side, where copies lie.
        requests: how many requests this process sent to the bucket, by S3's name of the operation; none for a folder.

    Raises:
        StoreError: it holds a store of another format, or cannot be made or reached.
    """

    def __init__(self, address: str | os.PathLike[str], *, readonly: bool = False) -> None:
        bucket = parse_address(os.fspath(address))
        self.readonly = readonly
        self.requests: Counter[str] = Counter()
        if bucket is None:
            self.root = Path(address).absolute()
            self.address = str(self.root)
            self._layout = open_layout(self.root, readonly=readonly)
        else:
            mirror = open_mirror(bucket, readonly=readonly, format_line=FORMAT)
            self.root, self.address, self.requests = mirror.root, str(bucket), mirror.remote.requests
            self._layout = replace(open_layout(self.root, readonly=False), mirror=mirror)
        self._index = VerifiedIndex(self._layout.verified, self._layout.tmp, readonly=readonly)
        self._locks = Locks(self._layout)
        self._objects = Objects(self._layout, self._index, readonly=readonly)
        self._records = Records(self._layout, self._objects, self._locks, readonly=readonly)
        self._refs = Refs(self._layout, self._locks)
        self._tombstones = Tombstones(self._layout, self._locks)
        self._checked = Checked(self._layout, self._locks)

    def __repr__(self) -> str:
        return f"Store({self.address!r}{', readonly=True' if self.readonly else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.address, self.readonly)

    # objects

    def put(self, data: bytes) -> OutputRef:
        """Store bytes; they are durable on return. Bytes that are already there are adopted."""
        self._writable("put an object")
        with self._locks.writing(), fsops.explained("store an object", self._layout.objects):
            return self._objects.put(data)

    def put_file(self, path: str | os.PathLike[str]) -> OutputRef:
        """Store a copy of a file's bytes, read in pieces; they are durable on return."""
        self._writable("put an object")
        with self._locks.writing(), fsops.explained(f"store a copy of {os.fspath(path)}", self._layout.objects):
            return self._objects.put_file(Path(path))

    def read(self, digest: str) -> bytes:
        """An object's bytes, hashed in full each time.

        Raises:
            ObjectMissing: there is none.
            ObjectDamaged: its bytes differ from its name; it was moved to quarantine.
        """
        return self._objects.read(digest)

    def open_object(self, digest: str) -> Path:
        """The path of an object that the index knows, or that a full hash found right; for pread and mmap.

        Raises:
            ObjectMissing, ObjectDamaged: as `read`.
        """
        return self._objects.open(digest)

    # records

    def get(self, key: str) -> Record | None:
        """A task's record; None where there is none. A damaged one is moved to quarantine, with a warning."""
        return self._records.get(key)

    def status(self, key: str) -> CacheStatus:
        """Whether a task's result can be used. Moves nothing."""
        return self.statuses([key])[key]

    def statuses(self, keys: Iterable[str]) -> dict[str, CacheStatus]:
        """`status` of many keys: one read a record and one stat an object, once its bytes are known."""
        return Statuses(self._objects, self._records, self._index).of(keys)

    def publish(self, record: Record) -> Record:
        """Publish what a task made; durable on return. The loser of a race gets the winner's record.

        Raises:
            ObjectMissing: an output was not put before.
            StoreError: the record's key is not that of its ingredients, or it cannot be written.
        """
        self._writable("publish a record")
        return self._records.publish(record)

    def replace(self, record: Record) -> Record:
        """Publish in place of the key's record, under the key's lock: after a damaged object was rebuilt."""
        self._writable("replace a record")
        return self._records.replace(record)

    def forget(self, key: str) -> None:
        """Remove a record, durably, so that its task is run again; what it named stays until gc."""
        self._writable("remove a record")
        self._records.forget(key)

    def quarantine_record(self, key: str, why: str) -> None:
        """Move a record to quarantine, so that its task is run again."""
        self._writable("move a record to quarantine")
        self._records.quarantine(key, why)

    # locks and leases

    @contextmanager
    def lock(self, key: str, timeout: float | None = None) -> Iterator[None]:
        """Hold a key's lock; it is free at once when its holder dies. The same thread may take it again.

        Args:
            key: a task's key.
            timeout: seconds to wait; None waits for ever.

        Raises:
            LockTimeout: another holder kept it.
        """
        self._writable("take a lock")
        with self._locks.key(key, timeout):
            yield

    @contextmanager
    def lease(self, name: str, keys: Iterable[str] = ()) -> Iterator[None]:
        """Be a live run: until the end, or death, gc keeps `keys`, their inputs and all that is newer than this.

        Take it before asking for `statuses`, with all keys of the plan, so that what is cached then stays.
        """
        self._writable("take a lease")
        with self._locks.lease(name, keys):
            yield

    def partial(self, key: str, task: Mapping[str, Any] | None = None) -> Path:
        """The folder for the unfinished work of a task; made on demand.

        Args:
            key: the task's key.
            task: {"stage", "slot", "inputs": [keys]}, kept once as `task.json` in the folder, so that `purge` knows
                what the work comes from; without it, purge removes the work.
        """
        self._writable("keep unfinished work")
        folder = self._layout.partial / check_digest(key, "key")
        with fsops.explained("make a folder", folder):
            fsops.make_folder(folder)
            if task is not None and not (folder / TASK).exists():
                with self._locks.writing():
                    fsops.replace_file(folder / TASK, canonical(task) + b"\n", temps=self._layout.tmp)
        return folder

    def clear_partial(self, key: str) -> None:
        """Remove the folder of `partial`, where there is one."""
        self._writable("clear unfinished work")
        folder = self._layout.partial / check_digest(key, "key")
        with fsops.explained("remove a folder", folder):
            fsops.remove_tree(folder)

    # refs

    def write_ref(self, recipe: str, name: str, data: dict[str, Any]) -> None:
        """Name what a recipe made: `data["slots"]` maps slot names to the keys that gc keeps."""
        self._writable("write a ref")
        self._refs.write(recipe, name, data)

    def read_ref(self, recipe: str, name: str) -> dict[str, Any] | None:
        """A ref's data; None where there is none, or, with a warning, where it is damaged."""
        return self._refs.read(recipe, name)

    def refs(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(recipe, name, data) of every good ref."""
        return self._refs.all()

    # photos that may not be kept

    def tombstones(self) -> dict[str, Tombstone]:
        """Photo id -> tombstone of every photo that may never come back; a damaged one counts, with a warning."""
        return self._tombstones.all()

    def bury(self, photos: Iterable[str], reason: str = "") -> None:
        """Give photos a tombstone, durable on return: no later plan has them. `purge` then removes what holds them.

        Raises:
            StoreError: a name that is neither a photo id nor a sample id.
        """
        self._writable("bury a photo")
        self._tombstones.bury(photos, reason)

    def buried_bytes(self) -> frozenset[str]:
        """The sha256 of the raw bytes of buried photos, as far as known: the same file has other addresses too."""
        return frozenset(sha256 for tombstone in self.tombstones().values() for sha256 in tombstone.sha256)

    def lift(self, photo: str) -> Tombstone:
        """Remove the tombstone of a purged photo, durably: it may be taken again from now on. Tells what it said.

        Raises:
            StoreError: it has none, or is not purged yet.
        """
        self._writable("lift a tombstone")
        return self._tombstones.lift(photo)

    def checked(self) -> dict[str, dict[str, Any]]:
        """Photo id -> {"at": ISO 8601 UTC, "licence": id or None, "visible": bool}, as last looked after."""
        return self._checked.all()

    def note_checked(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Lay rows over those of `checked`; durable on return. Rows of buried photos are left out."""
        self._writable("note when photos were looked after")
        self._checked.note(rows)

    def purge(
        self, photos: Iterable[str] = (), reason: str = "", *, dry_run: bool = False,
        pages: Path | Iterable[Path] | None = None,
    ) -> PurgeReport:  # fmt: skip
        """Bury photos, and remove them with all that was made from them, or with `dry_run` only tell.

        Photos with the very same bytes go too, under whatever id. Without photos it finishes what an interrupted
        purge, or `bury`, left. The other photos of a slice are kept under the key that the next plan gives to it. All
        quarantined files go too, as they may hold a photo.

        Args:
            photos: photo ids ("flickr-53412", "web-<20 hex>") or sample ids ("cow-flickr-53412", "cow-<16 hex>").
            reason: kept in the tombstone.
            pages: a folder of reports, or several; those that show, or may show, a photo are deleted.

        Raises:
            StoreError: an odd name, or a run is using the store; nothing was changed.
        """
        if not dry_run:
            self._writable("purge")
        folders = [pages] if isinstance(pages, Path) else list(pages or ())
        named = [photos] if isinstance(photos, str) else list(photos)
        named += [photo for photo in copies(self._records, named, self.buried_bytes()) if photo not in named]
        return Purger(self._layout, pages=folders, dry_run=dry_run).run(named, reason)

    # the whole store

    def verify(self) -> VerifyReport:
        """Hash every object, check every record, ref and tombstone; damaged objects and records go to quarantine."""
        return verify(self._objects, self._records, self._refs, self._tombstones, self._checked)

    def du(self) -> DuReport:
        """Bytes by stage and by ref."""
        return du(self._layout, self._objects, self._records, self._refs)

    def gc(self, dry_run: bool = False) -> GcReport:
        """Delete what no ref and no live run reaches, or with `dry_run` only tell.

        Raises:
            StoreError: a ref or a reachable record is damaged; nothing was deleted.
        """
        if not dry_run:
            self._writable("collect")
        collector = Collector(self._layout, self._objects, self._records, self._refs, self._locks)
        return collector.dry_run() if dry_run else collector.run()

    def why(self, key: str) -> WhyReport:
        """A record's ingredients and its difference to the nearest record of its stage; 6 digits of the key will do."""
        return why(self._records, key)

    def _writable(self, what: str) -> None:
        if self.readonly:
            raise StoreError(
                f"cannot {what}: the store is open read-only",
                where=self.address,
                hint="open it without readonly=True, or give another cache folder",
            )


def _reopened(address: str, readonly: bool) -> Store:
    return Store(address, readonly=readonly)
