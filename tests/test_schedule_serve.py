"""The schedule by its commands: real daemons, real runs, signals, a daemon that is killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import BUILD_ONLY, Workspace

from replaygen.runs.ledger import Ledger
from replaygen.runs.recorder import EVENTS
from replaygen.schedule import Ticks
from replaygen.store import Store

REPLAYGEN = [sys.executable, "-m", "replaygen"]
BOUND = 120.0
"""Only a guard against waiting for ever."""


def told(workspace: Workspace, *arguments: str, code: int = 0) -> str:
    """What a command prints, run in this process; its error, where `code` is not 0."""
    from typer.testing import CliRunner

    from replaygen.cli.app import app

    with contextlib.chdir(workspace.root):
        done = CliRunner().invoke(app, arguments)
    assert (done.exit_code != 0) == (code != 0), f"{done.output}{done.exception}"
    return done.stdout if code == 0 else str(done.exception)


def answer(workspace: Workspace, *arguments: str) -> Any:
    return json.loads(told(workspace, *arguments, "--json"))


@pytest.fixture
def place(workspace: Workspace) -> Workspace:
    """A workspace with a recipe and a store."""
    workspace.recipe(BUILD_ONLY, "build")
    Store(workspace.root / "cache")
    return workspace


class Served:
    """A daemon that serves the workspace's schedule."""

    def __init__(self, place: Workspace) -> None:
        self.root = place.root / "cache"
        self.process = subprocess.Popen(
            [*REPLAYGEN, "schedule", "serve"], cwd=place.root, stderr=subprocess.PIPE, text=True
        )
        self.ticks = Ticks(Ledger(self.root))

    def until_a_task_is_done(self) -> None:
        """Wait until a run that the daemon started has made something."""
        until = time.monotonic() + BOUND
        while not any('"task"' in path.read_text() for path in self.root.glob(f"runs/*/{EVENTS}")):
            assert time.monotonic() < until
            assert self.process.poll() is None
            time.sleep(0.02)

    def until(self, *states: str) -> None:
        """Wait until the ticks, newest first, have these states."""
        until = time.monotonic() + BOUND
        while [tick.state for tick in self.ticks.history()] != list(states):
            assert time.monotonic() < until, self.ticks.history()
            assert self.process.poll() is None
            time.sleep(0.05)

    def end(self, signum: signal.Signals) -> float:
        """Send a signal; seconds until it has ended."""
        begin = time.monotonic()
        self.process.send_signal(signum)
        self.process.communicate(timeout=BOUND)
        return time.monotonic() - begin


@pytest.fixture
def daemons() -> Iterator[list[Served]]:
    found: list[Served] = []
    yield found
    for one in found:
        if one.process.poll() is None:
            one.end(signal.SIGTERM)


def tick_by_hand(place: Workspace, name: str) -> None:
    """A tick that waits for the daemon."""
    from datetime import UTC, datetime

    from replaygen.schedule import Jobs

    ledger = Ledger(place.root / "cache")
    Ticks(ledger).extra(Jobs(ledger).named(name), datetime.now(UTC))


