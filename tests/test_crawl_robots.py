"""What robots.txt lets the downloader fetch."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replaygen.crawl.client import Downloader, Refused
from replaygen.crawl.robots import MOST_BYTES
from replaygen.crawl.specs import CrawlHow
from replaygen.testing.web import Reply, Server


@contextmanager
def site(folder: Path, robots: bytes, status: int = 200, **headers: str) -> Iterator[tuple[Server, Downloader]]:
    """A site with one robots.txt, and a downloader that honours it."""

    def answer(path: str) -> Reply:
        return (status, headers, robots) if path == "/robots.txt" else (200, {}, b"\xff\xd8\xffphoto")

    with Server(answer) as server:
        how = CrawlHow(rate=1000.0, deadline=5.0, tries=2)
        allow = frozenset({server.host})
        with Downloader(how, state=folder, agent="replaygen/1 (a test)", robots=True, allow=allow) as downloader:
            yield server, downloader


def test_what_is_forbidden_is_not_asked_for(tmp_path: Path) -> None:
    """Refused for good, without a request; what is allowed comes; robots.txt is read once."""
    rules = b"User-agent: otherbot\nDisallow: /\n\nUser-agent: *\nDisallow: /private/\nAllow: /private/yes.jpg\n"
    with site(tmp_path, rules) as (server, downloader):
        for path in ("a.jpg", "private/yes.jpg", "b.jpg"):
            assert downloader.get(server.url(path)).requests == 1
        with pytest.raises(Refused) as refused:
            downloader.get(server.url("private/no.jpg"))
        assert (refused.value.reason, refused.value.transient) == ("robots", False)
        assert server.asked == ["/robots.txt", "/a.jpg", "/private/yes.jpg", "/b.jpg"]


def test_rules_for_us_by_name_go_before_those_for_all(tmp_path: Path) -> None:
    """A group for replaygen, named beside another bot, is ours."""
    rules = b"User-agent: otherbot\nUser-agent: ReplayGen\nDisallow: /a\n\nUser-agent: *\nDisallow: /b\n"
    with site(tmp_path, rules) as (server, downloader):
        downloader.get(server.url("b.jpg"))
        with pytest.raises(Refused, match="robots"):
            downloader.get(server.url("a.jpg"))


@pytest.mark.parametrize("status", [404, 403, 410, 418])
def test_no_robots_txt_allows_everything(tmp_path: Path, status: int) -> None:
    """RFC 9309: a robots.txt that is not there forbids nothing."""
    with site(tmp_path, b"", status) as (server, downloader):
        assert downloader.get(server.url("a.jpg")).status == 200


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [(500, {}, "robots-unreachable"), (429, {"Retry-After": "900"}, "retry-later"), (304, {}, "robots-unreachable")],
)
def test_a_robots_txt_that_cannot_be_had_forbids_for_now(
    tmp_path: Path, status: int, headers: dict[str, str], reason: str
) -> None:
    """Worth trying again later; the failure is remembered and not asked for with every photo."""
    with site(tmp_path, b"", status, **headers) as (server, downloader):
        for _ in range(3):
            with pytest.raises(Refused) as refused:
                downloader.get(server.url("a.jpg"))
            assert (refused.value.reason, refused.value.transient) == (reason, True)
        assert set(server.asked) == {"/robots.txt"}
        assert len(server.asked) <= 2


def test_a_host_that_is_down_is_not_called_forbidden(tmp_path: Path) -> None:
    """Its robots.txt cannot be had, and the photo is refused as it would be without one, to be tried again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    how, allow = CrawlHow(rate=1000.0, deadline=5.0, tries=1), frozenset({host})
    reasons = []
    for robots in (False, True, True):
        with Downloader(how, state=tmp_path, agent="replaygen/1", robots=robots, allow=allow) as downloader:
            with pytest.raises(Refused) as refused:
                downloader.get(f"http://{host}/a.jpg")
            assert refused.value.transient
            reasons.append(refused.value.reason)
    assert len(set(reasons)) == 1
    assert reasons[0] in ("connection-failed", "timeout")


def test_a_crawl_delay_is_kept(tmp_path: Path) -> None:
    """Crawl-delay: 0.3 spaces what the recipe would ask for a thousand times a second."""
    with site(tmp_path, b"User-agent: *\nCrawl-delay: 0.3\n") as (server, downloader):
        began = time.monotonic()
        for name in "abc":
            downloader.get(server.url(name))
        assert time.monotonic() - began >= 0.6


def test_the_target_of_a_redirect_is_looked_up_too(tmp_path: Path) -> None:
    """A redirect does not lead around the rules."""

    def answer(path: str) -> Reply:
        if path == "/robots.txt":
            return 200, {}, b"User-agent: *\nDisallow: /private"
        return 302, {"Location": "/private/a.jpg"}, b""

    with Server(answer) as server:
        how, allow = CrawlHow(rate=1000.0, deadline=5.0), frozenset({server.host})
        with (
            Downloader(how, state=tmp_path, agent="replaygen/1", robots=True, allow=allow) as downloader,
            pytest.raises(Refused, match="robots"),
        ):
            downloader.get(server.url("a.jpg"))
        assert server.asked == ["/robots.txt", "/a.jpg"]


def test_a_huge_robots_txt_is_read_in_part(tmp_path: Path) -> None:
    """The first 500,000 bytes count, whatever follows them."""
    first = b"User-agent: *\nDisallow: /a\n"
    with site(tmp_path, first + b"#" * MOST_BYTES + b"\nDisallow: /b\n" + b"#" * 9_000_000) as (server, downloader):
        downloader.get(server.url("b.jpg"))
        with pytest.raises(Refused, match="robots"):
            downloader.get(server.url("a.jpg"))


def test_a_robots_txt_made_to_keep_us_busy_does_not(tmp_path: Path) -> None:
    """Ten thousand bots times ten thousand rules are a hundred million entries if taken as written."""
    rules = b"".join(b"User-agent: bot%d\n" % number for number in range(10_000))
    rules += b"".join(b"Disallow: /x%d*y\n" % number for number in range(10_000)) + b"User-agent: *\nDisallow: /a\n"
    with site(tmp_path, rules) as (server, downloader):
        began = time.monotonic()
        downloader.get(server.url("b.jpg"))
        assert time.monotonic() - began < 10.0
        with pytest.raises(Refused, match="robots"):
            downloader.get(server.url("a.jpg"))


@pytest.mark.parametrize(
    "robots", [b"\xff\xfe\x00", b"\xef\xbb\xbfUser-agent: *\nDisallow: /z", b"", b"<html>no</html>"]
)
def test_a_robots_txt_of_any_bytes_is_read(tmp_path: Path, robots: bytes) -> None:
    """Nonsense forbids nothing; a byte order mark hides no rule."""
    with site(tmp_path, robots) as (server, downloader):
        downloader.get(server.url("b.jpg"))
        if b"/z" in robots:
            with pytest.raises(Refused, match="robots"):
                downloader.get(server.url("z.jpg"))
