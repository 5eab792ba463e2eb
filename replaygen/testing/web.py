"""A small web server on loopback whose answers are a function of the path: for tests that write their own site."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers, body. Content-Length is added where the headers have none."""


class Server:
    """Serves `answer(path)` to GET and HEAD, in one thread a connection.

    Attributes:
        host: "127.0.0.1:port".
        asked: paths, in the order in which they came.
        headers: of each request, lower-case names.
        connections: that were opened; at_once, most_at_once: requests being answered.
    """

    def __init__(self, answer: Callable[[str], Reply]) -> None:
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.connections = self.at_once = self.most_at_once = 0
        self._answer = answer
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def do_GET(self) -> None:
                outer._serve(self)

            def do_HEAD(self) -> None:
                outer._serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"

    def url(self, path: str) -> str:
        """The address of a path, which begins without a slash."""
        return f"http://{self.host}/{path}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.asked.append(request.path)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        status, headers, body = self._answer(request.path)
        with self._lock:
            self.at_once -= 1
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)