def processes_of(place: Workspace) -> list[psutil.Process]:
    """Processes whose command names the workspace's store, or that were started in its folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == place.root and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_jobs_by_their_commands(place: Workspace) -> None:
    """add, ls, pause, resume, rm, run-now, history; what is wrong is refused before it is kept."""
    added = answer(place, "schedule", "add", "weekly", "build", "--cron", "0 3 * * 0", "--tz", "Europe/Rome")
    assert added["next"].endswith("T02:00:00+00:00") or added["next"].endswith("T01:00:00+00:00")
    told(place, "schedule", "add", "nightly", "--do", "verify", "--cron", "@daily")
    assert "kept.sed" in told(
        place, "schedule", "add", "x", "build", "--cron", "@daily", "--set", "replay.kept.sed=1", code=1
    )
    assert "fields" in told(place, "schedule", "add", "x", "build", "--cron", "0 3", code=1)
    assert [job["name"] for job in answer(place, "schedule", "ls")["jobs"]] == ["nightly", "weekly"]
    assert answer(place, "schedule", "pause", "weekly")["paused"]
    assert "paused" in told(place, "schedule", "ls")
    assert not answer(place, "schedule", "resume", "weekly")["paused"]
    ran = answer(place, "schedule", "run-now", "weekly")
    assert (ran["state"], ran["tries"]) == ("done", 1)
    assert Store(place.root / "cache").read_ref("build", "plan") is not None
    assert answer(place, "schedule", "run-now", "nightly")["state"] == "done"
    runs = answer(place, "runs", "ls")["runs"]
    assert [(run["state"], run["tick"]) for run in runs] == [("done", ran["id"] + 1), ("done", ran["id"])]
    assert "all good" in told(place, "runs", "logs")
    assert [tick["name"] for tick in answer(place, "schedule", "history")["ticks"]] == ["nightly", "weekly"]
    told(place, "schedule", "rm", "weekly")
    assert [job["name"] for job in answer(place, "schedule", "ls")["jobs"]] == ["nightly"]
    assert len(answer(place, "schedule", "history", "weekly")["ticks"]) == 1
    assert "serve --cache" in told(place, "schedule", "unit")


def test_a_job_that_fails_says_so(place: Workspace) -> None:
    told(place, "schedule", "add", "broken", "build", "--cron", "@daily")
    (place.root / "pipelines" / "build.toml").write_text("name = ")
    told(place, "schedule", "run-now", "broken", code=1)
    (tick,) = answer(place, "schedule", "history")["ticks"]
    assert tick["state"] == "failed"
    assert "TOML" in tick["error"]
    assert "TOML" in told(place, "runs", "logs")


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_a_stopped_daemon_ends_its_run_and_goes_on_later(
    place: Workspace, daemons: list[Served], signum: signal.Signals
) -> None:
    """Row 23: at most 10 s, no process left, the tick interrupted; served again, the same tick is done."""
    told(place, "schedule", "add", "build", "build", "--cron", "0 0 1 1 *")
    tick_by_hand(place, "build")
    daemons.append(Served(place))
    daemons[-1].until_a_task_is_done()
    assert daemons[-1].end(signum) < 10
    assert daemons[-1].process.returncode == 0
    assert processes_of(place) == []
    assert [tick.state for tick in daemons[-1].ticks.history()] == ["interrupted"]
    daemons.append(Served(place))
    daemons[-1].until("done")
    assert [tick.tries for tick in daemons[-1].ticks.history()] == [2]
    assert [run.state for run in Ledger(place.root / "cache").runs()] == ["done", "interrupted"]


def test_a_run_outlives_a_killed_daemon_and_is_not_begun_again(place: Workspace, daemons: list[Served]) -> None:
    told(place, "schedule", "add", "build", "build", "--cron", "0 0 1 1 *")
    tick_by_hand(place, "build")
    daemons.append(Served(place))
    daemons[-1].until_a_task_is_done()
    daemons[-1].end(signal.SIGKILL)
    daemons.append(Served(place))
    daemons[-1].until("done")
    assert [tick.tries for tick in daemons[-1].ticks.history()] == [1]
    assert [run.state for run in Ledger(place.root / "cache").runs()] == ["done"]


def test_a_killed_run_is_begun_again(place: Workspace, daemons: list[Served]) -> None:
    told(place, "schedule", "add", "build", "build", "--cron", "0 0 1 1 *")
    tick_by_hand(place, "build")
    daemons.append(Served(place))
    daemons[-1].until_a_task_is_done()
    (child,) = psutil.Process(daemons[-1].process.pid).children()
    child.kill()
    daemons[-1].until("done")
    assert [tick.tries for tick in daemons[-1].ticks.history()] == [2]
    assert [run.state for run in Ledger(place.root / "cache").runs()] == ["done", "died"]


def test_one_daemon_a_store_and_it_listens_nowhere(place: Workspace, daemons: list[Served]) -> None:
    told(place, "schedule", "add", "nightly", "--do", "verify", "--cron", "0 0 1 1 *")
    tick_by_hand(place, "nightly")
    daemons.append(Served(place))
    daemons[-1].until("done")
    assert "served already" in told(place, "schedule", "serve", code=1)
    process = psutil.Process(daemons[-1].process.pid)
    assert [one for one in process.net_connections() if one.status == psutil.CONN_LISTEN] == []


def test_a_tick_on_a_new_model_needs_a_recipe_that_trains(place: Workspace) -> None:
    assert "base_model" in told(place, "schedule", "add", "x", "build", "--on", "model", code=1)
    told(place, "schedule", "add", "x", "build", "--on", "model", "--of", "build")
    assert "new model" in told(place, "schedule", "ls")
