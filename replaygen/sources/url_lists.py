"""Lists of addresses as files: which file is a class's, and its rows one after the other.

A list is text (an address a line; a line that begins with `#` is a comment), CSV, TSV, JSON (an array of objects),
JSON lines or Parquet, each also with `.gz` behind its name: the formats that img2dataset reads, and the metadata that
it writes. A list comes from outside: a line, an object and what a packed file unpacks to are bounded, nothing is
unpickled, and a list is never held as a whole.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from replaygen.classes import nearest_hint, slug
from replaygen.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MOST_UNPACKED: Final = 10**9
"""Bytes that a packed list, or a row group of a Parquet list, may unpack to."""
MOST_LINE: Final = 10**6
"""Bytes of a line of a list, or characters of one object of a JSON array."""
SUFFIXES: Final = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
_CHUNK: Final = 1 << 16
_BATCH: Final = 256
_SPACE: Final = re.compile(r"[ \t\r\n]*")

_SPLIT: Final = "split the list into smaller ones, and fetch it only from people you trust"
_AGAIN: Final = "fetch or write the list again"

_Values = Mapping[str, Any]
_Told = Callable[[Sequence[str]], None]
"""Called with the names of the columns once they are known; raises where one is missing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a list: its number (1 is the first that is no header) and what its columns say, as text.

    `odd`: columns that hold something that is no plain value, such as a list.
    """

    number: int
    texts: Mapping[str, str]
    odd: frozenset[str] = frozenset()

    def get(self, column: str) -> str | None:
        """The text of a column without the space around it; None where it is empty or absent."""
        return self.texts.get(column)


class _Broken(Exception):
    """A list that cannot be read on: what is wrong, and the way out."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def list_file(path: Path, class_name: str) -> Path:
    """The list of a class: `path` itself, or `<class>.<format>` in the folder `path`, by the class's name or its slug.

    Raises:
        DataError: there is none, or more than one, or its format is unknown.
    """
    if path.is_file():
        _suffix(path)
        return path
    if not path.is_dir():
        raise DataError(
            "no list of addresses here", where=str(path), hint="give a list, or a folder of one list a class"
        )
    try:
        lists = {entry: _stem(entry.name) for entry in sorted(path.iterdir()) if _stem(entry.name) and entry.is_file()}
    except OSError as error:
        raise _unreadable(error, path) from None
    found = [entry for entry, stem in lists.items() if stem in {class_name, slug(class_name)}]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(entry.name for entry in found[:5])
        raise DataError(
            f"class {class_name!r} has more than one list: {names}", where=str(path), hint="keep one of them"
        )
    raise DataError(
        f"no list of class {class_name!r}, such as {slug(class_name)}.csv", where=str(path),
        hint=nearest_hint(class_name, set(lists.values())) if lists else "the folder holds no list",
    )  # fmt: skip


def list_digest(path: Path, class_name: str) -> str:
    """The sha256 (64 hexadecimal digits) of the very file that `list_file` names; DataError as there."""
    file = list_file(path, class_name)
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(error, file) from None


def _unreadable(error: OSError, path: Path) -> DataError:
    return DataError(f"cannot be read ({error.strerror})", where=str(path), hint="check its permissions")


def _stem(name: str) -> str:
    """A list's name without its format; empty where it is no list."""
    plain = name[:-3] if name.lower().endswith(".gz") else name
    return next((plain[: -len(end)] for end in SUFFIXES if plain.lower().endswith(end)), "")


def _suffix(path: Path) -> str:
    plain = path.name.lower().removesuffix(".gz")
    for end in SUFFIXES:
        if plain.endswith(end):
            return end
    raise DataError(
        f"{path.name!r} is no list of a known format", where=str(path),
        hint=f"known: {', '.join(SUFFIXES)}, each also with .gz",
    )  # fmt: skip


