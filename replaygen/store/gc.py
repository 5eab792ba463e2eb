"""gc: delete what no ref and no live run can reach.

Roots are the slots of every ref, the keys of every live lease, and every record newer than the oldest live lease;
inputs are followed. What is newer than the oldest live lease stays, whatever it is. Records go before objects, and
their going is durable first, so that no record ever names an object that gc took. Tombstones are never collected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from replaygen.errors import StoreError
from replaygen.store import fsops
from replaygen.store.keys import is_digest
from replaygen.store.layout import Layout
from replaygen.store.locks import Locks
from replaygen.store.objects import Objects, size_of
from replaygen.store.refs import Refs
from replaygen.store.shelf import Records

_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class GcReport:
    """What gc deleted, or would delete: names, and the bytes that they held."""

    dry_run: bool
    records: tuple[str, ...]
    objects: tuple[str, ...]
    partial: tuple[str, ...]
    tmp: tuple[str, ...]
    bytes: int
    kept_records: int
    kept_objects: int


@dataclass
class _Doomed:
    records: list[tuple[str, Path]] = field(default_factory=list)
    objects: list[tuple[str, Path]] = field(default_factory=list)
    partial: list[Path] = field(default_factory=list)
    tmp: list[Path] = field(default_factory=list)
    stale: list[Path] = field(default_factory=list)
    bytes: int = 0
    kept_records: int = 0
    kept_objects: int = 0


class Collector:
    """gc over one open store."""

    def __init__(self, layout: Layout, objects: Objects, records: Records, refs: Refs, locks: Locks) -> None:
        self._layout = layout
        self._objects = objects
        self._records = records
        self._refs = refs
        self._locks = locks

    def dry_run(self) -> GcReport:
        """What `run` would delete now."""
        return _report(self._doomed(), dry_run=True)

    def run(self) -> GcReport:
        """Delete; waits for writers, and they for it.

        Raises:
            StoreError: a ref or a reachable record is damaged, so that what it names is unknown; nothing is deleted.
            LockTimeout: other processes wrote all the time.
        """
        with self._locks.collecting(_WAIT_SECONDS), fsops.explained("collect", self._layout.root):
            doomed = self._doomed()
            remove_published(self._layout, (path for _, path in doomed.records))
            remove_published(self._layout, (path for _, path in doomed.objects))
            for folder in doomed.partial:
                fsops.remove_tree(folder)
            remove_durably(doomed.tmp)
            remove_durably(doomed.stale)
            for path in sorted(self._layout.locks.glob("*.lock")):
                if is_digest(path.name.removesuffix(".lock")):
                    self._locks.remove_unused(path)
        return _report(doomed, dry_run=False)

    def _doomed(self) -> _Doomed:
        leases, dead_leases = self._locks.leases()
        oldest = min((lease.started_ns for lease in leases), default=None)
        doomed = _Doomed(stale=dead_leases)
        present = {key: path for key, path in self._records.keys() if key}  # noqa: SIM118
        roots = self._named_by_refs()
        roots.update(key for lease in leases for key in lease.keys)
        roots.update(key for key, path in present.items() if _is_new(path, oldest))
        reachable, used = self._reach(roots)
        for key, path in present.items():
            if key not in reachable:
                doomed.records.append((key, path))
                doomed.bytes += size_of(path)
        doomed.kept_records = len(present) - len(doomed.records)
        for digest, path in self._objects.names():
            if not is_digest(digest) or path != self._objects.path(digest):
                continue
            if digest in used or _is_new(path, oldest):
                doomed.kept_objects += 1
            else:
                doomed.objects.append((digest, path))
                doomed.bytes += self._objects.size(digest)
        self._add_partial(doomed, reachable, present, oldest)
        for path in sorted(self._layout.tmp.iterdir()):
            if not _is_new(path, oldest):
                doomed.tmp.append(path)
                doomed.bytes += size_of(path)
        return doomed

    def _add_partial(self, doomed: _Doomed, reachable: set[str], present: dict[str, Path], oldest: int | None) -> None:
        """A partial folder is needed while its task is wanted and has no record."""
        for folder in sorted(self._layout.partial.iterdir()):
            wanted = folder.name in reachable and folder.name not in present
            files = [folder, *folder.rglob("*")]
            if wanted or any(_is_new(path, oldest) for path in files) or self._locks.is_held(folder.name):
                continue
            doomed.partial.append(folder)
            doomed.bytes += sum(size_of(path) for path in files if path.is_file())

    def _named_by_refs(self) -> set[str]:
        keys: set[str] = set()
        for path in self._refs.paths():
            try:
                _, _, data = self._refs.look(path)
            except (StoreError, FileNotFoundError) as error:
                reason = error.what if isinstance(error, StoreError) else str(error)
                raise StoreError(
                    f"gc refuses to run: {reason}, so what it keeps is unknown",
                    where=str(path),
                    hint="run its recipe again, which rewrites it, or delete the file if nothing of it is wanted",
                ) from None
            keys.update(data.get("slots", {}).values())
        return keys

    def _reach(self, roots: set[str]) -> tuple[set[str], set[str]]:
        """The keys that the roots reach through inputs, and the objects that their records name."""
        reachable: set[str] = set()
        used: set[str] = set()
        ahead = sorted(roots)
        while ahead:
            key = ahead.pop()
            if key in reachable:
                continue
            reachable.add(key)
            try:
                record = self._records.look(key)
            except StoreError as error:
                raise StoreError(
                    f"gc refuses to run: {error.what}, so what it was made from is unknown",
                    where=str(self._records.path(key)),
                    hint="run its recipe again, or `replaygen cache verify`, which moves it to quarantine",
                ) from None
            if record is not None:
                ahead += [key for _, key in record.inputs]
                used.update(output.digest for output in record.outputs)
        return reachable, used


def _is_new(path: Path, oldest: int | None) -> bool:
    """Whether a path is as new as the oldest live lease; what vanished meanwhile counts as new."""
    if oldest is None:
        return False
    try:
        return os.lstat(path).st_mtime_ns >= oldest
    except FileNotFoundError:
        return True


def remove_published(layout: Layout, paths: Iterable[Path]) -> None:
    """As `remove_durably`; from the bucket first, where there is one."""
    ahead = list(paths)
    if layout.mirror is not None:
        layout.mirror.remove(ahead)
        ahead = [path for path in ahead if os.path.lexists(path)]
    remove_durably(ahead)


def remove_durably(paths: Iterable[Path]) -> None:
    """Remove files and folders; their going is durable on return."""
    folders = set()
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            fsops.remove_tree(path)
        else:
            fsops.remove(path)
        folders.add(path.parent)
    for folder in sorted(folders):
        fsops.sync_folder(folder)


def _report(doomed: _Doomed, *, dry_run: bool) -> GcReport:
    return GcReport(
        dry_run=dry_run,
        records=tuple(key for key, _ in doomed.records),
        objects=tuple(digest for digest, _ in doomed.objects),
        partial=tuple(folder.name for folder in doomed.partial),
        tmp=tuple(path.name for path in doomed.tmp),
        bytes=doomed.bytes,
        kept_records=doomed.kept_records,
        kept_objects=doomed.kept_objects,
    )
