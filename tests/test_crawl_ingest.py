"""Raw bytes of a photo to upright 8-bit RGB without metadata, in this process."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms

from replaygen.crawl.formats import Unfit, clean, read_header, sniff, strip_jpeg
from replaygen.crawl.ingest import Ingested, ingest

CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))


def scene(width: int = 96, height: int = 64) -> np.ndarray[Any, Any]:
    """uint8 [H, W, 3]: four quarters of different colours, so that every turn and flip shows."""
    image = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    image[:top, :left], image[:top, left:] = (220, 40, 40), (40, 200, 40)
    image[top:, :left], image[top:, left:] = (40, 40, 220), (230, 220, 60)
    return image


def file(pixels: Any, form: str, **options: Any) -> bytes:
    """The bytes of a file of the pixels (an array, or an image of Pillow)."""
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    """An EXIF block that tells an orientation, and a secret besides."""
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010E] = "canary in the description"
    return block.tobytes()


def take(data: bytes, max_side: int | None = None, min_side: int = 1, keep: Any = "resized") -> Ingested:
    """`ingest` with less to say."""
    return ingest(data, max_side=max_side, min_side=min_side, keep=keep)


def refusal(data: bytes, **options: Any) -> str:
    """The reason for which bytes are refused."""
    with pytest.raises(Unfit) as caught:
        take(data, **options)
    return caught.value.reason


def pixels_of(photo: Ingested) -> np.ndarray[Any, Any]:
    """The kept pixels, as Pillow reads them."""
    with Image.open(io.BytesIO(photo.data)) as image:
        assert (image.mode, image.size) == ("RGB", (photo.width, photo.height))
        return np.asarray(image).astype(int)


def assert_looks_like(photo: Ingested, expected: np.ndarray[Any, Any], within: float = 6.0) -> None:
    """The same size, the same colour in each corner, and much the same everywhere."""
    seen = pixels_of(photo)
    assert seen.shape == expected.shape
    assert all(np.abs(seen[at] - expected[at].astype(int)).max() <= 4 * within for at in CORNERS)
    assert np.abs(seen - expected.astype(int)).mean() <= within


@pytest.mark.parametrize(("stored", "orientation"), [
    (lambda a: a, 1), (lambda a: a[:, ::-1], 2), (lambda a: a[::-1, ::-1], 3), (lambda a: a[::-1], 4),
    (lambda a: a.transpose(1, 0, 2), 5), (lambda a: np.rot90(a, 1), 6),
    (lambda a: np.rot90(a, 2).transpose(1, 0, 2), 7), (lambda a: np.rot90(a, -1), 8),
])  # fmt: skip
@pytest.mark.parametrize("keep", ["resized", "verbatim"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_gives_the_same_upright_picture(
    stored: Any, orientation: int, keep: Any, form: str
) -> None:
    """Orientation 1 to 8 in JPEG, PNG and WebP: the picture stands upright, and sizes are told upright."""
    data = file(np.ascontiguousarray(stored(scene())), form, exif=exif(orientation), quality=95)
    photo = take(data, max_side=48, keep=keep)
    expected = scene(48, 32) if keep == "resized" else scene()
    assert_looks_like(photo, expected, within=8.0)
    assert (photo.from_width, photo.from_height) == (96, 64)
    assert not [word for word in (b"canary", b"Exif") if word in photo.data]


@pytest.mark.parametrize("told", [0, 9, 4000])
def test_an_orientation_that_makes_no_sense_is_upright(told: int) -> None:
    """Cameras write 0; the picture is shown as it is."""
    assert_looks_like(take(file(scene(), "JPEG", exif=exif(told))), scene())


@pytest.mark.parametrize(("data", "kind"), [
    (file(scene(), "JPEG", quality=95, progressive=True), "jpg"),
    (file(scene(), "JPEG", quality=95, keep_rgb=True), "jpg"),
    (file(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95), "jpg"),
    (file(scene(), "PNG"), "png"),
    (file(Image.fromarray(scene()).quantize(16), "PNG"), "png"),
    (file(scene(), "BMP"), "jpg"),
    (file(Image.fromarray(scene()).quantize(16), "BMP"), "jpg"),
    (file(scene(), "GIF"), "jpg"),
    (file(scene(), "WEBP", quality=95), "jpg"),
    (file(scene(), "WEBP", lossless=True), "jpg"),
    (file(scene(), "GIF", save_all=True, append_images=[Image.new("RGB", (96, 64))]), "jpg"),
    (file(scene(), "WEBP", save_all=True, append_images=[Image.new("RGB", (96, 64))], lossless=True), "jpg"),
])  # fmt: skip
def test_every_way_to_store_a_picture_shows_the_same_picture(data: bytes, kind: str) -> None:
    """Colour spaces, palettes and animations become the same upright RGB; PNG stays lossless, all else is JPEG."""
    photo = take(data)
    assert photo.kind == kind
    assert_looks_like(photo, scene(), within=7.0)


def test_a_png_stays_lossless() -> None:
    """A PNG that needs no shrinking keeps every pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    assert np.array_equal(pixels_of(take(file(noise, "PNG"))), noise)


