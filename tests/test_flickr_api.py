"""Calls of Flickr's API against a local server: what is tried again, what is final, and what a photo is said to be."""

from __future__ import annotations

import contextlib
import copy
import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from replaygen.crawl.licences import LICENCES
from replaygen.crawl.limits import ApiLimit
from replaygen.sources.flickr import ApiFault, FlickrApi
from replaygen.testing.local_flickr import LocalFlickr
from replaygen.testing.local_photos import FREE, made_photo

Start = Callable[..., LocalFlickr]
VARIABLES = ("REPLAYGEN_FLICKR_URL", "FLICKR_API_KEY", "FLICKR_API_SECRET", "REPLAYGEN_ALLOW_HOSTS")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a local Flickr with three photos, and point the environment to it."""
    with contextlib.ExitStack() as stack:

        def begin(**options: Any) -> LocalFlickr:
            photos = [made_photo(f"cow/{name}", ["cow"]) for name in range(3)]
            flickr = stack.enter_context(LocalFlickr(**{"photos": photos, **options}))
            for name, value in flickr.environment().items():
                monkeypatch.setenv(name, value)
            return flickr

        yield begin


def make_api(tmp_path: Path, **options: Any) -> FlickrApi:
    limit = ApiLimit(tmp_path, "test", 3600, per_second=1000)
    return FlickrApi(limit=limit, **{"timeout": 5.0, "backoff": 0.01, **options})


@contextlib.contextmanager
def raw_server(talk: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that does with each connection what a test says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=talk, args=(connection,), daemon=True).start()

        threading.Thread(target=run, daemon=True).start()
        monkeypatch.setenv("REPLAYGEN_FLICKR_URL", f"http://127.0.0.1:{listener.getsockname()[1]}/services/rest/")
        monkeypatch.setenv("FLICKR_API_KEY", "key")
        monkeypatch.setenv("FLICKR_API_SECRET", "secret")
        yield


def answer(status: str, body: bytes, *headers: str) -> Callable[[socket.socket], None]:
    """Answer every request on a connection alike, and close."""

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            asked = b""
            while b"nojsoncallback" not in asked:
                asked += connection.recv(65536)
            head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers])
            connection.sendall(head.encode() + b"\r\n\r\n" + body)

    return talk


def test_a_call_is_answered_and_counted(start: Start, tmp_path: Path) -> None:
    """Parameters reach the server as they are, signed with the key in a header, and the answer is plain data."""
    flickr, api = start(), make_api(tmp_path)
    assert api.call("flickr.test.echo", text="a cow & ünïcode")["text"] == {"_content": "a cow & ünïcode"}
    assert api.calls == 1
    assert flickr.asked[0]["api_key"] == "local-key"


def test_faults_that_pass_are_tried_again(start: Start, tmp_path: Path) -> None:
    """HTTP 500, 429, pages of HTML and code 105 in a HTTP 200 now and then: fifty calls all come through."""
    start(lies=["stat-fail", "server-errors", "retry-after", "not-json"], seed=3)
    api = make_api(tmp_path)
    for turn in range(50):
        assert api.call("flickr.test.echo", turn=turn)["turn"] == {"_content": str(turn)}
    assert api.calls > 60


def test_an_invalid_key_ends_at_once(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code 100 comes as HTTP 200; it is not tried again, and says which variables to set."""
    start()
    monkeypatch.setenv("FLICKR_API_KEY", "wrong")
    api = make_api(tmp_path)
    with pytest.raises(ApiFault, match="key is not valid") as caught:
        api.call("flickr.test.echo")
    assert (caught.value.code, caught.value.transient, api.calls) == (100, False, 1)
    assert "FLICKR_API_KEY" in str(caught.value)