def read_list(path: Path, needed: Mapping[str, str], also: Iterable[str] = ()) -> Generator[Row, None, None]:
    """The rows of a list, one after the other.

    Args:
        path: the file.
        needed: the columns that must be there, by the name of the recipe's key that calls them so; the first is the
            address, the only column that a list in text has.
        also: columns that are read where they are there.

    Raises:
        DataError: the file cannot be read, is no list of its format, or lacks a column; it names the row.
    """
    columns = [*needed.values(), *also]
    suffix = _suffix(path)
    number = 0
    try:
        with path.open("rb") as opened:
            packed = path.name.lower().endswith(".gz")
            stream: IO[bytes] = io.BufferedReader(_Unpacked(opened)) if packed else opened
            for values in _values(stream, suffix, columns, lambda names: _check(names, needed, suffix)):
                number += 1
                texts = {name: text for name in columns if (text := _text(values.get(name)))}
                yield Row(number, texts, frozenset(name for name in columns if _is_odd(values.get(name))))
    except _Broken as broken:
        what, hint = broken.what, broken.hint
    except UnicodeDecodeError:
        what, hint = "the list is not UTF-8", "save it as UTF-8"
    except (EOFError, gzip.BadGzipFile, zlib.error):
        what, hint = "the packed list is damaged or cut short", _AGAIN
    except OSError as error:
        what, hint = f"the list cannot be read ({error.strerror or type(error).__name__})", "check its permissions"
    else:
        return
    raise DataError(what, where=f"{path}, row {number + 1}", hint=hint)


def _check(names: Sequence[str], needed: Mapping[str, str], suffix: str) -> None:
    for key, column in needed.items():
        if column in names:
            continue
        what = f"the list has no column {column!r}"
        if suffix == ".txt":
            raise _Broken(what, "a list in text has only addresses: give a folder of one list a class")
        if not names:
            raise _Broken(what, "the list is empty")
        if any(re.match(r"https?://", name) for name in names):
            raise _Broken(what, "its first row must name the columns")
        folded = {name.casefold(): name for name in names}
        near = difflib.get_close_matches(column.casefold(), folded, n=1, cutoff=0.5)
        seen = ", ".join(repr(name[:40]) for name in names[:20])
        name = folded[near[0]] if near else "..."
        raise _Broken(what, f"its columns are {seen}; write {key} = {json.dumps(name[:80])} in the recipe")


