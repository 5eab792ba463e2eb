"""The ledger of runs: every command's row, its events, its log; what was killed is told; no secret passes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BUILD_ONLY, Workspace

from replaygen import logs
from replaygen.errors import StoreError
from replaygen.plan import Recipe
from replaygen.runs import ledger as ledgers
from replaygen.runs import run
from replaygen.runs.alive import held
from replaygen.runs.ledger import ALIVE, Ledger
from replaygen.runs.recorder import EVENTS, LOG, recording
from replaygen.store import Store

REPLAYGEN = [sys.executable, "-m", "replaygen"]
CANARY = "canary-secret-77aa"


def told(workspace: Workspace, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*REPLAYGEN, *arguments], cwd=workspace.root, capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_run_is_written_down(workspace: Workspace) -> None:
    """Its row, one event a task with the record's own counts, its log; a second run beside it."""
    workspace.recipe(BUILD_ONLY, "build")
    told(workspace, "run", "build", "--set", "replay.photos.count=8", FLICKR_API_SECRET=CANARY)
    told(workspace, "run", "build", "--set", "replay.photos.count=8", "--json")
    runs = json.loads(told(workspace, "runs", "ls", "--json").stdout)["runs"]
    assert [row["state"] for row in runs] == ["done", "done"]
    assert [row["recipe"] for row in runs] == ["build", "build"]
    assert runs[0]["recipe_hash"] == runs[1]["recipe_hash"]
    first, second = runs[1], runs[0]
    assert first["counts"]["made"] == second["counts"]["cached"] > 10
    assert second["counts"]["made"] == 0
    assert first["command"] == "replaygen run build --set replay.photos.count=8"
    shown = json.loads(told(workspace, "runs", "show", first["id"][:18], "--json").stdout)
    assert sum(shown["tasks"].values()) == first["counts"]["made"]
    events = [json.loads(line) for line in told(workspace, "runs", "logs", first["id"], "--json").stdout.splitlines()]
    assert [events[0]["event"], events[-1]["event"], events[-1]["state"]] == ["begin", "end", "done"]
    store = Store(workspace.root / "cache")
    for event in events:
        if event["event"] == "task":
            record = store.get(event["key"])
            assert record is not None
            assert (event["slot"], event["accepted"]) == (record.slot, record.counts.accepted)
    changed = told(workspace, "run", "build", "--set", "replay.photos.count=7", "--json")
    assert json.loads(changed.stdout)["tally"]["cached"] > 0
    last = json.loads(told(workspace, "runs", "show", "--json").stdout)
    assert last["recipe_hash"] != first["recipe_hash"]


def test_a_failed_run_says_why_and_a_command_that_fails_early_too(workspace: Workspace) -> None:
    workspace.recipe(BUILD_ONLY.replace('path = "{{data}}/photos"', 'path = "gone"'), "build")
    told(workspace, "run", "build", code=1)
    (row,) = Ledger(workspace.root / "cache", readonly=True).runs()
    assert row.state == "failed"
    assert "gone" in str(row.error)
    assert "gone" in told(workspace, "runs", "show").stdout


