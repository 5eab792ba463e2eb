"""Who shares a store: the modes of its folders say it, see `replaygen.modes`; here they are set and told."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from replaygen import modes
from replaygen.errors import StoreError
from replaygen.store import fsops

_SHOWN = 20


@dataclass(frozen=True)
class Sharing:
    """Who may use a store's folder.

    Attributes:
        kind: "group", its group reads and writes; "private", only its owner does; "umask", nothing was said.
        group: the name of the folder's group, or its number.
        everyone: whether all users of the machine may read.
        changed: files and folders whose mode or group was changed just now.
        left: some of those that another user owns and has to change: `left_count` in all.
    """

    kind: str
    group: str
    everyone: bool
    changed: int = 0
    left: tuple[str, ...] = ()
    left_count: int = 0


def sharing_of(root: Path) -> Sharing:
    """Who may use the store in `root`.

    Raises:
        StoreError: the folder cannot be looked at.
    """
    with fsops.explained("look at the store's folder", root):
        status = os.stat(root)
    if modes.shared(root) is not None:
        kind = "group"
    else:
        kind = "private" if not status.st_mode & 0o077 else "umask"
    return Sharing(kind, _group_name(status.st_gid), bool(status.st_mode & stat.S_IROTH))


def share(root: Path, group: str, *, everyone: bool = False) -> Sharing:
    """Let a group read and write a store, all that is in it and all that will be made in it.

    What another user owns and has other modes stays as it is, and is told of; that user, or root, can call this too.

    Args:
        root: the store's folder.
        group: the name or the number of a group that the caller is in.
        everyone: let all other users of the machine read.

    Raises:
        StoreError: there is no such group, or the folder itself cannot be changed.
    """
    wanted = _group_number(group)
    with fsops.explained(f"give the store to the group {group}", root):
        changed = _set(root, wanted, everyone)
        if _differs(os.lstat(root), wanted, everyone):
            raise PermissionError(1, "the folder did not take the mode: are you in that group?")
    left = []
    for path in _below(root):
        try:
            changed += _set(path, wanted, everyone)
        except FileNotFoundError:
            continue
        except OSError:
            left.append(str(path))
    return Sharing("group", _group_name(wanted), everyone, changed, tuple(left[:_SHOWN]), len(left))


def keep_private(root: Path) -> Sharing:
    """Let only the owner of a store's folder use it: nobody else may pass the folder, whatever lies below.

    Raises:
        StoreError: it is another user's.
    """
    with fsops.explained("make the store private", root):
        fsops.allow(root, 0o700, -1)
    return sharing_of(root)


def _set(path: Path, group: int, everyone: bool) -> int:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode) or not _differs(status, group, everyone):
        return 0
    fsops.allow(path, _bits(status, everyone), group)
    return 1


def _differs(status: os.stat_result, group: int, everyone: bool) -> bool:
    return status.st_gid != group or stat.S_IMODE(status.st_mode) != _bits(status, everyone)


def _bits(status: os.stat_result, everyone: bool) -> int:
    return modes.folder_bits(everyone) if stat.S_ISDIR(status.st_mode) else modes.file_bits(everyone)


def _below(root: Path) -> Iterator[Path]:
    """All that lies below a folder, folders before what is in them, so that new files come with the right mode."""
    for folder, folders, files in os.walk(root):
        yield from (Path(folder, name) for name in (*folders, *files))


def _group_number(group: str) -> int:
    import grp

    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise StoreError(f"there is no group {group!r}", hint="`id -Gn` tells the groups that you are in") from None


def _group_name(number: int) -> str:
    import grp

    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
