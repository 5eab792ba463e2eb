"""Source `web` as a user meets it: lists of addresses, a server that misbehaves, and asking again for what failed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_DATA, Workspace

from replaygen.cli.app import app
from replaygen.crawl.photos import web_photo
from replaygen.store import Store
from replaygen.testing.hostile import HostileServer
from replaygen.testing.web import Reply, Server

LISTS = (
    """
name = "lists"
shard = 8
"""
    + TINY_DATA
    + """
[scenario]
task = "5-1"
[network]
kind = "small"
[replay.list]
source = "web"
path = "{lists}"
only = ["three"]
count = 20
[replay.list.web]
robots = false
[replay.list.screen]
duplicates = -1
leaks = -1
grayscale = false
text = 1.0
flat = false
[run.crawl]
rate = 1000.0
deadline = 2.0
tries = 2
most_wait = 1.0
"""
)


def _photo(number: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.linear_gradient("L").resize((96 + number, 80)).convert("RGB").save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Paces of one's own."""
    monkeypatch.setenv("REPLAYGEN_STATE", str(tmp_path / "rates"))
    return monkeypatch


def _recipe(workspace: Workspace, rows: list[str]) -> Path:
    lists = workspace.root / "lists"
    lists.mkdir(exist_ok=True)
    told = "".join(f"{row},cc-by-4.0,somebody\n" if row.count(",") == 0 else f"{row}\n" for row in rows)
    (lists / "three.csv").write_text("url,licence,owner,sha256\n" + told)
    path = workspace.root / "pipelines" / "lists.toml"
    path.write_text(LISTS.format(data=workspace.data, lists=lists))
    return path


def _fetch(path: Path, *more: str) -> dict[str, Any]:
    """`replaygen crawl fetch` in this process: what it says of the class."""
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["crawl", "fetch", str(path), "--json", *more])
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])["classes"][0]
    return told


def test_only_what_failed_is_asked_for_again(workspace: Workspace, environment: pytest.MonkeyPatch) -> None:
    """A server down for some photos: they are counted as failed; `--only-failed` fetches them, and nothing else."""
    broken = {"/4.jpg", "/9.jpg"}

    def answer(path: str) -> Reply:
        if path in broken:
            return 500, {}, b""
        if path == "/7.jpg":
            return 404, {}, b""
        return 200, {"Content-Type": "image/jpeg"}, _photo(int(path[1:-4]))

    with Server(answer) as server:
        environment.setenv("REPLAYGEN_ALLOW_HOSTS", server.host)
        path = _recipe(workspace, [server.url(f"{i}.jpg") for i in range(12)])
        first = _fetch(path)
        assert (first["candidates"], first["fetched"]) == (12, 9)
        assert first["refused"] == {"server-error": 2, "gone": 1}
        asked = len(server.asked)
        assert _fetch(path)["fetched"] == 9
        assert len(server.asked) == asked
        broken.clear()
        again = _fetch(path, "--only-failed")
        assert (again["fetched"], again["refused"]) == (11, {"gone": 1})
        assert sorted(server.asked[asked:]) == ["/4.jpg", "/9.jpg"]


def test_hostile_servers_only_cost_their_own_photos(workspace: Workspace, environment: pytest.MonkeyPatch) -> None:
    """Every hostile behaviour through search, fetch and decoder: each has a reason, and the good photos are there."""
    with HostileServer() as server:
        environment.setenv("REPLAYGEN_ALLOW_HOSTS", ",".join(server.allow))
        rows = [f"{server.url(name)},cc-by-4.0,,{one.sha256 or ''}" for name, one in server.behaviours.items()]
        path = _recipe(workspace, rows)
        count = len(server.behaviours)
        told = _fetch(path, "--set", f"replay.list.count={count}")
        good = Counter(behaviour.outcome for behaviour in server.behaviours.values())["photo"]
        assert told["candidates"] + sum(told["refused"].values()) >= count
        assert told["fetched"] == good
        assert told["fetched"] + sum(told["refused"].values()) == count


def test_a_licence_that_the_list_does_not_tell_is_refused(
    workspace: Workspace, environment: pytest.MonkeyPatch
) -> None:
    """By default nothing is fetched whose licence is unknown or not allowed."""
    with Server(lambda path: (200, {}, _photo(1))) as server:
        environment.setenv("REPLAYGEN_ALLOW_HOSTS", server.host)
        path = _recipe(workspace, [server.url("a.jpg")])
        lists = workspace.root / "lists" / "three.csv"
        lists.write_text(
            "url,licence\n" + f"{server.url('b.jpg')},\n{server.url('c.jpg')},CC BY-ND 4.0\n{server.url('d.jpg')},CC0\n"
        )
        told = _fetch(path)
        assert server.asked == ["/d.jpg"]
        assert told["refused"] == {"licence-unknown": 1, "licence-not-allowed": 1}
        lists.write_text(lists.read_text().replace("licence", "license"))
        told = _fetch(path, "--set", 'replay.list.web.unknown_licence="accept"')
        assert sorted(server.asked[1:]) == ["/b.jpg", "/d.jpg"]
        assert told["refused"] == {"licence-not-allowed": 1}


