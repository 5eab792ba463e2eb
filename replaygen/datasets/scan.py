"""What is inside image and mask files, read as sparingly as possible and remembered on disk as JSON."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replaygen.canonical import canonical
from replaygen.datasets.manifest import write_atomic
from replaygen.errors import DataError
from replaygen.sample import MAX_PIXELS

log = logging.getLogger("replaygen.datasets")

_FORMAT = "replaygen-scan 1"
_SWAPPED = {5, 6, 7, 8}
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


@dataclass(frozen=True)
class MaskScan:
    """One mask: its width and height in pixels, and the values with at least one pixel, ascending."""

    width: int
    height: int
    values: tuple[int, ...]


def scan_mask(data: bytes, where: str) -> MaskScan:
    """Size and values of an 8-bit PNG mask; decodes it, but makes no array.

    Raises:
        DataError: not a PNG of one 8-bit channel, damaged, or larger than `MAX_PIXELS` pixels.
    """
    from PIL import Image

    check_png_size(data, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.mode not in {"P", "L"}:
                    raise DataError(
                        f"mask has mode {image.mode}, expected 8-bit palette or grey",
                        where=where,
                        hint="save masks as one 8-bit channel whose value is the class id",
                    )
                counts = image.histogram()
                return MaskScan(image.width, image.height, tuple(v for v, count in enumerate(counts) if count))
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged bytes; each means the same to us
        raise DataError(
            f"not a readable PNG mask ({type(error).__name__})", where=where, hint="remove or replace the file"
        ) from None


def check_png_size(data: bytes, where: str) -> None:
    """Refuse a PNG whose header announces more than `MAX_PIXELS` pixels, before anything is decoded."""
    if len(data) >= 24 and data[12:16] == b"IHDR":
        width, height = struct.unpack(">II", data[16:24])
        if width * height > MAX_PIXELS:
            raise DataError(f"mask of {width} x {height} pixels is too large", where=where, hint="resize the pair")


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height of an image once it is upright; its pixels are decoded, so a cut file is found here.

    Raises:
        DataError: no whole JPEG, PNG, WebP, BMP or GIF, or more than `MAX_PIXELS` pixels.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DataError(
                        f"image of {width} x {height} pixels is too large", where=where, hint="resize the pair"
                    )
                image.draft(
                    "RGB", (max(1, width // 8), max(1, height // 8))
                )  # a JPEG is read to its end, but not built up
                image.load()
                # Asking a PNG for its EXIF decodes it whole, because the chunk may follow the pixels.
                may_turn = image.format != "PNG" or any(mark in data for mark in _PNG_ORIENTATION)
                if may_turn and image.getexif().get(0x0112) in _SWAPPED:
                    return height, width
                return width, height
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(
            f"not a readable image ({type(error).__name__})", where=where, hint="remove or replace the file"
        ) from None


@dataclass
class ScanMemory:
    """What scans of one data set found, under the set's digest: two lines of JSON, the first with the second's sha256.

    `masks` and `sizes` are keyed by the sha256 of the file, so that content is remembered, never a name.
    """

    path: Path | None
    masks: dict[str, MaskScan] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    valid: bool = False

    @classmethod
    def load(cls, path: Path | None) -> ScanMemory:
        """The memory in the file at `path`; an empty one where there is none or it is damaged."""
        memory = cls(path)
        try:
            data = path.read_bytes() if path is not None else b""
        except OSError:
            data = b""
        if not data:
            return memory
        try:
            head, _, text = data.partition(b"\n")
            header: dict[str, Any] = json.loads(head)
            if header["format"] != _FORMAT or header["sha256"] != hashlib.sha256(text).hexdigest():
                raise ValueError("checksum")
            body = json.loads(text)
            memory.masks = {sha: MaskScan(row[0], row[1], tuple(row[2])) for sha, row in body["masks"].items()}
            memory.sizes = {sha: (row[0], row[1]) for sha, row in body["sizes"].items()}
            memory.valid = body["valid"]
        except (ValueError, KeyError, TypeError, IndexError):
            log.warning("remembered scan is damaged; masks are read again: %s", path)
            return cls(path)
        return memory

    def save(self) -> None:
        """Write the memory atomically."""
        if self.path is None:
            return
        body = {
            "masks": {sha: [scan.width, scan.height, scan.values] for sha, scan in self.masks.items()},
            "sizes": self.sizes,
            "valid": self.valid,
        }
        text = canonical(body)
        header = canonical({"format": _FORMAT, "sha256": hashlib.sha256(text).hexdigest()})
        write_atomic(self.path, header + b"\n" + text)


def problems_error(problems: Iterable[str], where: str, hint: str) -> DataError:
    """One DataError for many problems: the first five, and how many more."""
    found = list(problems)
    shown = "; ".join(found[:5])
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return DataError(shown + more, where=where, hint=hint)
