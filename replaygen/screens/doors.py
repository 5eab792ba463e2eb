"""Who is let in: one verdict for every photo of a class, with its reason. Numbers only, no picture.

The photos of a class come in order of rank, and the first to come is kept. Each is asked these questions, and the first
"yes" is its reason:

1. placeholder: the same file under three or more photo ids, of this class and the others together (`flat`);
2. exact-duplicate: the same file as an earlier photo of this class, kept or not (`duplicates`);
3. flat: next to nothing in it (`flat`);
4. grayscale: no colour, or one tint for each lightness (`grayscale`);
5. mostly-text: text covers more than `text` of it (`text`);
6. leak: close to an evaluation image (`leaks`);
7. duplicate-of-other-class: close to a photo of another class (`duplicates`);
8. near-duplicate: close to an earlier photo of this class that was kept (`duplicates`).

What the file and the picture say by themselves comes before comparisons, because the perceptual hash of an empty
picture says little. Close means that at most so many of the 64 bits of two hashes differ, one of the two pictures
mirrored or none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    """uint64 [N], one perceptual hash each."""

PLACEHOLDER_PHOTOS = 3
"""A file under so many photo ids is a placeholder of the host."""
LEAST_COLOUR = 2.0
"""Less `colour` than this is grey."""
LEAST_COLOUR_TONED, LEAST_SHARE_TONED = 4.0, 0.12
"""Less `colour` than the first, and than this share of the `tone`, is toned: sepia, for one."""
MOST_FLAT = 0.92
"""A picture of which at least this share is `flat` shows nothing."""
_ROWS = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """A photo that stands at the door.

    Attributes:
        sample: its id in the shards; verdicts name it so.
        photo: its id at its source.
        sha256: of the bytes as they were fetched.
        look: what `screens.looks.look` says of it.
    """

    sample: str
    photo: str
    sha256: str
    look: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """Kept and rejected photos of a class, both in the order they came; together they are all.

    A rejection is {"id", "reason"}, with "of" (the id of the other), "distance" (bits) and "mirrored" (only where true)
    where it was compared, and "value" where a measure decided.
    """

    kept: list[str]
    rejected: list[dict[str, Any]]


def choose(
    own: Sequence[Seen],
    others: Sequence[Seen],
    evaluated: Sequence[tuple[str, str]],
    *,
    duplicates: int,
    leaks: int,
    grayscale: bool,
    text: float,
    flat: bool,
) -> Choice:
    """Decide on every photo of a class.

    Args:
        own: the photos of the class, best rank first.
        others: photos that other classes have kept.
        evaluated: (id, hash of 16 hexadecimal digits) of the evaluation images.
        duplicates: most bits by which a duplicate differs; -1 keeps every copy.
        leaks: most bits by which a leak differs; -1: off.
        grayscale: refuse pictures without colour.
        text: refuse where more of the picture is text, 0..1; 1: off.
        flat: refuse placeholders and pictures with next to nothing in them.
    """
    measured = _Measured(own, others, placeholders=flat, copies=duplicates >= 0)
    of_own, of_others = _Hashed.of(own), _Hashed.of(others)
    of_evaluated = _Hashed([name for name, _ in evaluated], _array(value for _, value in evaluated), _array(()))
    leaked = of_own.nearest(of_evaluated) if leaks >= 0 else None
    elsewhere = of_own.nearest(of_others) if duplicates >= 0 else None
    inside = _Inside(of_own, duplicates)
    choice = Choice([], [])
    for index, seen in enumerate(own):
        why = measured.fault(index, grayscale=grayscale, text=text, flat=flat)
        if not why and leaked:
            why = leaked.fault(index, leaks, "leak")
        if not why and elsewhere:
            why = elsewhere.fault(index, duplicates, "duplicate-of-other-class")
        if not why and duplicates >= 0:
            why = inside.fault(index)
        if why:
            choice.rejected.append({"id": seen.sample, **why})
        else:
            inside.keep(index)
            choice.kept.append(seen.sample)
    return choice


class _Measured:
    """The faults that a photo has by itself, and those of its file."""

    def __init__(self, own: Sequence[Seen], others: Sequence[Seen], *, placeholders: bool, copies: bool) -> None:
        photos: dict[str, set[str]] = defaultdict(set)
        for seen in (*own, *others):
            photos[seen.sha256].add(seen.photo)
        self._placeholders = {sha for sha, names in photos.items() if placeholders and len(names) >= PLACEHOLDER_PHOTOS}
        self._first: dict[str, int] = {}
        for index, seen in enumerate(own):
            self._first.setdefault(seen.sha256, index)
        self._own, self._copies = own, copies

    def fault(self, index: int, *, grayscale: bool, text: float, flat: bool) -> dict[str, Any]:
        """The rejection of photo `index`, without its id; empty where nothing is wrong."""
        seen = self._own[index]
        look = seen.look
        if seen.sha256 in self._placeholders:
            return {"reason": "placeholder"}
        if self._copies and (first := self._first[seen.sha256]) != index:
            return {"reason": "exact-duplicate", "of": self._own[first].sample, "distance": 0}
        if flat and look["flat"] >= MOST_FLAT:
            return {"reason": "flat", "value": look["flat"]}
        if grayscale and is_grey(look):
            return {"reason": "grayscale", "value": look["colour"]}
        if look["text"] > text:
            return {"reason": "mostly-text", "value": look["text"]}
        return {}


def is_grey(look: dict[str, Any]) -> bool:
    """Whether a picture is grey, next to grey, or toned in one colour (sepia)."""
    colour, tone = look["colour"], look["tone"]
    toned = colour < LEAST_COLOUR_TONED and colour < LEAST_SHARE_TONED * tone
    return bool(colour < LEAST_COLOUR or toned)


@dataclass(frozen=True)
class _Hashed:
    """Hashes of pictures and of their mirror images; `mirror` is empty where those are not known."""

    names: Sequence[str]
    plain: Hashes
    mirror: Hashes

    @classmethod
    def of(cls, seen: Sequence[Seen]) -> _Hashed:
        return cls(
            [one.sample for one in seen],
            _array(one.look["hash"] for one in seen),
            _array(one.look["mirror"] for one in seen),
        )

    def nearest(self, others: _Hashed) -> _Nearest:
        """For each of these pictures the nearest of `others`, the first of equals; 65 bits where there is none."""
        import numpy as np

        total = len(self.plain)
        where, plain = np.zeros(total, np.intp), np.full(total, 65, np.uint8)
        mirrored = plain.copy()
        for start in range(0, total if len(others.plain) else 0, _ROWS):
            rows = slice(start, start + _ROWS)
            straight, turned = self.distances(rows, others)
            nearer = np.minimum(straight, turned)
            best = nearer.argmin(axis=1)
            where[rows] = best
            line = np.arange(len(best))
            plain[rows], mirrored[rows] = straight[line, best], turned[line, best]
        return _Nearest(others.names, where, plain, mirrored)

    def distances(self, rows: slice, others: _Hashed) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Bits between the pictures of `rows` and each of `others`, uint8 [rows, others]: as they are, and mirrored.

        The hash of a mirrored picture is not quite the mirror of its hash, so the smaller of both ways counts.
        """
        import numpy as np

        straight = np.bitwise_count(self.plain[rows, None] ^ others.plain[None])
        turned = np.bitwise_count(self.mirror[rows, None] ^ others.plain[None])
        if others.mirror.size:
            turned = np.minimum(turned, np.bitwise_count(self.plain[rows, None] ^ others.mirror[None]))
        return straight, turned


