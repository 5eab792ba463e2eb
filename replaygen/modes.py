"""Who may read and write what is made in a folder.

A folder that is writable by its group and has the set-group-id bit is shared: what is made in it belongs to that group
and is writable by it, whatever the umask of the process that makes it, and others may read it where they may read the
folder. Everywhere else the umask decides, as always. So the mode of a folder is all that says who shares it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_SHARED = stat.S_ISGID | stat.S_IWGRP


def shared(folder: str | os.PathLike[str]) -> int | None:
    """The mode of a folder that its group shares; None where the umask decides, or there is none."""
    try:
        mode = os.stat(folder).st_mode
    except OSError:
        return None
    return mode if mode & _SHARED == _SHARED else None


def folder_mode(folder: str | os.PathLike[str]) -> int | None:
    """The mode of a new folder in `folder`; None where the umask decides."""
    mode = shared(folder)
    return None if mode is None else folder_bits(bool(mode & stat.S_IROTH))


def file_mode(folder: str | os.PathLike[str]) -> int | None:
    """The mode of a new file in `folder`; None where the umask decides."""
    mode = shared(folder)
    return None if mode is None else file_bits(bool(mode & stat.S_IROTH))


def folder_bits(everyone: bool) -> int:
    """The mode of a shared folder, which everyone may read or only the group."""
    return 0o2775 if everyone else 0o2770


def file_bits(everyone: bool) -> int:
    """The mode of a shared file, which everyone may read or only the group."""
    return 0o664 if everyone else 0o660


def like_folder(descriptor: int, folder: str | os.PathLike[str]) -> None:
    """Give an open file of our own the mode that `folder` says; nothing happens where that is left to the umask."""
    mode = file_mode(folder)
    if mode is not None:
        os.fchmod(descriptor, mode)


def make_folder(path: Path) -> None:
    """As `os.mkdir`; in a shared folder it has its mode from the moment that it has its name.

    A process that is killed meanwhile may leave an empty folder whose name begins with a dot.
    """
    mode = folder_mode(path.parent)
    if mode is None:
        os.mkdir(path)
        return
    making = path.parent / f".{os.getpid()}-{os.urandom(6).hex()}"
    os.mkdir(making)
    try:
        os.chmod(making, mode)
        if path.exists():
            raise FileExistsError(path)
        os.rename(making, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.rmdir(making)
        if path.is_dir():
            raise FileExistsError(path) from error
        raise


def make_folders(path: Path) -> None:
    """`make_folder` for a folder and its parents, where they are not there."""
    if not path.is_dir():
        make_folders(path.parent)
        with contextlib.suppress(FileExistsError):
            make_folder(path)


def make_file(path: Path) -> None:
    """An empty file with the mode that its folder says, where there is none yet; it never stands with another mode.

    Nothing happens where the umask decides. A process that is killed meanwhile may leave an empty file whose name
    begins with a dot.
    """
    mode = file_mode(path.parent)
    if mode is None or path.exists():
        return
    making = path.parent / f".{os.getpid()}-{os.urandom(6).hex()}"
    made = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(made, mode)
        with contextlib.suppress(FileExistsError):
            os.link(making, path)
    finally:
        os.close(made)
        os.unlink(making)
