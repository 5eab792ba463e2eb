"""A local stand-in for Flickr: its documented protocol, over photos of a folder. It is not Flickr.

For tests and for trying a crawl without a key. It answers on loopback alone. On demand it lies, in the ways that a
photo API has been seen to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from replaygen.testing.local_photos import (
    LocalPhoto,
    entry,
    fits,
    folder_photos,
    info,
    licence_table,
    lied,
    number,
)

NOTICE: Final = (
    "A local stand-in for tests. It is not Flickr: owners, titles and licences are made up, "
    "and some of the licences are not free."
)
LIES: Final = (
    "licence-filter",
    "date-filter",
    "media-filter",
    "duplicates",
    "unknown-licence",
    "totals",
    "malformed",
    "empty-pages",
    "stat-fail",
    "server-errors",
    "retry-after",
    "not-json",
    "echo",
)
"""Lies that can be told. From "stat-fail" to "not-json" they are faults that come now and then, never three in a row;
"echo" puts what was asked, key included, into the message of a fault."""

_PER_PAGE, _MOST = 500, 4000
_MESSAGES: Final = {
    1: "Photo not found",
    3: "Parameterless searches have been disabled. Please use flickr.photos.getRecent instead.",
    100: "Invalid API Key (Key has invalid format)",
    105: "Service currently unavailable",
    112: "Method not found",
}


class LocalFlickr:
    """A server on 127.0.0.1, for use in a `with`.

    Args:
        root: folder of photos, see `folder_photos`; None where `photos` are given.
        key, secret: the only key that is good.
        photos: what to serve instead of a folder's.
        lies: of `LIES`.
        seed: of the lies.
        rate: calls in an hour; more are answered with HTTP 429.
        port: 0 chooses a free one.
        options: of `folder_photos`.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        key: str = "local-key",
        secret: str = "local-secret",
        photos: Iterable[LocalPhoto] | None = None,
        lies: Collection[str] = (),
        seed: int = 0,
        rate: int | None = None,
        port: int = 0,
        **options: Any,
    ) -> None:
        if odd := set(lies) - set(LIES):
            raise ValueError(f"there is no lie {sorted(odd)[0]!r}; lies: {', '.join(LIES)}")
        if photos is None and root is None:
            raise ValueError("give a folder of photos, or photos")
        listed = folder_photos(root, **options) if photos is None and root is not None else list(photos or ())
        self.photos = {photo.id: photo for photo in listed}
        self.files = {photo.name: photo.id for photo in listed}
        self.key, self.secret, self.lies, self.rate = key, secret, frozenset(lies), rate
        self.calls: Counter[str] = Counter()
        self.asked: list[dict[str, str]] = []
        self.fetched: Counter[str] = Counter()
        self._draw = random.Random(seed)
        self._faults = 0
        self._times: list[float] = []
        self._hidden: set[str] = set()
        self._inside = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.flickr = self
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}/services/rest/"

    def __enter__(self) -> LocalFlickr:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """What a crawler needs to be told to use this server."""
        return {
            "REPLAYGEN_FLICKR_URL": self.url,
            "FLICKR_API_KEY": self.key,
            "FLICKR_API_SECRET": self.secret,
            "REPLAYGEN_ALLOW_HOSTS": self.host,
        }

    def hide(self, numbers: Iterable[str]) -> None:
        """Make photos vanish: no search finds them, their files are gone."""
        with self._inside:
            self._hidden |= set(numbers)

    def relicense(self, numbers: Iterable[str], licence: int) -> None:
        """Put photos under another of Flickr's licences."""
        with self._inside:
            for number in numbers:
                self.photos[number] = replace(self.photos[number], licence=licence)

    def found(self, asked: Mapping[str, str]) -> list[LocalPhoto]:
        """Every photo that answers to a search, in order."""
        with self._inside:
            shown = [photo for number, photo in self.photos.items() if number not in self._hidden]
        fit = [photo for photo in shown if fits(photo, asked, self.lies)]
        if asked.get("sort", "").startswith("date-posted"):
            return sorted(fit, key=lambda photo: photo.uploaded, reverse=asked["sort"].endswith("desc"))
        return sorted(fit, key=lambda photo: hashlib.sha256(photo.id.encode()).digest())

    def fault(self) -> str | None:
        """The fault to answer a call with, where a lie asks for one now."""
        with self._inside:
            now = time.monotonic()
            self._times = [at for at in self._times if now - at < 3600] + [now]
            if self.rate is not None and len(self._times) > self.rate:
                return "retry-after"
            known = [lie for lie in ("stat-fail", "server-errors", "retry-after", "not-json") if lie in self.lies]
            tells = bool(known) and self._faults < 2 and self._draw.random() < 0.4
            self._faults = self._faults + 1 if tells else 0
            return self._draw.choice(known) if tells else None

    def answer(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """The answer to one call; `stat` says whether it is a fault."""
        method = asked.get("method", "")
        with self._inside:
            self.calls[method] += 1
            self.asked.append(dict(asked))
        if asked.get("api_key") != self.key:
            return self._fail(100, asked)
        if method == "flickr.test.echo":
            told = {name: {"_content": value} for name, value in asked.items() if name != "api_key"}
            return {**told, "stat": "ok"}
        if method == "flickr.photos.licenses.getInfo":
            return {"licenses": {"license": licence_table()}, "stat": "ok"}
        if method == "flickr.photos.search":
            if not any(asked.get(name) for name in ("text", "tags", "user_id", "min_upload_date", "license")):
                return self._fail(3, asked)
            return {"photos": self._page(asked), "stat": "ok"}
        if method not in ("flickr.photos.getInfo", "flickr.photos.getSizes"):
            return self._fail(112, asked)
        photo = self.photos.get(asked.get("photo_id", ""))
        if photo is None or photo.id in self._hidden:
            return self._fail(1, asked)
        if method == "flickr.photos.getInfo":
            return {"photo": info(photo), "stat": "ok"}
        sizes = [
            {"label": size, "width": wide, "height": high, "source": url, "media": photo.media}
            for size, (url, wide, high) in self.sizes(photo).items()
        ]
        return {"sizes": {"canblog": 0, "canprint": 0, "candownload": 1, "size": sizes}, "stat": "ok"}

    def sizes(self, photo: LocalPhoto) -> Mapping[str, tuple[str, int, int]]:
        """Offered sizes of a photo: suffix -> (address, width, height)."""
        own = (f"http://{self.host}{photo.name}", photo.width, photo.height)
        return photo.sizes or {"m": own, "o": own}

    def _fail(self, code: int, asked: Mapping[str, str]) -> dict[str, Any]:
        told = f" {dict(asked)}" if "echo" in self.lies else ""
        return {"stat": "fail", "code": code, "message": _MESSAGES[code] + told}

    def _page(self, asked: Mapping[str, str]) -> dict[str, Any]:
        found = self.found(asked)
        per_page = min(max(1, number(asked.get("per_page"), 100)), _PER_PAGE)
        page = max(1, number(asked.get("page"), 1))
        reachable = found[:_MOST]
        pages = -(-len(found) // per_page)
        # beyond the last result that can be reached, Flickr gives the last ones again
        start = min((page - 1) * per_page, max(0, (len(reachable) - 1) // per_page * per_page))
        shown = [] if page > max(1, pages) else reachable[start : start + per_page]
        extras = set(asked.get("extras", "").split(","))
        told: list[Any] = [entry(photo, extras, self.sizes(photo)) for photo in shown]
        total = len(found)
        with self._inside:
            told = lied(told, self.lies, self._draw)
            if "duplicates" in self.lies and page > 1:
                told = [entry(photo, extras, self.sizes(photo)) for photo in found[: per_page // 2]] + told
            if "totals" in self.lies:
                total = self._draw.choice([0, 1, total * 3, 10**9])
                pages = -(-total // per_page)
        return {"page": page, "pages": pages, "perpage": per_page, "total": total, "photo": told}


def serve(root: Path, port: int = 0, **options: Any) -> None:
    """Serve the photos of a folder in the foreground, until interrupted; the lines to export are printed first."""
    with contextlib.suppress(KeyboardInterrupt), LocalFlickr(root, port=port, **options) as flickr:
        exports = (f"export {name}={value}" for name, value in flickr.environment().items())
        classes = Counter(photo.words[0] for photo in flickr.photos.values())
        told = ", ".join(f"{name} {count}" for name, count in sorted(classes.items()))
        print(f"# {NOTICE}", f"# {told}", *exports, sep="\n", flush=True)
        threading.Event().wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    flickr: LocalFlickr


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    server: _Server

    def do_GET(self) -> None:
        """A call, or a photo's file."""
        parts = urlsplit(self.path)
        if parts.path.rstrip("/") == "/services/rest":
            self._call(parts.query)
        else:
            self._file(parts.path)

    def do_HEAD(self) -> None:
        """A photo's headers."""
        self._file(urlsplit(self.path).path)

    def do_POST(self) -> None:
        """A call."""
        length = number(self.headers.get("Content-Length"), 0)
        self._call(self.rfile.read(min(length, 10**6)).decode("utf-8", "replace"))

    def _call(self, query: str) -> None:
        flickr = self.server.flickr
        asked = dict(parse_qsl(query, keep_blank_values=True))
        header = self.headers.get("Authorization", "")
        if signed := re.search(r'oauth_consumer_key="([^"]*)"', header):
            asked["api_key"] = unquote(signed[1])
        fault = flickr.fault()
        if fault == "server-errors":
            self._send(500, b"<h1>Oops</h1>", "text/html")
        elif fault == "retry-after":
            self._send(429, b"too many requests", "text/plain", {"Retry-After": "0"})
        elif fault == "not-json":
            self._send(200, b"<!DOCTYPE html><title>Bad panda</title>", "text/html")
        else:
            told = flickr._fail(105, asked) if fault == "stat-fail" else flickr.answer(asked)
            self._send(200, json.dumps(told).encode(), "application/json")

    def _file(self, path: str) -> None:
        flickr = self.server.flickr
        photo = flickr.photos.get(flickr.files.get(path, ""))
        if path == "/":
            self._send(200, NOTICE.encode(), "text/plain")
        elif photo is None or photo.path is None or photo.id in flickr._hidden:
            self._send(404, b"gone", "text/plain")
        else:
            flickr.fetched[photo.id] += 1
            data = photo.path.read_bytes()
            kind = "image/png" if photo.suffix == ".png" else "image/jpeg"
            self._send(200, data, kind, {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"'})

    def _send(self, status: int, body: bytes, kind: str, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "X-Notice": NOTICE, **(more or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a call's line would hold what was asked."""
