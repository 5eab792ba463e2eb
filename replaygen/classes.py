"""A data set's classes: id, name, colour. Names are checked once, here."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from replaygen.errors import DataError


@dataclass(frozen=True)
class ClassInfo:
    """One class of a data set: the value in its masks, its name, its colour in pictures (8-bit RGB)."""

    id: int
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, background included where it has one."""

    infos: tuple[ClassInfo, ...]

    def __post_init__(self) -> None:
        ids = [info.id for info in self.infos]
        names = [info.name for info in self.infos]
        both: tuple[tuple[list[object], str], ...] = (([*ids], "id"), ([*names], "name"))
        for values, what in both:
            repeated = sorted({str(value) for value in values if values.count(value) > 1})
            if repeated:
                raise DataError(f"class {what} {', '.join(repeated)} is given twice")
        for info in self.infos:
            if not 0 <= info.id < 255:
                raise DataError(f"class {info.name!r} has id {info.id}", hint="ids are 0..254; 255 means ignore")

    def __iter__(self) -> Iterator[ClassInfo]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(info.name for info in self.infos)

    def by_name(self, name: str) -> ClassInfo:
        """The class called `name`; a DataError with the nearest name where there is none."""
        for info in self.infos:
            if info.name == name:
                return info
        raise DataError(f"no class called {name!r}", hint=nearest_hint(name, self.names))


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """'did you mean ...?' with the nearest known word, or the list of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known)[:40])}"


_SLUG = re.compile(r"[a-z0-9_-]{1,60}")
_HASHED = re.compile(r"-[0-9a-f]{12}$")


def slug(text: str) -> str:
    """A name that is safe as an id, file or folder name: `[a-z0-9_-]+`, at most 60 characters, never empty.

    A text that is not already such a name, or that ends as a hashed one does, gets a hash of its own bytes behind it,
    so two texts never share a slug.
    """
    import hashlib

    if _SLUG.fullmatch(text) and not _HASHED.search(text):
        return text
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    stem = re.sub(r"[^a-z0-9_-]+", "-", plain).strip("-")[:40] or "x"
    return f"{stem}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def palette(n: int) -> list[tuple[int, int, int]]:
    """The Pascal VOC colour map: n colours made by spreading the bits of each id over red, green and blue."""
    colors = []
    for index in range(n):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colors.append((rgb[0], rgb[1], rgb[2]))
    return colors
