"""What a picture looks like, in a few numbers: enough to find copies, grey pictures, pages of text and placeholders.

Every number depends on the pixels alone. OpenCV is asked only for whole-number work, whose result is the same whatever
its number of threads, so its settings are left as they are. Nothing here decides; `screens.doors` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replaygen.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from replaygen.sample import Image8

    Grey8 = npt.NDArray[np.uint8]
    """uint8 [H, W], or [H, W, 3] where the work is the same."""

SIDE = 256
"""Larger pictures are shrunk to this longer side before they are measured, in pixels."""

_COLOUR_SIDE = 64
_CLIPPED = 240
_LUMA = (0.299, 0.587, 0.114)

_FLAT_SIDE = 128
_FLAT_COLOURS = 4
_FLAT_NEAR = 8
_QUIET_BLOCK = 4
_QUIET_RANGE = 5

_WINDOW = 15
_TEXT_SIDES = (256, 128)
_TEXT_RULES = ((50, 0.35, 0.13, 0.06), (20, 0.60, 0.07, 0.04))
_OPEN, _CLOSE = 9, 31


def look(image: Image8) -> dict[str, Any]:
    """Measure a picture: about 3 ms on one core for a longer side of 256 pixels or more.

    Args:
        image: uint8 [H, W, 3], RGB, at least one pixel.

    Returns:
        Plain data:
        "hash", "mirror": the 64-bit perceptual hash (ImageHash's `phash`) of the picture and of its mirror image, as 16
            hexadecimal digits. Half of the bits are ones, so distances are even.
        "width", "height": of `image`, in pixels.
        "colour", "tone": see `_colour`, in steps of 8-bit colour; grey has 0 and 0, sepia has a tone but no colour.
        "text": share of the picture that blocks of text cover, 0..1; see `_text`.
        "flat": share of the picture in which nothing happens, 0..1; see `_flat`.

    Raises:
        DataError: not a picture of this type and shape.
    """
    import numpy as np

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(
            f"cannot look at an array of {image.dtype} {list(image.shape)}", hint="pictures are uint8 [H, W, 3], RGB"
        )
    small = _shrunk(np.ascontiguousarray(image), SIDE)
    plain, mirrored = _hashes(small)
    colour, tone = _colour(small)
    return {
        "hash": plain, "mirror": mirrored, "width": int(image.shape[1]), "height": int(image.shape[0]),
        "colour": round(colour, 2), "tone": round(tone, 2), "text": round(_text(small), 3),
        "flat": round(_flat(small), 3),
    }  # fmt: skip


def _opencv() -> Any:
    """OpenCV, whose own type hints know neither uint8 nor operators."""
    import cv2

    return cv2


def _shrunk(image: Grey8, side: int) -> Grey8:
    """The picture with a longer side of at most `side` pixels, by averaging; never enlarged."""
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= side:
        return image
    size = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    cv2 = _opencv()
    shrunk: Grey8 = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return shrunk


def _hashes(image: Image8) -> tuple[str, str]:
    import imagehash
    from PIL import Image

    # what phash itself would do first; doing it here lets both hashes share it
    small = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    mirrored = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return str(imagehash.phash(small)), str(imagehash.phash(mirrored))


def _colour(image: Image8) -> tuple[float, float]:
    """How much colour is left once each lightness has been given its own tint.

    With c = (R - G, (R + G) / 2 - B), the opponent axes of Hasler and Suesstrunk (2003), and m(c) the mean of c over
    the pixels of about the same luminance, four steps wide:

        colour = sqrt(mean |c - m(c)|^2),  tone = sqrt(mean |m(c)|^2),  colour^2 + tone^2 = mean |c|^2.

    A toned picture (sepia, duotone) has one tint for each luminance, so all of its c is in m(c). Pixels that hold a
    clipped value have lost theirs and are left out where others remain. Measured at about 64 pixels, because JPEG
    stores colour more coarsely than light.
    """
    import numpy as np

    cv2 = _opencv()
    height, width = image.shape[:2]
    step = max(1, round(max(height, width) / _COLOUR_SIDE))
    size = (max(1, width // step), max(1, height // step))
    channels = cv2.split(image)
    clipped = (cv2.max(cv2.max(channels[0], channels[1]), channels[2]) >= _CLIPPED).astype(np.uint8) * 255
    pixels = cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(-1, 3)
    whole = cv2.resize(clipped, size, interpolation=cv2.INTER_AREA).ravel() == 0
    if whole.mean() >= 0.1:
        pixels = pixels[whole]
    red, green, blue = (pixels[:, channel].astype(np.float64) for channel in range(3))
    bins = ((red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]) / 4).astype(np.intp)
    counts = np.maximum(np.bincount(bins, minlength=64), 1)
    rest = tint = 0.0
    for axis in (red - green, (red + green) / 2 - blue):
        mean = (np.bincount(bins, axis, 64) / counts)[bins]
        rest += float(np.mean((axis - mean) ** 2))
        tint += float(np.mean(mean**2))
    return rest**0.5, tint**0.5


def _flat(image: Image8) -> float:
    """The larger of two shares of the picture: that of its four commonest colours, and that of blocks without detail.

    A colour is all that differs from it by at most 8 in each channel, which swallows the noise of JPEG. A block is
    4 x 4 pixels and has no detail where its luminance spans at most 5. Cards that say "photo unavailable", blank
    pictures and simple icons have 0.92 and more; an animal before a white sheet has less.
    """
    import numpy as np

    cv2 = _opencv()
    small = _shrunk(image, _FLAT_SIDE)
    coarse = (small >> 4).astype(np.intp)
    names = (coarse[..., 0] << 8) | (coarse[..., 1] << 4) | coarse[..., 2]
    left = np.ones(names.shape, bool)
    for _ in range(_FLAT_COLOURS):
        commonest = left & (names == np.bincount(names[left], minlength=4096).argmax())
        if not commonest.any():
            break
        colour = np.median(small[commonest], axis=0)
        least, most = np.ceil(colour - _FLAT_NEAR), np.floor(colour + _FLAT_NEAR)
        left &= cv2.inRange(small, tuple(least.tolist()), tuple(most.tolist())) == 0
    found = 1.0 - float(left.mean())

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    block = np.ones((_QUIET_BLOCK, _QUIET_BLOCK), np.uint8)
    span = cv2.subtract(cv2.dilate(grey, block), cv2.erode(grey, block))
    quiet = float((span[::_QUIET_BLOCK, ::_QUIET_BLOCK] <= _QUIET_RANGE).mean())
    return max(found, quiet)


def _text(image: Image8) -> float:
    """The share of the picture that blocks of text cover.

    A pixel is in text where the window of 15 x 15 pixels around it has contrast, holds a plain ground (a share of
    pixels close to its lightest or its darkest value), and changes between ink and ground often along its rows and its
    columns. Looked for at a longer side of 256 and of 128 pixels, for small and for large letters. What is smaller than
    a few letters is dropped; gaps between words and lines are closed.
    """
    import numpy as np

    cv2 = _opencv()
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    covered = np.zeros_like(grey)
    for side in _TEXT_SIDES:
        found = _text_pixels(_shrunk(grey, side))
        covered |= cv2.resize(found, grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
        if max(grey.shape) <= _TEXT_SIDES[-1]:
            break
    opened = cv2.morphologyEx(covered, cv2.MORPH_OPEN, np.ones((_OPEN, _OPEN), np.uint8))
    framed = cv2.copyMakeBorder(opened, _CLOSE, _CLOSE, _CLOSE, _CLOSE, cv2.BORDER_CONSTANT, value=0)
    closed = cv2.morphologyEx(framed, cv2.MORPH_CLOSE, np.ones((_CLOSE, _CLOSE), np.uint8))
    return float((closed[_CLOSE:-_CLOSE, _CLOSE:-_CLOSE] > 0).mean())


def _text_pixels(grey: Grey8) -> Grey8:
    """255 where the window around a pixel looks like text, else 0; uint8 [H, W]."""
    import numpy as np

    cv2 = _opencv()
    window = (_WINDOW, _WINDOW)
    light, dark = cv2.dilate(grey, np.ones(window, np.uint8)), cv2.erode(grey, np.ones(window, np.uint8))
    contrast = cv2.subtract(light, dark)
    near = (contrast.astype(np.uint16) * 15 // 100).astype(np.uint8)
    grounds = (
        cv2.compare(grey, cv2.subtract(light, near), cv2.CMP_GE),
        cv2.compare(grey, cv2.add(dark, near), cv2.CMP_LE),
    )
    ground = cv2.max(*(cv2.blur(each, window) for each in grounds))
    ink = cv2.compare(grey, cv2.subtract(light, contrast >> 1), cv2.CMP_GT)
    along, down = np.zeros_like(grey), np.zeros_like(grey)
    along[:, 1:] = ink[:, 1:] ^ ink[:, :-1]
    down[1:] = ink[1:] ^ ink[:-1]
    along, down = cv2.blur(along, window), cv2.blur(down, window)
    found = np.zeros(grey.shape, bool)
    for least, plain, rows, columns in _TEXT_RULES:
        found |= (contrast >= least) & (ground >= plain * 255) & (along >= rows * 255) & (down >= columns * 255)
    return found.astype(np.uint8) * 255
