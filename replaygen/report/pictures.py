"""Pictures small enough to stand inside a page: thumbnails as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaygen.report.colors import class_color, rgb

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL.Image import Image as PILImage

    from replaygen.sample import Image8, Mask8

TINY = 64
"""Images up to this side are shown with hard pixels, enlarged."""

EXACT = 32
"""Images up to this side are stored as they are, without any loss."""


@dataclass(frozen=True)
class Thumb:
    """A picture inside a page: its data URI, its size in pixels, and whether it is shown with hard pixels."""

    uri: Markup
    width: int
    height: int

    @property
    def tiny(self) -> bool:
        """Whether the picture is so small that its pixels should be seen."""
        return max(self.width, self.height) <= TINY


def photo(image: Image8, side: int = 128) -> Thumb:
    """A thumbnail of an image as WebP: exact up to `EXACT` pixels, nearly so up to `TINY`, compressed otherwise.

    Args:
        image: uint8 [H, W, 3].
        side: the longer side at most, in pixels; never enlarged.
    """
    from PIL import Image

    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    longer = max(small.size)
    if longer <= EXACT:
        return _thumb(small, "webp", lossless=True, quality=60)
    return _thumb(small, "webp", quality=92 if longer <= TINY else 74, method=4)


def overlay(mask: Mask8, side: int = 128) -> Thumb:
    """A thumbnail of a mask in class colours: background clear, ignore half-clear white.

    Args:
        mask: uint8 [H, W], channels, 255 = ignore.
        side: the longer side at most, in pixels; never enlarged.
    """
    from PIL import Image

    small = Image.fromarray(mask)
    small.thumbnail((side, side), Image.Resampling.NEAREST)
    picture = small.convert("L")
    colors = bytearray(768)
    alpha = bytearray(256)
    for channel in picture_channels(small):
        if channel == 255:
            colors[765:768], alpha[255] = b"\xff\xff\xff", 128
        elif channel:
            colors[3 * channel : 3 * channel + 3], alpha[channel] = bytes(rgb(class_color(channel))), 255
    indexed = Image.frombytes("P", picture.size, picture.tobytes())
    indexed.putpalette(bytes(colors))
    return _thumb(indexed, "png", optimize=True, transparency=bytes(alpha))


def picture_channels(picture: PILImage) -> list[int]:
    """The values in an 8-bit picture."""
    return [value for value, count in enumerate(picture.histogram()) if count]


def _thumb(picture: PILImage, kind: str, **how: Any) -> Thumb:
    from markupsafe import Markup

    buffer = io.BytesIO()
    picture.save(buffer, format=kind.upper(), **how)
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Thumb(Markup(uri), picture.width, picture.height)
