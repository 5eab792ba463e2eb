"""Which files a data set is made of: name, size and sha256 of each, and one digest of them all.

A file's sha256 is computed once and remembered under its path, size, modification and change time and inode, so that
opening a data set again costs one `stat` a file. The memory is only ever a shortcut: where it is damaged, missing or
cannot be written, files are hashed again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from replaygen import modes
from replaygen.canonical import digest_of
from replaygen.errors import DataError

log = logging.getLogger("replaygen.datasets")

Entry = tuple[str, int, str]
"""A file: its name relative to the root (with `/`), its size in bytes, the sha256 of its bytes."""

Stamp = tuple[int, int, int, int]
"""What tells that a file is still the one that was hashed: size, mtime_ns, ctime_ns, inode."""

_FORMAT = "replaygen-files 1"
_SAVE_EVERY_S = 20.0


@dataclass(frozen=True)
class Manifest:
    """Files by name; equal files have an equal `digest`, wherever they lie."""

    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        names = [entry[0] for entry in self.entries]
        if any(left >= right for left, right in itertools.pairwise(names)):
            raise DataError("manifest entries are not sorted by name, or a name is given twice")

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Manifest:
        """A manifest of `entries` in any order."""
        return cls(tuple(sorted(entries)))

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def digest(self) -> str:
        """sha256 (64 hexadecimal digits) over names, sizes and hashes."""
        return digest_of(self.entries)

    @cached_property
    def by_name(self) -> dict[str, Entry]:
        """The entries under their names."""
        return {entry[0]: entry for entry in self.entries}


def build_manifest(root: Path, names: Sequence[str], cache_path: Path, *, settle_s: float = 2.0) -> Manifest:
    """The manifest of the files `names` under `root`; files that have not changed since `cache_path` are not read.

    Args:
        root: the folder of the data set.
        names: file names relative to it.
        cache_path: where hashes are remembered (JSON lines; written atomically, only when something changed).
        settle_s: a file changed less than this long ago is hashed again next time: it could change once more within the
            clock tick of the file system, and nothing would show it.

    Raises:
        DataError: a file is missing, unreadable, or changes while it is hashed.
    """
    root = root.absolute()
    known = _load(cache_path, root)
    fresh: dict[str, tuple[Stamp, str]] = {}
    entries: list[Entry] = []
    base = os.fspath(root)
    changed = False
    saved = time.monotonic()
    for name in sorted(set(names)):
        path = f"{base}/{name}"
        stamp = _stamp(path)
        remembered = known.get(name)
        if remembered is not None and remembered[0] == stamp:
            sha = remembered[1]
            fresh[name] = remembered
        else:
            stamp, sha = _hash(path)
            if time.time_ns() - max(stamp[1], stamp[2]) > settle_s * 1e9:
                fresh[name] = (stamp, sha)
                changed = True
            if changed and time.monotonic() - saved > _SAVE_EVERY_S:
                _save(cache_path, root, known | fresh)
                saved = time.monotonic()
        entries.append((name, stamp[0], sha))
    if changed:
        # names not asked for this time may be asked for again (another split, another class); a few are no burden
        _save(cache_path, root, known | fresh if len(known) <= 4 * len(fresh) + 1000 else fresh)
    return Manifest(tuple(entries))


def read_checked(path: Path, entry: Entry) -> bytes:
    """The bytes of the file that `entry` describes.

    Raises:
        DataError: the file is missing, unreadable, or no longer what the manifest says.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(data) != entry[1] or hashlib.sha256(data).hexdigest() != entry[2]:
        raise DataError(
            "the file changed after the data set was opened",
            where=str(path),
            hint="run again: its new content gives new keys",
        )
    return data


def write_atomic(path: Path, data: bytes) -> None:
    """Write a cache file so that readers see the old or the new content; where it cannot be written, only warn."""
    temporary: str | None = None
    try:
        modes.make_folders(path.parent)
        name = f"{path.parent}/.{path.name[:40]}-{os.getpid()}-{os.urandom(4).hex()}"
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        temporary = name
        modes.like_folder(handle, path.parent)
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        log.warning("cannot remember what was read (%s); it will be read again next time: %s", error.strerror, path)
    finally:
        if temporary is not None:
            try:
                os.unlink(temporary)
            except OSError:
                pass


def _stamp(path: str) -> Stamp:
    try:
        info = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def _hash(path: str) -> tuple[Stamp, str]:
    for _ in range(3):
        before = _stamp(path)
        try:
            with open(path, "rb") as handle:
                sha = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from None
        if _stamp(path) == before:
            return before, sha
    raise DataError("the file changes while it is read", where=path, hint="wait until it is written, then run again")


def _unreadable(path: str | Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("file not found", where=str(path), hint="restore it, or take its id out of the split lists")
    return DataError(f"file cannot be read: {error.strerror}", where=str(path), hint="check its permissions")


def _load(path: Path, root: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    head, _, body = data.partition(b"\n")
    try:
        header = json.loads(head)
        good = (
            header["format"] == _FORMAT
            and header["root"] == str(root)
            and header["sha256"] == hashlib.sha256(body).hexdigest()
        )
        rows = json.loads(b"[" + b",".join(body.splitlines()) + b"]") if good else []  # one call is 5 times faster
        return {name: ((size, mtime, ctime, inode), sha) for name, size, mtime, ctime, inode, sha in rows}
    except (ValueError, KeyError, TypeError):
        log.warning("remembered hashes are damaged; files are hashed again: %s", path)
        return {}


def _save(path: Path, root: Path, files: dict[str, tuple[Stamp, str]]) -> None:
    lines = [json.dumps([name, *stamp, sha], ensure_ascii=True) for name, (stamp, sha) in sorted(files.items())]
    body = "".join(line + "\n" for line in lines).encode("ascii")
    header = {"format": _FORMAT, "root": str(root), "sha256": hashlib.sha256(body).hexdigest()}
    write_atomic(path, json.dumps(header).encode("ascii") + b"\n" + body)
