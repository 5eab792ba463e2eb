"""What a reply says, and what went wrong where there is none.

Loaded only when crawling: it imports urllib3.
"""

from __future__ import annotations

import http.client
import logging
import re
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from urllib3 import exceptions as wrong
from urllib3.response import BaseHTTPResponse

from replaygen.crawl.addresses import HERE, Refused

KEPT_HEADERS = (
    "x-robots-tag", "tdm-reservation", "tdm-policy", "etag", "last-modified", "content-type", "date",
)  # fmt: skip
"""Lower case; what `Got.headers` keeps of a reply, at most 1,000 characters each."""

_DRAINED = 1 << 16  # an error page of up to this many bytes is read, so that its connection can be used again
_BY_STATUS = {404: "gone", 410: "gone", 401: "forbidden", 403: "forbidden", 451: "forbidden"}
_PICTURES = (
    b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
_DIRECTIVES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_TOKEN = re.compile(r"[a-z0-9_*.-]+")


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of `KEPT_HEADERS` that are there; several of one name joined by a comma."""
    return {name: headers[name][:1000] for name in KEPT_HEADERS if name in headers}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply asks to wait, from a number or an HTTP date; None where it does not say, or not readably."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
        told = headers.get("date")
        now = parsedate_to_datetime(told).timestamp() if told else time.time()  # the server's clock may be wrong
        return max(0.0, when.timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


def opted_out(headers: Mapping[str, str], bot: str = "replaygen") -> bool:
    """Whether a reply reserves its content from training: noai or noimageai for all or for `bot`, tdm-reservation: 1.

    headers: of urllib3 (`getlist`), or a plain mapping with lower-case names.
    """
    several = getattr(headers, "getlist", lambda name: [headers[name]] if name in headers else [])
    if any(text.strip().split(",")[0].strip() == "1" for text in several("tdm-reservation")):
        return True
    for text in several("x-robots-tag"):
        agent = "*"
        for part in text.lower().split(","):
            before, colon, after = part.partition(":")
            before = before.strip()
            if colon and before not in _DIRECTIVES and _TOKEN.fullmatch(before):
                agent, part = before, after
            if part.strip() in ("noai", "noimageai") and agent in ("*", bot):
                return True
    return False


def refused_by(status: int, host: str) -> Refused:
    """What a status that is neither a photo, a redirect, 429 nor 503 means."""
    detail = f"{host} answers {status}"
    if status in _BY_STATUS:
        return Refused(_BY_STATUS[status], detail)
    if 500 <= status < 600 or status in (408, 425):
        return Refused("server-error", detail, transient=True)
    return Refused("not-served" if 400 <= status < 500 else "unexpected-status", detail)


def problem_of(error: Exception, host: str, late: bool) -> Refused:
    """What went wrong with a request to `host`, in our words: urllib3's name the whole URL."""
    refused = isinstance(error, wrong.NewConnectionError)  # which is a kind of timeout to urllib3
    if late or (isinstance(error, wrong.TimeoutError | TimeoutError) and not refused):
        return Refused("timeout", f"no answer from {host} in time", transient=True)
    cause: object = error
    if isinstance(error, wrong.ProtocolError | wrong.SSLError) and error.args:
        cause = error.args[-1]
    if isinstance(cause, http.client.IncompleteRead):
        return Refused("cut-body", f"{host} sent less than it announced", transient=True)
    if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
        return Refused("connection-failed", f"{host} closed the connection", transient=True)
    if isinstance(error, wrong.SSLError) or isinstance(cause, ssl.SSLError):
        return Refused("tls", f"{host} is not who it says, or speaks no TLS of ours")
    if isinstance(cause, OSError | wrong.NewConnectionError):
        return Refused("connection-failed", f"the connection to {host} failed", transient=True)
    if isinstance(cause, http.client.BadStatusLine | http.client.UnknownProtocol):
        return Refused("bad-response", f"{host} does not speak HTTP", transient=True)
    if isinstance(cause, http.client.HTTPException | wrong.InvalidHeader):
        return Refused("bad-headers", f"{host} sends headers that are too many, too long or wrong")
    return Refused("bad-response", f"{host} sends what cannot be read ({type(cause).__name__})")


class _NoQueries(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if HERE.ticket is not None and record.levelno < logging.WARNING:
            return False
        text = record.getMessage()
        if "?" in text:
            record.msg, record.args = re.sub(r"\?[^\s\"']*", "?...", text), ()
        record.exc_info = record.exc_text = None
        return True


_FILTER = _NoQueries()


def hide_queries() -> None:
    """Keep query strings out of urllib3's log, whatever level it is set to: keys and tokens travel in them.

    Below WARNING nothing of our requests is logged at all; of anybody else's, the query is cut.
    """
    for name in ("connection", "connectionpool", "poolmanager", "response", "util.retry"):
        logging.getLogger(f"urllib3.{name}").addFilter(_FILTER)


def let_go(reply: BaseHTTPResponse) -> None:
    """Give a connection back: for further use where the reply was read, is empty, or is a short error page."""
    if reply.closed:
        return
    left = reply.length_remaining
    if left == 0 or (reply.status >= 300 and left is not None and left <= _DRAINED):
        try:
            reply.read(left or 1, decode_content=False)
        except (wrong.HTTPError, http.client.HTTPException, OSError):
            pass
    if not reply.closed:
        reply.close()
    reply.release_conn()


def is_page(content_type: str, begin: bytes) -> bool:
    """Whether a body is a page by its header, and does not begin like a picture."""
    if not content_type.strip().lower().startswith(("text/html", "application/xhtml")):
        return False
    picture = begin.startswith(_PICTURES) or begin[:4] == b"RIFF" or begin[4:8] == b"ftyp"
    return not picture


def as_utf8(location: str) -> str:
    """A Location header, whose bytes http.client reads as Latin-1."""
    try:
        return location.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return location
