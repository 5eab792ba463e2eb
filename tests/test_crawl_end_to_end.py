"""The whole crawl against a local Flickr: search, photos, screens, labels, training; and what happens afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import TRAINING, Workspace

from replaygen.plan import Plan, Recipe
from replaygen.runs import run
from replaygen.runs.crawl import crawl_part
from replaygen.runs.proof import proofs
from replaygen.store import Shard
from replaygen.testing.local_flickr import LocalFlickr

FLICKR = """
[replay.flickr]
source = "flickr"
count = 8
oversample = 1.5
[replay.flickr.flickr]
as_of = 2026-11-01
[replay.flickr.screen]
duplicates = 0
leaks = 0
grayscale = false
text = 1.0
flat = false
[run.crawl]
rate = 1000.0
[[method]]
name = "crawled"
trainer = "recall"
replay = "flickr"
"""
CRAWLING = TRAINING.replace("shard = 32", "shard = 8") + FLICKR


def _plan(workspace: Workspace, **changes: Any) -> Plan:
    recipe = Recipe.load(workspace.recipe(CRAWLING), {key.replace("__", "."): value for key, value in changes.items()})
    return recipe.plan(recipe.store())


def _samples(plan: Plan, stage: str = "fetch", name: str = "images") -> dict[str, bytes]:
    """Every sample of a stage's shards: id -> its bytes."""
    found = {}
    for key, task in plan.tasks.items():
        record = plan.store.get(key) if task.stage == stage else None
        if record is not None:
            shard = Shard(*(plan.store.read(record.output(f"{name}.{part}").digest) for part in ("tar", "index.json")))
            found |= {sample: b"".join(members.values()) for sample, members in shard}
    return found


def test_search_photos_labels_training(workspace: Workspace, flickr: LocalFlickr) -> None:
    """From a query to a trained model, with the proof of every photo; and nothing is asked for twice."""
    plan = _plan(workspace)
    plan = plan.recipe.narrowed(methods=["crawled"]).plan(plan.store)
    done = run(plan)
    assert done.result.last("crawled")
    fetched = _samples(plan)
    assert len(fetched) >= 8 * 8
    told = proofs(plan)
    accepted = [one for one in told if one.decision == "accepted"]
    assert accepted
    for one in accepted:
        assert all((one.owner, one.page, one.licence, one.licence_url, one.fetched_at, one.sha256_raw, one.title))
        assert one.sample in fetched
    before = flickr.calls.total(), sum(flickr.fetched.values())
    again = plan.recipe.plan(plan.store)
    assert not again.to_run()
    run(again)
    assert (flickr.calls.total(), sum(flickr.fetched.values())) == before


def test_as_of_is_in_the_key_and_how_is_not(workspace: Workspace, flickr: LocalFlickr) -> None:
    """To crawl again is to move the date; a slower rate changes nothing."""
    import datetime

    plain = _plan(workspace)
    assert list(_plan(workspace, run__crawl__rate=1.0, run__crawl__connections=2).tasks) == list(plain.tasks)
    moved = crawl_part(_plan(workspace, replay__flickr__flickr__as_of=datetime.date(2026, 11, 2)))
    same = {key for key in moved.tasks if key in plain.tasks}
    assert {moved.tasks[key].stage for key in same} <= {"looks-evaluated"}


def test_the_plan_expects_api_calls(workspace: Workspace, flickr: LocalFlickr) -> None:
    """A page of results and the table of licences for each class; more where each photo is confirmed."""
    classes = 9
    assert crawl_part(_plan(workspace)).estimate.api_calls == 2 * classes
    confirmed = crawl_part(_plan(workspace, replay__flickr__flickr__confirm=True))
    assert confirmed.estimate.api_calls == 2 * classes + 12 * classes


def test_purged_photos_leave_their_shard_and_never_come_back(workspace: Workspace, flickr: LocalFlickr) -> None:
    """A purge keeps the other photos of the shard without fetching, and no later crawl takes the photo again."""
    plan = crawl_part(_plan(workspace))
    run(plan)
    before = _samples(plan)
    victim = sorted(before)[3]
    photo = "flickr-" + victim.rsplit("-", 1)[1]
    asked = sum(flickr.fetched.values())
    plan.store.purge([photo], "asked by its maker")
    planned = crawl_part(_plan(workspace))
    assert {task.stage for task in planned.to_run()} == {"looks", "select"}
    run(planned)
    after = _samples(planned)
    assert after == {sample: data for sample, data in before.items() if sample != victim}
    assert sum(flickr.fetched.values()) == asked
    later = crawl_part(_plan(workspace, replay__flickr__count=9))
    run(later)
    assert victim not in _samples(later)
    decisions = {one.photo: one.decision for one in proofs(planned)}
    assert decisions[photo] == "purged"


def test_a_purged_photo_of_a_folder_leaves_its_shard_alone(workspace: Workspace, flickr: LocalFlickr) -> None:
    """Folder photos have tombstones too: the file stays, and is not taken."""
    recipe = Recipe.load(workspace.recipe(CRAWLING))
    plan = recipe.narrowed(methods=["web"]).plan(recipe.store())
    run(plan)
    victim = sorted(_samples(plan, "photos"))[0]
    plan.store.purge([victim], "not wanted")
    planned = recipe.narrowed(methods=["web"]).plan(recipe.store())
    waiting = {task.stage for task in planned.to_run()}
    assert "photos" not in waiting
    assert {"label", "train"} <= waiting
    assert victim not in _samples(planned, "photos")


@pytest.mark.parametrize("seconds", [1.5, 3.0])
def test_a_killed_crawl_goes_on_and_ends_the_same(workspace: Workspace, flickr: LocalFlickr, seconds: float) -> None:
    """SIGKILL at some moment: the search is not asked again for pages it has, and the set is the same."""
    path = workspace.recipe(CRAWLING)
    command = [sys.executable, "-m", "replaygen", "crawl", "fetch", str(path), "--json", "--cache"]
    slow = ["--set", "run.crawl.rate=12.0", "--set", "run.crawl.connections=1"]
    calm = workspace.root / "calm"
    told = subprocess.run([*command, str(calm)], capture_output=True, text=True, check=True, timeout=120)
    calls = flickr.calls["flickr.photos.search"]
    killed = workspace.root / "killed"
    child = subprocess.Popen([*command, str(killed), *slow], stdout=subprocess.DEVNULL, start_new_session=True)
    time.sleep(seconds)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    again = subprocess.run([*command, str(killed)], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(again.stdout)["classes"] == json.loads(told.stdout)["classes"]
    assert flickr.calls["flickr.photos.search"] - calls <= calls + 1
    recipe = Recipe.load(path)
    from replaygen.store import Store

    assert _samples(recipe.plan(Store(killed))) == _samples(recipe.plan(Store(calm)))
