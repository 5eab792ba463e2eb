"""Somebody's folder of images: what is in it, and its files' bytes, of which nothing is believed.

No symbolic link below the folder is followed, nothing but a regular file is read, and none that is too large.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from replaygen.classes import nearest_hint
from replaygen.datasets.files import is_text, list_folder
from replaygen.datasets.photos import PHOTO_ENDINGS
from replaygen.errors import DataError
from replaygen.report.text import stripped
from replaygen.sample import MAX_PIXELS

HINT: Final = "give a folder of images, or one that holds a folder of images a class"

MOST_BYTES: Final = 4 * MAX_PIXELS
"""Larger files are refused before they are read: more than the largest image takes up uncompressed."""

MISSING: Final = "missing"
NO_FILE: Final = "not-a-file"
TOO_LARGE: Final = "too-large"
UNREADABLE: Final = "unreadable"
LINKED: Final = "linked-folder"
OUTSIDE: Final = "outside-a-class-folder"
NO_IMAGE: Final = "not-an-image"
TOO_DEEP: Final = "too-deep"
NO_TEXT: Final = "name-not-utf-8"

_TURNED: Final = range(2, 9)
"""EXIF orientations that an image is not upright with."""
_MAY_TURN: Final = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


class Refused(Exception):
    """A file is not taken; its only argument is the reason."""


@dataclass(frozen=True)
class Found:
    """A file below a folder of images.

    Attributes:
        place: its class's folder, "" where there is none.
        reason: why it is no image to look at; "" where it is one.
    """

    place: str
    name: str
    reason: str = ""

    @property
    def path(self) -> str:
        """Its path below the folder of images."""
        return f"{self.place}/{self.name}" if self.place else self.name


def found(root: Path, classes: Iterable[str]) -> Iterator[Found]:
    """Every file below `root`, sorted by folder and name: images, and with a reason what is none or lies elsewhere.

    With folders in it each is a class; without any the images in `root` itself are meant. Only what is hidden (".") and
    folders that begin with "_" are not looked at.

    Raises:
        DataError: a folder that is no class, or one that cannot be listed.
    """
    items = _listed(root)
    inner = {item.name for item in items if _is_folder(item)}
    folders = [item for item in items if item.name in inner and not item.name.startswith("_")]
    places = [item.name for item in folders if is_text(item.name) and not item.is_symlink()]
    known = list(classes)
    for name in places:
        if name not in known:
            raise DataError(f"the folder {stripped(name)!r} is no class", where=str(root),
                            hint=nearest_hint(name, known))  # fmt: skip
    for item in folders:
        if item.name not in places:
            yield Found("", item.name, LINKED if item.is_symlink() else NO_TEXT)
    for item in items:
        if item.name not in inner:
            yield Found("", item.name, _reason(item) or (OUTSIDE if folders else ""))
    for place in places:
        for item in _listed(root / place):
            if item.is_dir(follow_symlinks=False):
                yield from _below(root / place, item.name, place)
            else:
                yield Found(place, item.name, _reason(item))


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    items = [item for item in list_folder(folder, HINT) if not item.name.startswith(".")]
    return sorted(items, key=lambda item: item.name)


def _is_folder(item: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False


def _reason(item: os.DirEntry[str]) -> str:
    """Why what is no folder is no image to look at; "" where it is one."""
    if not is_text(item.name):
        return NO_TEXT
    if not item.is_file(follow_symlinks=False):
        return NO_FILE
    return "" if item.name.rpartition(".")[2].lower() in PHOTO_ENDINGS else NO_IMAGE


def _below(folder: Path, name: str, place: str) -> Iterator[Found]:
    """What is below a folder that is itself in a class's folder."""
    closed: list[OSError] = []
    for base, inner, names in os.walk(folder / name, onerror=closed.append):
        inner[:] = sorted(item for item in inner if not item.startswith("."))
        links = {item for item in inner if os.path.islink(os.path.join(base, item))}
        for file in sorted({item for item in names if not item.startswith(".")} | links):
            path = os.path.relpath(os.path.join(base, file), folder)
            yield Found(place, path, LINKED if file in links else TOO_DEEP)
    for error in closed:
        yield Found(place, os.path.relpath(error.filename, folder), UNREADABLE)


def read_below(root: Path, path: str) -> bytes:
    """The bytes of the regular file `path` below `root`, which may itself be a link, but nothing below it.

    Raises:
        Refused: `MISSING`, `NO_FILE`, `TOO_LARGE` or `UNREADABLE`.
    """
    *folders, name = PurePosixPath(path).parts
    flags = os.O_RDONLY | os.O_CLOEXEC
    with contextlib.ExitStack() as opened:
        try:
            at = _open(opened, str(root), flags | os.O_DIRECTORY)
            for folder in folders:
                at = _open(opened, folder, flags | os.O_DIRECTORY | os.O_NOFOLLOW, at)
            file = _open(opened, name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, at)
            told = os.fstat(file)
            if not stat.S_ISREG(told.st_mode):
                raise Refused(NO_FILE)
            if told.st_size > MOST_BYTES:
                raise Refused(TOO_LARGE)
            with os.fdopen(os.dup(file), "rb") as stream:
                data = stream.read(MOST_BYTES + 1)
        except OSError as error:
            raise Refused(_WHY.get(error.errno or 0, UNREADABLE)) from None
    if len(data) > MOST_BYTES:
        raise Refused(TOO_LARGE)
    return data


_WHY: Final = {errno.ENOENT: MISSING, errno.ELOOP: NO_FILE, errno.ENOTDIR: NO_FILE, errno.ENXIO: NO_FILE}


def _open(opened: contextlib.ExitStack, name: str, flags: int, at: int | None = None) -> int:
    descriptor = os.open(name, flags, dir_fd=at)
    opened.callback(os.close, descriptor)
    return descriptor


def is_turned(data: bytes) -> bool:
    """Whether a readable image's EXIF says that it is not stored upright."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP", "GIF")) as image:
        if image.format == "PNG" and not any(mark in data for mark in _MAY_TURN):
            return False  # asking a PNG for its EXIF decodes it whole
        return image.getexif().get(0x0112) in _TURNED
