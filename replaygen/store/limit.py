"""The read cache of a bucket's store: how much the local folder may hold, and what leaves it when that is too much.

Object files leave, those first that were read longest ago, as far as the file system keeps that (most note the first
read of a day). What is open stays readable; what a running task was given the path of is pinned until the task ends:
each process lists its pins in a file that it holds a lock on, so that a dead process pins nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from replaygen.errors import StoreError
from replaygen.store import fsops
from replaygen.store.flocks import OpenLock, tried

LIMIT = "REPLAYGEN_CACHE_LIMIT"
"""The environment variable: "20GB", "500MiB", bytes; without it the local folder grows with what is read."""

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_LEAVE = 0.9
"""How much of the limit stays when something has to leave."""
_LOOK_AGAIN = 64
"""The folder is measured anew when this process has added that part of the limit: others add to it too."""


def limit_from_environment() -> int | None:
    """Bytes that the local folder of a bucket may hold; None without a limit. StoreError where it is no size."""
    text = os.environ.get(LIMIT, "")
    if not text.strip():
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise StoreError(f"{LIMIT} is no size: {text[:40]!r}", hint='such as "20GB"')
    step = 1024 if found[3] else 1000
    return int(float(found[1]) * step ** " kmgt".index(found[2].lower() or " "))


class CacheLimit:
    """The limit of one local folder, kept by all processes that use it. Without a limit nothing here costs anything.

    Args:
        root: the local folder.
        limit: bytes of objects; None for any number.
    """

    def __init__(self, root: Path, limit: int | None) -> None:
        self.limit = limit
        self._objects = root / "objects"
        self._locks = root / "locks"
        self._held: int | None = None
        self._added = 0
        self._used: dict[str, float] = {}
        self._pins: tuple[int, OpenLock] | None = None

    def pin(self, path: Path) -> None:
        """Keep an object file, there or not yet, until `unpin`. No eviction is running while its name is written."""
        if self.limit is None:
            return
        self._used[path.name] = time.time()
        with _flocked(self._locks / "evict.lock", fcntl.LOCK_SH):
            if self._pins is None or self._pins[0] != os.getpid():
                lock = OpenLock(self._locks / f"{os.getpid()}-{os.urandom(4).hex()}.pins")
                fcntl.flock(lock.descriptor, fcntl.LOCK_EX)
                self._pins = (os.getpid(), lock)
            fsops.append_line(self._pins[1].path, f"{path.name}\n".encode())

    def unpin(self) -> None:
        """Let all pins of this process go: its task has ended."""
        if self._pins is not None and self._pins[0] == os.getpid():
            fsops.note(self._pins[1].descriptor, self._pins[1].path, b"")

    def grew(self, size: int, *, keep: Path) -> None:
        """An object file of `size` bytes came: let others leave where that is too much."""
        if self.limit is None:
            return
        self._used[keep.name] = time.time()
        self._added += size
        if self._held is None or self._added * _LOOK_AGAIN >= self.limit:
            self._measured()
        else:
            self._held += size
        if (self._held or 0) > self.limit:
            with _flocked(self._locks / "evict.lock", fcntl.LOCK_EX, wait=False) as got:
                if got:
                    self._evict(keep)

    def _evict(self, keep: Path) -> None:
        assert self.limit is not None
        files = sorted(self._measured())
        left = sum(size for _, size, _ in files)
        if left <= self.limit:
            return
        pinned = {keep.name, *self._pinned()}
        for _, size, path in files:
            if left <= self.limit * _LEAVE:
                break
            if path.name not in pinned and fsops.remove(path):
                left -= size
        self._held = left

    def _measured(self) -> list[tuple[float, int, Path]]:
        """What the folder holds now, whoever put it there."""
        files = list(self._files())
        self._held, self._added = sum(size for _, size, _ in files), 0
        return files

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(last read, bytes, path) of every object file."""
        for above, _, names in os.walk(self._objects):
            for name in names:
                path = Path(above, name)
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(path)
                    yield max(status.st_atime, self._used.get(name, 0.0)), status.st_size, path

    def _pinned(self) -> set[str]:
        """What live processes have pinned; the files of dead ones are removed."""
        found: set[str] = set()
        for place in self._locks.glob("*.pins"):
            with contextlib.suppress(OSError):
                if _is_free(place):
                    fsops.remove(place)
                else:
                    found.update(place.read_text().split())
        return found


def _is_free(place: Path) -> bool:
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return tried(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _flocked(path: Path, kind: int, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock of the folder; False, and nothing is held, where it is not free and nobody waits."""
    lock = OpenLock(path)
    try:
        if wait:
            fcntl.flock(lock.descriptor, kind)
        yield wait or tried(lock.descriptor, kind)
    finally:
        lock.release()
