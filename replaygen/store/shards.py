"""Shards: samples in one uncompressed ustar file, WebDataset convention, with an offset index.

The bytes depend on the samples alone: names sorted, times, owners and groups zero. On reading nothing is trusted:
a member's header must be the one that `write_shard` writes for its name and size, and the name that was asked for.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from replaygen.errors import DataError
from replaygen.store.keys import canonical

_ID = re.compile(r"[a-z0-9_-]+")
_EXTENSION = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*")
_BLOCK = 512
_NAME_BYTES = 100

Members = dict[str, dict[str, tuple[int, int]]]
"""id → extension → (offset of its bytes in the file, number of bytes)."""


def write_shard(items: Iterable[tuple[str, Mapping[str, bytes]]]) -> tuple[bytes, bytes]:
    """Pack samples.

    Args:
        items: (id, {extension: bytes}); ids match `[a-z0-9_-]+`, extensions `[a-z0-9]+(.[a-z0-9]+)*`.

    Returns:
        The tar's bytes, and its index as JSON, {id: {extension: [offset, size]}}.

    Raises:
        DataError: a repeated id, a sample without files, an odd id or extension, or a name over 100 bytes.
    """
    samples: dict[str, Mapping[str, bytes]] = {}
    for sample_id, files in items:
        if sample_id in samples:
            raise DataError(f"sample id {sample_id!r} is given twice in one shard")
        if not files:
            raise DataError(f"sample {sample_id!r} has no files", hint="leave such a sample out, and count it")
        samples[sample_id] = files
    named = {
        _member_name(sample_id, extension): (sample_id, extension, data)
        for sample_id, files in samples.items()
        for extension, data in files.items()
    }
    members: Members = {sample_id: {} for sample_id in sorted(samples)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, (sample_id, extension, data) in sorted(named.items()):
            members[sample_id][extension] = (buffer.tell() + _BLOCK, len(data))
            tar.addfile(_info(name, len(data)), io.BytesIO(data))
    return buffer.getvalue(), canonical(members)


class Shard:
    """A shard, opened for reading. Keeps no file open; safe for threads and forks.

    Args:
        source: the tar's path, or its bytes.
        index: its index as `write_shard` gave it; without it the headers are read once.

    Raises:
        DataError: not a shard, or an index of another one.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, index: bytes | None = None) -> None:
        self._data = source if isinstance(source, bytes) else None
        self._path = None if isinstance(source, bytes) else Path(source)
        try:
            self._size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
        except OSError as error:
            raise DataError(f"cannot read a shard: {error.strerror}", where=self._where) from error
        self._members = self._scanned() if index is None else self._checked_index(index)

    @property
    def ids(self) -> tuple[str, ...]:
        """The sample ids, sorted."""
        return tuple(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self._members

    def extensions(self, sample_id: str) -> tuple[str, ...]:
        """The extensions of a sample, sorted; DataError where there is no such sample."""
        return tuple(self._files(sample_id))

    def read(self, sample_id: str, extension: str) -> bytes:
        """One member's bytes, by one pread. DataError where there is none, or where it is not as it was written."""
        files = self._files(sample_id)
        if extension not in files:
            known = ", ".join(files) or "none"
            raise DataError(f"sample {sample_id!r} has no {extension!r}", where=self._where, hint=f"it has {known}")
        offset, size = files[extension]
        data = self._pread(offset - _BLOCK, _BLOCK + size)
        if len(data) != _BLOCK + size or data[:_BLOCK] != _header(_member_name(sample_id, extension), size):
            raise self._damaged(f"member {sample_id}.{extension} is not where, or what, the index says")
        return data[_BLOCK:]

    def __iter__(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """(id, {extension: bytes}) in the order of ids."""
        for sample_id, files in self._members.items():
            yield sample_id, {extension: self.read(sample_id, extension) for extension in files}

    @property
    def _where(self) -> str:
        return str(self._path) if self._path is not None else "a shard in memory"

    def _files(self, sample_id: str) -> dict[str, tuple[int, int]]:
        if sample_id not in self._members:
            raise DataError(f"no sample {sample_id!r} in this shard of {len(self)}", where=self._where)
        return self._members[sample_id]

    def _pread(self, offset: int, size: int) -> bytes:
        if self._data is not None:
            return self._data[offset : offset + size]
        assert self._path is not None
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"cannot read a shard: {error.strerror}", where=self._where) from error
        try:
            return os.pread(descriptor, size, offset)
        except OSError as error:
            raise DataError(f"cannot read a shard: {error.strerror}", where=self._where) from error
        finally:
            os.close(descriptor)

    def _scanned(self) -> Members:
        """Walk the headers. Each must be, byte for byte, what `write_shard` writes."""
        members: Members = {}
        offset, last = 0, ""
        while True:
            header = self._pread(offset, _BLOCK)
            if len(header) < _BLOCK:
                raise self._damaged("it ends without an end mark")
            if header == bytes(_BLOCK):
                return dict(sorted(members.items()))
            name = header[:_NAME_BYTES].rstrip(b"\0").decode("ascii", "replace")
            sample_id, _, extension = name.partition(".")
            if not _ID.fullmatch(sample_id) or not _EXTENSION.fullmatch(extension) or name <= last:
                raise self._damaged(f"member name {name[:80]!r} is odd, repeated or out of order")
            size_field = header[124:136].rstrip(b"\0 ")
            size = int(size_field, 8) if re.fullmatch(rb"[0-7]{1,11}", size_field) else -1
            if size < 0 or offset + _BLOCK + size > self._size or header != _header(name, size):
                raise self._damaged(f"the header of member {name!r} is odd, or it reaches past the end")
            members.setdefault(sample_id, {})[extension] = (offset + _BLOCK, size)
            offset += _BLOCK + -(-size // _BLOCK) * _BLOCK
            last = name

    def _checked_index(self, index: bytes) -> Members:
        try:
            content = json.loads(index)
            members: Members = {
                sample_id: {extension: (offset, size) for extension, (offset, size) in sorted(files.items())}
                for sample_id, files in sorted(content.items())
            }
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise self._damaged("its index is not {id: {extension: [offset, size]}}") from None
        for sample_id, files in members.items():
            for extension, (offset, size) in files.items():
                if not _ID.fullmatch(sample_id) or not _EXTENSION.fullmatch(extension):
                    raise self._damaged(f"its index has the odd name {sample_id[:80]!r}.{extension[:80]!r}")
                if type(offset) is not int or type(size) is not int or offset < _BLOCK or size < 0:
                    raise self._damaged(f"its index has odd numbers for {sample_id}.{extension}")
                if offset + size > self._size:
                    raise self._damaged(f"its index says that {sample_id}.{extension} reaches past the end")
        return members

    def _damaged(self, why: str) -> DataError:
        return DataError(f"the shard is damaged: {why}", where=self._where, hint="run `replaygen cache verify`")


def _member_name(sample_id: str, extension: str) -> str:
    if not isinstance(sample_id, str) or not _ID.fullmatch(sample_id):
        raise DataError(f"sample id {str(sample_id)[:80]!r} is odd", hint="ids match [a-z0-9_-]+; `slug` makes such")
    if not isinstance(extension, str) or not _EXTENSION.fullmatch(extension):
        raise DataError(f"extension {str(extension)[:80]!r} is odd", hint="use names such as jpg or mask.png")
    name = f"{sample_id}.{extension}"
    if len(name) > _NAME_BYTES:
        raise DataError(f"member name {name[:60]!r}... has {len(name)} bytes", hint="at most 100")
    return name


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mtime = info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o644
    return info


def _header(name: str, size: int) -> bytes:
    return _info(name, size).tobuf(tarfile.USTAR_FORMAT)
