"""The index of verified objects: which bytes were hashed and found right, by (size, mtime, ctime, inode).

`verified.jsonl` is only a cache: deleting it is always safe and costs one full hash of each object. A torn or odd
line is ignored, the last line of an object wins, and where the file cannot be written the index lives in memory.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from pathlib import Path

from replaygen.store import fsops
from replaygen.store.keys import is_digest

Stamp = tuple[int, int, int, int]
"""size in bytes, mtime and ctime in ns, inode."""

_RACY_NS = 20_000_000
"""A file changed this short before it was hashed may change again within one tick of its clock: it is hashed again."""

_COMPACT_FROM = 20_000
"""Lines that hold nothing new before the file is rewritten."""


def stamp_of(stat: os.stat_result) -> Stamp:
    """The part of a file's status that changes when its bytes do."""
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


class VerifiedIndex:
    """digest → the stamp that its file had when its sha256 was found right. Safe for threads and processes."""

    def __init__(self, path: Path, tmp: Path, *, readonly: bool) -> None:
        self._path = path
        self._tmp = tmp
        self._readonly = readonly
        self._entries: dict[str, tuple[Stamp, int]] = {}
        self._inode = -1
        self._offset = 0
        self._lines = 0
        self._mutex = threading.Lock()

    def holds(self, digest: str, stamp: Stamp) -> bool:
        """Whether these bytes are known to be right; looks once for lines that other processes added."""
        if self.holds_now(digest, stamp):
            return True
        self.refresh()
        return self.holds_now(digest, stamp)

    def holds_now(self, digest: str, stamp: Stamp) -> bool:
        """As `holds`, from memory alone."""
        entry = self._entries.get(digest)
        return entry is not None and entry[0] == stamp and entry[1] - max(stamp[1], stamp[2]) > _RACY_NS

    def add(self, digest: str, stamp: Stamp) -> None:
        """Remember that the file with this stamp was just hashed and is right; a file too young is not worth a line."""
        seen = time.time_ns()
        if seen - max(stamp[1], stamp[2]) <= _RACY_NS:
            return
        with self._mutex:
            self._entries[digest] = (stamp, seen)
            if self._readonly:
                return
            try:
                fsops.append_line(self._path, _line(digest, stamp, seen))
            except OSError:
                return
        self._compact_when_large()

    def refresh(self) -> None:
        """Read the lines that were added since the last look."""
        with self._mutex:
            try:
                with open(self._path, "rb") as file:
                    stat = os.fstat(file.fileno())
                    if stat.st_ino != self._inode or stat.st_size < self._offset:
                        self._inode, self._offset, self._lines = stat.st_ino, 0, 0
                    if stat.st_size == self._offset:
                        return
                    file.seek(self._offset)
                    data = file.read()
            except OSError:
                return
            complete = data[: data.rfind(b"\n") + 1]
            self._offset += len(complete)
            for line in complete.splitlines():
                self._lines += 1
                parsed = _parsed(line)
                if parsed is not None:
                    digest, stamp, seen = parsed
                    self._entries[digest] = (stamp, seen)

    def _compact_when_large(self) -> None:
        """Rewrite the file when most lines are old. Lines that others add meanwhile are lost, which only costs time."""
        if self._lines < _COMPACT_FROM + 2 * len(self._entries):
            return
        with self._mutex:
            lines = [_line(digest, stamp, seen) for digest, (stamp, seen) in sorted(self._entries.items())]
            try:
                fsops.replace_file(self._path, b"".join(lines), temps=self._tmp)
            except OSError:
                return
            self._inode = -1


def _line(digest: str, stamp: Stamp, seen: int) -> bytes:
    body = json.dumps([digest, *stamp, seen], separators=(",", ":"))
    return f'[{body},"{zlib.crc32(body.encode()):08x}"]\n'.encode()


def _parsed(line: bytes) -> tuple[str, Stamp, int] | None:
    start, end = 1, line.rfind(b",")
    try:
        if line[end + 2 : end + 10] != b"%08x" % zlib.crc32(line[start:end]):
            return None
        digest, size, mtime, ctime, inode, seen = json.loads(line[start:end])
    except (ValueError, TypeError):
        return None
    if not is_digest(digest) or any(type(value) is not int for value in (size, mtime, ctime, inode, seen)):
        return None
    return digest, (size, mtime, ctime, inode), seen
