"""Whether a process lives, told by a lock that the kernel frees when it dies, whatever kills it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from replaygen.store import fsops

_held: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def held(path: Path, *, note: str = "") -> Iterator[bool]:
    """Hold the lock of a file within; False, and nothing is held, where somebody else holds it.

    Args:
        path: made where it is missing; it stays.
        note: who holds it, for people.
    """
    with fsops.explained("take a lock", path):
        descriptor = fsops.open_lock_file(path)
    try:
        got = _try(descriptor, fcntl.LOCK_EX)
        if got:
            _held.add(descriptor)
            with contextlib.suppress(OSError):
                fsops.note(descriptor, path, note.encode())
        yield got
    finally:
        if descriptor in _held or not got:
            _held.discard(descriptor)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether anybody holds the lock of a file now; False where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
