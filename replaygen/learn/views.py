"""Views: the squares that a sample is trained on. View v of a sample depends on its id and v only."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

from replaygen.errors import DataError
from replaygen.learn.specs import ViewSpec

if TYPE_CHECKING:
    from replaygen.sample import Image8, Mask8

_ASPECT = math.log(4 / 3)
Box = tuple[float, float, float, float]


def apply_view(
    image: Image8, mask: Mask8 | None, sample_id: str, v: int, spec: ViewSpec
) -> tuple[Image8, Mask8 | None]:
    """View v of a sample.

    View 0 is the whole image; view v >= 1 a crop whose side share is drawn from spec.crop, its aspect mildly
    changed, mirrored half of the times where spec.flip; both resized to a square.

    Args:
        image: uint8 [H, W, 3].
        mask: uint8 [H, W] or None; gets the very same transform, by nearest neighbour.

    Returns:
        uint8 [S, S, 3], bilinear (anti-aliased where it shrinks), and uint8 [M, M] or None, M = spec.mask_size.

    Raises:
        DataError: image and mask differ in size.
    """
    from PIL import Image

    height, width = image.shape[:2]
    if mask is not None and mask.shape != (height, width):
        raise DataError(
            f"image is {height} x {width} and its mask {mask.shape[0]} x {mask.shape[1]}",
            where=sample_id, hint="each mask must have its image's size",
        )  # fmt: skip
    box, mirrored = view_box(height, width, sample_id, v, spec)
    size = (spec.size, spec.size)
    made = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box), dtype=np.uint8)
    square = _jittered(made[:, ::-1] if mirrored else made, sample_id, v, spec.jitter)
    return np.ascontiguousarray(square), None if mask is None else apply_view_to_mask(mask, sample_id, v, spec)


def apply_view_to_mask(mask: Mask8, sample_id: str, v: int, spec: ViewSpec) -> Mask8:
    """The mask's part of `apply_view`, for samples whose image is not needed: uint8 [H, W] -> uint8 [M, M]."""
    height, width = mask.shape
    (left, top, right, bottom), mirrored = view_box(height, width, sample_id, v, spec)
    centres = (np.arange(spec.mask_size) + 0.5) / spec.mask_size
    rows = np.minimum((top + centres * (bottom - top)).astype(np.int64), height - 1)
    columns = np.minimum((left + centres * (right - left)).astype(np.int64), width - 1)
    square = mask[rows[:, None], columns[None, :]]
    return np.ascontiguousarray(square[:, ::-1] if mirrored else square)


def view_box(height: int, width: int, sample_id: str, v: int, spec: ViewSpec) -> tuple[Box, bool]:
    """The crop (left, top, right, bottom; pixels, fractional) of view v, and whether it is mirrored."""
    if v < 0:
        raise ValueError(f"view {v} is negative")
    if v == 0:
        return (0.0, 0.0, float(width), float(height)), False
    draw = _draw(sample_id, v)
    low, high = spec.crop
    share = low + (high - low) * draw[0]
    stretch = math.exp(_ASPECT * (draw[1] - 0.5))
    across, down = width * min(1.0, share * stretch), height * min(1.0, share / stretch)
    left, top = (width - across) * draw[2], (height - down) * draw[3]
    return (left, top, min(left + across, float(width)), min(top + down, float(height))), spec.flip and draw[4] < 0.5


def _draw(sample_id: str, v: int) -> list[float]:
    """Seven numbers in 0..1 that depend on the sample and the view only."""
    digest = hashlib.sha256(f"{sample_id}:{v}".encode()).digest()
    return [int.from_bytes(digest[4 * i : 4 * i + 4], "big") / 2**32 for i in range(7)]


def _jittered(square: Image8, sample_id: str, v: int, jitter: float) -> Image8:
    """Contrast around the mean, then brightness, each times a factor in 1 - jitter .. 1 + jitter; view 0 stays."""
    if v == 0 or jitter == 0:
        return square
    contrast, brightness = (1 + jitter * (2 * share - 1) for share in _draw(sample_id, v)[5:])
    mean = square.mean(dtype=np.float64)
    changed = ((square.astype(np.float32) - mean) * contrast + mean) * brightness
    made: Image8 = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return made
