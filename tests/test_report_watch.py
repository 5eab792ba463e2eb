"""A run that is watched: what goes on comes to the page as it comes, and to this machine alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAINING, Workspace
from test_report import EVIL, Seen

import replaygen as rg
from replaygen.errors import ReplaygenError
from replaygen.plan import Plan, Recipe
from replaygen.report import watch as watching
from replaygen.report.following import Followed
from replaygen.report.watch import HOST, Server, Watch, named_here, over_steps, served
from replaygen.runs.ledger import Ledger
from replaygen.runs.recorder import EVENTS, recording

RECIPE = (
    TRAINING.replace("iterations = 80", "iterations = 12").partition("[[method]]")[0]
    + '[[method]]\nname = "finetune"\ntrainer = "finetune"\n[[method]]\nname = "recall"\ntrainer = "recall"\n'
    + 'replay = "kept"\n'
)


@pytest.fixture
def plan(workspace: Workspace) -> Plan:
    recipe = Recipe.load(workspace.recipe(RECIPE), {"run.workers": 0})
    return recipe.plan(recipe.store())


@contextlib.contextmanager
def serving(watch: Watch) -> Iterator[Server]:
    """A server that answers in a thread of this process."""
    with served(watch) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request looks at the store."""
    monkeypatch.setattr(watching, "LEAST", 0.0)
    monkeypatch.setattr(watching, "SHARE", 0.0)


def asked(server: Server, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()


def ran(plan: Plan) -> None:
    """Do the run, written down as the command does."""
    with recording(plan.store, "replaygen run recipe") as recorder:
        recorder.recipe(plan.recipe)
        recorder.finished(rg.run(plan, progress=recorder, folder=recorder.folder))


# who may ask, and what for


def test_it_answers_only_here_and_only_to_names_of_this_machine(plan: Plan) -> None:
    """The address is the loopback's; another name, none, or two are refused, so that no other site can read along."""
    with serving(Watch(plan)) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        assert server.address == f"http://127.0.0.1:{server.server_port}/"
        assert asked(server, "/live")[0] == 200
        assert asked(server, "/live", Host="localhost:1")[0] == 200, "a tunnel has another port"
        for name in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1.evil.example", ""):
            status, _, text = asked(server, "/live", Host=name)
            assert status == 421, name
            assert "tasks" not in text
        with socket.create_connection((HOST, server.server_port), timeout=60) as raw:
            raw.sendall(b"GET /live HTTP/1.0\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
            assert b" 421 " in raw.recv(100)


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1", True), ("LOCALHOST:80", True), ("[::1]:8000", True), ("localhost:", False),
        ("localhost.evil.example", False), ("evil@localhost:1x", False), ("127.0.0.2:80", False), ("::1", False),
    ],
)  # fmt: skip
def test_names_of_this_machine(host: str, ours: bool) -> None:
    assert named_here([host]) is ours


def test_only_three_addresses_and_only_get(plan: Plan) -> None:
    """Nothing can be changed, nothing of the disk can be read; every answer says how it may be used."""
    with serving(Watch(plan)) as server:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "ANYTHING"):
            status, headers, _ = asked(server, "/", method)
            assert (status, headers["Allow"]) == (405, "GET, HEAD"), method
        for path in ("/../../etc/passwd", "//etc/passwd", "/cache/ledger.sqlite", "/live/", "/%2e%2e/", "/report.html"):
            assert asked(server, path)[0] == 404, path
        status, headers, text = asked(server, "/", "HEAD")
        assert (status, text) == (200, "")
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers


def test_a_port_that_is_taken_is_said(plan: Plan) -> None:
    with served(Watch(plan)) as server, pytest.raises(ReplaygenError, match="cannot serve on port"):  # noqa: SIM117
        with served(Watch(plan), server.server_port):
            pass


# what it shows


