"""A photo server on loopback that misbehaves in every way we know of; each way has a name, an address and an outcome.

    with HostileServer() as server:
        downloader = Downloader(how, state=folder, agent="test", allow=server.allow)
        downloader.get(server.url("header-drip"))     # Refused: timeout

Raw sockets: http.server is too polite for most of it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import tempfile
import threading
from pathlib import Path

from replaygen.testing.hostile_ways import BEHAVIOURS, Behaviour, Talk, a_photo

__all__ = ["BEHAVIOURS", "TEST_CERTIFICATE", "Behaviour", "HostileServer"]

TEST_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgLpX4fb/wOXMOuwvu
Z1v4uAh6m7pH5o8WSgMFicR8oU6hRANCAASd4fWDvToTwK5P+NklVHk4PRWOxeQi
HCDA6DL5thg0FemlWfi5Ag+2OgO4pRzAIVUKivgRdI99WFh0dVqDEobK
-----END PRIVATE KEY-----
"""
TEST_CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBkDCCATWgAwIBAgIBATAKBggqhkjOPQQDAjAgMR4wHAYDVQQDDBVzZWxmLXNp
Z25lZCBmb3IgdGVzdHMwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBa
MCAxHjAcBgNVBAMMFXNlbGYtc2lnbmVkIGZvciB0ZXN0czBZMBMGByqGSM49AgEG
CCqGSM49AwEHA0IABJ3h9YO9OhPArk/42SVUeTg9FY7F5CIcIMDoMvm2GDQV6aVZ
+LkCD7Y6A7ilHMAhVQqK+BF0j31YWHR1WoMShsqjXjBcMA8GA1UdEwEB/wQFMAMB
Af8wHQYDVR0OBBYEFDP6Kkh5QRX2UzydUGOq88gTa1dXMA4GA1UdDwEB/wQEAwIC
hDAaBgNVHREEEzARhwR/AAABgglsb2NhbGhvc3QwCgYIKoZIzj0EAwIDSQAwRgIh
AOPeCGW3t/CoYc+m2p3Cj72FFB2LEeCA6KURoPm9LqTMAiEAtBsBr3Mcwn2r0A9y
YMbOnMv7XU2zchb74/dgqaMfTlE=
-----END CERTIFICATE-----
"""
"""Self-signed and public, for tests on loopback only; it protects nothing."""


class HostileServer:
    """Serves all of `BEHAVIOURS` on 127.0.0.1, each under a path; those that block a host have a port of their own.

    Args:
        photo: the JPEG that good replies hold; made if missing.

    Attributes:
        behaviours: name -> what to expect.
        counts: name -> requests that came for it.
        photo: the JPEG's bytes.
    """

    def __init__(self, photo: bytes | None = None) -> None:
        self.photo = photo if photo is not None else a_photo()
        self.behaviours: dict[str, Behaviour] = dict(BEHAVIOURS)
        self.counts: dict[str, int] = dict.fromkeys(BEHAVIOURS, 0)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._ports: dict[str, int] = {}
        self._listeners: list[tuple[socket.socket, bool]] = []

    def __enter__(self) -> HostileServer:
        plain, secret = self._listen(False), self._listen(True)
        for name, behaviour in self.behaviours.items():
            own = self._listen(False) if behaviour.apart else plain
            self._ports[name] = secret if behaviour.scheme == "https" and not behaviour.apart else own
        thread = threading.Thread(target=self._accept, name="hostile-accept", daemon=True)
        self._threads.append(thread)
        thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def allow(self) -> frozenset[str]:
        """What a Downloader must be allowed for these tests: host:port of every port."""
        return frozenset(f"127.0.0.1:{port}" for port in self._ports.values())

    def url(self, name: str) -> str:
        """The address of a behaviour."""
        behaviour = self.behaviours[name]
        return f"{behaviour.scheme}://127.0.0.1:{self._ports[name]}{behaviour.path}"

    def close(self) -> None:
        """Stop serving; all threads and sockets end."""
        self._over.set()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=5.0)
        for sock, _ in self._listeners:
            sock.close()

    def _listen(self, secret: bool) -> int:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(64)
        sock.setblocking(False)
        self._listeners.append((sock, secret))
        return int(sock.getsockname()[1])

    def _accept(self) -> None:
        context = _context()
        with selectors.DefaultSelector() as ready:
            for sock, secret in self._listeners:
                ready.register(sock, selectors.EVENT_READ, secret)
            while not self._over.is_set():
                for key, _ in ready.select(timeout=0.1):
                    assert isinstance(key.fileobj, socket.socket)
                    with contextlib.suppress(OSError):
                        came, _ = key.fileobj.accept()
                        self._serve(came, context if key.data else None)

    def _serve(self, came: socket.socket, context: ssl.SSLContext | None) -> None:
        came.setblocking(True)
        came.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread = threading.Thread(target=self._speak, args=(came, context), name="hostile", daemon=True)
        with self._lock:
            self._open.add(came)
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _speak(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """One connection: as many requests as the behaviours let come."""
        try:
            if context is not None:
                with self._lock:
                    self._open.discard(sock)
                    sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                    self._open.add(sock)
                sock.do_handshake()
            while not self._over.is_set() and self._one(sock):
                pass
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _one(self, sock: socket.socket) -> bool:
        """One request; whether another may follow on this connection."""
        head = b""
        while b"\r\n\r\n" not in head:
            more = sock.recv(65536)
            if not more or len(head) > 1 << 20:
                return False
            head += more
        method, path = head.split(b" ", 2)[:2]
        parts = path.decode("latin-1").split("/")
        behaviour = self.behaviours.get(parts[2]) if len(parts) > 2 else None
        if behaviour is None:  # also the placeholder, which is a good picture of nothing
            body = self.photo if parts[1] == "images" else b""
            sock.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (200 if body else 404, len(body)) + body)
            return True
        with self._lock:
            self.counts[behaviour.name] += 1
            count = self.counts[behaviour.name]
        port = self._ports[behaviour.name]
        return behaviour.answer(Talk(sock, method.decode("latin-1"), parts[3:], count, port, self.photo, self._over))


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.pem"
        path.write_text(TEST_KEY + TEST_CERTIFICATE)
        context.load_cert_chain(path)
    return context
