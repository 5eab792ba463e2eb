"""What a backend answered, looked at: outside the hole the picture is put back; what cannot be a fill is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from replaygen.sample import Image8

Mask = npt.NDArray[np.bool_]
"""bool [H, W], True where to fill."""

Reason = Literal[
    "inpainter-wrong-size",  # another height or width, or not three channels
    "inpainter-not-finite",  # NaN or infinite
    "inpainter-not-an-image",  # bytes that are no picture, or numbers outside 0..255
    "inpainter-black",  # black where the surroundings are not
    "inpainter-one-colour",  # one colour where the surroundings are not
    "inpainter-unchanged",  # the hole still holds what was to be erased
    "inpainter-strayed",  # another picture: too far from this one outside the hole
    "inpainter-timeout",  # no whole answer in time
    "inpainter-crashed",  # the backend ended, hung up or raised
    "inpainter-refused",  # a server answered with an error
]
REASONS: tuple[str, ...] = get_args(Reason)

_PASSING = frozenset({"inpainter-timeout", "inpainter-crashed"})
_RING = 8  # pixels around the hole that count as its surroundings
_MANY = 64  # pixels of a hole from which on statistics are trusted
_FEW = 16  # below, one colour is no wonder: only black among nothing dark is refused
_ALIKE = 16  # of 255: a surrounding pixel so near to the fill's colour explains it
_MOST_STRAY = 8.0  # of 255, mean outside the hole; lossless answers stray by 0, JPEG by 1 to 3


class Failure(Exception):
    """One picture that could not be filled; the next one may.

    Attributes:
        reason: one of `REASONS`; detail: a sentence, without paths or secrets.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: Reason = reason
        self.detail = detail

    @property
    def passing(self) -> bool:
        """Whether it may be the backend's state and not the picture: another try may fill it."""
        return self.reason in _PASSING or (self.reason == "inpainter-refused" and self.detail.startswith("HTTP 5"))

    def __reduce__(self) -> tuple[type[Failure], tuple[Reason, str]]:
        return Failure, (self.reason, self.detail)


@dataclass(frozen=True)
class Stray:
    """How far an answer was from its image outside the hole.

    Attributes:
        share: of the pixels outside, how many differed, 0..1; mean: the mean absolute difference, 0..255.
    """

    share: float = 0.0
    mean: float = 0.0

    def worse(self, other: Stray) -> Stray:
        """The larger of each."""
        return Stray(max(self.share, other.share), max(self.mean, other.mean))


def judged(answer: Any, image: Image8, mask: Mask) -> tuple[Image8, Stray]:
    """The answer with the image's own pixels outside the hole, and how far it had strayed there.

    Args:
        answer: what a backend gave; numbers of any type in 0..255.
        image: uint8 [H, W, 3]; mask: bool [H, W] with at least one True.

    Raises:
        Failure: it is no fill of this hole.
    """
    pixels = _pixels(answer, image.shape)
    _look_at_hole(pixels, image, mask)
    stray = _stray(pixels, image, mask)
    if stray.mean > _MOST_STRAY:
        raise Failure("inpainter-strayed", f"{stray.mean:.0f} of 255 away outside the hole")
    return np.where(mask[..., None], pixels, image), stray


def _pixels(answer: Any, shape: tuple[int, ...]) -> Image8:
    try:
        values = np.asarray(answer)
    except ValueError:
        values = np.empty(0, dtype=object)
    if values.dtype.kind not in "uif":
        raise Failure("inpainter-not-an-image", f"an array of {values.dtype}")
    if values.shape != shape:
        raise Failure("inpainter-wrong-size", f"{list(values.shape)}, not {list(shape)}")
    if values.dtype == np.uint8:
        return values
    if not np.isfinite(values).all():
        raise Failure("inpainter-not-finite", f"{int((~np.isfinite(values)).sum())} numbers")
    if values.min() < -0.5 or values.max() > 255.5:
        raise Failure("inpainter-not-an-image", f"numbers from {values.min():g} to {values.max():g}")
    rounded: Image8 = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


def _look_at_hole(pixels: Image8, image: Image8, mask: Mask) -> None:
    """Refuse a fill that is one colour without the surroundings' saying so, and one that erased nothing."""
    fill = pixels[mask].astype(np.int16)
    ring = pixels[:0, 0].astype(np.int16) if mask.all() else image[_around(mask)].astype(np.int16)
    colour, share = _commonest(fill)
    near = float((np.abs(ring - colour).max(axis=1) <= _ALIKE).mean()) if len(ring) else 0.0
    black = bool(colour.max() <= 2)
    whole = share >= 0.98 and near < (0.5 if len(fill) >= _MANY else 0.05) and (len(fill) >= _FEW or black)
    part = len(fill) >= _MANY and share > 0.25 and near < 0.01
    if whole or part:
        reason: Reason = "inpainter-black" if black else "inpainter-one-colour"
        raise Failure(reason, f"{share:.0%} of the hole, {near:.0%} of its surroundings")
    had = image[mask].astype(np.int16)
    if len(fill) >= _MANY and np.ptp(had, axis=0).max() > _ALIKE and float((fill == had).all(axis=1).mean()) > 0.999:
        raise Failure("inpainter-unchanged", "the hole holds what it held")


def _commonest(fill: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.int16], float]:
    """The commonest colour of int [N, 3], and the share of pixels within 1 of it in every channel."""
    codes = (fill[:, 0].astype(np.int32) << 16) | (fill[:, 1].astype(np.int32) << 8) | fill[:, 2]
    found, counts = np.unique(codes, return_counts=True)
    code = int(found[counts.argmax()])
    colour = np.array([code >> 16, (code >> 8) & 255, code & 255], dtype=np.int16)
    return colour, float((np.abs(fill - colour).max(axis=1) <= 1).mean())


def _around(mask: Mask) -> Mask:
    """The pixels at most `_RING` away from the hole, in rows and in columns, that are not in it."""
    wide = mask.copy()
    for axis in (0, 1):
        grown = wide.copy()
        for step in range(1, _RING + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            grown[tuple(ahead)] |= wide[tuple(behind)]
            grown[tuple(behind)] |= wide[tuple(ahead)]
        wide = grown
    return wide & ~mask


def _stray(pixels: Image8, image: Image8, mask: Mask) -> Stray:
    if mask.all():
        return Stray()
    apart = np.abs(pixels.astype(np.int16) - image)[~mask]
    return Stray(float((apart.max(axis=1) > 0).mean()), float(apart.mean()))
