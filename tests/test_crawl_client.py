"""The downloader's manners: addresses, opt-outs, robots.txt, waiting, what it tells and what it does not."""

from __future__ import annotations

import collections
import contextlib
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from replaygen.crawl.addresses import Guard, Refused, is_global
from replaygen.crawl.client import Downloader, crawl_environment
from replaygen.crawl.replies import opted_out, retry_after
from replaygen.crawl.specs import CrawlHow
from replaygen.errors import DataError
from replaygen.testing.hostile import TEST_CERTIFICATE, HostileServer
from replaygen.testing.web import Reply, Server

AGENT = "replaygen/0 (test)"


def photo(_: str) -> Reply:
    return 200, {"Content-Type": "image/jpeg", "ETag": '"7"', "Set-Cookie": "a=b"}, b"\xff\xd8\xffphoto"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Downloader]]:
    """Downloaders with a state folder of this test, closed at its end."""
    made: list[Downloader] = []

    def build(*servers: Server, opt_out: bool = True, robots: bool = False, allow: str = "", **how: Any) -> Downloader:
        names = frozenset({server.host for server in servers} | ({allow} if allow else set()))
        told = CrawlHow(**{"rate": 1000.0, "deadline": 10.0} | how)
        made.append(
            Downloader(told, state=tmp_path / "rates", agent=AGENT, opt_out=opt_out, robots=robots, allow=names)
        )
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.255", "169.254.169.254", "172.16.0.1",
        "172.31.255.255", "192.0.0.1", "192.168.1.1", "198.18.0.1", "203.0.113.9", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:c0a8:101::1", "2001::1", "2001:db8::1", "3fff::1",
        "fc00::1", "fd12::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "100::1", "not an address",
    ],
)  # fmt: skip
def test_an_address_that_is_not_on_the_public_internet_is_known(address: str) -> None:
    """Private, reserved, local and multicast addresses, also as IPv6 spells an IPv4 address."""
    assert not is_global(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "172.32.0.1", "192.169.0.1", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_a_public_address_is_known(address: str) -> None:
    """Addresses that photos come from, also through a translator."""
    assert is_global(address)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a", "file:///etc/passwd", "data:image/png;base64,AAAA", "example.com/a.jpg", "", "http://",
        "http:///a", "http://user@example.com/", "http://u:p@example.com/", "http://example.com:22/a",
        "http://example.com:7999/a", "http://example.com:99999/a", "http://example.com:x/a", "http://exa mple.com/",
        "http://example.com\\@127.0.0.1/", "http://[::1/", "http://[fe80::1%25eth0]/", "http://exam\nple.com/",
        "http://example.com/\r\nX: y", "http://[v1.fe]/", "http://a[b]/", "http://" + "a" * 300 + "/",
        "http://example.com/" + "a" * 5000, "http://\u2100.com/",
    ],
)  # fmt: skip
def test_a_url_that_is_not_fetched_is_refused_without_the_network(url: str) -> None:
    """Other schemes, user information, odd ports, control characters, names that are none."""
    with pytest.raises(Refused) as refused:
        Guard().parse(url)
    assert (refused.value.reason, refused.value.transient) == ("bad-address", False)


def test_a_good_url_is_taken_apart() -> None:
    """Upper case, a fragment, a name in another script, ports 80, 443 and 8000 to 8999, and allowed ones."""
    guard = Guard(frozenset({"127.0.0.1:22", "[::1]:22"}))
    assert guard.parse("HTTPS://Example.COM/A/b.jpg?q=1#top")[:5] == (
        "https", "example.com", 443, "/A/b.jpg", "/A/b.jpg?q=1",
    )  # fmt: skip
    assert guard.parse("http://bücher.example:8080").host == "xn--bcher-kva.example"
    assert guard.parse("http://127.0.0.1:22/").port == 22
    assert guard.parse("http://[::1]:22/").host == "::1"


