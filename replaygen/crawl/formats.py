"""What image bytes are, told by their content and read from their headers alone: nothing is decoded here.

    sniff        bytes -> a format's name, whatever the address or the Content-Type says
    read_header  bytes -> Header: size, channels, EXIF orientation
    strip_jpeg   the same JPEG without what is not picture; `clean` does it for the formats that Pillow decodes

All of it is pure Python over bytes that nobody vouches for: each walk moves forward only, and stops after a fixed
number of steps. What does not fit raises `Unfit`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

TAKEN = frozenset({"jpeg", "png", "webp", "gif", "bmp"})
"""The formats that are decoded."""

_MOST_SEGMENTS = 4096  # honest JPEGs have a few dozen, and up to 255 more for a profile
_MOST_CHUNKS = 65_536
"""PNG and WebP chunks and GIF blocks that are walked; a 20 MB PNG of 8 kB chunks has 2,500."""


class Unfit(Exception):
    """The bytes are refused. `reason` is a short kebab-case word, `detail` a sentence for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its (first) picture.

    Attributes:
        format: "jpeg", "png", "webp", "gif" or "bmp".
        width, height: pixels as stored, before `orientation` turns them.
        components: channels as stored; a palette counts as one.
        bits: of one channel, or of one palette index.
        orientation: 1 to 8, as EXIF numbers them; 1 where nothing sensible is told.
        plain: JPEG: baseline or progressive, 8-bit YCbCr, upright. Such bytes show the same picture in any decoder.
    """

    format: str
    width: int
    height: int
    components: int
    bits: int
    orientation: int = 1
    plain: bool = False


_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF87a", "gif"), (b"GIF89a", "gif"), (b"BM", "bmp"),
    (b"II*\0", "tiff"), (b"MM\0*", "tiff"), (b"II+\0", "tiff"), (b"MM\0+", "tiff"), (b"%!PS", "eps"),
    (b"\xc5\xd0\xd3\xc6", "eps"), (b"8BPS", "psd"), (b"\0\0\1\0", "ico"), (b"\xff\x0a", "jxl"),
    (b"\0\0\0\x0cJXL ", "jxl"), (b"\0\0\0\x0cjP  ", "jp2"), (b"%PDF", "pdf"),
)  # fmt: skip
_BRANDS = {b"avif": "avif", b"avis": "avif", b"heic": "heif", b"heix": "heif", b"hevc": "heif", b"mif1": "heif"}
_REFUSED_IMAGES = frozenset({"tiff", "eps", "psd", "ico", "jxl", "jp2", "avif", "heif", "svg"})


def sniff(data: bytes) -> str | None:
    """The format of the bytes: one of `TAKEN`, or another known name ("tiff", "html", ...), or None."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "video")
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<"):
        return "svg" if b"<svg" in text and b"<html" not in text else "html"
    return None


def read_header(data: bytes) -> Header:
    """The header of a JPEG, PNG, WebP, GIF or BMP file.

    Raises:
        Unfit: "not-an-image"; "format" (an image of a kind that is not taken); "damaged".
    """
    name = sniff(data)
    if name not in TAKEN:
        if name in _REFUSED_IMAGES:
            raise Unfit("format", f"{name} is not taken")
        raise Unfit("not-an-image", f"the bytes are {name}" if name else "the bytes are of no known format")
    try:
        header = _HEADERS[name](data)
    except (IndexError, struct.error):
        raise Unfit("damaged", f"the header of the {name} is cut off") from None
    if header.width < 1 or header.height < 1:
        raise Unfit("damaged", f"a {name} of {header.width} x {header.height} pixels")
    return header


# JPEG

_SOI, _EOI, _SOS, _APP1, _APP2, _APP14 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})  # sequential and progressive, Huffman or arithmetic coded
_OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF})  # lossless and hierarchical
_PICTURE = _FRAMES | {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, _SOS, _EOI, 0}
"""Markers without which a JPEG cannot be decoded; 0 stands for the coded data behind SOS."""
_MARKER = re.compile(rb"\xff++([^\x00\xff])")
_CODED_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_PROFILE = b"ICC_PROFILE\0"


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment behind SOI, up to EOI; marker 0 is the coded data behind a SOS."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.match(data, at)
        if found is None:
            raise Unfit("damaged", "the JPEG has no end" if at >= len(data) else "the JPEG has bytes between segments")
        marker, start, end = found[1][0], found.end() - 2, found.end()
        if marker == _EOI:
            yield marker, start, end
            return
        if marker <= 0x01 or 0xD0 <= marker <= _SOI:
            raise Unfit("damaged", f"the JPEG has a marker {marker:#x} where none can be")
        length = int.from_bytes(data[end : end + 2], "big")
        at = end + length
        if length < 2 or at > len(data):
            raise Unfit("damaged", "the JPEG is cut off within a segment")
        yield marker, start, at
        if marker == _SOS:
            tail = _CODED_END.search(data, at)
            if tail is None:
                raise Unfit("damaged", "the JPEG has no end")
            yield 0, at, tail.start()
            at = tail.start()
    raise Unfit("damaged", f"the JPEG has more than {_MOST_SEGMENTS} segments")


