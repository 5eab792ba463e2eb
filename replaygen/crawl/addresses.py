"""Which addresses may be asked, and connections that go to the very address that was checked.

A host's name is resolved once for a connection, each of its addresses is checked, and the socket goes to one that
passed: a second look-up could answer otherwise. Redirects come through the same door. Proxies of the environment are
never used. Loaded only when crawling: it imports urllib3, whose own connection classes are built upon here.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

if TYPE_CHECKING:
    from replaygen.crawl.pace import Ticket

LONGEST_ADDRESS = 4096
"""Characters of a URL."""
MOST_HEADERS = 64 * 1024
"""Bytes that status line and headers of a reply may have together; http.client allows 65,536 a line and 100 lines."""
REMEMBERED = 60.0
"""Seconds for which the checked addresses of a name are used again."""

_Where = tuple[socket.AddressFamily, tuple[Any, ...]]
_HOST_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._")
_PORTS = {"http": 80, "https": 443}

_NOT_GLOBAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "3fff::/20",
    )
)  # fmt: skip
_UNICAST6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_6TO4 = ipaddress.IPv6Network("2002::/16")


class Refused(Exception):
    """A photo that was not fetched.

    Attributes:
        reason: a short kebab-case word.
        detail: a sentence; holds no query string and no user information.
        transient: whether asking again later may help.
        headers: what the reply said of its use, where it was refused for that; lower-case names.
    """

    def __init__(
        self, reason: str, detail: str = "", transient: bool = False, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(reason, detail, transient)
        self.reason = reason
        self.detail = detail
        self.transient = transient
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Address(NamedTuple):
    """A checked URL. `host` is lower-case ASCII without brackets; `target` is path and query; no fragment."""

    scheme: str
    host: str
    port: int
    path: str
    target: str
    url: str


class Guard:
    """Says which URLs and which network addresses may be asked.

    Args:
        allow: "host" or "host:port" (an IPv6 address in brackets where a port follows): its addresses may be private
            and its port may be any. The host is compared as the URL writes it.
    """

    def __init__(self, allow: frozenset[str] = frozenset()) -> None:
        self._allow = frozenset(name.strip().lower() for name in allow)
        self._hosts: dict[tuple[str, str], tuple[str, int]] = {}
        self._resolved: dict[tuple[str, int], tuple[float, list[_Where]]] = {}

    def parse(self, url: str) -> Address:
        """Check all of a URL that can be checked without the network; Refused("bad-address") otherwise."""
        url = url.strip()
        if len(url) > LONGEST_ADDRESS or not url.isprintable():
            raise Refused("bad-address", "it is too long or holds control characters")
        try:
            scheme, netloc, path, query, _ = urlsplit(url)
        except ValueError:
            scheme = netloc = path = query = ""
        if scheme not in _PORTS:
            raise Refused("bad-address", "only http and https are fetched")
        found = self._hosts.get((scheme, netloc))
        if found is None:
            found = self._host_and_port(scheme, netloc)
            if len(self._hosts) > 4096:
                self._hosts.clear()
            self._hosts[scheme, netloc] = found
        path = path or "/"
        target = f"{path}?{query}" if query else path
        return Address(scheme, found[0], found[1], path, target, f"{scheme}://{netloc}{target}")

    def allowed(self, host: str, port: int) -> bool:
        """Whether a host was named as one that may be private."""
        shown = f"[{host}]" if ":" in host else host
        return host in self._allow or shown in self._allow or f"{shown}:{port}" in self._allow

    def resolve(self, host: str, port: int, seconds: float) -> list[_Where]:
        """The addresses of a host that may be connected to, at most 4; Refused where there is none in time."""
        known = self._resolved.get((host, port))
        if known is not None and known[0] > time.monotonic():
            return known[1]
        found = _look_up(host, port, seconds)
        if not self.allowed(host.rstrip("."), port):
            found = [where for where in found if is_global(str(where[1][0]))]
        if not found:
            raise Refused("private-address", f"{host} is not on the public internet")
        if len(self._resolved) > 4096:
            self._resolved.clear()
        self._resolved[host, port] = (time.monotonic() + REMEMBERED, found[:4])
        return found[:4]

    def _host_and_port(self, scheme: str, netloc: str) -> tuple[str, int]:
        if "@" in netloc:
            raise Refused("bad-address", "it holds user information")
        try:
            parts = urlsplit(f"//{netloc}")
            host, port = parts.hostname or "", parts.port
            if not host.isascii():
                host = host.encode("idna").decode("ascii").lower()
        except ValueError:  # also what the IDNA codec raises
            raise Refused("bad-address", "its host or port cannot be read") from None
        port = _PORTS[scheme] if port is None else port
        if ":" in host:
            good = netloc.startswith("[") and "%" not in host and _is_address(host)
        else:
            good = bool(host) and len(host) <= 253 and _HOST_LETTERS.issuperset(host) and "[" not in netloc
        if not good:
            raise Refused("bad-address", "its host is no host's name")
        if port not in (80, 443) and not 8000 <= port <= 8999 and not self.allowed(host.rstrip("."), port):
            raise Refused("bad-address", f"port {port} is not fetched from")
        return host, port


def is_global(text: str) -> bool:
    """Whether a network address is unicast on the public internet, in all the disguises an IPv4 address may wear."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_global(str(address.ipv4_mapped))
        if address in _NAT64:
            return is_global(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
        if address in _6TO4:
            return is_global(str(ipaddress.IPv4Address(int(address) >> 80 & 0xFFFFFFFF)))
        if address not in _UNICAST6:
            return False
    if any(address.version == network.version and address in network for network in _NOT_GLOBAL):
        return False
    return address.is_global and not address.is_multicast


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _look_up(host: str, port: int, seconds: float) -> list[_Where]:
    """All addresses of a host. Resolvers have no timeout: a name is looked up in a thread that may be left behind."""
    try:
        return _addresses(host, port, socket.AI_NUMERICHOST)
    except OSError:
        pass
    answer: list[list[_Where] | OSError] = []

    def ask() -> None:
        try:
            answer.append(_addresses(host, port, 0))
        except OSError as error:
            answer.append(error)
        except UnicodeError:
            answer.append(OSError())

    thread = threading.Thread(target=ask, name="crawl-resolve", daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    if not answer:
        raise Refused("timeout", f"{host} was not resolved in time", transient=True)
    if isinstance(answer[0], OSError):
        raise Refused("unknown-host", f"{host} has no address", transient=True)
    return answer[0]


def _addresses(host: str, port: int, flags: int) -> list[_Where]:
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags)
    return [(row[0], row[4]) for row in rows]


class _Here(threading.local):
    """The ticket of the request that this thread is making: its deadline, and the socket to shut when it passes."""

    ticket: Ticket | None = None


HERE = _Here()


class _HeaderLines:
    """The file that a reply's headers are read from, with a bound on all of them together."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MOST_HEADERS

    def readline(self, size: int) -> bytes:
        line: bytes = self._file.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("all headers")
        return line

    def close(self) -> None:
        self._file.close()


class _Reply(http.client.HTTPResponse):
    def begin(self) -> None:
        file = self.fp
        self.fp = _HeaderLines(file)  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = file

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:  # read(-1) would take in everything that comes
            raise ValueError
        return size


class _Guarded(HTTPConnection):
    """A connection to an address that was checked; tells the thread's ticket which socket it uses."""

    response_class = _Reply

    def __init__(self, *args: Any, guard: Guard, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard = guard

    def _new_conn(self) -> socket.socket:
        until = time.monotonic() + float(self.timeout or 0.0)
        problem: OSError | None = None
        for family, where in self.guard.resolve(self._dns_host, self.port, until - time.monotonic()):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(max(0.001, until - time.monotonic()))
                sock.connect(where)
                sock.settimeout(max(0.001, until - time.monotonic()))
                return sock
            except OSError as error:
                sock.close()
                problem = error
        if isinstance(problem, TimeoutError):
            raise ConnectTimeoutError(self, "connecting took too long")
        raise NewConnectionError(self, "the connection was refused")

    def connect(self) -> None:
        super().connect()
        self._tell()

    def request(self, *args: Any, **kwargs: Any) -> None:
        """As urllib3's; a connection that is used again has its socket already."""
        if self.sock is not None:
            self._tell()
        super().request(*args, **kwargs)

    def _tell(self) -> None:
        ticket = HERE.ticket
        if ticket is not None:
            ticket.sock = self.sock
            if ticket.late:
                raise TimeoutError


class _GuardedTLS(_Guarded, HTTPSConnection):
    pass


class Pool(HTTPConnectionPool):
    """Connections to one host over http; takes the keyword `guard`."""

    ConnectionCls = _Guarded


class TLSPool(HTTPSConnectionPool):
    """Connections to one host over https; takes the keywords `guard` and `ssl_context`."""

    ConnectionCls = _GuardedTLS