@pytest.mark.parametrize(("signum", "state"), [(signal.SIGTERM, "interrupted"), (signal.SIGKILL, "died")])
def test_a_run_that_was_stopped_is_told(workspace: Workspace, signum: signal.Signals, state: str) -> None:
    """`interrupted` is written by the run; of a killed one the kernel frees the lock, and it is told as died."""
    workspace.recipe(BUILD_ONLY.replace("count = 24", "count = 24\noversample = 1.0"), "build")
    process = subprocess.Popen([*REPLAYGEN, "run", "build"], cwd=workspace.root, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    root, until = workspace.root / "cache", time.monotonic() + 120
    while not any('"task"' in path.read_text() for path in root.glob(f"runs/*/{EVENTS}")):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    assert [row.state for row in Ledger(root, readonly=True).runs()] == ["running"]
    process.send_signal(signum)
    process.wait(60)
    assert [row.state for row in Ledger(root, readonly=True).runs()] == [state]
    told(workspace, "run", "build")
    assert [row.state for row in Ledger(root, readonly=True).runs()] == ["done", state]


def test_logs_follow_a_run_to_its_end(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with recording(store, "one"):
        follower = subprocess.Popen(
            [*REPLAYGEN, "runs", "logs", "--follow", "--cache", str(store.root)], stdout=subprocess.PIPE, text=True
        )
        logs.log.info("first line")
        assert follower.stdout is not None
        assert "first line" in follower.stdout.readline()
        logs.log.warning("last line")
    output, _ = follower.communicate(timeout=60)
    assert "last line" in output
    assert follower.returncode == 0


def test_what_is_recorded_within_a_recording_is_one_run(tmp_path: Path, workspace: Workspace) -> None:
    store = Store(tmp_path / "store")
    recipe = Recipe.load(workspace.recipe(BUILD_ONLY))
    with recording(store, "outer") as outer, recording(store, "inner") as inner:
        assert inner is outer
        inner.recipe(recipe)
        inner.finished(run(recipe.plan(store), progress=inner, folder=inner.folder))
    (row,) = Ledger(store.root).runs()
    assert (row.command, row.recipe, row.state) == ("outer", "build", "done")
    assert row.counts is not None
    assert row.counts["made"] > 0


@pytest.mark.parametrize(
    ("error", "state"),
    [(KeyboardInterrupt(), "interrupted"), (SystemExit(143), "interrupted"), (SystemExit(1), "failed"),
     (SystemExit(0), "done"), (ValueError("no"), "failed")],
)  # fmt: skip
def test_how_a_run_ended(tmp_path: Path, error: BaseException, state: str) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(type(error)), recording(store, "x"):
        raise error
    assert [row.state for row in Ledger(store.root).runs()] == [state]


def test_only_the_newest_runs_stay_and_none_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "KEPT", 3)
    store = Store(tmp_path / "store")
    ledger = Ledger(store.root)
    with recording(store, "long") as first:
        for number in range(6):
            name = f"99999999-{number}"
            ledger.folder(name).mkdir()
            ledger.begin(name, "short", who="me")
            ledger.about(name, state="done")
        assert [row.id for row in ledger.runs()] == ["99999999-5", "99999999-4", "99999999-3", first.id]
    assert sorted(path.name for path in (store.root / "runs").iterdir()) == sorted(row.id for row in ledger.runs())


def test_the_newest_run_is_the_one_that_began_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the ids say: two of one second, or a clock that was set back."""
    monkeypatch.setattr(ledgers, "KEPT", 2)
    ledger = Ledger(Store(tmp_path / "store").root)
    for name in ("c", "b", "a"):
        ledger.begin(name, "x", who="me")
        ledger.about(name, state="done")
    assert [row.id for row in ledger.runs()] == ["a", "b"]
    assert ledger.run("last").id == "a"


def test_a_run_whose_files_cannot_be_removed_is_no_fault_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "KEPT", 1)
    ledger = Ledger(Store(tmp_path / "store").root)
    ledger.folder("a").parent.mkdir()
    ledger.folder("a").write_text("no folder")
    for name in ("a", "b"):
        ledger.begin(name, "x", who="me")
        ledger.about(name, state="done")
    assert [row.id for row in ledger.runs()] == ["b"]


def test_what_a_kill_left_of_a_run_without_a_row_goes_when_it_is_old(tmp_path: Path) -> None:
    ledger = Ledger(Store(tmp_path / "store").root)
    for name in ("old", "fresh", "alive", "known"):
        ledger.folder(name).mkdir(parents=True)
        (ledger.folder(name) / LOG).write_text("")
    (tmp_path / "mine").mkdir()
    ledger.folder("link").symlink_to(tmp_path / "mine")
    ledger.begin("known", "x", who="me")
    with held(ledger.folder("alive") / ALIVE):
        for name in ("old", "alive", "known", "link"):
            os.utime(ledger.folder(name), (0, 0))
        ledger.begin("next", "x", who="me")
    assert sorted(path.name for path in (ledger.root / "runs").iterdir()) == ["alive", "fresh", "known", "link"]


def test_what_others_wrote_down_moves_no_cursor(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from replaygen.cli.app import app

    ledger = Ledger(Store(tmp_path / "store").root)
    ledger.begin("one", "run \x1b]0;title\x07\x1b[2J", who="\x1b[31mme")
    ledger.about("one", recipe="\x1b[1Ax", report="\x9b2Jpage", error="a\x1b[2Jb")
    for command in ("ls", "show"):
        said = CliRunner().invoke(app, ["runs", command, "--cache", str(ledger.root)]).stdout
        assert "run" in said
        assert not {"\x1b", "\x9b", "\x07"} & set(said)


def test_a_store_that_cannot_be_written_has_no_row_and_no_error(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    readonly = Store(store.root, readonly=True)
    with recording(readonly, "x") as recorder:
        assert recorder.folder is None
        recorder.event("anything")
        recorder.note("anything")
    assert not (store.root / "ledger.sqlite").exists()
    assert Ledger(store.root, readonly=True).runs() == []


@pytest.mark.parametrize("spoil", ["newer", "other", "junk"])
def test_a_ledger_of_another_form_is_refused_and_runs_go_on_without_it(
    tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "store")
    path = Ledger(store.root).path
    if spoil == "junk":
        path.write_bytes(b"no database" * 200)
    else:
        with sqlite3.connect(path) as rows:
            rows.execute("PRAGMA user_version = 99" if spoil == "newer" else "PRAGMA application_id = 5")
        rows.close()
    before = path.read_bytes()
    for readonly in (False, True):
        with pytest.raises(StoreError):
            Ledger(store.root, readonly=readonly).runs()
    with recording(store, "x") as recorder:
        assert recorder.folder is None
    assert "not written down" in caplog.text
    assert path.read_bytes() == before


def test_events_that_cannot_be_written_end_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "store")
    with recording(store, "x") as recorder:
        assert recorder.folder is not None
        (recorder.folder / EVENTS).unlink()
        (recorder.folder / EVENTS).mkdir()
        recorder.event("one")
        recorder.event("two")
    assert caplog.text.count("written no more") == 1
    assert [row.state for row in Ledger(store.root).runs()] == ["done"]


def test_json_logs_are_json_lines_only(workspace: Workspace) -> None:
    """Progress, notes and errors alike; and the level says what passes."""
    workspace.recipe(BUILD_ONLY, "build")
    done = told(workspace, "--log", "json", "run", "build")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert sum(line.get("event_kind") == "task" for line in lines) > 10
    assert all({"event", "level", "logger", "timestamp"} <= set(line) for line in lines)
    failed = told(workspace, "run", "nothing", code=1, REPLAYGEN_LOG="json")
    (error,) = [json.loads(line) for line in failed.stderr.splitlines()]
    assert (error["level"], error["kind"]) == ("error", "RecipeError")
    quiet = told(workspace, "run", "build", REPLAYGEN_LOG="json", REPLAYGEN_LOG_LEVEL="ERROR")
    assert quiet.stderr == ""
    for odd in ({"REPLAYGEN_LOG": "xml"}, {"REPLAYGEN_LOG_LEVEL": "LOUD"}):
        assert next(iter(odd.values())) in told(workspace, "recipes", "ls", code=1, **odd).stderr


def test_no_secret_of_the_environment_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLICKR_API_SECRET", CANARY)
    store = Store(tmp_path / "store")
    with recording(store, f"run {CANARY}") as recorder:
        recorder.note(f"note {CANARY}")
        logs.log.warning("log %s", CANARY)
    with pytest.raises(ValueError, match="x"), recording(store, "again"):
        raise ValueError(f"x {CANARY}")
    found = b"".join(path.read_bytes() for path in store.root.rglob("*") if path.is_file())
    assert b"[FLICKR_API_SECRET]" in found
    assert CANARY.encode() not in found
    assert recorder.folder is not None
    assert "[FLICKR_API_SECRET]" in (recorder.folder / LOG).read_text()


def test_no_secret_passes_at_debug_with_workers(workspace: Workspace, flickr: object, tmp_path: Path) -> None:
    """Row 9 for logs: a crawl on two worker processes, everything at DEBUG, then every file and all that was said."""
    from test_crawl_end_to_end import CRAWLING

    from replaygen.testing.local_flickr import LocalFlickr

    assert isinstance(flickr, LocalFlickr)
    workspace.recipe(CRAWLING, "crawl")
    said = ""
    for command in (["crawl", "fetch", "crawl", "--workers", "2"], ["runs", "show"], ["runs", "logs"]):
        done = told(workspace, *command, REPLAYGEN_LOG_LEVEL="DEBUG")
        said += done.stdout + done.stderr
    assert "DEBUG" in said
    kept = b"".join(path.read_bytes() for path in (workspace.root / "cache").rglob("*") if path.is_file())
    for canary in (flickr.key, flickr.secret):
        assert len(canary) > 8
        assert canary not in said
        assert canary.encode() not in kept


def test_a_run_holds_its_lock_and_a_forked_child_does_not(tmp_path: Path) -> None:
    """A worker that outlives a killed run must not make it look alive."""
    code = (
        "import os, sys, time\nfrom replaygen.runs.recorder import recording\nfrom replaygen.store import Store\n"
        "with recording(Store(sys.argv[1]), 'x'):\n    pid = os.fork()\n    if pid == 0:\n        time.sleep(60)\n"
        "        os._exit(0)\n    print(pid, flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    ledger = Ledger(tmp_path / "store")
    (row,) = ledger.runs()
    assert (row.state, (row.folder / ALIVE).exists()) == ("running", True)
    process.kill()
    process.wait()
    os.kill(child, 0)
    assert [row.state for row in ledger.runs()] == ["died"]
    os.kill(child, signal.SIGKILL)
    process.stdout.close()