def test_it_shows_a_run_from_before_its_start_to_its_end(plan: Plan, hurried: None) -> None:
    """Nothing run, then everything: counts, results, notes; the same text and tag while nothing changes."""
    watch = Watch(plan)
    with serving(watch) as server:
        _, headers, before = asked(server, "/live")
        assert "Not run here yet" in before
        assert f"0 of {len(plan.tasks)} tasks" in before
        assert "Results as they come" not in before
        assert asked(server, "/live", **{"If-None-Match": headers["ETag"]})[0] == 304
        ran(plan)
        status, after, text = asked(server, "/live", **{"If-None-Match": headers["ETag"]})
        assert status == 200
        assert after["ETag"] != headers["ETag"]
        assert f"{len(plan.tasks)} of {len(plan.tasks)} tasks" in text
        assert "<h2>Done</h2>" in text
        assert re.search(r"train/recall/seed0/step2 in [\d.]+ s", text)
        assert text.count('<th scope="row">recall</th>') == 2
        assert asked(server, "/live", **{"If-None-Match": after["ETag"]})[0] == 304
        _, headers, page = asked(server, "/")
        assert text in page
        assert asked(server, "/", **{"If-None-Match": headers["ETag"]})[0] == 304


def test_the_whole_page_is_written_anew_only_where_something_changed(plan: Plan, hurried: None) -> None:
    """`/report` is the page of the run, and asks for nothing either."""
    ran(plan)
    watch = Watch(plan)
    first = watch.whole()
    assert watch.whole() is first
    seen = Seen(first.html)
    assert "recall" in " ".join(seen.text)
    assert all(address.startswith(("data:", "#")) for address in seen.attributes("src"))
    for key, task in plan.tasks.items():
        if task.slot == "evaluate/recall/seed0/step2":
            next((Path(plan.store.root) / "records").rglob(f"*{key[2:]}*")).unlink()
    assert watch.whole().tag != first.tag


def test_between_two_looks_the_store_is_left_alone(plan: Plan) -> None:
    """Two requests at once get what one look found."""
    watch = Watch(plan)
    watch.live()
    watch._next = time.monotonic() + 3600
    ran(plan)
    assert f"0 of {len(plan.tasks)} tasks" in watch.live().html
    watch._next = 0.0
    assert f"{len(plan.tasks)} of {len(plan.tasks)} tasks" in watch.live().html


def test_results_come_step_by_step(plan: Plan) -> None:
    """A method has a value for each step that was evaluated, and none for those to come."""
    ran(plan)
    result = rg.runs.read_result(plan)
    part = result.__class__(**{**vars(result), "steps": tuple(step for step in result.steps if step.step < 2)})
    values = dict(over_steps(part))
    assert values["recall"][0] == result.of("base", 0)[0].metrics["all"]
    assert values["recall"][1] is not None
    assert values["recall"][2] is None


# what the run said


def said(plan: Plan, *events: dict[str, Any]) -> Path:
    """A run of the plan's recipe in the ledger, with these events; its process is gone."""
    ledger = Ledger(Path(plan.store.root))
    ledger.begin("20260101-000000-aaaaaa", "replaygen run <recipe>", who="somebody")
    ledger.about("20260101-000000-aaaaaa", recipe=plan.recipe.name, recipe_hash="0" * 64)
    folder = ledger.folder("20260101-000000-aaaaaa")
    folder.mkdir(parents=True)
    with (folder / EVENTS).open("a", encoding="utf-8") as file:
        for event in events:
            file.write(json.dumps({"time": "2026-01-01T10:00:00.000000+00:00", **event}) + "\n")
    return folder / EVENTS


def test_events_are_read_once_and_only_whole(plan: Plan) -> None:
    """What is added is read on from where it ended; half a line waits for its rest, a broken one is left out."""
    path = said(plan, {"event": "note", "message": "first"})
    followed = Followed(plan)
    followed.look()
    assert [note.text for note in followed.notes()] == ["first"]
    assert followed.row is not None
    assert (followed.row.state, followed.other, followed.running) == ("died", True, False)
    with path.open("a", encoding="utf-8") as file:
        file.write('broken\n[1]\n{"event": "task", "seconds": "abc"}\n{"event": "task", "requested": [1]}\n')
        file.write('{"event": "failed", "slot": "train/x", "error": "out of memory", "again": true}\n')
        file.write('{"event": "note", "mess')
    followed.look()
    assert [note.text for note in followed.notes()] == ["train/x failed, tried again: out of memory", "first"]
    assert followed.notes()[0].grave
    with path.open("a", encoding="utf-8") as file:
        file.write('age": "last"}\n')
    followed.look()
    assert followed.notes()[0].text == "last"