def test_only_the_public_addresses_of_a_name_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that also points into the local network is looked up once, and leads only outwards."""
    calls = []

    def look_up(host: str, port: int, **asked: Any) -> list[Any]:
        if asked["flags"]:
            raise socket.gaierror
        calls.append(host)
        return [(socket.AF_INET, 1, 6, "", (ip, port)) for ip in ("10.0.0.1", "1.1.1.1", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    guard = Guard()
    assert [where[1][0] for where in guard.resolve("two-faced.example", 80, 5.0)] == ["1.1.1.1"]
    guard.resolve("two-faced.example", 80, 5.0)
    assert calls == ["two-faced.example"]


def test_a_photo_comes_with_proof(make: Callable[..., Downloader]) -> None:
    """Bytes, final address, status, the headers that matter in lower case, and how many requests it took."""
    with Server(photo) as server:
        got = make(server).get(server.url("a b.jpg?size=z#x"))
    assert (got.data, got.status, got.requests) == (b"\xff\xd8\xffphoto", 200, 1)
    assert got.url == server.url("a b.jpg?size=z")
    assert set(got.headers) == {"content-type", "etag", "date"}
    assert server.asked == ["/a%20b.jpg?size=z"]
    assert server.headers[0]["user-agent"] == AGENT
    assert server.headers[0]["accept-encoding"] == "identity"


def test_a_connection_is_used_again(make: Callable[..., Downloader]) -> None:
    """Twenty photos, errors among them, over one connection."""
    with Server(lambda path: (404, {}, b"no") if path.endswith("4") else photo(path)) as server:
        downloader = make(server)
        for number in range(20):
            with contextlib.suppress(Refused):
                downloader.get(server.url(str(number)))
        assert (len(server.asked), server.connections) == (20, 1)


def test_a_head_brings_no_body_and_honours_the_same(make: Callable[..., Downloader]) -> None:
    """For looking after a photo later: still there, or gone, or opted out since."""
    with Server(lambda path: (200, {"X-Robots-Tag": "noai"} if "out" in path else {}, b"\xff\xd8\xff")) as server:
        downloader = make(server)
        assert downloader.head(server.url("in")).data == b""
        with pytest.raises(Refused, match="opted-out"):
            downloader.head(server.url("out"))
        assert server.connections == 1


def test_opt_outs_are_only_read_where_asked(make: Callable[..., Downloader]) -> None:
    """With opt_out = false the photo comes, and the header is kept for the record."""
    with Server(lambda _: (200, {"X-Robots-Tag": "noai"}, b"\xff\xd8\xff")) as server:
        assert make(server, opt_out=False).get(server.url("a")).headers["x-robots-tag"] == "noai"


@pytest.mark.parametrize(
    ("name", "value", "out"),
    [
        ("x-robots-tag", "noai", True), ("x-robots-tag", "NOINDEX, NoImageAI", True), ("x-robots-tag", "*: noai", True),
        ("x-robots-tag", "replaygen: noai", True), ("x-robots-tag", "otherbot: noai", False),
        ("x-robots-tag", "otherbot: noindex, noai", False), ("x-robots-tag", "otherbot: a, replaygen: noai", True),
        ("x-robots-tag", "unavailable_after: 25 Jun 2010 15:00:00 PST, noai", True),
        ("x-robots-tag", "max-snippet: 20, noimageai", True), ("x-robots-tag", "noindex, noarchive", False),
        ("x-robots-tag", "noaix", False), ("tdm-reservation", "1", True), ("tdm-reservation", " 1 ", True),
        ("tdm-reservation", "0", False), ("tdm-policy", "https://example.com", False),
    ],
)  # fmt: skip
def test_an_opt_out_is_read_as_written(name: str, value: str, out: bool) -> None:
    """Any case, lists, and a bot's name before it."""
    assert opted_out({name: value}) is out


def test_several_opt_out_headers_are_read_each_for_itself() -> None:
    """A header for another bot does not swallow the next one, which is for all."""
    from urllib3 import HTTPHeaderDict

    headers = HTTPHeaderDict()
    headers.add("X-Robots-Tag", "otherbot: noindex")
    assert not opted_out(headers)
    headers.add("X-Robots-Tag", "noai")
    assert opted_out(headers)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "120"}, 120.0), ({"retry-after": " 0 "}, 0.0), ({}, None), ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None), ({"retry-after": "1.5"}, None), ({"retry-after": "²"}, None),
        ({"retry-after": "Mon, 01 Jan 2024 00:00:30 GMT", "date": "Mon, 01 Jan 2024 00:00:00 GMT"}, 30.0),
        ({"retry-after": "Mon, 01 Jan 2024 00:00:30 GMT"}, 0.0), ({"retry-after": "9" * 400}, 999_999_999.0),
    ],
)  # fmt: skip
def test_a_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    """A number of seconds, or a date by the server's own clock; nonsense is nothing."""
    assert retry_after(headers) == seconds


