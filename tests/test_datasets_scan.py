"""What is read from image and mask files without making arrays of them."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from replaygen.datasets.scan import image_size, scan_mask
from replaygen.errors import DataError
from replaygen.sample import decode_image, decode_mask, encode_png


def picture(kind: str, orientation: int | None) -> bytes:
    """A 9 x 5 picture with an EXIF orientation."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(np.zeros((5, 9, 3), np.uint8)).save(out, format=kind, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_size_is_that_of_the_upright_image(kind: str, orientation: int | None) -> None:
    """The size from the header is the size that decoding gives, whatever the EXIF orientation."""
    data = picture(kind, orientation)
    height, width = decode_image(data).shape[:2]
    assert image_size(data, "x") == (width, height)


def test_orientation_behind_the_pixels_of_a_png_counts() -> None:
    """A PNG may carry its orientation after its pixels: it counts too."""
    data = picture("PNG", 6)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    moved = data[:start] + data[end : data.index(b"IEND") - 4] + data[start:end] + data[data.index(b"IEND") - 4 :]
    assert moved.index(b"eXIf") > moved.index(b"IDAT")
    assert image_size(moved, "x") == (5, 9)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_cut_image_is_refused(kind: str) -> None:
    """An image whose pixels are cut off has a good header, and is found before any work all the same."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    data = file.getvalue()
    with pytest.raises(DataError, match="not a readable image"):
        image_size(data[: len(data) // 2], "x")


def test_values_are_those_with_a_pixel() -> None:
    """A scan lists each value that has at least one pixel, and the size."""
    mask = np.zeros((7, 3), np.uint8)
    mask[6, 2] = 200
    scan = scan_mask(encode_png(mask), "x")
    assert (scan.width, scan.height, scan.values) == (3, 7, (0, 200))


def test_palette_of_few_colours_is_read_by_index() -> None:
    """A palette PNG of 4 bits a pixel gives its indices, as decoding does."""
    image = Image.fromarray(np.array([[0, 3], [9, 3]], np.uint8)).convert("L")
    image.putpalette([value for n in range(16) for value in (n * 7, 1, 2)])
    out = io.BytesIO()
    image.save(out, format="PNG", bits=4)
    assert scan_mask(out.getvalue(), "x").values == (0, 3, 9)
    assert decode_mask(out.getvalue()).tolist() == [[0, 3], [9, 3]]


def test_damaged_files_are_refused_and_never_crash() -> None:
    """Flipped, cut and doubled files either scan as they decode, or are DataErrors."""
    rng = random.Random(0)
    mask = encode_png(np.arange(120, dtype=np.uint8).reshape(10, 12))
    images = [picture(kind, 6) for kind in ("JPEG", "PNG", "WEBP")]
    refused = 0
    for number in range(400):
        source = mask if number % 2 else images[number % 3]
        data = bytearray(source)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        spoilt = bytes(data[: rng.randrange(len(data))] if number % 5 == 0 else data)
        try:
            if number % 2:
                assert set(scan_mask(spoilt, "x").values) == set(np.unique(decode_mask(spoilt)))
            else:
                assert min(image_size(spoilt, "x")) > 0
        except DataError:
            refused += 1
    assert 100 < refused < 400


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(kind: str) -> None:
    """A file of another format is no image here, whatever it is called."""
    out = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(out, format=kind)
    with pytest.raises(DataError, match="not a readable image"):
        image_size(out.getvalue(), "x.jpg")
