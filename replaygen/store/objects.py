"""Objects: immutable bytes named by their sha256, in objects/ab/<sha256>."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from replaygen.errors import ObjectDamaged, ObjectMissing
from replaygen.store import fsops
from replaygen.store.index import Stamp, VerifiedIndex, stamp_of
from replaygen.store.keys import check_digest, sha256_hex
from replaygen.store.layout import Layout

log = logging.getLogger("replaygen.store")

ObjectState = Literal["good", "missing", "damaged"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class OutputRef:
    """Bytes that are durable in the store: their sha256 and their number."""

    digest: str
    size: int


class Objects:
    """The objects of one open store."""

    def __init__(self, layout: Layout, index: VerifiedIndex, *, readonly: bool) -> None:
        self._layout = layout
        self._root = str(layout.objects)
        self._index = index
        self._mirror = layout.mirror
        self._readonly = readonly
        self._durable_folders: set[Path] = set()

    @property
    def in_bucket(self) -> bool:
        """Whether the objects are those of a bucket, of which only some have a copy here."""
        return self._mirror is not None

    def listed(self) -> dict[str, int]:
        """digest -> bytes of every object of the bucket; none without a bucket."""
        return {} if self._mirror is None else self._mirror.sizes()

    def path(self, digest: str) -> Path:
        """Where an object of this name lies, whether or not it is there."""
        check_digest(digest)
        return Path(self._root, digest[:2], digest)

    def put(self, data: bytes) -> OutputRef:
        """Store bytes; durable on return. The caller holds the store's lock for writing."""
        digest = sha256_hex(data)
        if not self._adopted(digest):
            self._name(fsops.write_temp(self._layout.tmp, [data]), digest)
        self._push(digest)
        return OutputRef(digest, len(data))

    def put_file(self, source: Path) -> OutputRef:
        """Store a copy of a file's bytes; durable on return. The caller holds the store's lock for writing."""
        hasher = hashlib.sha256()
        size = 0

        def chunks() -> Iterator[bytes]:
            nonlocal size
            with open(source, "rb") as file:
                while chunk := file.read(_CHUNK):
                    hasher.update(chunk)
                    size += len(chunk)
                    yield chunk

        temp = fsops.write_temp(self._layout.tmp, chunks())
        digest = hasher.hexdigest()
        if self._adopted(digest):
            fsops.remove(temp)
        else:
            self._name(temp, digest)
        self._push(digest)
        return OutputRef(digest, size)

    def read(self, digest: str) -> bytes:
        """The bytes of an object, hashed in full each time.

        Raises:
            ObjectMissing: there is none.
            ObjectDamaged: its bytes differ from its name; it was moved to quarantine (not in read-only mode).
        """
        try:
            return self._read_here(digest)
        except (ObjectMissing, ObjectDamaged):
            if self._mirror is None:
                raise
        self._fetch(digest)
        return self._read_here(digest)

    def _read_here(self, digest: str) -> bytes:
        path = self.path(digest)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with open(descriptor, "rb") as file:
                before = stamp_of(os.fstat(descriptor))
                data = file.read()
        except FileNotFoundError:
            raise self._missing(digest) from None
        except OSError as error:
            self._quarantine_here(digest, f"cannot be read: {error.strerror}")
            raise self._damaged(digest) from None
        if sha256_hex(data) != digest:
            self._quarantine_here(digest, "its bytes differ from its name")
            raise self._damaged(digest)
        if not self._index.holds_now(digest, before):
            self._index.add(digest, before)
        return data

    def open(self, digest: str) -> Path:
        """The path of an object whose bytes are right by the index, or by a full hash on first sight.

        Raises:
            ObjectMissing, ObjectDamaged: as `read`.
        """
        if self._mirror is not None:
            self._mirror.limit.pin(self.path(digest))
        try:
            return self._open_here(digest)
        except (ObjectMissing, ObjectDamaged):
            if self._mirror is None:
                raise
        self._fetch(digest)
        return self._open_here(digest)

    def _open_here(self, digest: str) -> Path:
        state = self._check_here(check_digest(digest))
        if state == "missing":
            raise self._missing(digest)
        if state == "damaged":
            self._quarantine_here(digest, "its bytes differ from its name")
            raise self._damaged(digest)
        return self.path(digest)

    def check(self, digest: str, size: int | None = None, *, full: bool = False) -> ObjectState:
        """Whether an object is there and right; moves nothing.

        Args:
            digest: its name.
            size: the bytes that its record says it has.
            full: hash it even where the index knows it.
        """
        if self._mirror is not None:
            return self._check_there(digest, size, full)
        return self._check_here(digest, size, full=full)

    def _check_there(self, digest: str, size: int | None, full: bool) -> ObjectState:
        """`check` of what the bucket has: by its size, or by its bytes, which are not kept."""
        assert self._mirror is not None
        path = self.path(digest)
        if full:
            hashed = self._mirror.hashed(path)
            return "missing" if hashed is None else "good" if hashed == digest else "damaged"
        there = self._mirror.stands(path, digest)
        return "missing" if there is None else "good" if size in (None, there) else "damaged"

    def _check_here(self, digest: str, size: int | None = None, *, full: bool = False) -> ObjectState:
        path = f"{self._root}/{digest[:2]}/{digest}"
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "damaged"
        stamp = stamp_of(status)
        if size is not None and stamp[0] != size:
            return "damaged"
        if not full and self._index.holds(digest, stamp):
            return "good"
        if not stat.S_ISREG(status.st_mode):
            return "damaged"
        try:
            hashed, stamp = _hash_file(path)
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "damaged"
        if hashed != digest:
            return "damaged"
        if not self._index.holds_now(digest, stamp):
            self._index.add(digest, stamp)
        return "good"

    def known(self, digest: str, size: int) -> bool:
        """Whether one stat finds the object as the index knows it. The quick half of `check`."""
        if self._mirror is not None:
            return False
        try:
            status = os.lstat(f"{self._root}/{digest[:2]}/{digest}")
        except OSError:
            return False
        return status.st_size == size and self._index.holds_now(digest, stamp_of(status))

    def names(self) -> Iterator[tuple[str, Path]]:
        """(name, path) of every file below objects/, odd ones too; of a bucket, those that are not here as well."""
        if self._mirror is None:
            yield from walk_shelves(self._layout.objects)
            return
        found = dict(walk_shelves(self._layout.objects))
        found.update((digest, self.path(digest)) for digest in self._mirror.sizes())
        yield from sorted(found.items())

    def size(self, digest: str) -> int:
        """Bytes of an object that `names` told; 0 where there is none."""
        there = 0 if self._mirror is None else self._mirror.size(digest)
        return there or size_of(self.path(digest))

    def quarantine(self, digest: str, why: str) -> None:
        """Move a damaged object away, loudly. In read-only mode it is only reported."""
        if self._mirror is None:
            self._quarantine_here(digest, why)
            return
        try:
            self._fetch(digest)
        except (ObjectDamaged, ObjectMissing):
            return

    def _fetch(self, digest: str) -> None:
        """Copy an object from the bucket. One that is damaged there goes to the local quarantine, loudly.

        It is read again before it counts as damaged: the network may have cut or turned what it carried.

        Raises:
            ObjectMissing, ObjectDamaged: as `read`.
        """
        assert self._mirror is not None
        path = self.path(digest)
        with fsops.explained("keep a copy of an object", path):
            for again in (False, True):
                found = self._mirror.fetch(path)
                if found is None:
                    raise self._missing(digest)
                temp, hashed, etag = found
                if hashed == digest:
                    self._name(temp, digest)
                    self._mirror.limit.grew(os.lstat(path).st_size, keep=path)
                    return
                if self._readonly or not again:
                    discard(temp)
        if self._readonly:
            log.warning("damaged object %s in the bucket (left in place: the store is open read-only)", digest)
        else:
            why = "its bytes in the bucket differ from its name"
            quarantine(self._layout, temp, "object", why, readonly=False, name=digest)
            self._mirror.remote.delete_if(self._mirror.name(path), etag)
        raise self._damaged(digest)

    def _push(self, digest: str) -> None:
        if self._mirror is not None:
            self._mirror.push(self.path(digest), digest)

    def _quarantine_here(self, digest: str, why: str) -> None:
        quarantine(self._layout, self.path(digest), "object", why, readonly=self._readonly)

    def _adopted(self, digest: str) -> bool:
        """Take the object that is already there, if it is right, as durable and as new as one just written."""
        state = self._check_here(digest)
        if state == "damaged":
            self._quarantine_here(digest, "its bytes differ from its name")
        if state != "good":
            return False
        path = self.path(digest)
        self.freshen(digest)
        fsops.sync_file(path)
        self._settle(path.parent)
        fsops.sync_folder(path.parent)
        return True

    def freshen(self, digest: str) -> None:
        """Give a good object the time of one just written, so that gc keeps it for this run. OSError as `touch`."""
        if self._check_here(digest) == "good":
            path = self.path(digest)
            fsops.touch(path)
            self._index.add(digest, stamp_of(os.lstat(path)))

    def _name(self, temp: Path, digest: str) -> None:
        path = self.path(digest)
        try:
            self._settle(path.parent)
            fsops.rename(temp, path)
        except BaseException:
            discard(temp)
            raise
        fsops.sync_folder(path.parent)
        self._index.add(digest, stamp_of(os.lstat(path)))

    def _settle(self, folder: Path) -> None:
        settle(folder, self._durable_folders)

    def _missing(self, digest: str) -> ObjectMissing:
        return ObjectMissing(
            f"object {digest} is missing", where=str(self.path(digest)), hint="run the recipe again to rebuild it"
        )

    def _damaged(self, digest: str) -> ObjectDamaged:
        moved = "it is left in place (read-only)" if self._readonly else "it was moved to quarantine"
        return ObjectDamaged(
            f"object {digest} is damaged; {moved}",
            where=str(self.path(digest)),
            hint="run the recipe again to rebuild it; if this happens often, check the disk",
        )


