"""A run as it goes on, served on this machine: progress, tables as they come, and the whole page behind a link.

Read only, GET only, on the loopback address only, and only to browsers that asked for it by a name of this machine, so
that no page of another site can read along. Nothing is read from the store unless somebody looks.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from replaygen.errors import ReplaygenError
from replaygen.report.following import Followed
from replaygen.report.planned import boxes, plan_picture
from replaygen.report.tables import final_rows
from replaygen.report.text import cut, mean_of
from replaygen.runs.results import RunResult, read_result

if TYPE_CHECKING:
    from replaygen.plan import Plan

log = logging.getLogger("replaygen.report.watch")

HOST = "127.0.0.1"
NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""What this machine may be called by who asks; any port, so that a tunnel (`ssh -L`) works."""

LEAST, SHARE = 1.0, 5.0
"""Seconds between two looks at the store; and at least so many times as long as a look takes."""

SLOW = 10.0
"""Seconds that a client may take to ask."""

HEADERS = {
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """Something to send, and its name: the same text has the same tag."""

    html: str
    tag: str

    @classmethod
    def of(cls, html: str) -> Text:
        return cls(html, f'"{hashlib.sha256(html.encode()).hexdigest()[:24]}"')


class Watch:
    """A recipe's run, rendered when asked, and anew only where something changed.

    Args:
        plan: what is to be made; it is not planned again, so a recipe that changes needs a new watch.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._followed = Followed(plan)
        self._lock, self._whole_lock = threading.Lock(), threading.Lock()
        self._next = 0.0
        self._live: Text | None = None
        self._drawn: tuple[tuple[str, ...], str] | None = None
        self._whole: tuple[tuple[str, ...], Text] | None = None

    def live(self) -> Text:
        """What goes on: an HTML fragment."""
        with self._lock:
            if self._live is None or time.monotonic() >= self._next:
                begun = time.monotonic()
                self._live = Text.of(self._fragment())
                ended = time.monotonic()
                self._next = ended + max(LEAST, SHARE * (ended - begun))
            return self._live

    def shell(self) -> Text:
        """The page that shows the fragment and asks for it again."""
        live = self.live()
        script = _script()
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        table = self._plan.recipe.table
        return Text.of(
            _render("watch.html", title=table.title or table.name, live=_marked(live.html), tag=live.tag,
                    live_script=_marked(script), live_sha=digest)
        )  # fmt: skip

    def whole(self) -> Text:
        """The page of the run, as far as it has come; written anew when more of its records stand."""
        from replaygen.report.page import gather, page

        with self._whole_lock:
            plan = replace(self._plan)
            done = tuple(key for key in plan.tasks if plan.status[key].cached)
            if self._whole is None or self._whole[0] != done:
                self._whole = done, Text.of(page(gather(plan)))
            return self._whole[1]

    def _fragment(self) -> str:
        """Errors of the store are shown: a run may be mending what is damaged."""
        self._followed.look()
        plan = replace(self._plan)  # with a status of its own, of now
        try:
            shown = boxes(plan)
            told: dict[str, Any] = {
                "tasks": len(plan.tasks), "cached": sum(box.cached for box in shown), "stages": shown,
                "left": self._followed.left(plan.to_run()), "picture": plan_picture(plan, timed=False),
                **self._results(plan), "error": "",
            }  # fmt: skip
        except ReplaygenError as error:
            told = {"error": cut(str(error), 400)}
        row = self._followed.row
        return _render(
            "watch_live.html", run=row, running=self._followed.running, other=self._followed.other,
            notes=self._followed.notes(), error_of_run=cut(row.error, 400) if row and row.error else "",
            recipe=self._plan.recipe.name, **told,
        )  # fmt: skip

    def _results(self, plan: Plan) -> Mapping[str, Any]:
        """The tables and the chart; the chart is drawn anew where an evaluation came."""
        from replaygen.report.curves import curves_svg

        result = read_result(plan)
        made = tuple(f"{step.method}/{step.seed}/{step.step}" for step in result.steps)
        if self._drawn is None or self._drawn[0] != made:
            self._drawn = made, curves_svg(result, ["all"]) if result.methods() else ""
        rows = [row for row in final_rows(result, plan.recipe.table.coarse) if row.all.mean is not None]
        return {"result": result, "rows": rows, "over": over_steps(result), "chart": _marked(self._drawn[1])}


def over_steps(result: RunResult) -> list[tuple[str, list[float | None]]]:
    """(method, mIoU over all seen classes after each step in percent, mean over the seeds that are that far)."""
    found = []
    for method in result.methods():
        steps = [step for seed in result.seeds() for step in result.of(method, seed)]
        values = [mean_of([step.metrics.get("all") for step in steps if step.step == k])
                  for k in range(len(result.step_names))]  # fmt: skip
        found.append((method, values))
    return found


def _render(template: str, **values: Any) -> str:
    from replaygen.report.page import render

    return render(template, **values)


def _marked(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _script() -> str:
    from replaygen.report.page import environment

    made = environment()
    assert made.loader is not None
    return made.loader.get_source(made, "watch.js")[0]


class Server(ThreadingHTTPServer):
    """The server of one watch."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, watch: Watch, port: int) -> None:
        self.watch = watch
        super().__init__((HOST, port), Handler)

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error worth a trace."""
        log.debug("a request was not answered", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of three addresses."""

    timeout = SLOW
    server_version = "replaygen"
    sys_version = ""

    def do_GET(self) -> None:
        """`/`: the page; `/live`: what goes on; `/report`: the page of the run."""
        watch = cast(Server, self.server).watch
        pages = {"/": watch.shell, "/live": watch.live, "/report": watch.whole}
        if not named_here(self.headers.get_all("Host")):
            self._refuse(421, "this server answers to 127.0.0.1 and localhost")
            return
        make = pages.get(urlsplit(self.path).path)
        if make is None:
            self._refuse(404, "there is nothing here")
            return
        try:
            text = make()
        except (ReplaygenError, OSError, ValueError) as error:
            self._refuse(503, cut(str(error), 400))
            return
        if self.headers.get("If-None-Match") == text.tag:
            self._head(304, text.tag)
            return
        self._head(200, text.tag, text.html.encode())

    do_HEAD = do_GET

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._not_allowed
        raise AttributeError(name)

    def _not_allowed(self) -> None:
        self._refuse(405, "only GET", allow="GET, HEAD")

    def _refuse(self, status: int, why: str, *, allow: str = "") -> None:
        self.close_connection = True
        self._head(status, "", f"{why}\n".encode(), kind="text/plain", **({"Allow": allow} if allow else {}))

    def _head(self, status: int, tag: str, body: bytes | None = None, kind: str = "text/html", **more: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **more}.items():
            self.send_header(name, value)
        if tag:
            self.send_header("ETag", tag)
        if body is not None:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body is not None and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """To the log, for who wants it."""
        log.debug("%s", cut(format % args))


def named_here(hosts: list[str] | None) -> bool:
    """Whether a request was made to this machine by a name of its own: a page of another site that has its name lead
    here (DNS rebinding) asks by that name."""
    if hosts is None or len(hosts) != 1:
        return False
    name, _, port = hosts[0].strip().lower().rpartition(":")
    return (name in NAMES and port.isdigit()) or hosts[0].strip().lower() in NAMES


@contextlib.contextmanager
def served(watch: Watch, port: int = 0) -> Iterator[Server]:
    """A server of a watch, listening; `serve_forever` answers.

    Args:
        port: 0: any free one.

    Raises:
        ReplaygenError: the port cannot be had.
    """
    try:
        server = Server(watch, port)
    except OSError as error:
        raise ReplaygenError(
            f"cannot serve on port {port}: {error.strerror}", where=HOST, hint="--port 0 takes any free one"
        ) from None
    with server:
        yield server