@pytest.mark.parametrize("missing", ["FLICKR_API_KEY", "FLICKR_API_SECRET"])
def test_a_missing_key_fails_before_any_call(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Without key or secret there is a sentence that names the variable, and nothing was asked."""
    flickr = start()
    monkeypatch.setenv(missing, "  ")
    with pytest.raises(ApiFault, match=f"{missing} is not set"):
        make_api(tmp_path)
    assert not flickr.asked


@pytest.mark.parametrize(
    "address", ["http://example.org/services/rest/", "ftp://127.0.0.1/", "https://a:b@c/", "https://[/"]
)
def test_an_address_that_would_show_the_key_is_refused(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """The key goes out encrypted, or to this machine."""
    start()
    monkeypatch.setenv("REPLAYGEN_FLICKR_URL", address)
    with pytest.raises(ApiFault, match="REPLAYGEN_FLICKR_URL"):
        make_api(tmp_path)


@pytest.mark.parametrize(
    ("status", "body", "tries", "code"),
    [
        ("200 OK", b'{"stat":"fail","code":105,"message":"x"}', 3, 105),
        ("200 OK", b'{"stat":"fail","code":"112","message":"x"}', 1, 112),
        ("200 OK", b'{"stat":"fail"}', 3, None),
        ("200 OK", b'{"photos":{}}', 3, None),
        ("200 OK", b"[1,2]", 3, None),
        ("200 OK", b"[" * 100_000, 3, None),
        ("200 OK", b"\xff\xfe{", 3, None),
        ("200 OK", b"", 3, None),
        ("401 Unauthorized", b"oauth_problem=consumer_key_rejected", 1, None),
        ("404 Not Found", b"x", 1, None),
        ("302 Found", b"x", 1, None),
        ("503 Unavailable", b"x", 3, None),
    ],
)
def test_each_answer_is_tried_as_often_as_it_deserves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, body: bytes, tries: int, code: int | None
) -> None:
    """What may pass is tried three times, what is final once; whatever comes, an ApiFault is raised."""
    with raw_server(answer(status, body, "Location: http://127.0.0.1:1/"), monkeypatch):
        api = make_api(tmp_path, tries=3)
        with pytest.raises(ApiFault) as caught:
            api.call("flickr.test.echo")
    assert (api.calls, caught.value.code, caught.value.transient) == (tries, code, tries == 3)


def test_an_answer_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MB are enough for any page; more is refused, whatever length was announced."""
    body = b'{"stat":"ok","x":"' + b"x" * 17_000_000
    with raw_server(answer("200 OK", body), monkeypatch):
        api = make_api(tmp_path, timeout=20.0)
        with pytest.raises(ApiFault, match="larger than"):
            api.call("flickr.test.echo")
    assert api.calls == 1


def test_a_server_that_drips_does_not_hold_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps every read alive; the call ends at its own time, and its thread too."""

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.05)

    with raw_server(drip, monkeypatch):
        api = make_api(tmp_path, timeout=0.4, tries=2)
        begun = time.monotonic()
        with pytest.raises(ApiFault, match="did not answer"):
            api.call("flickr.test.echo")
        assert time.monotonic() - begun < 10
        assert api.calls == 2
        while any(thread.name == "flickr call" for thread in threading.enumerate()):
            assert time.monotonic() - begun < 10
            time.sleep(0.01)


def test_a_long_retry_after_is_not_slept_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server asks for a pause beyond the call's deadline, the fault comes now and says how long."""
    with raw_server(answer("429 Too Many", b"x", "Retry-After: 7200"), monkeypatch):
        api = make_api(tmp_path)
        with pytest.raises(ApiFault, match="429") as caught:
            api.call("flickr.test.echo")
    assert (caught.value.after, caught.value.transient, api.calls) == (7200.0, True, 1)


def test_many_threads_share_one_api(start: Start, tmp_path: Path) -> None:
    """Each thread gets the answer to its own question."""
    start()
    api = make_api(tmp_path)
    got: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda turn=turn: got.update({turn: api.call("flickr.test.echo", turn=turn)["turn"]}))
        for turn in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == {turn: {"_content": str(turn)} for turn in range(16)}


