"""Whether a process lives, told by a lock that the kernel frees when it dies, whatever kills it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from replaygen.store import fsops
from replaygen.store.flocks import OpenLock, is_held, tried

__all__ = ["held", "is_held"]


@contextlib.contextmanager
def held(path: Path, *, note: str = "") -> Iterator[bool]:
    """Hold the lock of a file within; False, and nothing is held, where somebody else holds it.

    Args:
        path: made where it is missing; it stays.
        note: who holds it, for people.
    """
    with fsops.explained("take a lock", path):
        lock = OpenLock(path)
    try:
        got = tried(lock.descriptor, fcntl.LOCK_EX)
        if got:
            with contextlib.suppress(OSError):
                fsops.note(lock.descriptor, path, note.encode())
        yield got
    finally:
        lock.release()
