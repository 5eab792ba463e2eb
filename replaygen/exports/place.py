"""The folder that an export is written to: complete, or not there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from replaygen.errors import ReplaygenError


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` when the block ends well, and is removed when it does not.

    What an export that was killed left there is removed first; of two at once the second is refused.

    Raises:
        ReplaygenError: `out` is there already, its parent is not, or the place cannot be written.
    """
    out = Path(os.path.abspath(out))
    _check(out)
    part = out.with_name(f".{out.name[:200]}.part")
    try:
        part.mkdir(exist_ok=True)
        held = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ReplaygenError(f"cannot write the export: {error.strerror}", where=str(part)) from None
    try:
        _take(held, part)
        _empty(part)
        done = False
        try:
            yield part
            _check(out)
            os.rename(part, out)
            done = True
        except OSError as error:
            raise ReplaygenError(
                f"cannot write the export: {error.strerror}", where=str(out), hint="is there room on the disk?"
            ) from error
        finally:
            if not done:
                shutil.rmtree(part, ignore_errors=True)
    finally:
        os.close(held)


def _check(out: Path) -> None:
    if os.path.lexists(out):
        raise ReplaygenError("something is there already", where=str(out), hint="name a new folder with --out")
    if not out.parent.is_dir():
        raise ReplaygenError("no such folder to write the export to", where=str(out.parent), hint="make it first")


def _take(held: int, part: Path) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(held), os.lstat(part)):
            return
    raise ReplaygenError(
        "another export to this place is running", where=str(part), hint="wait for it, or name another --out"
    )


def _empty(folder: Path) -> None:
    for item in os.scandir(folder):
        if item.is_dir(follow_symlinks=False):
            shutil.rmtree(item.path)
        else:
            os.unlink(item.path)


def write(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)


def measure(folder: Path) -> tuple[int, int]:
    """Files and bytes below a folder."""
    files = size = 0
    for base, _, names in os.walk(folder):
        files += len(names)
        size += sum(os.lstat(os.path.join(base, name)).st_size for name in names)
    return files, size
