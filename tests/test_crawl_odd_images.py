"""Malformed and odd images through the real decoder: upright 8-bit RGB without metadata, or refused by name."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from replaygen.crawl.ingest import Ingested, Unfit
from replaygen.crawl.isolated import Decoder

REFUSALS = {"not-an-image", "format", "damaged", "too-small", "too-many-pixels"}
CANARY = b"canary in the metadata"


def picture(width: int = 64, height: int = 48) -> np.ndarray[Any, Any]:
    """uint8 [H, W, 3]: smooth colours under a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 3 % 256, y * 5 % 256, (x + y) * 2 % 256], axis=2)
    return (smooth * 0.9 + np.random.default_rng(0).integers(0, 25, smooth.shape)).astype(np.uint8)


def file(image: Any, form: str, **options: Any) -> bytes:
    """The bytes of a file of an array or an image of Pillow."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    """An EXIF block with an orientation and words that must not survive."""
    block = Image.Exif()
    block[0x0112], block[0x010E] = orientation, CANARY.decode()
    return block.tobytes()


def png(rows: list[np.ndarray[Any, Any]], width: int, height: int, bits: int, interlaced: bool) -> bytes:
    """An RGB PNG of passes of big-endian samples, as Pillow cannot write it; with a comment and an EXIF block."""
    raw = b"".join(b"\0" + line.tobytes() for part in rows for line in part)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, interlaced)), (b"tEXt", b"Comment\0" + CANARY),
        (b"IDAT", zlib.compress(raw)), (b"eXIf", exif(1)[6:]), (b"IEND", b""),
    ]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def interlaced_png(image: np.ndarray[Any, Any]) -> bytes:
    """A PNG in the seven passes of Adam7."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [image[top::down, left::right] for top, left, down, right in passes]
    return png([part for part in parts if part.size], image.shape[1], image.shape[0], 8, interlaced=True)


def taken_over() -> dict[str, bytes]:
    """Name -> bytes of odd files that are images all the same."""
    image = picture()
    pil = Image.fromarray(image)
    cmyk = file(pil.convert("CMYK"), "JPEG", quality=90)
    adobe = cmyk.index(b"Adobe") + 11
    alpha = np.dstack([image, np.arange(48 * 64).reshape(48, 64).astype(np.uint8)])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {
        "baseline": file(image, "JPEG", quality=90, comment=CANARY),
        "progressive": file(image, "JPEG", quality=90, progressive=True, exif=exif(1)),
        "profile": file(image, "JPEG", quality=90, icc_profile=profile, exif=exif(1)),
        "restarts": file(image, "JPEG", quality=90, restart_marker_rows=1),
        "behind the end": file(image, "JPEG") + CANARY,
        "grey": file(pil.convert("L"), "JPEG", comment=CANARY),
        "cmyk": cmyk,
        "ycck": cmyk[:adobe] + b"\2" + cmyk[adobe + 1 :],
        "adobe rgb": file(image, "JPEG", keep_rgb=True),
        **{f"exif {n}": file(image, "JPEG", quality=90, exif=exif(n)) for n in range(1, 9)},
        "png": file(image, "PNG", exif=exif(6)),
        "png 16": png([image.astype(">u2") * 257], 64, 48, 16, interlaced=False),
        "png interlaced": interlaced_png(image),
        "png grey 16": file(Image.fromarray(image[:, :, 0].astype(np.uint16) * 257), "PNG"),
        "png palette": file(pil.quantize(20), "PNG", transparency=3),
        "png bits": file(pil.convert("1"), "PNG"),
        "png alpha": file(alpha, "PNG"),
        "webp": file(image, "WEBP", exif=exif(8), xmp=CANARY),
        "webp lossless": file(alpha, "WEBP", lossless=True),
        "webp moving": file(image, "WEBP", save_all=True, append_images=[pil.rotate(90)], exif=exif(1)),
        "gif": file(image, "GIF", comment=CANARY),
        "gif moving": file(image, "GIF", save_all=True, append_images=[pil.rotate(90)], comment=CANARY),
        "bmp": file(image, "BMP"),
        "bmp palette": file(pil.quantize(20), "BMP"),
    }


