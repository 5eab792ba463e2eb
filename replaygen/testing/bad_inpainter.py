"""An inpainting server on loopback that speaks lama-cleaner's protocol and misbehaves in every way we know of.

    with BadInpainter("black-hole") as server:
        with open_inpainter({"backend": "lama", "timeout": 2}, {"server": server.url}) as inpainter:
            inpainter.fill(image, mask)                  # Failure: inpainter-black

`WAYS` names them, each with the reason for which its answers are refused; None where they are good.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import numpy.typing as npt

WAYS: dict[str, str | None] = {
    "good": None,
    "careless": None,  # changes pixels outside the hole a little
    "jpeg": None,  # answers in a lossy format
    "crash-once": None,  # closes the connection of the first picture, and answers the next
    "crash": "inpainter-crashed",  # closes the connection instead of an answer
    "half": "inpainter-crashed",  # closes it half-way
    "hang": "inpainter-timeout",
    "header-drip": "inpainter-timeout",
    "body-drip": "inpainter-timeout",
    "error": "inpainter-refused",
    "redirect": "inpainter-refused",
    "empty": "inpainter-not-an-image",
    "text": "inpainter-not-an-image",
    "nan": "inpainter-not-an-image",  # float32 pixels, all of them NaN
    "truncated": "inpainter-not-an-image",
    "bomb": "inpainter-wrong-size",  # a small file whose header says 12,000 x 12,000 pixels
    "endless": "inpainter-wrong-size",
    "padded": "inpainter-wrong-size",  # the sides brought to multiples of 8, and left so
    "turned": "inpainter-wrong-size",  # height and width exchanged
    "black": "inpainter-black",
    "black-hole": "inpainter-black",  # black in the hole alone
    "black-part": "inpainter-black",  # in a half of the hole
    "grey-hole": "inpainter-one-colour",
    "unchanged": "inpainter-unchanged",
    "another": "inpainter-strayed",  # somebody else's picture
    "negative": "inpainter-strayed",
}

_Image = npt.NDArray[np.uint8]


class BadInpainter:
    """Serves POST /inpaint in one way, GET /model as lama-cleaner does.

    Args:
        way: of `WAYS`; may be changed while it serves.
        model: what it says that it runs.

    Attributes:
        asked: how many pictures came.
    """

    def __init__(self, way: str = "good", *, model: str = "lama") -> None:
        self.way = way
        self.model = model
        self.asked = 0
        self.crashed = False
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                _send(self, outer.model.encode(), "text/plain")

            def do_POST(self) -> None:
                outer.asked += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    _misbehave(outer, self, *_parts(body))
                except OSError:
                    pass  # the other side had enough

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving; nobody listens any more."""
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> BadInpainter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _misbehave(server: BadInpainter, talk: BaseHTTPRequestHandler, image: _Image, mask: npt.NDArray[np.bool_]) -> None:
    way = server.way
    good = _png(_filled(image, mask))
    if way == "crash" or (way == "crash-once" and not server.crashed):
        server.crashed = talk.close_connection = True
    elif way == "half":
        talk.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(good) + good[: len(good) // 2])
    elif way == "hang":
        server.over.wait(60)
    elif way == "header-drip":
        _drip(server, talk, b"HTTP/1.0 200 OK\r\n", b"X-Drip: 1\r\n")
    elif way == "body-drip":
        _drip(server, talk, b"HTTP/1.0 200 OK\r\nContent-Length: 50000\r\n\r\n", b"x")
    elif way == "endless":
        talk.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        while not server.over.is_set():
            talk.wfile.write(bytes(1 << 16))
    elif way == "error":
        _send(talk, b"CUDA out of memory", "text/plain", 500)
    elif way == "redirect":
        talk.send_response(302)
        talk.send_header("Location", "http://192.0.2.1/inpaint")
        talk.end_headers()
    else:
        _send(talk, _answer(way, image, mask, good), "image/png")


def _answer(way: str, image: _Image, mask: npt.NDArray[np.bool_], good: bytes) -> bytes:
    """The bytes of a whole answer with status 200."""
    pixels = _filled(image, mask)
    if way == "careless":
        return _png(np.clip(pixels.astype(np.int16) + 2, 0, 255).astype(np.uint8))
    if way == "jpeg":
        return _encoded(pixels, "jpeg")
    if way == "empty":
        return b""
    if way == "text":
        return b"<html>all is well</html>"
    if way == "nan":
        return _encoded(np.full(image.shape[:2], np.nan, dtype=np.float32), "tiff")
    if way == "truncated":
        return good[:-40]
    if way == "bomb":
        return _bomb(12_000)
    if way == "padded":
        return _png(np.pad(pixels, ((0, 8 - len(pixels) % 8), (0, 0), (0, 0)), mode="symmetric"))
    if way == "turned":
        return _png(np.ascontiguousarray(pixels.transpose(1, 0, 2)))
    if way == "black":
        return _png(np.zeros_like(image))
    if way in {"black-hole", "grey-hole"}:
        pixels[mask] = 0 if way == "black-hole" else 127
    elif way == "black-part":
        part = mask.copy()
        part[:, : image.shape[1] // 2] = False
        pixels[part] = 0
    elif way == "unchanged":
        pixels = image
    elif way == "another":
        pixels = np.ascontiguousarray(pixels[::-1, ::-1])
    elif way == "negative":
        pixels = 255 - pixels
    return _png(pixels)


def _filled(image: _Image, mask: npt.NDArray[np.bool_]) -> _Image:
    """An honest fill, if a plain one: the mean colour of what is outside, with some noise."""
    outside = image[~mask]
    mean = outside.mean(axis=0) if len(outside) else np.full(3, 127.0)
    noise = np.random.default_rng(0).normal(0.0, 12.0, image.shape)
    return np.where(mask[..., None], np.clip(mean + noise, 0, 255).astype(np.uint8), image)


def _parts(body: bytes) -> tuple[_Image, npt.NDArray[np.bool_]]:
    """image and mask of a multipart form; KeyError where a field that lama-cleaner reads is missing."""
    from PIL import Image

    from replaygen.inpainters.lama_wire import FORM

    mark = body[: body.index(b"\r\n")]
    fields: dict[str, bytes] = {}
    for part in body.split(mark + b"\r\n")[1:]:
        head, _, data = part.partition(b"\r\n\r\n")
        fields[head.split(b'name="')[1].split(b'"')[0].decode()] = data.removesuffix(mark + b"--\r\n")[:-2]
    for name in FORM:
        fields[name]
    image = np.array(Image.open(io.BytesIO(fields["image"])).convert("RGB"))
    return image, np.array(Image.open(io.BytesIO(fields["mask"])).convert("L")) > 127


def _send(talk: BaseHTTPRequestHandler, data: bytes, kind: str, status: int = 200) -> None:
    talk.send_response(status)
    talk.send_header("Content-Type", kind)
    talk.send_header("Content-Length", str(len(data)))
    talk.end_headers()
    talk.wfile.write(data)


def _drip(server: BadInpainter, talk: BaseHTTPRequestHandler, head: bytes, drop: bytes) -> None:
    talk.wfile.write(head)
    while not server.over.wait(0.05):
        talk.wfile.write(drop)


def _png(pixels: _Image) -> bytes:
    return _encoded(pixels, "png")


def _encoded(pixels: npt.NDArray[Any], form: str) -> bytes:
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(pixels).save(written, form)
    return written.getvalue()


def _bomb(side: int) -> bytes:
    """A PNG of `side` x `side` pixels that says so, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