def test_time_left_is_told_at_the_runs_own_pace(plan: Plan) -> None:
    """Seconds a sample as its tasks took, divided by how many were done at once."""
    tasks = plan.to_run()
    train = [task for task in tasks if task.stage == "train"]
    moments = [f"2026-01-01T10:00:{second:02d}.000000+00:00" for second in (0, 10, 20, 30, 40)]
    events = [{"event": "task", "slot": "train/x", "stage": "train", "seconds": 20.0, "requested": 1, "time": moment}
              for moment in moments[1:]]  # fmt: skip
    said(plan, {"event": "start", "tasks": 5, "time": moments[0]}, *events)
    followed = Followed(plan)
    followed.look()
    asked_for = sum(task.requested for task in train)
    assert followed.left(train) == pytest.approx(20.0 * asked_for / 2.0), "80 s of work in 40 s by the clock"
    assert Followed(plan).left(train) != followed.left(train)


def test_a_hostile_event_is_text(plan: Plan, hurried: None) -> None:
    """What a run says, its command and its error come through escaped."""
    said(plan, *({"event": "note", "message": text} for text in EVIL), {"event": EVIL[0]}, {"time": EVIL[0]})
    Ledger(Path(plan.store.root)).about("20260101-000000-aaaaaa", error="".join(EVIL))
    html = Watch(plan).shell().html
    page = Seen(html)
    assert "<script>alert" not in html
    assert "\x1b" not in html
    assert not [tag for tag, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert "alert(1)" in " ".join(page.text)
    assert "of other settings than this page" in html


def test_what_is_damaged_is_to_run_again(plan: Plan, hurried: None) -> None:
    """A lost object and a broken record are counted as to run; the server goes on."""
    ran(plan)
    watch, count = Watch(plan), len(plan.tasks)
    assert f"{count} of {count} tasks" in watch.live().html
    keys = {task.slot: key for key, task in plan.tasks.items()}
    record = plan.store.get(keys["evaluate/recall/seed0/step2"])
    assert record is not None
    plan.store.open_object(record.output("result.json").digest).unlink()
    assert f"{count - 1} of {count} tasks" in watch.live().html
    broken = keys["evaluate/recall/seed0/step1"]
    next((Path(plan.store.root) / "records").rglob(f"*{broken[2:]}*")).write_bytes(b"{")
    assert f"{count - 2} of {count} tasks" in watch.live().html


def test_an_error_of_the_store_is_shown(plan: Plan, hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that goes between two looks (gc, purge) is said on the page, which comes back by itself."""
    watch = Watch(plan)

    def gone(plan: Plan) -> None:
        plan.store.read("0" * 64)

    with monkeypatch.context() as patched:
        patched.setattr(watching, "read_result", gone)
        failed = watch.live().html
    assert 'class="grave"' in failed
    assert "no bytes" in failed or "object" in failed
    assert "The plan" not in failed
    assert f"0 of {len(plan.tasks)} tasks" in watch.live().html


# in a browser


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        opened = player.chromium.launch(executable_path=chromium)
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_follows_a_run_by_itself(plan: Plan, hurried: None, browser: Any, width: int) -> None:
    """Opened before the run, it shows the end without being loaded again; no error, no request elsewhere."""
    from axe_playwright_python.sync_playwright import Axe

    with serving(Watch(plan)) as server:
        told: list[str] = []
        elsewhere: list[str] = []
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark")
        page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda one: None if one.url.startswith(server.address) else elsewhere.append(one.url))
        page.goto(server.address)
        page.evaluate("window.kept = true")
        assert "Not run here yet" in page.inner_text("#live h2 >> nth=0")
        ran(plan)
        page.get_by_role("heading", name="Done").wait_for(timeout=60_000)
        page.get_by_role("link", name="The whole page").wait_for(timeout=60_000)
        assert page.evaluate("window.kept")
        found = Axe().run(page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert told == []
        assert [address for address in elsewhere if not address.startswith("data:")] == []


def test_the_command_serves_until_it_is_stopped(workspace: Workspace) -> None:
    """It says where it serves, answers, and ends well at Ctrl-C; with --out or two recipes it says what to do."""
    recipe = str(workspace.recipe(RECIPE))
    command = [sys.executable, "-m", "replaygen", "report", recipe, "--watch"]
    process = subprocess.Popen([*command, "--json"], cwd=workspace.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    try:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        port = int(address.rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        connection.request("GET", "/live")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "no longer served" in errors
    refused = subprocess.run([*command, "--out", "x.html"], cwd=workspace.root, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "written nowhere" in refused.stderr