def _jpeg_header(data: bytes) -> Header:
    frame: tuple[int, int, int, int, bytes] | None = None
    orientation: int | None = None
    adobe = None
    for marker, start, end in _segments(data):
        if marker in _FRAMES:
            if frame is not None:
                raise Unfit("damaged", "the JPEG has two frames")
            bits, height, width, components = struct.unpack_from(">BHHB", data, start + 4)
            frame = (marker, bits, height, width, data[start + 10 : end : 3])
            if len(frame[4]) != components:
                raise Unfit("damaged", "the frame of the JPEG is cut off")
            if bits != 8 or components not in (1, 3, 4):
                raise Unfit("format", f"a JPEG of {components} channels of {bits} bits")
        elif marker in _OTHER_FRAMES:
            raise Unfit("format", f"a lossless or hierarchical JPEG (frame {marker:#x})")
        elif marker == _APP1 and orientation is None and data[start + 4 : start + 10] == b"Exif\0\0":
            orientation = _orientation(data[start + 10 : end])
        elif marker == _APP14 and data[start + 4 : start + 9] == b"Adobe" and end - start >= 16:
            adobe = data[start + 15]
        elif marker == _SOS:
            break
    if frame is None:
        raise Unfit("damaged", "the JPEG has no frame")
    sof, bits, height, width, names = frame
    ycc = len(names) == 3 and adobe in (None, 1) and names != b"RGB"
    plain = ycc and sof in (0xC0, 0xC1, 0xC2) and orientation in (None, 1)
    return Header("jpeg", width, height, len(names), bits, orientation or 1, plain)


def strip_jpeg(data: bytes) -> bytes:
    """A plain JPEG with nothing in it but the picture and, where it is well formed, its ICC profile.

    Every other APPn segment (EXIF, XMP, thumbnails), every comment, unknown segments and what stands behind the end go;
    all else stays byte for byte. Only for files whose `Header.plain` is true: others need what is dropped here to be
    shown as they were meant.

    Raises:
        Unfit: "damaged": the file is cut, or its segments do not follow one another.
    """
    parts: list[bytes] = [data[:2]]
    profiles: list[tuple[int, bytes]] = []
    for marker, start, end in _segments(data):
        segment = data[start:end]
        if marker == _APP2 and segment[4:16] == _PROFILE:
            profiles.append((len(parts), segment))
            parts.append(b"")
        elif marker in _PICTURE:
            parts.append(segment)
    if _is_profile([segment for _, segment in profiles]):
        for place, segment in profiles:
            parts[place] = segment
    return b"".join(parts)


def _is_profile(segments: list[bytes]) -> bool:
    """Whether the segments are the pieces of one ICC profile, in order, and nothing else."""
    count = len(segments)
    if count > 255 or any(segment[16:18] != bytes((n, count)) for n, segment in enumerate(segments, start=1)):
        return False
    profile = b"".join(segment[18:] for segment in segments)
    return profile[36:40] == b"acsp" and int.from_bytes(profile[:4], "big") == len(profile)


