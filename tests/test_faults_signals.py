"""Row 22: every command listens on loopback only. Row 23: a signal ends it and all its processes; it can be resumed."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from conftest import BUILD_ONLY, TRAINING, Workspace

if TYPE_CHECKING:
    from replaygen.testing.local_flickr import LocalFlickr

HANG = 60.0
"""Seconds after which a command that was told to stop has hung. Ten are allowed; they are many on a busy machine."""


def _start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """A command in a process group of its own, in a folder without anything."""
    command = [sys.executable, "-m", "replaygen", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


class Listening:
    """Watches a command and all that it starts: the addresses where they listen, and where UDP is bound."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.seen: set[tuple[str, int]] = set()
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while self._process.poll() is None and not self.ended.is_set():
            for one in _family(self._process):
                with contextlib.suppress(psutil.Error):
                    for socket in one.net_connections(kind="inet"):
                        bound = socket.status == psutil.CONN_LISTEN or (
                            socket.type == 2 and socket.laddr and not socket.raddr
                        )
                        if bound:
                            self.seen.add((socket.laddr.ip, socket.laddr.port))
            time.sleep(0.02)

    def elsewhere(self) -> set[tuple[str, int]]:
        """What is not loopback, once the command has ended or the watch is told to."""
        self.ended.set()
        self._thread.join()
        return {(ip, port) for ip, port in self.seen if not ipaddress.ip_address(ip).is_loopback}


def _watched(*arguments: str, cwd: Path) -> Listening:
    process = _start(*arguments, cwd=cwd)
    watch = Listening(process)
    try:
        _, stderr = process.communicate(timeout=400)
    finally:
        _end_all(process)
        elsewhere = watch.elsewhere()
    assert process.returncode == 0, stderr
    assert elsewhere == set()
    return watch


def _end_all(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_watch_sees_a_listening_child(tmp_path: Path) -> None:
    """The watch itself: a grandchild that listens on all addresses is noticed."""
    code = "import socket, time; s = socket.create_server(('0.0.0.0', 0)); print('up', flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    watch = Listening(process)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        _until(lambda: bool(watch.seen), process)
    finally:
        _end_all(process)
    assert len(watch.elsewhere()) == 1
    process.stdout.close()


def test_a_run_on_workers_listens_on_loopback_only(workspace: Workspace) -> None:
    """Scheduler, workers, nannies and the dashboard."""
    watch = _watched("run", str(workspace.recipe(BUILD_ONLY)), "--workers", "2", "--json", cwd=workspace.root)
    assert len(watch.seen) >= 4, "scheduler, dashboard and two workers listen somewhere"


def test_a_run_in_this_process_listens_nowhere(workspace: Workspace) -> None:
    """No server is started that is not needed; nor by planning."""
    recipe = str(workspace.recipe(BUILD_ONLY))
    assert _watched("run", recipe, "--json", cwd=workspace.root).seen == set()
    assert _watched("plan", recipe, cwd=workspace.root).seen == set()


CRAWL = """
name = "crawled"
shard = 8
[data]
kind = "digits"
path = "{data}"
options = {{ train = 60, val = 12, photos = 24 }}
[scenario]
task = "5-1"
[network]
kind = "small"
[replay.web]
source = "flickr"
count = 8
only = ["one", "two"]
[replay.web.flickr]
as_of = 2026-11-01
[run.crawl]
rate = 1000.0
"""


def test_a_crawl_listens_nowhere(workspace: Workspace, flickr: LocalFlickr) -> None:
    """The children that decode photos talk through pipes."""
    watch = _watched("run", str(workspace.recipe(CRAWL)), "--json", cwd=workspace.root)
    assert watch.seen == set()


def test_the_schedule_listens_on_loopback_only_and_stops(workspace: Workspace) -> None:
    """`schedule serve` needs no port; SIGTERM ends it."""
    cache = str(workspace.root / "cache")
    added = _start(
        "schedule", "add", "nightly", str(workspace.recipe(BUILD_ONLY)), "--cron", "0 3 * * 0", "--cache", cache,
        cwd=workspace.root,
    )  # fmt: skip
    _, stderr = added.communicate(timeout=120)
    assert added.returncode == 0, stderr
    process = _start("schedule", "serve", "--cache", cache, cwd=workspace.root)
    watch = Listening(process)
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("serving 1 jobs")
        time.sleep(1)  # what it would listen with would be up
        os.kill(process.pid, signal.SIGTERM)
        _, stderr = process.communicate(timeout=HANG)
    finally:
        _end_all(process)
    assert watch.elsewhere() == set()
    assert process.returncode in (0, 143), stderr


def _until(reached: Callable[[], bool], process: subprocess.Popen[str], patience: float = 300.0) -> None:
    deadline = time.monotonic() + patience
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _standing(root: Path) -> int:
    return sum(1 for _ in (root / "cache" / "records").rglob("*.json")) if (root / "cache" / "records").is_dir() else 0


def _stop(workspace: Workspace, text: str, number: int, after: int, *more: str) -> tuple[float, dict[str, Any]]:
    """Stop a run once `after` results stand: seconds until it is gone; then what the next run did."""
    recipe = str(workspace.recipe(text))
    process = _start("run", recipe, "--json", *more, cwd=workspace.root)
    try:
        _until(lambda: _standing(workspace.root) >= after, process)
        family = _family(process)
        told = time.monotonic()
        os.kill(process.pid, number)
        _, stderr = process.communicate(timeout=HANG)
        taken = time.monotonic() - told
        _, left = psutil.wait_procs(family, timeout=HANG)
        assert left == [], "processes outlive the command that started them"
    finally:
        _end_all(process)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    standing = _standing(workspace.root)
    again = subprocess.run(
        [sys.executable, "-m", "replaygen", "run", recipe, "--json", *more], cwd=workspace.root, capture_output=True,
        text=True, timeout=400, check=True,
    )  # fmt: skip
    tally = json.loads(again.stdout)["tally"]
    assert tally["cached"] + tally["adopted"] >= standing >= after, "a result that stood was made again"
    return taken, tally


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_its_workers(workspace: Workspace, number: int) -> None:
    """The command, its Dask workers and their nannies are gone, and the same command goes on from there."""
    _stop(workspace, TRAINING, number, 3, "--workers", "2")


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [1, 10, 20, 30, 40])
@pytest.mark.parametrize("more", [(), ("--workers", "2")])
def test_a_signal_ends_a_run_anywhere(workspace: Workspace, number: int, after: int, more: tuple[str, ...]) -> None:
    """Row 23 in full: within ten seconds."""
    taken, _ = _stop(workspace, TRAINING, number, after, *more)
    assert taken <= 10