def test_the_live_table_of_licences_is_read(start: Start, tmp_path: Path) -> None:
    """All seventeen of Flickr's licences are known, by number, and asked for once."""
    flickr, api = start(), make_api(tmp_path)
    assert api.licences() == {str(one.flickr): one.id for one in LICENCES.values() if one.flickr is not None}
    assert len(api.licences()) == 17
    assert flickr.calls["flickr.photos.licenses.getInfo"] == 1


def test_a_table_that_contradicts_itself_allows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number whose name and address disagree, or that means something else than ever, stands for no licence."""
    by, nd = "https://creativecommons.org/licenses/by/2.0/", "https://creativecommons.org/licenses/by-nd/2.0/"
    rows = [
        (4, "CC BY 2.0", nd),
        (0, "CC BY 2.0", by),
        (77, "Do as you like", ""),
        (5, "CC BY-SA 2.0", ""),
        (9, "4", ""),
    ]
    told = ",".join(f'{{"id":{number},"name":"{name}","url":"{url}"}}' for number, name, url in rows)
    body = f'{{"licenses":{{"license":[{told},null,{{}},3]}},"stat":"ok"}}'.encode()
    with raw_server(answer("200 OK", body), monkeypatch):
        assert make_api(tmp_path).licences() == {"5": "cc-by-sa-2.0"}


def test_without_a_live_table_the_known_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Flickr cannot tell its licences, its numbers are what they have always been."""
    with raw_server(answer("503 Unavailable", b"x"), monkeypatch):
        known = make_api(tmp_path, tries=1).licences()
    assert (known["0"], known["4"], known["16"]) == ("all-rights-reserved", "cc-by-2.0", "cc-by-nc-nd-4.0")


def test_what_is_said_of_a_photo_now(start: Start, tmp_path: Path) -> None:
    """getInfo gives licence, owner, title and page; a relicensed photo tells its new licence."""
    flickr, api = start(), make_api(tmp_path)
    number, photo = next(iter(flickr.photos.items()))
    flickr.relicense([number], 10)
    info = api.info(number)
    assert (info.visible, info.licence, info.media, info.safety) == (True, "pdm-1.0", "photo", 0)
    assert (info.owner, info.title) == (photo.ownername, photo.title)
    assert info.page == f"https://www.flickr.com/photos/{photo.owner}/{number}"


def test_a_photo_that_is_gone_is_not_visible(start: Start, tmp_path: Path) -> None:
    """Gone is an answer, not a fault."""
    flickr, api = start(), make_api(tmp_path)
    number = next(iter(flickr.photos))
    flickr.hide([number])
    assert api.info(number).visible is False


@pytest.mark.parametrize(
    ("told", "visible", "licence"),
    [
        ({"visibility": {"ispublic": 1}, "license": "4"}, True, "cc-by-2.0"),
        ({"visibility": {"ispublic": 0}, "license": "0"}, False, "all-rights-reserved"),
        ({"visibility": {"ispublic": "x"}, "license": "77"}, None, None),
        ({"visibility": [], "license": None}, None, None),
        ({}, None, None),
    ],
)
def test_what_an_answer_does_not_tell_is_not_held_against_a_photo(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], visible: bool, licence: str
) -> None:
    """Visibility and licence are None where the answer lacks them or they cannot be read."""
    start()
    api = make_api(tmp_path)
    api.licences()
    monkeypatch.setattr(api, "call", lambda method, photo_id: {"photo": {"id": photo_id, **told}})
    info = api.info("5")
    assert (info.visible, info.licence) == (visible, licence)


@pytest.mark.parametrize(
    ("status", "code", "refuses"),
    [("200 OK", code, True) for code in range(96, 101)]
    + [("401 Unauthorized", 0, True), ("403 Forbidden", 0, True)]
    + [("200 OK", code, False) for code in (1, 2, 95, 105, 112)]
    + [("404 Not Found", 0, False), ("500 Oops", 0, False)],
)
def test_a_fault_tells_whether_it_is_about_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, code: int, refuses: bool
) -> None:
    """A refused key or account ends every call; anything else may be about one photo or one moment."""
    body = f'{{"stat":"fail","code":{code},"message":"x"}}'.encode()
    with raw_server(answer(status, body), monkeypatch), pytest.raises(ApiFault) as caught:
        make_api(tmp_path, tries=1).call("flickr.photos.getInfo", photo_id="1")
    assert caught.value.refuses_us is refuses
    assert copy.copy(caught.value).refuses_us is refuses


