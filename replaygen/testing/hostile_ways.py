"""The ways in which `hostile.HostileServer` misbehaves, one function each."""

from __future__ import annotations

import gzip
import io
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from time import time
from typing import Literal


@dataclass(frozen=True)
class Talk:
    """One request: `rest` is the path after the behaviour's name, `count` the requests so far, this included."""

    sock: socket.socket
    method: str
    rest: list[str]
    count: int
    port: int
    photo: bytes
    over: threading.Event

    def send(self, status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bool:
        """A whole reply with a Content-Length, and room for another request."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
        self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (b"" if self.method == "HEAD" else body))
        return True

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def wait(self, seconds: float) -> bool:
        """Sleep; false when the server closes."""
        return not self.over.wait(seconds)


Answer = Callable[[Talk], bool]


@dataclass(frozen=True)
class Behaviour:
    """What one address does, and what must come of it.

    Attributes:
        outcome: "photo" or "refused".
        reasons: words of which a refusal has one; empty where the outcome is a photo.
        stage: who refuses: "download", or "decode": the bytes arrive, and only who reads them can tell.
        apart: it has a port, that is a host, of its own: it asks for waiting, and others should not wait with it.
        sha256: of the bytes, where a list would tell one (a wrong one).
    """

    name: str
    answer: Answer
    outcome: Literal["photo", "refused"]
    reasons: frozenset[str]
    stage: Literal["download", "decode"]
    apart: bool = False
    scheme: Literal["http", "https"] = "http"
    sha256: str | None = None

    @property
    def path(self) -> str:
        """Of its address; the query stands for a secret that no log may show."""
        return f"/hostile/{self.name}/photo.jpg?canary=hostile-canary"


BEHAVIOURS: dict[str, Behaviour] = {}
_OK = "200 OK"
_JPEG = "Content-Type: image/jpeg"


def _way(
    name: str, *reasons: str, stage: Literal["download", "decode"] = "download", apart: bool = False,
    scheme: Literal["http", "https"] = "http", sha256: str | None = None,
) -> Callable[[Answer], Answer]:  # fmt: skip
    def keep(answer: Answer) -> Answer:
        outcome: Literal["photo", "refused"] = "refused" if reasons else "photo"
        BEHAVIOURS[name] = Behaviour(name, answer, outcome, frozenset(reasons), stage, apart, scheme, sha256)
        return answer

    return keep


def _plainly(name: str, *reasons: str, status: str = _OK, headers: tuple[str, ...] = (), apart: bool = False) -> None:
    """A behaviour that is no more than a status and headers around a good photo."""
    _way(name, *reasons, apart=apart)(lambda talk: talk.send(status, talk.photo, _JPEG, *headers))


_plainly("good")
_plainly("not-found", "gone", status="404 Not Found")
_plainly("gone", "gone", status="410 Gone")
_plainly("unauthorized", "forbidden", status="401 Unauthorized")
_plainly("forbidden", "forbidden", status="403 Forbidden")
_plainly("legal-reasons", "forbidden", status="451 Unavailable For Legal Reasons")
_plainly("teapot", "not-served", status="418 I'm a teapot")
_plainly("always-500", "server-error", status="500 Internal Server Error")
_plainly("429-always", "rate-limited", "retry-later", status="429 Slow", headers=("Retry-After: 1",), apart=True)
_plainly("429-a-day", "retry-later", status="429 Slow", headers=("Retry-After: 86400",), apart=True)
_plainly("429-silent", "rate-limited", "retry-later", status="429 Slow", apart=True)
_plainly("robots-noai", "opted-out", headers=("X-Robots-Tag: noindex", "X-Robots-Tag: NoAI, noimageai"))
_plainly("robots-noimageai", "opted-out", headers=("x-robots-tag: replaygen: noimageai",))
_plainly("robots-other-bot", headers=("X-Robots-Tag: otherbot: noai, noimageai",))
_plainly("tdm-reservation", "opted-out", headers=("TDM-Reservation: 1", "TDM-Policy: https://example.com/policy"))
_plainly("odd-status", "unexpected-status", status="299 Odd")
_plainly("brotli", "encoded-body", headers=("Content-Encoding: br",))
_plainly("html-header-on-a-photo", headers=("Content-Type: text/html",))


@_way("429-date", "rate-limited", "retry-later", apart=True)
def _date(talk: Talk) -> bool:
    return talk.send("429 Slow", b"", f"Retry-After: {formatdate(time() + 2, usegmt=True)}")


@_way("429-once", apart=True)
def _once(talk: Talk) -> bool:
    return talk.send(_OK, talk.photo) if talk.count > 1 else talk.send("429 Slow", b"", "Retry-After: 1")


@_way("503-once", apart=True)
def _once_503(talk: Talk) -> bool:
    return talk.send(_OK, talk.photo) if talk.count > 1 else talk.send("503 Later", b"busy")


@_way("500-once")
def _once_500(talk: Talk) -> bool:
    return talk.send(_OK, talk.photo) if talk.count > 1 else talk.send("500 Oh", b"broken")


@_way("never-answers", "timeout")
def _never(talk: Talk) -> bool:
    return talk.wait(3600.0)


@_way("tls-never", "timeout", apart=True, scheme="https")
def _tls_never(talk: Talk) -> bool:
    return talk.wait(3600.0)  # not reached: a handshake is no request, and is never answered


@_way("bad-tls", "tls", scheme="https")
def _bad_tls(talk: Talk) -> bool:
    return talk.send(_OK, talk.photo)


@_way("header-drip", "timeout")
def _header_drip(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\n")
    while talk.wait(0.05):
        talk.raw(b"X-A: b\r\n" if talk.count % 2 else b"X")
    return False


@_way("body-drip", "timeout")
def _body_drip(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + talk.photo[:64])
    while talk.wait(0.05):
        talk.raw(b"x")
    return False


@_way("body-drip-without-length", "timeout")
def _open_drip(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + talk.photo[:64])
    while talk.wait(0.05):
        talk.raw(b"x")
    return False


@_way("cut-body", "cut-body")
def _cut(talk: Talk) -> bool:
    talk.send(_OK, talk.photo[: len(talk.photo) // 2], length=len(talk.photo))
    return False


@_way("cut-chunked", "cut-body")
def _cut_chunked(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(talk.photo))
    talk.raw(talk.photo[: len(talk.photo) // 2])
    return False


@_way("negative-chunk", "cut-body")
def _negative_chunk(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
    return _pour(talk)


@_way("endless-trailers", "timeout", "bad-headers")
def _trailers(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    while talk.wait(0.005):
        talk.raw(b"X-A: b\r\n" * 100)
    return False


@_way("cut-without-length", "damaged", stage="decode")
def _cut_silently(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + talk.photo[: len(talk.photo) // 2])
    return False


@_way("truncated-jpeg", "damaged", stage="decode")
def _truncated(talk: Talk) -> bool:
    return talk.send(_OK, talk.photo[: len(talk.photo) // 2], _JPEG)


@_way("wrong-sha256", "other-bytes", stage="decode", sha256="0" * 64)
def _wrong_sha(talk: Talk) -> bool:
    return talk.send(_OK, talk.photo, _JPEG)


@_way("eps-as-jpeg", "not-an-image", "format", stage="decode")
def _eps(talk: Talk) -> bool:
    return talk.send(_OK, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", _JPEG)


@_way("html-as-jpeg", "not-an-image", "format", stage="decode")
def _html(talk: Talk) -> bool:
    return talk.send(_OK, b"<!doctype html><html><body>Please log in</body></html>", _JPEG)


@_way("html", "not-an-image")
def _page(talk: Talk) -> bool:
    return talk.send(_OK, b"<!doctype html><html><body>Please log in</body></html>", "Content-Type: text/html")


@_way("pixel-bomb", "too-many-pixels", "damaged", stage="decode")
def _pixels(talk: Talk) -> bool:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    return talk.send(
        _OK, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""), _JPEG
    )


@_way("gzip-bomb", "encoded-body")
def _gzip(talk: Talk) -> bool:
    bomb = gzip.compress(bytes(1_000_000)) * 200
    return talk.send(_OK, bomb, _JPEG, "Content-Encoding: gzip")


@_way("endless-body", "too-large", "timeout")
def _endless(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + talk.photo[:64])
    return _pour(talk)


@_way("endless-chunks", "too-large", "timeout")
def _endless_chunks(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    return _pour(talk, b"10000\r\n" + bytes(65536) + b"\r\n")


@_way("announced-huge", "too-large")
def _huge(talk: Talk) -> bool:
    talk.send(_OK, talk.photo, length=10**12)
    return False


@_way("enormous-header", "bad-headers")
def _enormous(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\nX-Big: ")
    return _pour(talk, b"a" * 65536)


@_way("endless-headers", "bad-headers")
def _headers(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\n")
    return _pour(talk, b"X-A: " + b"a" * 30_000 + b"\r\n")


@_way("endless-continue", "bad-headers")
def _continue(talk: Talk) -> bool:
    return _pour(talk, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


@_way("two-lengths", "bad-headers", "cut-body")
def _two_lengths(talk: Talk) -> bool:
    talk.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello")
    return False


@_way("garbage", "bad-response")
def _garbage(talk: Talk) -> bool:
    talk.raw(b"\x00\x01\x02 what is this\r\n\r\n")
    return False


@_way("reset", "connection-failed")
def _reset(talk: Talk) -> bool:
    talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


@_way("hang-up", "connection-failed")
def _hang_up(talk: Talk) -> bool:
    return False


@_way("empty", "empty")
def _empty(talk: Talk) -> bool:
    return talk.send(_OK, b"", _JPEG)


def _to(name: str, target: str, *reasons: str, scheme: Literal["http", "https"] = "http") -> None:
    """A redirect; `{port}` is the port of the server."""

    @_way(name, *reasons, scheme=scheme)
    def _redirect(talk: Talk) -> bool:
        return talk.send("302 Found", b"", f"Location: {target.format(port=talk.port)}")


_to("redirect-once", "/hostile/good/photo.jpg")
_to("redirect-loop", "/hostile/redirect-loop/photo.jpg", "redirect-loop")
_to("redirect-private", "http://10.0.0.1/photo.jpg", "private-address")
_to("redirect-metadata", "http://169.254.169.254/latest/meta-data/", "private-address")
_to("redirect-other-loopback", "http://127.0.0.2:8080/photo.jpg", "private-address")
_to("redirect-number", "http://2130706433:8080/photo.jpg", "private-address")
_to("redirect-mapped", "http://[::ffff:127.0.0.1]:8080/photo.jpg", "private-address")
_to("redirect-localhost", "http://localhost:8080/photo.jpg", "private-address")
_to("redirect-other-port", "http://127.0.0.1:22/", "bad-address")
_to("redirect-file", "file:///etc/passwd", "bad-address")
_to("redirect-gopher", "gopher://127.0.0.1:{port}/", "bad-address")
_to("redirect-userinfo", "http://user:password@127.0.0.1:{port}/hostile/good/photo.jpg", "bad-address")
_to("redirect-downgrade", "http://127.0.0.1:{port}/hostile/good/photo.jpg", "tls", "redirect-downgrade", scheme="https")
_to("redirect-nowhere", "http://[oops/", "bad-address")
_to("placeholder", "/images/photo_unavailable_l.png", "placeholder")


@_way("redirect-many", "too-many-redirects")
def _many(talk: Talk) -> bool:
    return talk.send("302 Found", b"", f"Location: /hostile/redirect-many/{talk.count}.jpg")


def _pour(talk: Talk, data: bytes = bytes(65536)) -> bool:
    """Send without end, until the other side hangs up."""
    while not talk.over.is_set():
        talk.raw(data)
    return False


def a_photo() -> bytes:
    """A JPEG of 320 x 240 pixels with colour and structure; the same bytes each time."""
    from PIL import Image

    picture = Image.new("RGB", (320, 240))
    picture.putdata([((x * 255) // 320, (y * 255) // 240, (x * y) % 256) for y in range(240) for x in range(320)])
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()