def refused() -> dict[str, tuple[bytes, str]]:
    """Name -> bytes that are refused, and why."""
    image = picture()
    whole = file(image, "JPEG")
    return {
        "eps": (file(image, "EPS"), "format"),
        "tiff": (file(image, "TIFF"), "format"),
        "page": (b"<!DOCTYPE html><html><body>404</body></html>", "not-an-image"),
        "cut": (whole[: len(whole) * 2 // 3], "damaged"),
        "cut progressive": (file(image, "JPEG", progressive=True)[:-40], "damaged"),
        "cut png": (file(image, "PNG")[:-60], "damaged"),
        "tiny": (file(picture(9, 7), "PNG"), "too-small"),
        "bomb": (png([np.zeros((2, 300_000), np.uint8)], 100_000, 90_000, 8, interlaced=False), "too-many-pixels"),
    }


def assert_clean(photo: Ingested) -> None:
    """Told by Pillow, and by the file's own segments: upright 8-bit RGB of the size told, and no metadata."""
    with Image.open(io.BytesIO(photo.data), formats=("PNG",) if photo.kind == "png" else ("JPEG",)) as image:
        image.load()
        assert (image.mode, image.size) == ("RGB", (photo.width, photo.height))
        assert not dict(image.getexif())
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "icc_profile", "progressive",
                                   "progression"}  # fmt: skip
    named = png_chunks(photo.data) if photo.kind == "png" else jpeg_segments(photo.data)
    assert named <= {b"IHDR", b"IDAT", b"IEND", b"JFIF\0", b"ICC_P"}
    assert CANARY not in photo.data
    assert photo.data.endswith(b"\xff\xd9" if photo.kind == "jpg" else b"IEND\xaeB`\x82")


def png_chunks(data: bytes) -> set[bytes]:
    """The kinds of chunks of a PNG."""
    kinds, at = set(), 8
    while at < len(data):
        kinds.add(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return kinds


def jpeg_segments(data: bytes) -> set[bytes]:
    """The first five bytes of every APPn and comment segment in front of the picture."""
    words, at = set(), 2
    while data[at + 1] != 0xDA:
        if 0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE:
            words.add(data[at + 4 : at + 9])
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return words


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with flipped bytes, cuts, insertions, or the beginning of another."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(7):
            case 0 | 1:
                for _ in range(chance.choice((1, 3, 30))):
                    spot = chance.randrange(len(data)) if len(data) else 0
                    data[spot : spot + 1] = bytes([chance.randrange(256)])
            case 2:  # headers are where the decisions are made
                spot = chance.randrange(min(len(data), 200) + 1)
                data[spot : spot + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF))])
            case 3:
                del data[at:]
            case 4:
                del data[at : at + chance.randrange(1, 40)]
            case 5:
                data[at:at] = chance.randbytes(chance.randrange(1, 40))
            case 6:
                length = chance.choice((4, 16, 64, 300))
                data[:length] = chance.choice(seeds)[:length]
    return mended(bytes(data)) if data.startswith(b"\x89PNG") and chance.random() < 0.7 else bytes(data)


def mended(data: bytes) -> bytes:
    """A PNG with checksums that fit, so that what was damaged reaches the decoder."""
    parts, at = [data[:8]], 8
    while 12 + at + (length := int.from_bytes(data[at : at + 4], "big")) <= len(data):
        body = data[at + 4 : at + 8 + length]
        parts += [data[at : at + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        at += 12 + length
    return b"".join(parts) + data[at:]


def try_all(count: int, seed: int) -> None:
    """Every mutated file is accepted clean or refused by name; none is lost, none brings the decoder down."""
    chance = random.Random(seed)
    seeds = [*taken_over().values(), *(data for data, _ in refused().values())]
    outcomes: Counter[str] = Counter()
    first: int | None = None
    with Decoder(memory_mb=512) as decoder:
        for _ in range(count):
            data = mutated(chance, seeds)
            try:
                photo = decoder.ingest(
                    data, max_side=chance.choice((None, 32)), min_side=8, keep=chance.choice(("resized", "verbatim"))
                )
            except Unfit as unfit:
                outcomes[unfit.reason] += 1
            else:
                outcomes["accepted"] += 1
                assert_clean(photo)
            first = first or decoder.pid
        assert decoder.pid == first, "the decoder crashed and was replaced"
    assert outcomes.total() == count
    assert set(outcomes) <= {"accepted", *REFUSALS}
    assert outcomes["accepted"] > count // 20
    assert outcomes["damaged"] > count // 5


@pytest.fixture(scope="module")
def decoder() -> Any:
    """One child for the files that are not mutated."""
    with Decoder() as made:
        yield made


@pytest.mark.parametrize("name", sorted(taken_over()))
def test_an_odd_image_becomes_upright_rgb_without_metadata(name: str, decoder: Decoder) -> None:
    """Each way to be odd, in both ways to keep a photo."""
    for keep in ("resized", "verbatim"):
        photo = decoder.ingest(taken_over()[name], max_side=40, min_side=8, keep=keep)
        assert_clean(photo)
        turned = photo.from_width == 48
        assert turned == (name in {"exif 5", "exif 6", "exif 7", "exif 8", "png", "webp"})
        long, short = (40, 30) if keep == "resized" else (64, 48)
        assert (photo.width, photo.height) == ((short, long) if turned else (long, short))


@pytest.mark.parametrize("name", sorted(refused()))
def test_what_cannot_be_taken_is_refused_by_name(name: str, decoder: Decoder) -> None:
    """Renamed, cut, tiny and huge files: a reason for each."""
    data, reason = refused()[name]
    for keep in ("resized", "verbatim"):
        with pytest.raises(Unfit) as caught:
            decoder.ingest(data, max_side=40, min_side=8, keep=keep)
        assert caught.value.reason == reason


def test_a_thousand_mutated_images() -> None:
    """1,000 files that were flipped, cut, grown and grafted: each is taken clean or refused."""
    try_all(1_000, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_ten_thousand_mutated_images(seed: int) -> None:
    """The same, ten times over."""
    try_all(1_000, seed)
