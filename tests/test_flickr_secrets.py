"""Row 9, the API's part: neither key nor secret is in a log, an exception, a traceback or a repr, whatever fails."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from replaygen.crawl.limits import ApiLimit
from replaygen.sources.flickr import ApiFault, FlickrApi, flickr_limit
from replaygen.sources.flickr_search import Search, search
from replaygen.testing.local_flickr import LocalFlickr
from replaygen.testing.local_photos import FREE, made_photo

KEY, SECRET = "canary-key-5f1d", "canary-secret-77aa"
QUERY = "canary-query-cow"
LOGGERS = ("flickrapi", "flickrapi.core", "flickrapi.auth", "oauthlib", "requests_oauthlib", "urllib3", "requests")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that any logger writes, with the root logger at DEBUG."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    handler.setLevel(logging.DEBUG)
    root = logging.getLogger()
    before = {name: logging.getLogger(name).level for name in ("", *LOGGERS)}
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield told
    root.removeHandler(handler)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def make_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, key: str = KEY) -> FlickrApi:
    for name, value in (("FLICKR_API_KEY", key), ("FLICKR_API_SECRET", SECRET), ("REPLAYGEN_FLICKR_URL", url)):
        monkeypatch.setenv(name, value)
    limit = flickr_limit(tmp_path / "limit", 3600)
    quick = ApiLimit(tmp_path / "limit", f"flickr {key}", 3600, per_second=1000)
    assert limit.path == quick.path
    return FlickrApi(limit=quick, timeout=2.0, tries=2, backoff=0.001)


def everything(error: BaseException | None) -> str:
    """All that an exception and what it is linked to can show, the variables of its frames included."""
    told = ""
    while error is not None:
        told += str(error) + repr(error) + repr(error.args) + "".join(traceback.format_exception(error))
        told += "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        error = error.__cause__ or error.__context__
    return told


def calls(api: FlickrApi, tmp_path: Path) -> list[BaseException]:
    """Make every kind of call; the exceptions that they end in."""
    query = Search(text=QUERY, as_of=date(2025, 1, 1), licences=frozenset({"cc-by-2.0"}))
    asked: list[Callable[[], object]] = [
        lambda: api.call("flickr.test.echo", text=QUERY),
        lambda: api.call("flickr.no.such.method", text=QUERY),
        lambda: api.info("123"),
        api.licences,
        lambda: search(api, query, wanted=5, memory=tmp_path / "memory", gone=lambda photo: False),
    ]
    errors: list[BaseException] = []
    for ask in asked:
        try:
            ask()
        except Exception as error:
            errors.append(error)
    return errors


def answering(body: bytes, status: str = "200 OK") -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(2)
            connection.recv(65536)
            connection.sendall(
                f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
            )

    return talk


def silent(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(30)
        while connection.recv(65536):
            pass


ECHO = f"oauth_problem=consumer_key_rejected&oauth_consumer_key={KEY}&secret={SECRET}&q={QUERY}".encode()
SERVERS = {
    "refused": None,
    "silent": silent,
    "echoed-401": answering(ECHO, "401 Unauthorized"),
    "echoed-500": answering(ECHO, "500 Oops"),
    "echoed-redirect": answering(ECHO, f"302 Found\r\nLocation: http://127.0.0.1:1/?{ECHO.decode()}"),
    "malformed": answering(b'{"stat": "ok", "' + ECHO),
    "no-http": answering(b"", f"junk {ECHO.decode()}\r\n{ECHO.decode()}"),
    "echoed-fault": answering(json.dumps({"stat": "fail", "code": 100, "message": ECHO.decode()}).encode()),
    "odd-code": answering(json.dumps({"stat": "fail", "code": ECHO.decode(), "message": ECHO.decode()}).encode()),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_no_failing_server_makes_the_key_show(
    kind: str, log: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, silent, echoing the key, redirecting, malformed: the canaries are in no log and no exception."""
    talk = SERVERS[kind]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with contextlib.suppress(OSError):
                while talk is not None:
                    connection, _ = listener.accept()
                    threading.Thread(target=talk, args=(connection,), daemon=True).start()

        url = f"http://127.0.0.1:{listener.getsockname()[1]}/services/rest/"
        if talk is None:
            listener.close()
        threading.Thread(target=run, daemon=True).start()
        api = make_api(tmp_path, monkeypatch, url)
        api._timeout = 0.2 if kind == "silent" else 2.0
        errors = calls(api, tmp_path)
    assert len(errors) >= 3
    assert all(isinstance(error, ApiFault) for error in errors)
    shown = log.getvalue() + repr(api) + "".join(everything(error) for error in errors)
    assert KEY not in shown
    assert SECRET not in shown
    # the query may be in the variables of a frame, but not in what is raised or logged
    assert QUERY not in log.getvalue() + "".join(f"{error}{error!r}" for error in errors)
    for error in errors:
        assert error.__cause__ is None
        assert error.__context__ is None


def test_calls_that_succeed_do_not_show_it_either(
    log: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good key, a wrong key, and faults that quote the key: no log, no error and no file of the search has it."""
    with LocalFlickr(
        photos=[made_photo(str(n), [QUERY], FREE) for n in range(5)],
        key=KEY,
        secret=SECRET,
        lies=["echo", "stat-fail", "server-errors"],
        seed=4,
    ) as flickr:
        good = make_api(tmp_path, monkeypatch, flickr.url)
        good._tries = 4
        errors = calls(good, tmp_path)
        bad = make_api(tmp_path, monkeypatch, flickr.url, key=KEY + "-wrong")
        errors += calls(bad, tmp_path / "bad")
        with pytest.raises(ApiFault, match="FLICKR_API_KEY holds"):
            make_api(tmp_path, monkeypatch, flickr.url, key=KEY + "\n" + SECRET)
    assert len(errors) > 4
    assert flickr.asked[0]["api_key"] == KEY
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    names = " ".join(map(str, tmp_path.rglob("*")))
    shown = log.getvalue() + repr(good) + repr(vars(good)) + names + "".join(map(everything, errors))
    assert list((tmp_path / "memory").iterdir())
    for canary in (KEY, SECRET):
        assert canary not in shown
        assert canary.encode() not in written


def test_the_objects_that_hold_the_key_do_not_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """repr of the API, its credentials, its clients and its limit; and a fault that was copied is still the same."""
    api = make_api(tmp_path, monkeypatch, "http://127.0.0.1:1/services/rest/")
    with pytest.raises(ApiFault) as caught:
        api.call("flickr.test.echo")
    client = api._idle[0]
    shown = "".join(map(repr, [api, vars(api), api._limit, api._credentials, client, client._wire]))
    assert KEY not in shown
    assert SECRET not in shown
    again = copy.copy(caught.value)
    assert (again.code, again.transient, str(again)) == (None, True, str(caught.value))


def test_an_address_with_a_password_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy-like address with a login in it is refused without quoting it."""
    with pytest.raises(ApiFault) as caught:
        make_api(tmp_path, monkeypatch, f"https://{KEY}:{SECRET}@127.0.0.1/services/rest/")
    assert KEY not in str(caught.value) + repr(caught.value)
    assert ApiLimit(tmp_path, KEY, 5).path.name.count(KEY) == 0
