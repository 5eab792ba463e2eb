"""Views: the squares that a sample is trained on. View v of a sample depends on its id and v only."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

from replaygen.errors import DataError
from replaygen.learn.specs import ViewSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    from replaygen.sample import Image8, Mask8

_ASPECT = math.log(4 / 3)
Box = tuple[float, float, float, float]


def apply_view(
    image: Image8, mask: Mask8 | None, sample_id: str, v: int, spec: ViewSpec
) -> tuple[Image8, Mask8 | None]:
    """View v of a sample.

    View 0 is the whole image; view v >= 1 a crop whose side share is drawn from spec.crop, its aspect mildly
    changed, mirrored half of the times where spec.flip; both resized to a square. A view that reaches beyond the image
    finds its mirror images there.

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
    seen, box = _surrounded(image, box) if spec.crop[1] > 1 else (image, box)
    made = np.asarray(Image.fromarray(seen).resize(size, Image.Resampling.BILINEAR, box=box), dtype=np.uint8)
    square = _jittered(made[:, ::-1] if mirrored else made, sample_id, v, spec.jitter)
    return np.ascontiguousarray(square), None if mask is None else apply_view_to_mask(mask, sample_id, v, spec)


def apply_view_to_mask(mask: Mask8, sample_id: str, v: int, spec: ViewSpec) -> Mask8:
    """The mask's part of `apply_view`, for samples whose image is not needed: uint8 [H, W] -> uint8 [M, M]."""
    height, width = mask.shape
    (left, top, right, bottom), mirrored = view_box(height, width, sample_id, v, spec)
    centres = (np.arange(spec.mask_size) + 0.5) / spec.mask_size
    rows = _mirrored_index(top + centres * (bottom - top), height)
    columns = _mirrored_index(left + centres * (right - left), width)
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
    most = max(1.0, high)
    across, down = width * min(most, share * stretch), height * min(most, share / stretch)
    left, top = (width - across) * draw[2], (height - down) * draw[3]
    right, bottom = left + across, top + down
    if most == 1.0:
        right, bottom = min(right, float(width)), min(bottom, float(height))
    return (left, top, right, bottom), spec.flip and draw[4] < 0.5


def _surrounded(image: Image8, box: Box) -> tuple[Image8, Box]:
    """The image with as much of its mirror images around it as the box needs, and the box in it."""
    height, width = image.shape[:2]
    before = [math.ceil(max(0.0, -box[1])), math.ceil(max(0.0, -box[0]))]
    behind = [math.ceil(max(0.0, box[3] - height)), math.ceil(max(0.0, box[2] - width))]
    around = np.pad(image, ((before[0], behind[0]), (before[1], behind[1]), (0, 0)), mode="symmetric")
    left, top, right, bottom = box
    return around, (left + before[1], top + before[0], right + before[1], bottom + before[0])


def _mirrored_index(places: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.int64]:
    """Pixels at some places along an axis; those beyond it are of its mirror images, edge pixels twice."""
    index = np.floor(places).astype(np.int64)
    if index[-1] == size and places[-1] <= size:  # the very edge, by rounding
        index = np.minimum(index, size - 1)
    folded = index % (2 * size)
    made: npt.NDArray[np.int64] = np.where(folded < size, folded, 2 * size - 1 - folded)
    return made


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
