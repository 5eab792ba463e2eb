"""Every hostile behaviour of a photo server, through a real downloader in a process of its own that is measured.

This file run as a program is that process: it reads {name: URL} and settings from its input and prints what happened.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from replaygen.testing.hostile import BEHAVIOURS, HostileServer

DEADLINE = 2.0
SLACK = 1.5
"""Seconds by which a photo may exceed its deadline, on a busy machine."""
MOST_MB = 100.0


def child() -> None:
    """Fetch everything with eight threads, close, and tell: outcomes, memory, and what was left over."""
    import psutil

    from replaygen.crawl.client import Downloader, Refused
    from replaygen.crawl.specs import CrawlHow

    told = json.load(sys.stdin)
    urls: dict[str, str] = told["urls"]
    process = psutil.Process()
    how = CrawlHow(deadline=DEADLINE, most_wait=DEADLINE, rate=1000.0, connections=8)
    with tempfile.TemporaryDirectory() as state:
        downloader = Downloader(how, state=Path(state), agent="replaygen/0", allow=frozenset(told["allow"]))

        def one(name: str) -> dict[str, Any]:
            began = time.monotonic()
            try:
                got = downloader.get(urls[name])
                what = {"outcome": "photo", "reason": "", "sha256": hashlib.sha256(got.data).hexdigest()}
            except Refused as refused:
                what = {"outcome": "refused", "reason": refused.reason}
            return {**what, "seconds": time.monotonic() - began}

        one("good")
        before = process.memory_info().rss / 1e6
        with ThreadPoolExecutor(8) as pool:
            outcomes = dict(zip(urls, pool.map(one, urls), strict=True))
        downloader.close()
    most = _most_mb()
    report = {
        "outcomes": outcomes,
        "grown_mb": most - before,
        "threads": [thread.name for thread in threading.enumerate()],
        "sockets": len(process.net_connections()),
    }
    print(json.dumps(report))


def _most_mb() -> float:
    """The most memory that this process had. Not ru_maxrss on Linux: that begins with what the parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as running:
        yield running


@pytest.fixture(scope="module")
def report(server: HostileServer) -> dict[str, Any]:
    """What the measured process told after all behaviours."""
    told = {"urls": {name: server.url(name) for name in server.behaviours}, "allow": sorted(server.allow)}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", __file__], input=json.dumps(told), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


def test_there_are_enough_ways_to_misbehave() -> None:
    """The reliability table asks for 24 kinds; good replies are there for contrast."""
    assert len([one for one in BEHAVIOURS.values() if one.outcome == "refused"]) >= 24


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_every_behaviour_ends_as_it_must(name: str, report: dict[str, Any], server: HostileServer) -> None:
    """A photo, or a refusal with the right reason, within the deadline; what only a reader can tell is passed on."""
    behaviour, what = BEHAVIOURS[name], report["outcomes"][name]
    if behaviour.outcome == "photo":
        assert what["outcome"] == "photo"
        assert what["sha256"] == hashlib.sha256(server.photo).hexdigest()
    elif behaviour.stage == "decode":
        assert what["outcome"] == "photo"
    else:
        assert what["outcome"] == "refused"
        assert what["reason"] in behaviour.reasons
    assert what["seconds"] < DEADLINE + SLACK


def test_memory_stays_bounded(report: dict[str, Any]) -> None:
    """Endless bodies and headers, bombs and lies grow the process by 100 MB at most, eight at once."""
    assert report["grown_mb"] <= MOST_MB


def test_nothing_is_left_over(report: dict[str, Any]) -> None:
    """After closing there is no thread but the main one, and no socket."""
    assert report["threads"] == ["MainThread"]
    assert report["sockets"] == 0


@pytest.mark.parametrize("name", [name for name, one in BEHAVIOURS.items() if one.stage == "decode"])
def test_what_only_a_reader_can_tell_is_refused_by_it(name: str, server: HostileServer, tmp_path: Path) -> None:
    """Cut photos, bombs, pages and other formats do not pass the decoder; other bytes do not pass their digest."""
    from replaygen.crawl.client import Downloader
    from replaygen.crawl.ingest import Unfit, ingest
    from replaygen.crawl.specs import CrawlHow

    behaviour = server.behaviours[name]
    with Downloader(CrawlHow(rate=1e4), state=tmp_path, agent="replaygen/0", allow=server.allow) as downloader:
        data = downloader.get(server.url(name)).data
    if behaviour.sha256 is not None:
        assert hashlib.sha256(data).hexdigest() != behaviour.sha256
        return
    with pytest.raises(Unfit) as unfit:
        ingest(data, max_side=512, min_side=64, keep="resized")
    assert unfit.value.reason in behaviour.reasons


if __name__ == "__main__":
    child()
