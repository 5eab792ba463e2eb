"""The downloader: one photo at a time for each of many threads, politely, and safe from whatever answers.

What bounds a photo. Its *deadline* counts from when its first request may begin and holds for all tries, redirects,
backoffs and Retry-Afters of its own together. Standing in line does not count: for a connection of a busy host, for
the host's pace, for a block that another photo ran into. That is bounded by `most_wait` + `deadline` seconds in all,
and a block longer than `most_wait` is not waited for at all (Refused "retry-later").

Loaded only when crawling: it imports urllib3. A Downloader works in the process that uses it; a fork begins anew.
"""

from __future__ import annotations

import http.client
import os
import random
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from urllib3 import exceptions as wrong
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry

from replaygen.crawl import replies
from replaygen.crawl.addresses import HERE, Address, Guard, Pool, TLSPool
from replaygen.crawl.addresses import Refused as Refused
from replaygen.crawl.pace import Busy, Pace, Ticket, Watchdog
from replaygen.crawl.robots import MOST_BYTES, Robots
from replaygen.errors import DataError

if TYPE_CHECKING:
    from replaygen.crawl.specs import CrawlHow

MOST_REDIRECTS = 5
_CHUNK = 1 << 16
_SOCKETS = 256
_ONCE = Retry(False)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOT_AGAIN = frozenset({"retry-later", "closed"})


@dataclass(frozen=True, slots=True)
class Got:
    """A photo as it came.

    Attributes:
        data: the body, as sent; empty after `head`.
        url: the address that gave it, after redirects.
        status: of the last reply.
        headers: those of `replies.KEPT_HEADERS` that were there, lower-case names.
        requests: made for it, redirects and repetitions included.
        seconds: from call to return, waits included.
    """

    data: bytes
    url: str
    status: int
    headers: dict[str, str]
    requests: int
    seconds: float


class _Job(Ticket):
    """One photo on its way. `waited`: seconds in line; `failures`: tries that failed."""

    __slots__ = ("began", "failures", "requests", "waited")

    def __init__(self, seconds: float) -> None:
        self.began = time.monotonic()
        super().__init__(self.began + seconds)
        self.requests = 0
        self.failures = 0
        self.waited = 0.0


@dataclass(slots=True)
class _Host:
    pool: Pool | TLSPool
    gate: threading.BoundedSemaphore
    pace: Pace
    users: int = 0
    used: float = 0.0