def test_whom_to_contact_is_told_to_the_api_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REPLAYGEN_CONTACT stands in the User-Agent of a call as in that of a photo's request."""
    heard: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            heard.append(connection.recv(65536))
            body = b'{"stat":"ok"}'
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    monkeypatch.setenv("REPLAYGEN_CONTACT", "ann@a.example")
    with raw_server(talk, monkeypatch):
        make_api(tmp_path, tries=1).call("flickr.test.echo")
    assert re.search(rb"(?i)\r\nuser-agent: replaygen/[^\r]*; contact ann@a\.example\)\r\n", heard[0])


def test_a_contact_that_no_header_can_hold_fails_before_any_call(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named before a call is made."""
    start()
    monkeypatch.setenv("REPLAYGEN_CONTACT", "anna@bücher.example")
    with pytest.raises(ApiFault, match="REPLAYGEN_CONTACT"):
        make_api(tmp_path)


def test_a_folder_is_served_as_it_is(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each class answers to its name, planted photos to the other's; a file comes byte for byte until it is hidden."""
    root = data_root / "web_animals"
    with LocalFlickr(root, per_class=5, plant={"cow": ["_distractor_goat"]}, licences=FREE) as flickr:
        for name, value in flickr.environment().items():
            monkeypatch.setenv(name, value)
        api = make_api(tmp_path)
        told = api.call("flickr.photos.search", text="cow", extras="url_m,tags,license")["photos"]
        assert (told["total"], len(told["photo"])) == (10, 10)
        assert api.call("flickr.photos.search", text="goat", per_page=2)["photos"]["pages"] == 3
        entry = told["photo"][0]
        path = flickr.photos[entry["id"]].path
        assert path is not None
        assert fetch(entry["url_m"]) == (200, path.read_bytes())
        with Image.open(path) as image:
            assert image.size == (entry["width_m"], entry["height_m"])
        assert api.call("flickr.photos.getSizes", photo_id=entry["id"])["sizes"]["size"][0]["source"] == entry["url_m"]
        flickr.hide([entry["id"]])
        assert fetch(entry["url_m"])[0] == 404
        assert api.call("flickr.photos.search", text="cow")["photos"]["total"] == 9


def fetch(url: str) -> tuple[int, bytes]:
    """Status and body of a GET."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_foreground_server_says_how_to_use_it(data_root: Path) -> None:
    """It prints that it is not Flickr and the variables to export, and ends on an interrupt."""
    code = (  # a background job's children ignore SIGINT otherwise
        "import pathlib, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from replaygen.testing.local_flickr import serve; serve(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(data_root / "voc_animals")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(6)]
            child.send_signal(signal.SIGINT)
            assert child.wait(20) == 0
        finally:
            child.kill()
    assert "not Flickr" in lines[0]
    assert lines[1].startswith("# images ")
    names = [line.split("=")[0] for line in lines[2:]]
    assert names == [f"export {name}" for name in VARIABLES]


def test_a_search_shows_4000_results_and_repeats_the_last(start: Start, tmp_path: Path) -> None:
    """As Flickr does: pages beyond the 4,000th result give the last ones again, and the total tells of all."""
    photos = [made_photo(str(number), ["cow"]) for number in range(4600)]
    start(photos=photos)
    api = make_api(tmp_path)
    eighth, ninth = (api.call("flickr.photos.search", text="cow", per_page=500, page=page)["photos"] for page in (8, 9))
    assert (eighth["total"], eighth["pages"], len(eighth["photo"])) == (4600, 10, 500)
    assert ninth["photo"] == eighth["photo"]
    with pytest.raises(ApiFault) as caught:
        api.call("flickr.photos.search")
    assert caught.value.code == 3