def test_grey_becomes_rgb() -> None:
    """Grey JPEG, 8-bit and 16-bit PNG: three equal channels, and 16 bits are scaled."""
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    expected = np.repeat(ramp[:, :, None], 3, axis=2)
    sixteen = Image.fromarray(ramp.astype(np.uint16) * 257)
    for data in (file(ramp, "JPEG", quality=95), file(ramp, "PNG"), file(sixteen, "PNG")):
        assert_looks_like(take(data), expected, within=2.0)


def test_alpha_lies_on_white() -> None:
    """What is transparent is white, also in palettes and in GIF."""
    see_through = np.dstack([scene(), np.full((64, 96), 255, np.uint8)])
    see_through[:32, :48, 3] = 0
    expected = scene()
    expected[:32, :48] = 255
    for form in ("PNG", "WEBP", "GIF"):
        assert_looks_like(take(file(see_through, form)), expected, within=8.0)


@pytest.mark.parametrize("transform", [None, 0, 2])
def test_cmyk_is_read_as_everybody_reads_it(transform: int | None) -> None:
    """CMYK without an Adobe segment, with one, and YCCK: the colours that Pillow shows, as browsers do."""
    data = file(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95)
    at = data.index(b"\xff\xee")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    data = data[:at] + (b"" if transform is None else data[at : end - 1] + bytes([transform])) + data[end:]
    with Image.open(io.BytesIO(data)) as image:
        assert_looks_like(take(data), np.asarray(image.convert("RGB")), within=4.0)


@pytest.mark.parametrize(("size", "max_side", "expected"), [
    ((500, 375), 256, (256, 192)), ((375, 500), 256, (192, 256)), ((96, 64), 256, (96, 64)), ((513, 2), 256, (256, 1)),
    ((96, 64), None, (96, 64)), ((1000, 1), 10, (10, 1)),
])  # fmt: skip
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_longer_side_is_shrunk_and_never_enlarged(
    size: tuple[int, int], max_side: int | None, expected: tuple[int, int], form: str
) -> None:
    """Sizes are exact, whatever scale the decoder offers."""
    photo = take(file(scene(*size), form, quality=90), max_side=max_side)
    assert (photo.width, photo.height) == expected
    assert (photo.from_width, photo.from_height) == size


def test_shrinking_is_close_to_a_true_area_mean() -> None:
    """Decoding at 5/8 of the size and then shrinking is off by less than half a pixel: sizes are rounded up there."""
    y, x = np.mgrid[0:375, 0:500]
    waves = np.stack([128 + 100 * np.sin(x / 27), 128 + 100 * np.cos(y / 21), 128 + 90 * np.sin((x + y) / 33)], axis=2)
    data = file(waves.astype(np.uint8), "JPEG", quality=95, subsampling=0)
    whole = Image.fromarray(simplejpeg.decode_jpeg(data)).resize((256, 192), Image.Resampling.BOX)
    assert_looks_like(take(data, max_side=256), np.asarray(whole), within=3.0)


def test_equal_bytes_give_equal_bytes() -> None:
    """The result depends on the bytes and the options alone."""
    data = file(scene(300, 200), "JPEG", quality=91, exif=exif(6))
    assert take(data, max_side=128) == take(data, max_side=128)


def profile() -> bytes:
    """A real ICC profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_verbatim_keeps_the_bytes_and_drops_the_metadata() -> None:
    """A plain JPEG keeps its picture's bytes and its profile; EXIF, comments and what stands behind the end go."""
    plain = file(scene(), "JPEG", quality=91, progressive=True)
    dressed = file(
        scene(), "JPEG", quality=91, progressive=True, exif=exif(1), comment=b"canary", icc_profile=profile()
    )
    photo = take(dressed + b"canary behind the end", max_side=32, keep="verbatim")
    assert (photo.encoded, photo.width, photo.height) == (False, 96, 64)
    assert not [word for word in (b"canary", b"JFIF") if word in photo.data]
    with Image.open(io.BytesIO(photo.data)) as image:
        assert image.info["icc_profile"] == profile()
    assert np.array_equal(simplejpeg.decode_jpeg(photo.data), simplejpeg.decode_jpeg(plain))
    coded = plain[plain.index(b"\xff\xdb") :]
    assert photo.data.endswith(coded)


