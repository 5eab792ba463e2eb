"""The folder that an export is written to: complete, or not there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from replaygen.errors import ReplaygenError
from replaygen.store import fsops

MARK: Final = ".replaygen-export"
"""The file that tells an unfinished export from a folder of somebody's own; it is there before anything else."""

NEW: Final = "new"
"""The folder beside it that becomes the export."""

SUMS: Final = "SHA256SUMS"


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends well, durably, and is removed when it does not.

    It is in a hidden folder beside `out`. What an export that was killed left there is removed first; what somebody
    else has there is not touched; of two exports at once the second is refused.

    Raises:
        ReplaygenError: `out` is there already, its parent is not, or the place cannot be written.
    """
    out = Path(os.path.abspath(out))
    _check(out)
    part = out.with_name(f".{out.name[:200]}.part")
    with _explained(part):
        with contextlib.suppress(FileExistsError):
            part.mkdir()
        held = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _take(held, part)
        with _explained(part):
            _begin(part)
        try:
            with _explained(out):
                yield part / NEW
                _sync(part / NEW)
                _check(out)
                fsops.rename(part / NEW, out)
                fsops.sync_folder(out.parent)
        finally:
            with contextlib.suppress(OSError):
                _end(part)
    finally:
        os.close(held)


def _check(out: Path) -> None:
    if os.path.lexists(out):
        raise ReplaygenError("something is there already", where=str(out), hint="name a new folder with --out")
    if not out.parent.is_dir():
        raise ReplaygenError("no such folder to write the export to", where=str(out.parent), hint="make it first")


@contextlib.contextmanager
def _explained(where: Path) -> Iterator[None]:
    hints = {
        errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up",
        errno.ENOTDIR: "move it away, or name another --out", errno.ELOOP: "move it away, or name another --out",
    }  # fmt: skip
    try:
        yield
    except OSError as error:
        told = ReplaygenError(
            f"cannot write the export: {error.strerror or error}", where=str(error.filename or where),
            hint=hints.get(error.errno or 0, "may you write there? else name another --out"),
        )  # fmt: skip
        raise told from error


def _take(held: int, part: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise ReplaygenError(
                "another export to this place is running", where=str(part), hint="wait for it, or name another --out"
            ) from None
        with contextlib.suppress(OSError):
            os.rmdir(part)
        raise ReplaygenError(
            f"cannot lock the place of the export: {error.strerror}", where=str(part),
            hint="does this file system know locks? else write to another disk, and move it",
        ) from error  # fmt: skip
    try:
        same = os.path.samestat(os.fstat(held), os.lstat(part))
    except OSError:
        same = False
    if not same:
        raise ReplaygenError("another export to this place ended just now", where=str(part), hint="run it again")


def _begin(part: Path) -> None:
    """Put in the mark, and an empty `NEW`."""
    names = os.listdir(part)
    if names and MARK not in names:
        raise ReplaygenError(
            "a folder with the name of an unfinished export is none", where=str(part),
            hint="move it away, or name another --out",
        )  # fmt: skip
    if not names:
        os.close(os.open(part / MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        fsops.sync_folder(part)
    fsops.remove_tree(part / NEW)
    (part / NEW).mkdir()


def _end(part: Path) -> None:
    """Remove what is ours: `NEW` where it is still there, the mark last."""
    fsops.remove_tree(part / NEW)
    if os.listdir(part) == [MARK]:
        fsops.remove(part / MARK)
        os.rmdir(part)


def _sync(folder: Path) -> None:
    """Make every file and every name below a folder durable."""
    for base, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsops.sync_file(Path(base, name))
        fsops.sync_folder(Path(base))


def write(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)


def seal(folder: Path) -> None:
    """Write `SHA256SUMS`: the sha256 of every file, as `sha256sum -c` reads it."""
    paths = sorted(Path(base, name) for base, _, names in os.walk(folder) for name in names)
    lines = []
    for path in paths:
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    write(folder / SUMS, "".join(lines).encode())


def measure(folder: Path) -> tuple[int, int]:
    """Files and bytes below a folder."""
    files = size = 0
    for base, _, names in os.walk(folder):
        files += len(names)
        size += sum(os.lstat(os.path.join(base, name)).st_size for name in names)
    return files, size
