"""Where a picture holds letters, pixel by pixel: captions and watermarks, as pixels that can be erased.

`looks._text` measures how much of a picture is pages of text. A few words over a photo are found otherwise here: as
strokes that are lighter, or darker, than what lies around them; that have about the height, the width and the opacity
of their neighbours; and that stand in a line. Of a watermark it is the opacity that is alike: (ink - ground) / (255 -
ground), whatever lies below. Lines are near horizontal; a single letter, and joined-up handwriting, is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from replaygen.sample import Image8

    Array = npt.NDArray[Any]
    Region = npt.NDArray[np.bool_]

SIDE = 512
"""Pictures are looked at with this longer side, in pixels; enlarged to at most twice their size."""

_CONTRASTS = (12, 24, 48, 90)
_STROKES = (0.022, 0.05)
"""Widest strokes that are looked for, as shares of the longer side."""
_HEIGHTS, _WIDEST, _LEAST_AREA = (0.018, 0.16), 0.35, 20
_MOST_LETTERS = 500

_WEIGHTS = (3.4, -1.2, -9.8, -11.2, -7.3, -8.8, 1.4, 7.1)
_BIAS = -10.8
_LEAST_SCORE = 2.4
"""A logistic regression on `Line.measures`: captions and watermarks drawn over photographs, against the lines that are
found in photographs as they are. On others of about 256 pixels, with letters of 5 to 13 % of the longer side: of opaque
strokes about 0.7 are found, of half-transparent ones 0.5, of faint ones (opacity 0.2 to 0.4) 0.1 to 0.2, of faint tiled
and turned ones next to none; 0.9 of what is found lies at letters. In 7 to 9 % of untouched photographs something is
found, 0.2 % of their pixels on average, some of it real writing."""


def text_pixels(image: Image8) -> Region:
    """The pixels of strokes that stand in a line of letters; about 0.08 s on one core.

    Strokes are found without their soft rims: grow the region by a pixel or two before it is filled.

    Args:
        image: uint8 [H, W, 3], RGB.

    Returns:
        bool [H, W].
    """
    import cv2

    height, width = image.shape[:2]
    scale = min(2.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    seen = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    grey: Array = cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)
    found = np.zeros(grey.shape, np.uint8)
    for light in (grey, 255 - grey):
        for stroke in _STROKES:
            for line in _lines(light, int(stroke * max(grey.shape)) | 1):
                if line.score >= _LEAST_SCORE:
                    found |= line.pixels
    back: Array = cv2.resize(found * np.uint8(255), (width, height), interpolation=cv2.INTER_LINEAR)
    text: Region = back >= 64
    return text


@dataclass(frozen=True)
class Line:
    """A line that may be letters: what was measured of it, its score, and uint8 [H, W], 1 where its strokes are."""

    measures: tuple[float, ...]
    score: float
    pixels: Array


@dataclass(frozen=True)
class _Letters:
    """Parts that may be letters, an array of float [N] each; lengths in pixels."""

    left: Array
    top: Array
    width: Array
    height: Array
    fill: Array
    opacity: Array
    stroke: Array
    contrast: Array

    @property
    def bottom(self) -> Array:
        return self.top + self.height

    @property
    def right(self) -> Array:
        return self.left + self.width


def _lines(grey: Array, kernel: int) -> list[Line]:
    """Lines of strokes that are lighter than their surroundings and at most about `kernel` pixels wide."""
    import cv2

    ground = cv2.morphologyEx(grey, cv2.MORPH_OPEN, np.ones((kernel, kernel), np.uint8))
    above: Array = cv2.subtract(grey, ground)
    found = []
    for contrast in _CONTRASTS:
        ink = (above >= contrast).astype(np.uint8)
        letters = _letters(ink, above, ground)
        found += [_line(letters, members, ink) for members in _groups(letters)]
    return found


def _letters(ink: Array, above: Array, ground: Array) -> _Letters:
    import cv2

    side = max(ink.shape)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    left, top, width, height, area = stats.T[:5].astype(np.float64)
    fill = area / (width * height)
    fits = (height >= _HEIGHTS[0] * side) & (height <= _HEIGHTS[1] * side) & (width <= _WIDEST * side)
    fits &= (width >= 0.15 * height) & (width <= 8 * height) & (fill >= 0.1) & (fill <= 0.9) & (area >= _LEAST_AREA)
    fits[0] = False
    chosen = np.flatnonzero(fits)
    if len(chosen) > _MOST_LETTERS:
        chosen = np.sort(chosen[np.argsort(-area[chosen], kind="stable")[:_MOST_LETTERS]])

    def mean(values: Array) -> Array:
        means: Array = np.bincount(parts.ravel(), values.ravel(), minlength=count)[chosen] / area[chosen]
        return means

    opacity = mean(above / np.maximum(255.0 - ground, 1.0))
    stroke = 4 * mean(cv2.distanceTransform(ink, cv2.DIST_L2, 3))
    contrast = mean(above.astype(np.float64))
    return _Letters(left[chosen], top[chosen], width[chosen], height[chosen], fill[chosen], opacity, stroke, contrast)


def _groups(letters: _Letters) -> list[Array]:
    """Which parts stand beside each other and are alike: indices of each group of three or more."""

    def low(values: Array) -> Array:
        return np.minimum(values[:, None], values[None])

    def high(values: Array) -> Array:
        return np.maximum(values[:, None], values[None])

    small, tall = low(letters.height), high(letters.height)
    gap = high(letters.left) - low(letters.right)
    beside = (gap <= small + 0.3 * tall) & (gap > -0.3 * small)
    beside &= low(letters.bottom) - high(letters.top) >= 0.6 * small
    alike = (tall <= 2 * small) & (low(letters.stroke) > 0.5 * high(letters.stroke))
    alike &= low(letters.opacity) > 0.65 * high(letters.opacity)
    linked = beside & alike
    np.fill_diagonal(linked, True)
    group = np.arange(len(small))
    while len(group):
        least = np.where(linked, group[None], len(group)).min(axis=1)
        if np.array_equal(least, group):
            break
        group = least
    members = [np.flatnonzero(group == one) for one in np.unique(group)]
    return [one for one in members if len(one) >= 3 and _extent(letters, one) >= 2 * np.median(letters.height[one])]


def _extent(letters: _Letters, members: Array) -> float:
    return float(letters.right[members].max() - letters.left[members].min())


def _line(letters: _Letters, members: Array, ink: Array) -> Line:
    """Measure a group. Its strokes are all ink between its top and bottom lines, lost dots and letters included."""
    height = float(np.median(letters.height[members]))
    middle = (letters.left + letters.right)[members] / 2
    upper, lower = (_straight(middle, edge[members]) for edge in (letters.top, letters.bottom))
    measures = (
        float(np.log(len(members))),
        *(_spread(values[members]) for values in (letters.height, letters.opacity, letters.stroke)),
        *(min(0.4, float(np.median(off)) / height) for _, _, off in (lower, upper)),
        float(np.log(letters.contrast[members].mean())),
        float(letters.fill[members].mean()),
    )
    start = max(0, int(letters.left[members].min() - height))
    end = min(ink.shape[1], int(letters.right[members].max() + height))
    columns, rows = np.arange(ink.shape[1]), np.arange(ink.shape[0])[:, None]
    inside = (rows >= upper[0] + upper[1] * columns - 0.35 * height) & (columns >= start) & (columns < end)
    inside &= rows <= lower[0] + lower[1] * columns + 0.35 * height
    score = _BIAS + sum(weight * one for weight, one in zip(_WEIGHTS, measures, strict=True))
    return Line(measures, score, ink & inside)


def _spread(values: Array) -> float:
    return float(values.std() / max(values.mean(), 1e-6))


def _straight(x: Array, y: Array) -> tuple[float, float, Array]:
    """Least squares y = a + b x: a, b, and how far each point is from it."""
    apart = x - x.mean()
    slope = float((apart * (y - y.mean())).sum() / max(float((apart**2).sum()), 1e-9))
    start = float(y.mean() - slope * x.mean())
    return start, slope, np.abs(y - start - slope * x)
