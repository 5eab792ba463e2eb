"""Files that are locked with `flock`: the kernel frees the lock when its holder dies, whatever kills it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from replaygen.store import fsops


class OpenLock:
    """An open lock file, made where it is missing. In a forked child it is closed and lets nothing go: what is locked
    is its parent's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = fsops.open_lock_file(path)
        _open_locks.add(self)

    def release(self) -> None:
        """Let the lock go, even where a child still has a copy of the descriptor."""
        if self in _open_locks:
            _open_locks.discard(self)
            with contextlib.suppress(OSError):
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            os.close(self.descriptor)


_open_locks: set[OpenLock] = set()


def _close_in_child() -> None:
    for lock in _open_locks:
        with contextlib.suppress(OSError):
            os.close(lock.descriptor)
    _open_locks.clear()


os.register_at_fork(after_in_child=_close_in_child)


def tried(descriptor: int, kind: int) -> bool:
    """Take a lock (LOCK_SH or LOCK_EX) if it is free now; False, and nothing is held, where it is not."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether anybody holds the lock of a file now; False where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not tried(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