@dataclass(frozen=True)
class _Nearest:
    """For each picture: the place of the nearest other, and the bits between them, as they are and mirrored."""

    names: Sequence[str]
    where: npt.NDArray[np.intp]
    plain: npt.NDArray[np.uint8]
    mirrored: npt.NDArray[np.uint8]

    def fault(self, index: int, most: int, reason: str) -> dict[str, Any]:
        plain, mirrored = int(self.plain[index]), int(self.mirrored[index])
        if min(plain, mirrored) > most:
            return {}
        why = {"reason": reason, "of": self.names[self.where[index]], "distance": min(plain, mirrored)}
        return {**why, "mirrored": True} if mirrored < plain else why


class _Inside:
    """Comparison with the photos of the class that were kept so far."""

    def __init__(self, hashed: _Hashed, most: int) -> None:
        import numpy as np

        self._hashed, self._most = hashed, most
        self._count = 0
        self._names: list[str] = []
        self._plain, self._mirror = np.empty_like(hashed.plain), np.empty_like(hashed.mirror)

    def keep(self, index: int) -> None:
        self._plain[self._count] = self._hashed.plain[index]
        self._mirror[self._count] = self._hashed.mirror[index]
        self._names.append(self._hashed.names[index])
        self._count += 1

    def fault(self, index: int) -> dict[str, Any]:
        one = slice(index, index + 1)
        alone = _Hashed(self._hashed.names[one], self._hashed.plain[one], self._hashed.mirror[one])
        kept = _Hashed(self._names, self._plain[: self._count], self._mirror[: self._count])
        return alone.nearest(kept).fault(0, self._most, "near-duplicate")


def _array(hashes: Iterable[str]) -> Hashes:
    import numpy as np

    return np.array([int(value, 16) for value in hashes], np.uint64)