def settle(folder: Path, durable: set[Path]) -> None:
    """Make a folder, and be sure once a process that its name is durable, whoever made it."""
    if folder in durable:
        return
    if folder.is_dir():
        fsops.sync_folder(folder.parent)
    else:
        fsops.make_folder(folder)
    durable.add(folder)


def discard(temp: Path) -> None:
    """Remove a temp as far as that is possible; gc takes what stays."""
    try:
        fsops.remove(temp)
    except OSError:
        return


def quarantine(layout: Layout, path: Path, kind: str, why: str, *, readonly: bool, name: str = "") -> None:
    """Move a damaged file to quarantine/ under a name that is free, and log a warning.

    Args:
        name: of what is damaged, where that is not the file's.
    """
    name = name or path.name
    if readonly:
        log.warning("damaged %s %s: %s (left in place: the store is open read-only)", kind, name, why)
        return
    target = layout.quarantine / f"{kind}-{name}-{time.time_ns()}-{os.getpid()}"
    with fsops.explained(f"move a damaged {kind} to quarantine", path):
        try:
            fsops.rename(path, target)
        except FileNotFoundError:
            return
        fsops.sync_folder(path.parent)
        fsops.sync_folder(target.parent)
    log.warning("damaged %s %s: %s; moved to %s", kind, name, why, target)


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0


def walk_shelves(root: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of every entry two levels below `root`, sorted; a file on the first level too.

    A shelf that is still being made, whose name begins with a dot, holds nothing, and its maker alone may read it.
    """
    for shelf in _listed(root):
        if shelf.is_dir(follow_symlinks=False):
            if shelf.name.startswith("."):
                continue
            for entry in _listed(Path(shelf.path)):
                yield entry.name, Path(entry.path)
        else:
            yield shelf.name, Path(shelf.path)


def _listed(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _hash_file(path: str) -> tuple[str, Stamp]:
    """sha256 of a file, and its stamp before it was read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
        stamp = stamp_of(os.fstat(descriptor))
        return hashlib.file_digest(file, "sha256").hexdigest(), stamp