def test_a_private_address_is_not_fetched(workspace: Workspace, environment: pytest.MonkeyPatch) -> None:
    """Without being allowed to, nobody's list makes this machine ask its own network."""
    environment.delenv("REPLAYGEN_ALLOW_HOSTS", raising=False)
    with Server(lambda path: (200, {}, _photo(1))) as server:
        told = _fetch(_recipe(workspace, [server.url("a.jpg"), "http://169.254.169.254/latest/meta-data/x.jpg"]))
        assert server.asked == []
        assert told["refused"] == {"bad-address": 1, "private-address": 1}  # an odd port, and a cloud's own address


def test_the_same_bytes_at_another_address_are_purged_too(
    workspace: Workspace, environment: pytest.MonkeyPatch
) -> None:
    """A file that lies at two addresses is one photo to its maker; the others stay."""
    with Server(lambda path: (200, {}, _photo(int(path[1:-4]) // 2))) as server:
        environment.setenv("REPLAYGEN_ALLOW_HOSTS", server.host)
        path = _recipe(workspace, [server.url(f"{i}.jpg") for i in range(6)])
        assert _fetch(path)["fetched"] == 6
        store = Store(workspace.root / "cache")
        report = store.purge([web_photo(server.url("2.jpg"))], "asked for")
        assert set(report.photos) == {web_photo(server.url("2.jpg")), web_photo(server.url("3.jpg"))}
        again = _fetch(path)
        assert (again["fetched"], again["purged"]) == (4, 2)


CANARY = "c4n4ry0f4k3y1234567890abcdef"
DEBUG = "import logging,sys; logging.basicConfig(level=logging.DEBUG); from replaygen.cli import main; main()"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_key_appears_nowhere(workspace: Workspace, tmp_path: Path, workers: str) -> None:
    """A canary key through every command at DEBUG, with a good and a bad server: no output, file or argument has it."""
    from test_crawl_end_to_end import CRAWLING

    from replaygen.testing.local_flickr import LocalFlickr

    path = workspace.recipe(CRAWLING.replace('source = "flickr"', 'source = "flickr"\nonly = ["three"]'))
    said = b""
    with LocalFlickr(workspace.data / "photos", key=CANARY, secret=CANARY[::-1], licences=(4,)) as flickr:
        environ = {**os.environ, **flickr.environment(), "REPLAYGEN_STATE": str(tmp_path / "rates"),
                   "DASK_LOGGING__DISTRIBUTED": "debug", "REPLAYGEN_LOG_LEVEL": "DEBUG"}  # fmt: skip
        commands = [
            ["plan", str(path)],
            ["crawl", "fetch", str(path), "--workers", workers],
            ["crawl", "attribution", str(path), "--out", str(tmp_path / "ATTRIBUTION.md")],
            ["crawl", "attribution", str(path), "--out", str(tmp_path / "all.csv")],
            ["crawl", "revalidate", str(path), "--older-than", "0"],
            ["cache", "purge", "--cache", str(workspace.root / "cache"), "--photo", "flickr-1", "--unseen"],
        ]
        for command in commands:
            said += _said(command, environ)
        wrong = {**environ, "REPLAYGEN_FLICKR_URL": "http://127.0.0.1:9/services/rest/"}
        fresh = ["crawl", "fetch", str(path), "--workers", workers, "--cache", str(tmp_path / "other")]
        said += _said(fresh, wrong, fails=True)
        bad = {**environ, "FLICKR_API_KEY": CANARY[:-1] + "0"}
        said += _said(fresh, bad, fails=True)
    assert b"DEBUG" in said
    files = [file for folder in (workspace.root, tmp_path) for file in folder.rglob("*") if file.is_file()]
    hits = [str(file) for file in files if CANARY[:-1].encode() in file.read_bytes()]
    assert hits == []
    for secret in (CANARY[:-1], CANARY[::-1][:-1]):
        assert secret.encode() not in said


def _said(command: list[str], environ: dict[str, str], *, fails: bool = False) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", DEBUG, *command], env=environ, capture_output=True, timeout=170, check=False
    )
    assert (done.returncode != 0) == fails, done.stderr[-2000:]
    return done.stdout + done.stderr
