"""Reading folders, id lists and classes.json, with errors that name the file and the way out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from replaygen.classes import ClassInfo, ClassList, palette
from replaygen.errors import DataError


def require_folder(path: Path, hint: str) -> Path:
    """`path` if it is a folder; a DataError with `hint` otherwise."""
    if not path.is_dir():
        raise DataError("folder not found" if not path.exists() else "not a folder", where=str(path), hint=hint)
    return path


def read_text(path: Path, hint: str) -> str:
    """The text of a UTF-8 file; a DataError with `hint` where there is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), hint=hint) from None
    except UnicodeDecodeError:
        raise DataError("is not UTF-8 text", where=str(path), hint=hint) from None


def read_ids(path: Path, *, first_word: bool = False) -> tuple[str, ...]:
    """The ids in a list file, one a line; blank lines do not count.

    With `first_word`, a line may go on after the id, and the id may be a path (`/JPEGImages/x.jpg`): its stem counts.
    """
    lines = read_text(path, "write one id a line").split("\n")
    ids = [line.strip() for line in lines if line.strip()]
    if first_word:
        ids = [Path(line.split()[0]).stem for line in ids]
    return tuple(ids)


def list_files(folder: Path, hint: str) -> Iterator[str]:
    """The names of the files in a folder (not below it), sorted; hidden ones and ones that are not UTF-8 left out."""
    names = [item.name for item in list_folder(folder, hint) if not item.is_dir()]
    yield from sorted(name for name in names if is_text(name) and not name.startswith("."))


def list_folder(folder: Path, hint: str) -> list[os.DirEntry[str]]:
    """What is directly in a folder, in no order; a DataError where it cannot be listed."""
    require_folder(folder, hint)
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise DataError(f"cannot be listed: {error.strerror}", where=str(folder), hint="check permissions") from None


def is_text(name: str) -> bool:
    """Whether a file name is valid Unicode."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def by_stem(root: Path, folder: str, endings: Sequence[str], hint: str) -> dict[str, str]:
    """Files of `root/folder` under their names without ending, as names relative to `root`.

    Raises:
        DataError: two files share a name but for the ending.
    """
    files: dict[str, str] = {}
    for name in list_files(root / folder, hint):
        stem, _, ending = name.rpartition(".")
        if ending.lower() not in endings or not stem:
            continue
        if stem in files:
            raise DataError(
                f"{name} and {Path(files[stem]).name} share the id {stem!r}",
                where=str(root / folder),
                hint="keep one of them",
            )
        files[stem] = f"{folder}/{name}"
    return files


def read_classes(path: Path) -> tuple[ClassList, int | None, int]:
    """classes.json: the classes, the background's id (None without one), the ignore value.

    Raises:
        DataError: not JSON, an entry without id or name, a repeated id or name, an ignore value outside 0..255.
    """
    example = (
        '{"classes": [{"id": 1, "name": "cow", "color": [64, 128, 0]}, ...], "background_id": 0, "ignore_id": 255}'
    )
    text = read_text(path, f"write {example}")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", where=str(path), hint=f"write {example}") from None
    rows = document.get("classes") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError('has no list "classes"', where=str(path), hint=f"write {example}")
    colors = palette(256)
    infos = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not _is_int(row.get("id")) or not isinstance(row.get("name"), str):
            raise DataError(
                f"class number {number} has no integer id or no name", where=str(path), hint=f"write {example}"
            )
        color = row.get("color", colors[row["id"] % 256])
        if (
            not isinstance(color, (list, tuple))
            or len(color) != 3
            or not all(_is_int(c) and 0 <= c < 256 for c in color)
        ):
            raise DataError(f"class {row['name']!r} has colour {color}", where=str(path), hint="three numbers 0..255")
        infos.append(ClassInfo(row["id"], row["name"], (color[0], color[1], color[2])))
    ignore = document.get("ignore_id")
    ignore = 255 if ignore is None else ignore
    background = document.get("background_id")
    if not _is_int(ignore) or not 0 <= ignore <= 255 or ignore in {info.id for info in infos}:
        raise DataError(f"ignore_id {ignore} is a class or not in 0..255", where=str(path), hint="255 is usual")
    if background is not None and not _is_int(background):
        raise DataError(f"background_id {background!r} is no number", where=str(path), hint="a class id, or null")
    try:
        classes = ClassList(tuple(infos))
    except DataError as error:
        raise DataError(error.what, where=str(path), hint=error.hint or "give each class its own") from None
    return classes, background, ignore


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