class Downloader:
    """Fetches photos for any number of threads.

    Args:
        how: rates and limits.
        state: folder of the pace files, shared by all processes that are to share the pace.
        agent: the User-Agent.
        opt_out: refuse what says noai, noimageai or tdm-reservation.
        robots: honour robots.txt.
        allow: see `addresses.Guard`.

    Raises:
        DataError: the agent cannot be sent.
        StoreError: from `get`, where the state folder cannot be used.
    """

    def __init__(
        self, how: CrawlHow, *, state: Path, agent: str, opt_out: bool = True, robots: bool = False,
        allow: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        if not (agent.isascii() and agent.isprintable()):
            raise DataError("the User-Agent holds what a header cannot", hint="REPLAYGEN_CONTACT: plain characters")
        replies.hide_queries()
        self._how = how
        self._state = state
        self._bot = agent.partition("/")[0].strip().lower()
        self._headers = {"User-Agent": agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
        self._opt_out = opt_out
        self._with_robots = robots
        self._guard = Guard(allow)
        self._silence = max(1.0, how.deadline / 3)  # seconds without a byte after which a try is given up
        self._tls: ssl.SSLContext | None = None
        self._hosts: dict[tuple[str, str, int], _Host]
        self._dog: Watchdog
        self._begin()

    def get(self, url: str) -> Got:
        """Fetch a photo.

        Raises:
            Refused: with one of the reasons bad-address, private-address, unknown-host, connection-failed, tls,
                timeout, cut-body, empty, too-large, bad-headers, bad-response, encoded-body, not-an-image, gone,
                forbidden, not-served, unexpected-status, server-error, rate-limited, retry-later, opted-out, robots,
                robots-unreachable, placeholder, redirect-loop, too-many-redirects, redirect-downgrade, closed.
        """
        return self._fetch("GET", url)

    def head(self, url: str) -> Got:
        """As `get`, without the body: whether a photo is still there and still ours to use."""
        return self._fetch("HEAD", url)

    def close(self) -> None:
        """Stop everything that is under way (Refused "closed") and close all connections."""
        self._closed.set()
        self._dog.close()
        with self._lock:
            hosts, self._hosts = list(self._hosts.values()), {}
            for host in hosts:
                host.pool.close()
                if not host.users:  # else the last of them closes it
                    host.pace.close()

    def __enter__(self) -> Downloader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        """What belongs to one process: connections, locks, the thread that watches deadlines."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._hosts = {}
        self._dog = Watchdog()
        self._robots = Robots(self._text, self._headers["User-Agent"]) if self._with_robots else None

    def _text(self, url: str) -> bytes:
        return self._fetch("GET", url, plain=True).data

    def _fetch(self, method: str, url: str, plain: bool = False) -> Got:
        """Follow a URL to its end. `plain`: no photo but a robots.txt."""
        if os.getpid() != self._process:
            self._begin()
        job = _Job(self._how.deadline)
        address = self._guard.parse(url)
        seen: set[str] = set()
        while True:
            if "photo_unavailable" in address.path:
                raise Refused("placeholder", f"{address.host} answers with a placeholder")
            delay = None
            if self._robots is not None and not plain:
                before = time.monotonic()
                delay = self._robots.check(address)
                job.end += time.monotonic() - before
            reply = self._tries(method, address, job, plain, delay)
            if isinstance(reply, Got):
                return reply
            seen.add(address.url)
            address = self._redirected(address, reply, seen)

    def _redirected(self, address: Address, location: str, seen: set[str]) -> Address:
        try:
            target = self._guard.parse(urljoin(address.url, location))
        except ValueError:
            raise Refused("bad-address", f"{address.host} redirects to what is no address") from None
        if address.scheme == "https" and target.scheme != "https":
            raise Refused("redirect-downgrade", f"{address.host} redirects from https to http")
        if target.url in seen:
            raise Refused("redirect-loop", f"{address.host} redirects in a circle")
        if len(seen) > MOST_REDIRECTS:
            raise Refused("too-many-redirects", f"more than {MOST_REDIRECTS} redirects")
        return target

    def _tries(self, method: str, address: Address, job: _Job, plain: bool, delay: float | None) -> Got | str:
        """Ask one address, again where that may help; the photo, or where to go instead."""
        host = self._enter(address)
        if delay is not None:
            host.pace.ceiling = min(self._how.rate, 1.0 / delay)
        try:
            while True:
                self._turn(host, job)
                try:
                    return self._once(host, method, address, job, plain)
                except Refused as refused:
                    problem = refused.with_traceback(None)  # it holds the frame that holds the body
                finally:
                    host.gate.release()
                job.failures += 1
                if not problem.transient or problem.reason in _NOT_AGAIN or job.failures >= self._how.tries:
                    raise problem
                pause = 0.0  # after 429 the host's block is the pause
                if problem.reason != "rate-limited":
                    pause = min(10.0, 0.1 * 2.0**job.failures) * (0.5 + random.random())
                if time.monotonic() + pause >= job.end:
                    raise problem
                self._pause(pause)
        finally:
            with self._lock:
                host.users -= 1
                if not host.users and self._closed.is_set():
                    host.pace.close()

    def _turn(self, host: _Host, job: _Job) -> None:
        """Wait in line for a connection and for the host's pace; leaves with the gate held."""
        began = time.monotonic()
        most_block = self._how.most_wait
        most = self._how.most_wait + self._how.deadline - job.waited
        if job.failures:
            most = min(most, job.end - began)
            most_block = min(most_block, most)
        if not host.gate.acquire(timeout=max(0.0, most)):
            raise Refused("retry-later", "its host is busy", transient=True)
        try:
            if self._closed.is_set():
                raise _closed()
            host.pace.turn(most - (time.monotonic() - began), most_block, self._pause)
        except Busy as busy:
            host.gate.release()
            raise Refused("retry-later", f"its host has no turn for {busy.seconds:.0f} s", transient=True) from None
        except BaseException:
            host.gate.release()
            raise
        waited = time.monotonic() - began
        job.waited += waited
        if not job.failures:
            job.end += waited

    def _once(self, host: _Host, method: str, address: Address, job: _Job, plain: bool) -> Got | str:
        """Make one request and read its reply."""
        left = job.end - time.monotonic()
        if left <= 0.0:
            raise Refused("timeout", f"no answer from {address.host} in time", transient=True)
        job.requests += 1
        asked = host.pace.now()
        reply: BaseHTTPResponse | None = None
        HERE.ticket = job
        self._dog.watch(job)
        try:
            reply = host.pool.urlopen(
                method, address.target, headers=self._headers, retries=_ONCE, redirect=False, assert_same_host=False,
                timeout=min(left, self._silence), preload_content=False, decode_content=False,
            )  # fmt: skip
            if job.late:
                raise TimeoutError
            return self._read(reply, host, method, address, job, asked, plain)
        except (wrong.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            problem = replies.problem_of(error, address.host, job.late)
        finally:
            if reply is not None:
                replies.let_go(reply)
            self._dog.leave(job)
            HERE.ticket = None
        if self._closed.is_set():
            raise _closed()
        raise problem  # outside the handler: what urllib3 raises names the whole URL, and would travel along

    def _read(
        self, reply: BaseHTTPResponse, host: _Host, method: str, address: Address, job: _Job, asked: float, plain: bool
    ) -> Got | str:
        headers = reply.headers
        if reply.status not in (200, 203):
            location = headers.get("location") if reply.status in _REDIRECTS else None
            if location:
                return replies.as_utf8(location)
            raise self._by_status(reply, host, address, job, asked)
        if self._opt_out and not plain and replies.opted_out(headers, self._bot):
            kept = replies.kept_headers(headers)
            raise Refused("opted-out", f"{address.host} reserves it from this use", headers=kept)
        data = b""
        if method == "GET":
            if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                raise Refused("encoded-body", f"{address.host} sends a compressed body that nobody asked for")
            data = self._body(reply, address, plain)
            if job.late:  # a body without a length looks complete when its socket is shut
                raise TimeoutError
            if not data:
                raise Refused("empty", f"{address.host} sends nothing", transient=False)
        return Got(
            data, address.url, reply.status, replies.kept_headers(headers), job.requests, time.monotonic() - job.began
        )

    def _body(self, reply: BaseHTTPResponse, address: Address, plain: bool) -> bytes:
        most = MOST_BYTES if plain else int(self._how.most_mb * 1e6)
        told = reply.length_remaining
        if told is not None and told > most and not plain:
            raise Refused("too-large", f"{told} bytes announced, {most} allowed")
        parts: list[bytes] = []
        size = 0
        while part := reply.read(_CHUNK, decode_content=False):
            if not parts and not plain and replies.is_page(reply.headers.get("content-type", ""), part):
                raise Refused("not-an-image", f"{address.host} sends a page")
            parts.append(part)
            size += len(part)
            if size > most:
                if plain:
                    break
                raise Refused("too-large", f"more than {most} bytes")
            if reply.length_remaining == 0:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _by_status(self, reply: BaseHTTPResponse, host: _Host, address: Address, job: _Job, asked: float) -> Refused:
        if reply.status in (429, 503):
            detail = f"{address.host} answers {reply.status}"
            blocked = host.pace.push_back(replies.retry_after(reply.headers), asked)
            if blocked > min(self._how.most_wait, job.end - time.monotonic()):
                return Refused("retry-later", f"{detail}, and asks to wait for {blocked:.0f} s", transient=True)
            return Refused("rate-limited", detail, transient=True)
        return replies.refused_by(reply.status, address.host)

    def _pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise _closed()

    def _enter(self, address: Address) -> _Host:
        """The connections and the pace of a host; those of hosts that rest are closed where there are many."""
        key = (address.scheme, address.host, address.port)
        now = time.monotonic()
        with self._lock:
            if self._closed.is_set():
                raise _closed()
            host = self._hosts.get(key)
            if host is None:
                if len(self._hosts) >= max(4, _SOCKETS // self._how.connections):
                    self._drop_one()
                host = self._hosts[key] = self._new_host(address)
            host.users += 1
            host.used = now
        return host

    def _drop_one(self) -> None:
        resting = [(host.used, key) for key, host in self._hosts.items() if not host.users]
        if resting:
            host = self._hosts.pop(min(resting)[1])
            host.pool.close()
            host.pace.close()

    def _new_host(self, address: Address) -> _Host:
        most = self._how.connections
        pace = Pace(self._state, f"{address.host}:{address.port}", self._how.rate)
        pool: Pool | TLSPool
        if address.scheme == "https":
            if self._tls is None:
                self._tls = ssl.create_default_context()
            pool = TLSPool(address.host, address.port, maxsize=most, guard=self._guard, ssl_context=self._tls)
        else:
            pool = Pool(address.host, address.port, maxsize=most, guard=self._guard)
        return _Host(pool, threading.BoundedSemaphore(most), pace)


def _closed() -> Refused:
    return Refused("closed", "the downloader was closed", transient=True)


def crawl_environment() -> tuple[Path, str, frozenset[str]]:
    """State folder, User-Agent and hosts whose addresses may be private, from the environment.

    REPLAYGEN_STATE (default ~/.cache/replaygen/rates), REPLAYGEN_CONTACT (goes into the User-Agent),
    REPLAYGEN_ALLOW_HOSTS (comma-separated host or host:port).
    """
    from importlib.metadata import PackageNotFoundError, version

    state = Path(os.environ.get("REPLAYGEN_STATE") or "~/.cache/replaygen/rates").expanduser()
    contact = os.environ.get("REPLAYGEN_CONTACT", "").strip()
    about = "replay data for semantic segmentation" + (f"; contact {contact}" if contact else "")
    hosts = os.environ.get("REPLAYGEN_ALLOW_HOSTS", "").split(",")
    try:
        ours = version("replaygen")
    except PackageNotFoundError:  # a checkout that was not installed
        ours = "0"
    return state, f"replaygen/{ours} ({about})", frozenset(name.strip() for name in hosts if name.strip())
