"""The shelf of records: read and checked, published by link, replaced under the key's lock."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from replaygen.errors import ObjectMissing, StoreError
from replaygen.store import fsops
from replaygen.store.index import Stamp, stamp_of
from replaygen.store.keys import check_digest, is_digest
from replaygen.store.layout import Layout
from replaygen.store.locks import Locks
from replaygen.store.mirror import FRESH_SECONDS
from replaygen.store.objects import Objects, discard, quarantine, settle, walk_shelves
from replaygen.store.records import Glance, Record, glance, read_all

_REMEMBERED = 10_000
"""Parsed records kept in memory, about 5 kB each."""


class Records:
    """The records of one open store. Safe for threads and processes."""

    def __init__(self, layout: Layout, objects: Objects, locks: Locks, *, readonly: bool) -> None:
        self._layout = layout
        self._root = str(layout.records)
        self._objects = objects
        self._locks = locks
        self._mirror = layout.mirror
        self._readonly = readonly
        self._durable_folders: set[Path] = set()
        self._memory: OrderedDict[str, tuple[Stamp, Record]] = OrderedDict()
        self._mutex = threading.Lock()

    def path(self, key: str) -> Path:
        """Where the record of this key lies, whether or not it is there."""
        check_digest(key, "key")
        return Path(self._root, key[:2], f"{key}.json")

    def bring(self, keys: Iterable[str]) -> None:
        """Compare the local copies of many records with the bucket at once; nothing happens where there is none."""
        if self._mirror is not None:
            self._mirror.pull_some(self._layout.records, [self.path(key) for key in keys])

    def glance(self, key: str, *, brought: bool = False) -> Glance | None:
        """The record, its bytes and key checked; None where there is none. StoreError where it is damaged.

        Args:
            brought: `bring` was just asked for it.
        """
        if self._mirror is not None and not brought:
            self._mirror.pull(self.path(key), fresh=FRESH_SECONDS)
        try:
            data = read_all(f"{self._root}/{key[:2]}/{key}.json")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"record is damaged: it cannot be read: {error.strerror}") from None
        found = glance(data)
        if found.key != key:
            raise StoreError("record is damaged: its key is not that of its task")
        return found

    def look(self, key: str) -> Record | None:
        """As `glance`, every field checked."""
        found = self.glance(key)
        return None if found is None else found.record()

    def get(self, key: str) -> Record | None:
        """The record; None where there is none, or it is damaged and now in quarantine. Remembered by its stamp."""
        if self._mirror is not None:
            self._mirror.pull(self.path(key), fresh=FRESH_SECONDS)
        try:
            stamp = stamp_of(os.lstat(self.path(key)))
        except OSError:
            return None
        with self._mutex:
            remembered = self._memory.get(key)
        if remembered is not None and remembered[0] == stamp:
            return remembered[1]
        try:
            record = self._parsed(key)
        except StoreError as error:
            self.quarantine(key, error.what)
            return None
        if record is not None:
            with self._mutex:
                self._memory[key] = (stamp, record)
                self._memory.move_to_end(key)
                if len(self._memory) > _REMEMBERED:
                    self._memory.popitem(last=False)
        return record

    def _parsed(self, key: str) -> Record | None:
        found = self.glance(key, brought=True)
        return None if found is None else found.record()

    def publish(self, record: Record) -> Record:
        """Publish a record by link, or by a conditional PUT; the loser of a race adopts the winner's.

        Where the record that is there read other inputs, or names an object that is missing or damaged, it is replaced.

        Raises:
            ObjectMissing: an output is not in the store.
        """
        data = record.to_json()
        winner = None
        while winner is None:
            winner, ours = self._linked(record, data)
        if ours or (winner.read == record.read and self._is_whole(winner)):
            return winner
        return self.replace(record)

    def replace(self, record: Record) -> Record:
        """Put a record in place of the one of its key, under the key's lock."""
        data = record.to_json()
        path = self.path(record.key)
        with self._locks.key(record.key, None), self._locks.writing(), fsops.explained("replace a record", path):
            self._check_outputs(record)
            if self._mirror is not None:
                self._mirror.put(path, data)
                return Record.from_json(data)
            temp = fsops.write_temp(self._layout.tmp, [data])
            try:
                settle(path.parent, self._durable_folders)
                fsops.rename(temp, path)
            except BaseException:
                discard(temp)
                raise
            fsops.sync_folder(path.parent)
        return Record.from_json(data)

    def forget(self, key: str) -> None:
        """Remove a record; its going is durable on return."""
        path = self.path(key)
        with self._locks.key(key, None), self._locks.writing(), fsops.explained("remove a record", path):
            if self._mirror is not None:
                self._mirror.remove([path])
            fsops.remove(path)
            fsops.sync_folder(path.parent)

    def quarantine(self, key: str, why: str) -> None:
        """Move a record away, loudly. In read-only mode it is only reported."""
        if self._mirror is not None:
            self._mirror.remove_damaged(self.path(key))
        quarantine(self._layout, self.path(key), "record", why, readonly=self._readonly)

    def keys(self) -> Iterator[tuple[str, Path]]:
        """(key, path) of every record, and ("", path) of every file below records/ that is none."""
        if self._mirror is not None:
            self._mirror.pull_folder(self._layout.records)
        for name, path in walk_shelves(self._layout.records):
            key = name.removesuffix(".json")
            yield (key if is_digest(key) and path == self.path(key) else "", path)

    def _linked(self, record: Record, data: bytes) -> tuple[Record | None, bool]:
        """The record that now stands under the key (None: a damaged one was moved away), and whether it is ours."""
        path = self.path(record.key)
        with self._locks.writing(), fsops.explained("publish a record", path):
            self._check_outputs(record)
            if self._mirror is not None:
                ours = self._mirror.create(path, data)
                return (Record.from_json(data) if ours else self.get(record.key)), ours
            temp = fsops.write_temp(self._layout.tmp, [data])
            try:
                settle(path.parent, self._durable_folders)
                winner: Record | None = Record.from_json(data)
                ours = True
                try:
                    fsops.link(temp, path)
                except FileExistsError:
                    winner, ours = self.get(record.key), False
                    if winner is not None:
                        self._freshen(winner, path)
            finally:
                discard(temp)
            fsops.sync_folder(path.parent)
        return winner, ours

    def _freshen(self, winner: Record, path: Path) -> None:
        """Make an adopted record and what it names as new as one just written, so that gc keeps both for this run."""
        fsops.sync_file(path)
        with contextlib.suppress(FileNotFoundError):
            fsops.touch(path)
        for output in winner.outputs:
            with contextlib.suppress(FileNotFoundError):
                self._objects.freshen(output.digest)

    def _is_whole(self, record: Record) -> bool:
        return all(self._objects.check(output.digest, output.size) == "good" for output in record.outputs)

    def _check_outputs(self, record: Record) -> None:
        for output in record.outputs:
            state = self._objects.check(output.digest, output.size)
            if state != "good":
                raise ObjectMissing(
                    f"output {output.name!r} of a record is {state} in the store",
                    where=f"record {record.key} ({record.slot or record.stage})",
                    hint="put each output before its record is published",
                )
