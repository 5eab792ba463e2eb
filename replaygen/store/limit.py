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

LIMIT = "REPLAYGEN_CACHE_LIMIT"
"""The environment variable: "20GB", "500MiB", bytes; without it the local folder grows with what is read."""

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_LEAVE = 0.9
"""How much of the limit stays when something has to leave."""


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
        self._used: dict[str, float] = {}
        self._pins: tuple[int, int, Path] | None = None

    def pin(self, path: Path) -> None:
        """Keep an object file, there or not yet, until `unpin`. On return no eviction that does not know is running."""
        if self.limit is None:
            return
        self._used[path.name] = time.time()
        if self._pins is None or self._pins[0] != os.getpid():
            place = self._locks / f"{os.getpid()}-{os.urandom(4).hex()}.pins"
            descriptor = fsops.open_lock_file(place)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._pins = (os.getpid(), descriptor, place)
        fsops.append_line(self._pins[2], f"{path.name}\n".encode())
        with _flocked(self._locks / "evict.lock", fcntl.LOCK_SH):
            pass

    def unpin(self) -> None:
        """Let all pins of this process go: its task has ended."""
        if self._pins is not None and self._pins[0] == os.getpid():
            fsops.note(self._pins[1], self._pins[2], b"")

    def grew(self, size: int, *, keep: Path) -> None:
        """An object file of `size` bytes came: let others leave where that is too much."""
        if self.limit is None:
            return
        self._used[keep.name] = time.time()
        self._held = self._total() if self._held is None else self._held + size
        if self._held > self.limit:
            with contextlib.suppress(BlockingIOError), _flocked(self._locks / "evict.lock", fcntl.LOCK_EX, wait=False):
                self._evict(keep)

    def _evict(self, keep: Path) -> None:
        assert self.limit is not None
        files = sorted(self._files())
        self._held = sum(size for _, size, _ in files)
        if self._held <= self.limit:
            return
        pinned = {keep.name, *self._pinned()}
        for _, size, path in files:
            if self._held <= self.limit * _LEAVE:
                break
            if path.name not in pinned and fsops.remove(path):
                self._held -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(last read, bytes, path) of every object file."""
        for above, _, names in os.walk(self._objects):
            for name in names:
                path = Path(above, name)
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(path)
                    yield max(status.st_atime, self._used.get(name, 0.0)), status.st_size, path

    def _total(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _pinned(self) -> set[str]:
        """What live processes have pinned; the files of dead ones are removed."""
        found: set[str] = set()
        for place in self._locks.glob("*.pins"):
            mine = self._pins is not None and place == self._pins[2]
            with contextlib.suppress(OSError):
                if not mine and _is_free(place):
                    fsops.remove(place)
                else:
                    found.update(place.read_text().split())
        return found


def _is_free(place: Path) -> bool:
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextlib.contextmanager
def _flocked(path: Path, kind: int, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock of the folder. BlockingIOError where it is not free and nobody waits."""
    descriptor = fsops.open_lock_file(path)
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
