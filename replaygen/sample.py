"""Images and masks as they travel: decoded once, upright 8-bit RGB, no metadata."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from replaygen.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image as PILImage

    Image8 = npt.NDArray[np.uint8]
    """uint8 [H, W, 3], RGB, upright."""
    Mask8 = npt.NDArray[np.uint8]
    """uint8 [H, W], class ids, 255 = ignore."""

IGNORE = 255
"""The mask value that no loss and no metric reads."""

MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded."""


def decode_image(data: bytes, *, where: str = "", max_side: int | None = None) -> Image8:
    """Decode an image file to upright 8-bit RGB without metadata.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP or GIF (first frame) file.
        where: the name to put in the error.
        max_side: shrink so that the longer side has at most this many pixels (never enlarges).

    Returns:
        uint8 [H, W, 3].

    Raises:
        DataError: the bytes are no image of these formats, are damaged, or hold more than `MAX_PIXELS` pixels.
    """
    import warnings

    import numpy as np
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP", "GIF")) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise DataError(f"image of {opened.width} x {opened.height} pixels is too large", where=where)
                upright = ImageOps.exif_transpose(opened)
                rgb = _to_rgb(upright if upright is not None else opened)
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged bytes; each means the same to us
        raise DataError(
            f"not a readable image ({type(error).__name__})", where=where, hint="remove or replace the file"
        ) from None
    if max_side is not None and max(rgb.size) > max_side:
        scale = max_side / max(rgb.size)
        size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
        rgb = rgb.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(rgb, dtype=np.uint8)


def _to_rgb(image: PILImage) -> PILImage:
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        import numpy as np

        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0.0) > 255 else 255.0
        return Image.fromarray(np.clip(values / top * 255.0, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def encode_png(array: Image8 | Mask8) -> bytes:
    """PNG bytes of uint8 [H, W, 3] or [H, W]; equal arrays give equal bytes, no metadata."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_jpeg(array: Image8, quality: int = 95) -> bytes:
    """JPEG bytes of uint8 [H, W, 3] without chroma subsampling and without metadata."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def decode_mask(data: bytes, *, where: str = "") -> Mask8:
    """Decode an 8-bit mask (palette or grey PNG) to its ids.

    Returns:
        uint8 [H, W].

    Raises:
        DataError: not a PNG, not one 8-bit channel, or more than `MAX_PIXELS` pixels, which are then not decoded.
    """
    import numpy as np

    with _opened_mask(data, where) as image:
        return np.array(image, dtype=np.uint8)


def mask_size(data: bytes, *, where: str = "") -> tuple[int, int]:
    """(width, height) that a mask's header tells; nothing is decoded. DataError as for `decode_mask`."""
    with _opened_mask(data, where) as image:
        return image.size


@contextlib.contextmanager
def _opened_mask(data: bytes, where: str) -> Iterator[PILImage]:
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"mask of {image.width} x {image.height} pixels is too large", where=where,
                                    hint="resize the pair")  # fmt: skip
                if image.mode not in {"P", "L"}:
                    raise DataError(
                        f"mask has mode {image.mode}, expected 8-bit palette or grey", where=where,
                        hint="save masks as one 8-bit channel whose value is the class id",
                    )  # fmt: skip
                yield image
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError("mask is too large", where=where, hint="resize the pair") from None
    except Exception as error:  # as above
        raise DataError(
            f"not a readable PNG mask ({type(error).__name__})", where=where, hint="remove or replace the file"
        ) from None