def test_a_false_profile_is_metadata_too() -> None:
    """Bytes that only call themselves a profile are dropped."""
    data = file(scene(), "JPEG", icc_profile=b"canary" * 40)
    assert b"canary" not in take(data, keep="verbatim").data


@pytest.mark.parametrize("data", [
    file(Image.fromarray(scene()).convert("L"), "JPEG"), file(Image.fromarray(scene()).convert("CMYK"), "JPEG"),
    file(scene(), "JPEG", keep_rgb=True), file(scene(), "JPEG", exif=exif(3)), file(scene(), "WEBP"),
    file(scene(), "PNG"),
])  # fmt: skip
def test_verbatim_encodes_anew_what_is_not_plain(data: bytes) -> None:
    """Grey, CMYK, RGB and turned JPEGs and all other formats are encoded anew, at their size."""
    photo = take(data, max_side=32, keep="verbatim")
    assert (photo.encoded, photo.width, photo.height) == (True, 96, 64)


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "not-an-image"), (b"<!DOCTYPE html><html><svg></svg></html>", "not-an-image"), (b"%PDF-1.7", "not-an-image"),
    (b"\0\0\0\x18ftypmp42", "not-an-image"), (b"GIF", "not-an-image"), (file(scene(), "TIFF"), "format"),
    (file(scene(), "EPS"), "format"), (b"<?xml version='1.0'?><svg/>", "format"), (b"\0\0\0\x1cftypavif\0", "format"),
    (b"\0\0\0\x1cftypheic\0", "format"), (b"\x89PNG\r\n\x1a\n", "damaged"), (b"\xff\xd8\xff", "damaged"),
    (b"BM" + bytes(10), "damaged"), (b"GIF89a", "damaged"), (b"RIFF\4\0\0\0WEBP", "damaged"),
])  # fmt: skip
def test_what_is_no_image_of_ours_is_refused_by_its_content(data: bytes, reason: str) -> None:
    """Names and types do not count; the bytes do."""
    assert refusal(data) == reason


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("keep", ["resized", "verbatim"])
def test_a_cut_file_is_refused(form: str, keep: Any) -> None:
    """Wherever a file is cut, down to its last byte, it is damaged and not half a picture."""
    whole = file(scene(), form)
    for kept in {len(whole) * part // 8 for part in range(3, 8)} | {len(whole) - 2, len(whole) - 1}:
        assert refusal(whole[:kept], keep=keep) == "damaged"


def test_a_flipped_bit_in_a_png_is_refused() -> None:
    """Every chunk that is picture has a checksum, and it is looked at."""
    whole = bytearray(file(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8), "PNG"))
    whole[len(whole) // 2] ^= 1
    assert refusal(bytes(whole)) == "damaged"


def test_small_and_huge_pictures_are_refused_by_their_headers() -> None:
    """The shorter side counts; 50 million pixels are the most, and nothing is decoded to find out."""
    assert refusal(file(scene(96, 63), "JPEG"), min_side=64) == "too-small"
    assert take(file(scene(96, 64), "JPEG"), min_side=64).width == 96
    assert refusal(bomb_png(100_000, 100_000)) == "too-many-pixels"
    assert refusal(bomb_png(65_501, 1)) == "too-many-pixels"
    jpeg = file(scene(), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    assert refusal(jpeg[:at] + struct.pack(">HH", 60_000, 60_000) + jpeg[at + 4 :]) == "too-many-pixels"


def bomb_png(width: int, height: int) -> bytes:
    """A small PNG file that claims to be large."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10**6)))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("data", [
    b"\xff\xd8" + b"\xff\xe1\0\2" * 3_000_000, b"\xff\xd8" + b"\xff" * 10_000_000,
    b"\xff\xd8" + b"\xff\xfe\0\2" * 4_000, b"\xff\xd8\xff\xda\0\2" * 1_000_000,
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0" + bytes(12_000_000),
    b"GIF89a\1\0\1\0\0\0\0" + b"!\xf9\0" * 3_000_000, b"GIF89a\1\0\1\0\0\0\0" + b"!\xf9" + b"\1\1" * 5_000_000,
    b"RIFF\0\x1b\xb7\0WEBP" + b"junk\0\0\0\0" * 1_500_000,
])  # fmt: skip
def test_hostile_structures_end_soon(data: bytes) -> None:
    """Millions of empty segments, chunks or blocks are refused after a fixed number of steps."""
    start = time.process_time()
    for walk in (read_header, strip_jpeg if sniff(data) == "jpeg" else lambda odd: clean(odd, str(sniff(odd)))):
        with pytest.raises(Unfit):
            walk(data)
    assert time.process_time() - start < 10.0