def _text(value: Any) -> str:
    """What a cell says, as text without the space around it; empty for nothing and for what is no plain value."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _is_odd(value: Any) -> bool:
    """Whether a cell holds something, but no plain value; NaN is how tables write nothing."""
    nothing = value is None or isinstance(value, str | bytes) or (isinstance(value, float) and math.isnan(value))
    return not nothing and not _text(value)


def _values(stream: IO[bytes], suffix: str, columns: list[str], told: _Told) -> Iterator[_Values]:
    if suffix == ".txt":
        told(columns[:1])
        lines = (line.strip() for line in _lines(stream))
        yield from ({columns[0]: line} for line in lines if line and not line.startswith("#"))
    elif suffix in {".csv", ".tsv"}:
        yield from _csv_values(stream, "," if suffix == ".csv" else "\t", told)
    elif suffix == ".parquet":
        yield from _parquet_values(stream, columns, told)
    else:
        first = True
        for value in _json_values(stream, suffix):
            if not isinstance(value, dict):
                raise _Broken("the list holds what is no JSON object", 'a row is an object, such as {"url": "..."}')
            if first:
                told(list(value))
            first = False
            yield value


def _lines(stream: IO[bytes]) -> Iterator[str]:
    first = True
    while line := stream.readline(MOST_LINE + 1):
        if len(line) > MOST_LINE:
            raise _Broken(f"a line has more than {MOST_LINE:,} bytes", "is this a list of addresses?")
        yield line.decode("utf-8-sig" if first else "utf-8")
        first = False


def _csv_values(stream: IO[bytes], delimiter: str, told: _Told) -> Iterator[_Values]:
    try:
        reader = csv.reader(_lines(stream), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        told(names)
        for cells in reader:
            if cells:
                yield dict(zip(names, cells, strict=False))
    except csv.Error as error:
        raise _Broken(
            f"broken CSV ({error})", "quote texts that hold quotes or line ends, or write JSON lines"
        ) from None


def _json_values(stream: IO[bytes], suffix: str) -> Iterator[Any]:
    try:
        if suffix == ".json":
            yield from _json_array(_pieces(stream))
        else:
            yield from (json.loads(line) for line in _lines(stream) if line.strip())
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        told = str(error)[:120] if isinstance(error, ValueError) else "too deeply nested"
        hint = "a .json list is an array of objects" if suffix == ".json" else "one object a line"
        raise _Broken(f"broken JSON ({told})", hint) from None


def _pieces(stream: IO[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    while data := stream.read(_CHUNK):
        if text := decoder.decode(data):
            yield text
    decoder.decode(b"", final=True)


def _json_array(pieces: Iterator[str]) -> Iterator[Any]:
    """The elements of a JSON array, decoded one by one from a window of the text."""
    decoder = json.JSONDecoder()
    text, at, state = "", 0, "start"
    while True:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing at all, too
        if at == len(text):
            text, at = next(pieces, ""), 0
            if text:
                continue
            break
        if state in {"first", "value"} and not (state == "first" and text[at] == "]"):
            try:
                value, at = decoder.raw_decode(text, at)
            except ValueError:
                more = next(pieces, "") if len(text) - at <= MOST_LINE else ""
                if not more:
                    raise
                text, at = text[at:] + more, 0
                continue
            state = "behind"
            yield value
            continue
        state = {("start", "["): "first", ("first", "]"): "end", ("behind", "]"): "end", ("behind", ","): "value"}.get(
            (state, text[at]), ""
        )
        if not state:
            raise ValueError(f"{text[at]!r} is out of place")
        at += 1
    if state != "end":
        raise ValueError("it ends before its ]")


def _parquet_values(stream: IO[bytes], columns: list[str], told: _Told) -> Iterator[_Values]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise _Broken("reading Parquet needs pyarrow", "pip install 'replaygen[crawl]'") from None
    try:
        with ExitStack() as stack:
            file = stack.enter_context(parquet.ParquetFile(_seekable(stream, stack)))
            names = file.schema_arrow.names
            told(names)
            chosen = [name for name in dict.fromkeys(columns) if name in names]
            for group in range(file.num_row_groups):
                parts = file.metadata.row_group(group)
                sizes = [parts.column(part) for part in range(parts.num_columns)]
                if sum(size.total_uncompressed_size for size in sizes if size.path_in_schema in chosen) > MOST_UNPACKED:
                    raise _Broken(f"row group {group} unpacks to more than {MOST_UNPACKED:,} bytes", _SPLIT)
            for batch in file.iter_batches(batch_size=_BATCH, columns=chosen, use_threads=False):
                yield from batch.to_pylist()
    except UnicodeDecodeError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        told_by = (str(error).splitlines() or ["?"])[0]
        raise _Broken(f"broken Parquet ({told_by[:160]})", _AGAIN) from None


def _seekable(stream: IO[bytes], stack: ExitStack) -> IO[bytes]:
    """The stream, or what it unpacks to in a temporary file: Parquet is read from its end."""
    import shutil
    import tempfile

    if stream.seekable():
        return stream
    unpacked: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # the stack closes it
    shutil.copyfileobj(stream, unpacked, 1 << 20)
    unpacked.seek(0)
    return unpacked


class _Unpacked(io.RawIOBase):
    """What a gzip file unpacks to, read as far as `MOST_UNPACKED` bytes; `_Broken` behind that."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._file = gzip.GzipFile(fileobj=packed, mode="rb")
        self._left = MOST_UNPACKED

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read1(len(view))
        self._left -= len(data)
        if self._left < 0:
            raise _Broken(f"the packed list unpacks to more than {MOST_UNPACKED:,} bytes: a bomb, or too large", _SPLIT)
        view[: len(data)] = data
        return len(data)