def test_a_tls_server_that_is_trusted_serves(
    make: Callable[..., Downloader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the certificate in the trust store the photo comes; a redirect from there to http is refused."""
    (tmp_path / "trusted.pem").write_text(TEST_CERTIFICATE)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "trusted.pem"))
    with HostileServer() as server:
        downloader = make(allow="127.0.0.1")
        assert downloader.get(server.url("bad-tls")).data == server.photo
        with pytest.raises(Refused, match="redirect-downgrade"):
            downloader.get(server.url("redirect-downgrade"))


def test_proxies_of_the_environment_are_not_used(
    make: Callable[..., Downloader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would resolve names by itself, unchecked."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Server(photo) as server:
        assert make(server).get(server.url("a")).status == 200


def test_no_more_connections_than_told_are_in_flight(make: Callable[..., Downloader]) -> None:
    """Twelve threads, three connections."""

    def slowly(path: str) -> Reply:
        time.sleep(0.02)
        return photo(path)

    with Server(slowly) as server, ThreadPoolExecutor(12) as pool:
        downloader = make(server, connections=3)
        list(pool.map(lambda number: downloader.get(server.url(str(number))), range(36)))
        assert server.most_at_once == 3
        assert server.connections == 3


def test_standing_in_line_is_no_photos_failure(make: Callable[..., Downloader]) -> None:
    """At eight a second the last of twelve waits longer than its deadline, and is fetched."""
    with Server(photo) as server, ThreadPoolExecutor(12) as pool:
        downloader = make(server, rate=8.0, deadline=1.0, most_wait=30.0, connections=4)
        got = list(pool.map(lambda number: downloader.get(server.url(str(number))), range(12)))
        assert max(one.seconds for one in got) > 1.1
        assert [one.requests for one in got] == [1] * 12


def test_a_host_that_asks_for_too_long_a_wait_is_left_alone(make: Callable[..., Downloader]) -> None:
    """After Retry-After: 600 no other photo asks, in this downloader or the next; another host is not concerned."""
    with Server(lambda _: (429, {"Retry-After": "600"}, b"")) as server, Server(photo) as other:
        for downloader in (make(server, other), make(server, other)):
            for number in range(5):
                with pytest.raises(Refused) as refused:
                    downloader.get(server.url(str(number)))
                assert (refused.value.reason, refused.value.transient) == ("retry-later", True)
            downloader.get(other.url("a"))
        assert len(server.asked) == 1


def test_a_rate_limit_is_found_and_kept(make: Callable[..., Downloader]) -> None:
    """From 1,000 a second at a server that bears 150: nearly all photos come, with few requests too many."""
    times: collections.deque[float] = collections.deque()
    lock = threading.Lock()

    def limited(path: str) -> Reply:
        with lock:
            now = time.monotonic()
            while times and times[0] < now - 1.0:
                times.popleft()
            if len(times) >= 150:
                return 429, {"Retry-After": "1"}, b"slow down"
            times.append(now)
        return photo(path)

    with Server(limited) as server, ThreadPoolExecutor(4) as pool:
        downloader = make(server, connections=4, deadline=30.0)
        got = list(pool.map(lambda number: downloader.get(server.url(str(number))), range(400)))
    assert len(got) == 400
    assert sum(one.requests for one in got) <= 1.05 * 400


def test_closing_ends_those_who_wait(make: Callable[..., Downloader]) -> None:
    """A thread that waits for a turn, and one that waits for bytes, are told at once."""
    over = threading.Event()

    def never(path: str) -> Reply:
        over.wait(20.0)
        return photo(path)

    with Server(never) as server, ThreadPoolExecutor(2) as pool:
        downloader = make(server, rate=0.01, deadline=500.0, most_wait=500.0)
        waiting = [pool.submit(downloader.get, server.url(str(number))) for number in range(2)]
        while not server.asked:
            time.sleep(0.01)
        downloader.close()
        assert {str(one.exception(timeout=10.0)) for one in waiting} == {"closed: the downloader was closed"}
        over.set()
    with pytest.raises(Refused, match="closed"):
        downloader.get(server.url("a"))


def test_no_query_is_told_by_logs_or_errors(make: Callable[..., Downloader], caplog: pytest.LogCaptureFixture) -> None:
    """Keys and tokens travel in queries: with everything logged at DEBUG, no refusal of any kind shows one."""
    with HostileServer() as server, caplog.at_level(logging.DEBUG):
        caplog.set_level(logging.DEBUG, "urllib3.connectionpool")
        downloader = make(allow="127.0.0.1", deadline=0.3, tries=2)

        def tell(name: str) -> str:
            try:
                downloader.get(server.url(name))
            except Refused as refused:
                return "".join(traceback.format_exception(refused)) + repr(refused.__context__) + repr(refused.args)
            return ""

        with ThreadPoolExecutor(8) as pool:
            told = "".join(pool.map(tell, server.behaviours))
        logging.getLogger("urllib3.connectionpool").debug('"GET %s HTTP/1.1"', "/else?api_key=hostile-canary")
    assert told.count("Refused") > 40
    assert "/else?..." in caplog.text
    assert "canary" not in caplog.text + told


def test_a_user_agent_that_would_break_the_header_is_refused(tmp_path: Path) -> None:
    """A contact with a line break could add headers of its own."""
    with pytest.raises(DataError, match="REPLAYGEN_CONTACT"):
        Downloader(CrawlHow(), state=tmp_path, agent="replaygen/1 (contact a\r\nX: y)")


def test_the_environment_says_where_and_who(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """State folder, contact and local hosts come from variables; without them, from defaults."""
    monkeypatch.setenv("REPLAYGEN_STATE", str(tmp_path))
    monkeypatch.setenv("REPLAYGEN_CONTACT", "mail@example.org")
    monkeypatch.setenv("REPLAYGEN_ALLOW_HOSTS", "127.0.0.1:8080, photos.local ,")
    state, agent, allow = crawl_environment()
    assert (state, allow) == (tmp_path, {"127.0.0.1:8080", "photos.local"})
    assert agent.startswith("replaygen/")
    assert agent.endswith("(replay data for semantic segmentation; contact mail@example.org)")
    for name in ("STATE", "CONTACT", "ALLOW_HOSTS"):
        monkeypatch.delenv(f"REPLAYGEN_{name}")
    state, agent, allow = crawl_environment()
    assert (state.parts[-3:], "contact" in agent, allow) == ((".cache", "replaygen", "rates"), False, frozenset())
