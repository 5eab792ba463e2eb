"""What every layout's writer is, and how masks and images are encoded for those that ask for a certain form."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from replaygen.exports.ids import COLORS, Ids
from replaygen.exports.samples import Sample
from replaygen.sample import decode_image, encode_jpeg

if TYPE_CHECKING:
    from replaygen.sample import Mask8


class Layout(Protocol):
    """Writes samples into a folder, one after the other; what it keeps in memory does not grow with images."""

    def __init__(self, folder: Path, ids: Ids, *, shard: int) -> None: ...

    def add(self, sample: Sample) -> None:
        """Write one sample."""

    def close(self) -> None:
        """Write what stands at the end."""

    def release(self) -> None:
        """Let every file go, whatever happened before; may be called more than once."""


def as_line(about: dict[str, Any]) -> bytes:
    """One line of JSON, keys sorted."""
    return json.dumps(about, sort_keys=True, ensure_ascii=True).encode() + b"\n"


def palette_png(mask: Mask8) -> bytes:
    """A palette PNG of uint8 [H, W] with VOC's colours; the values are the ids."""
    from PIL import Image

    picture = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
    picture.putpalette([part for color in COLORS for part in color])
    return _png(picture)


def rgb_png(numbers: Any) -> bytes:
    """A PNG whose pixel is id = R + 256 G + 256^2 B, of integers [H, W]."""
    import numpy as np
    from PIL import Image

    parts = [(numbers >> shift) & 255 for shift in (0, 8, 16)]
    return _png(Image.fromarray(np.stack(parts, axis=-1).astype(np.uint8)))


def as_jpeg(sample: Sample) -> bytes:
    """Its image as JPEG: the bytes that are there, or quality 95 without subsampling where they are PNG."""
    return sample.image if sample.kind == "jpg" else encode_jpeg(decode_image(sample.image, where=sample.id))


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


class Lines:
    """A file with one line of JSON a sample."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("xb")

    def add(self, about: dict[str, Any]) -> None:
        self._file.write(as_line(about))

    def close(self) -> None:
        self._file.close()
