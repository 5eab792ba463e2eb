"""A photo's raw bytes to the bytes that are kept: upright 8-bit RGB, no metadata, nothing cut.

Run it through `crawl.isolated` on bytes from outside: decoders are C code, and these bytes were made by strangers.

Formats are told by content: JPEG (any colour), PNG, WebP, GIF and BMP (first frame). EXIF orientation is applied, alpha
lies on white, 16 bits become 8. A profile (ICC) is ignored where a picture is encoded anew: training code ignores it
too, and a colour conversion would be one more parser in the way of strangers' bytes. Cut or corrupt data is refused,
also where a lenient decoder would show something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from replaygen.crawl.formats import Header, Unfit, clean, read_header, strip_jpeg
from replaygen.errors import DataError
from replaygen.sample import MAX_PIXELS, decode_image, encode_png

if TYPE_CHECKING:
    from replaygen.sample import Image8

__all__ = ["QUALITY", "Ingested", "Keep", "Unfit", "ingest"]

Keep = Literal["resized", "verbatim"]

QUALITY = 95
"""Of JPEGs that are encoded here; chroma is halved (4:2:0)."""

_LONGEST_SIDE = 65_500
"""Pixels; libjpeg reads and writes no longer side."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """A photo as it is kept.

    Attributes:
        data: a JPEG or PNG file, upright 8-bit RGB, no metadata (a verbatim JPEG keeps its ICC profile).
        kind: the file's extension.
        width, height: pixels of `data`.
        from_width, from_height: pixels of the photo as it came, upright.
        format: what came: "jpeg", "png", "webp", "gif" or "bmp".
        encoded: false where the picture's bytes are those that came.
    """

    data: bytes
    kind: Literal["jpg", "png"]
    width: int
    height: int
    from_width: int
    from_height: int
    format: str
    encoded: bool


def ingest(data: bytes, *, max_side: int | None, min_side: int, keep: Keep) -> Ingested:
    """Take in one photo. Equal bytes give equal bytes.

    Args:
        data: the file as it was fetched.
        max_side: the longer side is shrunk to this many pixels, never enlarged; None keeps the size. "verbatim" does
            not shrink.
        min_side: photos with a shorter side below this are refused.
        keep: "resized": encoded anew, JPEG quality 95 with 4:2:0 chroma, PNG from PNG (lossless).
            "verbatim": plain upright JPEGs keep their bytes but for the metadata, once they were proved decodable; all
            others are encoded anew at their size.

    Raises:
        Unfit: "not-an-image", "format", "damaged", "too-small", "too-many-pixels" (over 50 million, or a side over
            65,500).
        MemoryError: the picture needs more than there is.
    """
    header = read_header(data)
    _check_size(header, min_side)
    if keep == "verbatim":
        if header.plain:
            return _kept(data, header)
        max_side = None
    width, height = _fit(header.width, header.height, max_side)
    pixels = _from_jpeg(data, header, width, height) if header.format == "jpeg" else _from_other(data, header)
    if pixels.shape[:2] != (height, width):
        import cv2

        shrunk: Any = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        pixels = shrunk
    pixels = _turned(pixels, header.orientation)
    kind: Literal["jpg", "png"] = "png" if header.format == "png" else "jpg"
    return Ingested(
        encode_png(pixels) if kind == "png" else _to_jpeg(pixels),
        kind,
        width=int(pixels.shape[1]),
        height=int(pixels.shape[0]),
        from_width=header.height if header.orientation > 4 else header.width,
        from_height=header.width if header.orientation > 4 else header.height,
        format=header.format,
        encoded=True,
    )


def _check_size(header: Header, min_side: int) -> None:
    width, height = header.width, header.height
    if width * height > MAX_PIXELS or max(width, height) > _LONGEST_SIDE:
        raise Unfit("too-many-pixels", f"{width} x {height} pixels")
    if min(width, height) < min_side:
        raise Unfit("too-small", f"{width} x {height} pixels, the shorter side must have {min_side}")


def _fit(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """The size with a longer side of at most `max_side` pixels."""
    longer = max(width, height)
    if max_side is None or longer <= max_side:
        return width, height
    return max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer))


def _kept(data: bytes, header: Header) -> Ingested:
    stripped = strip_jpeg(data)
    _decoded(stripped, "RGB", min_width=1, min_height=1)  # an eighth of the size: all of the coded data is read
    width, height = header.width, header.height
    return Ingested(stripped, "jpg", width, height, width, height, "jpeg", encoded=False)


def _decoded(data: bytes, colours: str, **scale: int) -> Image8:
    """Pixels of a JPEG; a warning of libjpeg is a refusal (cut data and broken codes are warnings to it)."""
    import simplejpeg

    try:
        pixels: Image8 = simplejpeg.decode_jpeg(data, colours, strict=True, **scale)
    except ValueError as error:
        if "memory" in str(error).lower():
            raise MemoryError(str(error)) from None
        raise Unfit("damaged", str(error)[:200]) from None
    return pixels


def _from_jpeg(data: bytes, header: Header, width: int, height: int) -> Image8:
    """Pixels at the smallest of libjpeg's scales (n/8) that has at least width x height.

    libjpeg rounds scaled sizes up, so what is shrunk from them is off by less than half a pixel at the far edges.
    """
    if header.components != 4:
        return _decoded(data, "RGB", min_width=width, min_height=height)
    import numpy as np

    cmyk = _decoded(data, "CMYK", min_width=width, min_height=height)
    black = cmyk[:, :, 3].astype(np.uint16)  # inverted, as Adobe writes it and Pillow expects it
    pixels = np.empty((*cmyk.shape[:2], 3), np.uint8)
    for channel in range(3):
        pixels[:, :, channel] = (cmyk[:, :, channel] * black + 127) // 255
    return pixels


def _from_other(data: bytes, header: Header) -> Image8:
    try:
        pixels = decode_image(clean(data, header.format))
    except DataError as error:
        if isinstance(error.__context__, MemoryError):
            raise MemoryError(error.what) from None
        raise Unfit("damaged", error.what) from None
    if pixels.shape[:2] != (header.height, header.width):
        raise Unfit("damaged", f"the picture has not the size that the {header.format} tells")
    return pixels


def _turned(pixels: Image8, orientation: int) -> Image8:
    """Pixels [H, W, 3] upright: undoes what EXIF orientation 1-8 says was done."""
    import numpy as np

    if orientation == 1:
        return pixels
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_jpeg(pixels: Image8) -> bytes:
    import simplejpeg

    options: dict[str, Any] = {"quality": QUALITY, "colorspace": "RGB", "colorsubsampling": "420"}
    encoded: bytes = simplejpeg.encode_jpeg(pixels, **options)
    return encoded
