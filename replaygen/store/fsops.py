"""Every change that the store makes to the file system, and nothing else.

Each operation passes one hook, `trace`, so that a test can crash before or after it, write half of it, refuse it,
or record it. A file is written as a temp in `tmp/`, fsynced, then linked or renamed to its name, then the folder of
that name is fsynced: after a crash a name stands for all of its bytes or does not exist.

In a store that a group shares every file and folder has its mode before it has its name: see `replaygen.modes`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from replaygen import modes
from replaygen.errors import StoreError

Kind = Literal[
    "mkdir", "create", "write", "append", "note", "fsync", "fsync_dir", "link", "rename", "unlink", "rmdir", "touch",
    "chmod",
]  # fmt: skip


@dataclass(frozen=True)
class Op:
    """One operation: `path` is what it changes, `target` the new name of a link or rename."""

    kind: Kind
    path: Path
    target: Path | None = None
    data: bytes = b""


trace: Callable[[Op, Callable[[], None]], None] | None = None
"""The hook: called with each operation and the act that does it. Only tests set it."""


def _do(op: Op, act: Callable[[], object]) -> None:
    if trace is None:
        act()
    else:
        trace(op, lambda: void(act()))


def void(_value: object) -> None:
    """Drop a result."""


def make_folder(path: Path) -> None:
    """Create a folder and its parents; on return each entry is durable."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        try:
            _do(Op("mkdir", folder), partial(modes.make_folder, folder))
        except FileExistsError:
            if not folder.is_dir():
                raise
        sync_folder(folder.parent)


def write_temp(folder: Path, chunks: Iterable[bytes]) -> Path:
    """Write chunks into a new file in `folder` and fsync it. Its name is free in any process; an error removes it."""
    path = folder / f"{os.getpid()}-{time.time_ns()}-{os.urandom(4).hex()}"
    opened: list[int] = []
    _do(Op("create", path), lambda: opened.append(_create(path)))
    try:
        for chunk in chunks:
            _do(Op("write", path, data=chunk), partial(_write_all, opened[0], chunk))
        _do(Op("fsync", path), partial(os.fsync, opened[0]))
    except BaseException:
        with contextlib.suppress(OSError):
            remove(path)
        raise
    finally:
        os.close(opened[0])
    return path


def link(temp: Path, final: Path) -> None:
    """Give `temp` the name `final` too; FileExistsError where that name is taken."""
    _do(Op("link", temp, final), partial(os.link, temp, final))


def rename(source: Path, target: Path) -> None:
    """Move a file to `target`, in one step, in place of what was there."""
    _do(Op("rename", source, target), partial(os.rename, source, target))


def remove(path: Path) -> bool:
    """Unlink a file; False where there is none."""
    try:
        _do(Op("unlink", path), partial(os.unlink, path))
    except FileNotFoundError:
        return False
    return True


def remove_tree(path: Path) -> None:
    """Remove a folder and all below it, following no symbolic link; nothing happens where there is none."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except PermissionError:  # another user was killed while making it: it has nothing in it yet
        entries = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            remove(Path(entry.path))
    with contextlib.suppress(FileNotFoundError):
        _do(Op("rmdir", path), partial(os.rmdir, path))


def sync_folder(path: Path) -> None:
    """fsync a folder: the names made or removed in it are durable on return."""
    _do(Op("fsync_dir", path), partial(_fsync_path, path))


def sync_file(path: Path) -> None:
    """fsync a file that another process may have written."""
    _do(Op("fsync", path), partial(_fsync_path, path))


def touch(path: Path) -> None:
    """Set a file's times to now."""
    _do(Op("touch", path), partial(os.utime, path))


def allow(path: Path, mode: int, group: int) -> None:
    """Set the group (-1: as it is) and the mode of a file or folder; no symbolic link is followed."""
    _do(Op("chmod", path), partial(_allow, path, mode, group))


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file with one O_APPEND write; it is not fsynced and may be torn by a crash."""
    _do(Op("append", path, data=line), partial(_append, path, line))


def open_lock_file(path: Path) -> int:
    """Open (or create) a file to flock; the caller closes the descriptor."""
    opened: list[int] = []
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    _do(Op("create", path), lambda: opened.append(_open_made(path, flags)))
    return opened[0]


def note(descriptor: int, path: Path, text: bytes) -> None:
    """Write who holds a lock into its file; only read by people and, for leases, by gc."""
    _do(Op("note", path, data=text), partial(_note, descriptor, text))


def replace_file(path: Path, data: bytes, *, temps: Path | None = None) -> None:
    """Write `data` as the file `path`, durably and in one step, in place of what was there.

    Args:
        path: the file.
        data: its bytes.
        temps: the folder for the temp; default the file's own. Same file system as `path`.
    """
    temp = write_temp(temps or path.parent, [data])
    try:
        rename(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(temp)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def explained(what: str, where: Path) -> Iterator[None]:
    """Turn an OSError inside into a StoreError that says what could not be done, where, and the way out."""
    try:
        yield
    except OSError as error:
        import errno

        hints = {
            errno.ENOSPC: "the disk is full: free space, or see `replaygen cache gc --dry-run`",
            errno.EDQUOT: "the quota is used up: free space, or see `replaygen cache gc --dry-run`",
            errno.EROFS: "the file system is read-only: open the store with readonly=True, or give a writable folder",
            errno.EACCES: "no permission to write: open the store with readonly=True, or give a writable folder",
            errno.EPERM: "no permission to write: open the store with readonly=True, or give a writable folder",
        }
        told = StoreError(
            f"cannot {what}: {error.strerror or error}",
            where=str(where),
            hint=hints.get(error.errno or 0, "nothing was published; the same call can be made again"),
        )
        told.errno = error.errno
        raise told from error


def _create(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    modes.like_folder(descriptor, path.parent)
    return descriptor


def _open_made(path: Path, flags: int) -> int:
    modes.make_file(path)
    return os.open(path, flags, 0o666)


def _allow(path: Path, mode: int, group: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if group >= 0:
            os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _append(path: Path, line: bytes) -> None:
    descriptor = _open_made(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _note(descriptor: int, text: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