def _orientation(tiff: bytes) -> int:
    """EXIF orientation of a TIFF block, 1 where none is told or it makes no sense."""
    tiff = tiff.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(at + 2, min(at + 2 + 12 * count, len(tiff) - 11), 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 0x0112:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


# PNG, WebP, GIF and BMP


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk, its length and checksum included, up to IEND."""
    at = 8
    for _ in range(_MOST_CHUNKS):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        kind = data[at + 4 : at + 8]
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end
    raise Unfit("damaged", "the PNG has no end")


_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_PICTURE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


def _png_header(data: bytes) -> Header:
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise Unfit("damaged", "the PNG does not begin with its header")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if colour not in _PNG_CHANNELS or bits not in (1, 2, 4, 8, 16):
        raise Unfit("damaged", f"a PNG of colour type {colour} with {bits} bits")
    turned = (_orientation(data[start + 8 : end - 4]) for kind, start, end in _png_chunks(data) if kind == b"eXIf")
    return Header("png", width, height, _PNG_CHANNELS[colour], bits, next(turned, 1))


def _clean_png(data: bytes) -> bytes:
    parts = [data[:8]]
    for kind, start, end in _png_chunks(data):
        if kind in _PNG_PICTURE:
            if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise Unfit("damaged", f"a checksum of the PNG is wrong ({kind.decode()})")
            parts.append(data[start:end])
        elif not kind[0] & 0x20:
            raise Unfit("damaged", "the PNG has an unknown chunk that it cannot be read without")
    return b"".join(parts)


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk, its head and padding included."""
    last = 8 + int.from_bytes(data[4:8], "little")
    if last > len(data):
        raise Unfit("damaged", "the WebP is cut off")
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > last:
            return
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > last:
            raise Unfit("damaged", "the WebP is cut off within a chunk")
        yield data[at : at + 4], at, min(at + 8 + length + length % 2, last)
        at += 8 + length + length % 2
    raise Unfit("damaged", f"the WebP has more than {_MOST_CHUNKS} chunks")


def _webp_header(data: bytes) -> Header:
    size: tuple[int, int] | None = None
    orientation = 1
    for kind, start, end in _webp_chunks(data):
        body = start + 8
        if kind == b"VP8X":
            size = (1 + int.from_bytes(data[body + 4 : body + 7], "little"),
                    1 + int.from_bytes(data[body + 7 : body + 10], "little"))  # fmt: skip
        elif kind == b"VP8 " and size is None:
            wide, high = struct.unpack_from("<HH", data, body + 6)
            size = (wide & 0x3FFF, high & 0x3FFF)
        elif kind == b"VP8L" and size is None:
            (packed,) = struct.unpack_from("<I", data, body + 1)
            size = (1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
        elif kind == b"EXIF":
            orientation = _orientation(data[body:end])
    if size is None:
        raise Unfit("damaged", "the WebP has no picture")
    return Header("webp", *size, 3, 8, orientation)


_WEBP_PICTURE = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"})
_WEBP_META = 0x20 | 0x08 | 0x04  # flags of VP8X: profile, EXIF, XMP


def _clean_webp(data: bytes) -> bytes:
    parts = [b"WEBP"]
    for kind, start, end in _webp_chunks(data):
        if kind == b"VP8X" and end - start > 8:
            parts += [data[start : start + 8], bytes((data[start + 8] & ~_WEBP_META,)), data[start + 9 : end]]
        elif kind in _WEBP_PICTURE:
            parts.append(data[start:end])
    body = b"".join(parts)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _gif_header(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    for kind, start in _gif_blocks(data):
        if kind == 0x2C:  # Pillow lets the first frame widen the picture, so it counts here too
            left, top, wide, high = struct.unpack_from("<HHHH", data, start + 1)
            return Header("gif", max(width, left + wide), max(height, top + high), 1, (flags & 7) + 1)
    raise Unfit("damaged", "the GIF has no picture")


def _gif_blocks(data: bytes) -> Iterator[tuple[int, int]]:
    """(kind, start) of each frame (0x2C) and extension (0x21), up to the trailer."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    for _ in range(_MOST_CHUNKS):
        kind = data[at] if at < len(data) else -1
        if kind == 0x3B:
            return
        if kind not in (0x2C, 0x21) or at + 10 > len(data):
            raise Unfit("damaged", "the GIF has no end")
        yield kind, at
        if kind == 0x2C:
            flags = data[at + 9]
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            at += 2
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
    raise Unfit("damaged", f"the GIF has more than {_MOST_CHUNKS} blocks")


def _clean_gif(data: bytes) -> bytes:
    list(_gif_blocks(data))  # which finds the trailer, or raises
    return data


def _bmp_header(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        packing = 0
    elif size in (40, 52, 56, 64, 108, 124):
        width, height, _, bits, packing = struct.unpack_from("<iiHHI", data, 18)
    else:
        raise Unfit("damaged", f"a BMP header of {size} bytes")
    if packing not in (0, 3, 6) or bits not in (1, 4, 8, 16, 24, 32):
        raise Unfit("format", f"a BMP of {bits} bits, packed by method {packing}")
    return Header("bmp", width, abs(height), 1 if bits <= 8 else 3, bits if bits <= 8 else 8)


def _clean_bmp(data: bytes) -> bytes:
    header = _bmp_header(data)
    (offset,) = struct.unpack_from("<I", data, 10)
    (bits,) = struct.unpack_from("<H", data, 24 if data[14] == 12 else 28)
    if offset + (header.width * bits + 31) // 32 * 4 * header.height > len(data):
        raise Unfit("damaged", "the BMP is cut off")
    return data


_HEADERS = {"jpeg": _jpeg_header, "png": _png_header, "webp": _webp_header, "gif": _gif_header, "bmp": _bmp_header}
_CLEAN = {"png": _clean_png, "webp": _clean_webp, "gif": _clean_gif, "bmp": _clean_bmp}


def clean(data: bytes, name: str) -> bytes:
    """The picture of a PNG, WebP, GIF or BMP file whole, and as little else as the format allows.

    Orientation goes with the rest of the metadata: read it from the header first.

    Raises:
        Unfit: "damaged": the file is cut, or a checksum of a PNG is wrong.
    """
    try:
        return _CLEAN[name](data)
    except (IndexError, struct.error):
        raise Unfit("damaged", f"the {name} is cut off") from None
