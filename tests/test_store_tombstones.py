"""Tombstones, what photos were found to be, and the edges of purge: names, runs, pages, unfinished and damaged work."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from test_store_purge import World, check, farm, folder_id, marker, traces
from test_store_support import skip_syncs

from replaygen.errors import StoreError
from replaygen.stages.base import Out, Task
from replaygen.store import Store, fsops, task_key

ROW = {"at": "2026-01-01T00:00:00Z", "licence": None, "visible": True}


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    fsops.trace = skip_syncs
    yield
    fsops.trace = None


@pytest.fixture
def world(tmp_path: Path) -> World:
    return farm(tmp_path / "cache")


def everything(root: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, locks aside."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*") if path.is_file() and path.parent.name != "locks"
    }  # fmt: skip


# names


@pytest.mark.parametrize(
    ("name", "photo"),
    [
        ("flickr-53412", "flickr-53412"),
        ("cow-flickr-53412", "flickr-53412"),
        ("dining-table-5f0c1d2e3a4b-flickr-7", "flickr-7"),
        ("cow-web-0123456789abcdef0123", "web-0123456789abcdef0123"),
        ("cow-0123456789abcdef", "cow-0123456789abcdef"),
    ],
)
def test_a_sample_id_buries_its_photo(tmp_path: Path, name: str, photo: str) -> None:
    """A crawled photo is the same photo in every class; a folder's photo has only its sample id."""
    store = Store(tmp_path)
    store.bury([name], "asked")
    assert store.tombstones().keys() == {photo}
    assert [path.name for path in (tmp_path / "tombstones").iterdir()] == [f"{photo}.json"]


@pytest.mark.parametrize("name", ["../format", "a/b", "", ".", "a.b", "Flickr-1", "x" * 81, "a\n", "é"])
def test_odd_names_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    """What is no id never becomes a path, and the good names beside it are not buried either."""
    store = Store(tmp_path)
    before = everything(tmp_path)
    for act in (store.bury, store.purge):
        with pytest.raises(StoreError, match="no photo id"):
            act(["flickr-1", name], "asked")
    with pytest.raises(StoreError, match="no photo id"):
        store.note_checked({name: ROW})
    assert everything(tmp_path) == before


def test_a_text_is_one_name_not_many_letters(tmp_path: Path) -> None:
    """`purge("flickr-1")` means that photo."""
    store = Store(tmp_path)
    assert store.purge("flickr-1").photos == ("flickr-1",)
    assert store.tombstones().keys() == {"flickr-1"}


# tombstones


def test_a_tombstone_stands_until_it_is_done_and_ever_after(tmp_path: Path) -> None:
    """Buried is not purged; purging without a name finishes it; to bury again keeps the day; gc never takes it."""
    store = Store(tmp_path)
    store.bury(["flickr-1"], "asked by its owner")
    buried = store.tombstones()["flickr-1"]
    assert (buried.reason, buried.done) == ("asked by its owner", False)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(buried.at)) < timedelta(minutes=5)
    assert store.purge().photos == ("flickr-1",)
    assert store.tombstones()["flickr-1"] == replace(buried, done=True)
    assert store.purge().photos == ()
    store.bury(["flickr-1"])
    assert store.tombstones()["flickr-1"] == buried
    store.gc()
    assert Store(tmp_path, readonly=True).tombstones() == {"flickr-1": buried}
    assert store.verify().tombstones == 1


@pytest.mark.parametrize("damage", [b"", b"{}", b"x" * 300, b'{"sha256":"'])
def test_a_damaged_tombstone_still_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes) -> None:
    """Its file name is the photo; it is told loudly, and the next purge does its work again and writes it anew."""
    store = Store(tmp_path)
    store.purge(["flickr-1"], "asked")
    path = tmp_path / "tombstones" / "flickr-1.json"
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING, "replaygen.store"):
        assert not store.tombstones()["flickr-1"].done
    assert "stays buried" in caplog.text
    assert [(damage.kind, damage.name) for damage in store.verify().damaged] == [("tombstone", "flickr-1")]
    assert store.purge().photos == ("flickr-1",)
    assert store.verify().ok


def test_a_read_only_store_buries_nothing(tmp_path: Path) -> None:
    """Only a dry run is possible there."""
    farm(tmp_path)
    store = Store(tmp_path, readonly=True)
    for act in (store.bury, store.purge):
        with pytest.raises(StoreError, match="read-only"):
            act(["flickr-1"])
    assert store.purge(["flickr-1"], dry_run=True).records


# what photos were found to be


def test_what_was_found_is_kept_and_forgotten_with_the_photo(tmp_path: Path) -> None:
    """Rows are laid over each other; purge drops its photo's row, and no later note brings it back."""
    store = Store(tmp_path)
    store.note_checked({"flickr-1": ROW, "flickr-2": ROW})
    store.note_checked({"flickr-2": {**ROW, "licence": "cc0-1.0", "visible": False}})
    assert Store(tmp_path).checked() == {"flickr-1": ROW, "flickr-2": {**ROW, "licence": "cc0-1.0", "visible": False}}
    store.purge(["flickr-2"])
    store.note_checked({"flickr-2": ROW, "flickr-3": ROW})
    assert store.checked().keys() == {"flickr-1", "flickr-3"}


def test_damaged_rows_are_none_and_loud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Then every photo counts as never looked after; the next note writes the file anew."""
    store = Store(tmp_path)
    store.note_checked({"flickr-1": ROW})
    path = tmp_path / "checked.json"
    path.write_bytes(path.read_bytes().replace(b"true", b"tru3"))
    with caplog.at_level(logging.WARNING, "replaygen.store"):
        assert store.checked() == {}
    assert "checked.json is damaged" in caplog.text
    assert [damage.kind for damage in store.verify().damaged] == ["checked"]
    store.note_checked({"flickr-2": ROW})
    assert store.checked() == {"flickr-2": ROW}


@pytest.mark.parametrize("row", [{}, {**ROW, "at": 3}, {**ROW, "licence": 4}, {**ROW, "visible": 1}, {**ROW, "x": 1}])
def test_odd_rows_are_refused(tmp_path: Path, row: dict[str, object]) -> None:
    """A row is a time, a licence or none, and whether the photo is visible."""
    with pytest.raises(StoreError, match="is not \\{at, licence, visible\\}"):
        Store(tmp_path).note_checked({"flickr-1": row})


# the edges of purge


def test_a_dry_run_tells_what_a_purge_does_and_changes_nothing(tmp_path: Path, world: World) -> None:
    """Not one byte differs after it, and the purge then takes exactly what it told."""
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "farm.html").write_text("a page")
    before = everything(tmp_path)
    told = world.store.purge(["flickr-1"], dry_run=True, pages=tmp_path / "reports")
    assert everything(tmp_path) == before
    assert told.dry_run
    assert asdict(world.store.purge(["flickr-1"], pages=tmp_path / "reports")) == {**asdict(told), "dry_run": False}
    assert told.bytes > 0
    assert [path.split("/")[-1] for path in told.pages] == ["farm.html"]


def test_a_live_run_is_not_purged_under(tmp_path: Path, world: World) -> None:
    """A lease, or a worker that holds a key, refuses it; nothing is buried and nothing changed."""
    before = everything(tmp_path)
    with world.store.lease("farm"), pytest.raises(StoreError, match="a run is using the store") as refused:
        world.store.purge(["flickr-1"])
    assert "wait until it has ended" in refused.value.hint
    with world.store.lock(next(iter(world.records))), pytest.raises(StoreError, match="a run is using the store"):
        world.store.purge(["flickr-1"])
    assert everything(tmp_path) == before


def test_a_photo_of_a_folder_goes_by_its_sample_id(tmp_path: Path, world: World) -> None:
    """The rest of its slice stands under the key of the slice without its file."""
    photo = folder_id("cow", "a.jpg")
    report = world.store.purge([photo])
    (key,) = world.holders({photo})
    pairs = [file for file in world.records[key].params["files"] if file[0] != "a.jpg"]
    assert report.derived == (task_key("photos", 1, {**world.records[key].params, "files": pairs}, None, ()),)
    assert check(world, tmp_path / "cache", {photo}) == []


def test_a_photo_goes_from_every_class_that_has_it(tmp_path: Path, world: World) -> None:
    """Named by its sample id in one class, it goes from two crawls and from both searches."""
    photos = ["flickr-50", "flickr-1"]
    search = world.search("flickr-search", photos)
    world.make("label", [("images", world.fetch("horse", search, photos, 0))])
    report = world.store.purge(["cow-flickr-1"])
    assert (len(report.derived), len(report.searches)) == (2, 2)
    assert check(world, tmp_path / "cache", {"flickr-1"}) == []


def test_a_photo_that_comes_back_under_an_old_plan_goes_again(tmp_path: Path, world: World) -> None:
    """Every purge looks for every buried photo, also where it was done with."""
    old = world.records[world.holders({"flickr-1"})[0]]
    files = [world.store.read(output.digest) for output in old.outputs]
    world.store.purge(["flickr-1"])
    for data in files:
        world.store.put(data)
    world.store.publish(old)
    assert marker("flickr-1") in traces(tmp_path)
    world.store.purge()
    assert check(world, tmp_path / "cache", {"flickr-1"}) == []


def test_gc_after_a_purge_keeps_the_rest_of_the_slices(tmp_path: Path, world: World) -> None:
    """The slot of a slice names what is left of it, so nothing is fetched again; other slots that went are dropped."""
    report = world.store.purge(["flickr-1"])
    assert set(report.derived) <= set((world.store.read_ref("farm", "plan") or {})["slots"].values())
    assert world.store.gc().records == ()
    assert check(world, tmp_path / "cache", {"flickr-1"}) == []


def test_unfinished_work_goes_unless_it_is_known_to_come_from_elsewhere(world: World) -> None:
    """What reads a doomed record goes, what searches or fetches goes, what says nothing goes; an empty folder stays."""
    kept = hashlib.sha256(b"kept").hexdigest()
    (empty, crawl), (search,) = ("e" * 64, "f" * 64), [k for k, one in world.records.items() if "search" in one.stage]
    world.store.partial(empty)
    world.store.partial(crawl, {"stage": "fetch", "slot": "", "inputs": [search]})
    (world.store.partial(search, {"stage": "flickr-search", "slot": "", "inputs": []}) / "page.json").write_text("{}")
    report = world.store.purge(["flickr-1"])
    assert {path.name for path in (world.store.root / "partial").iterdir()} == {empty, kept}
    assert {"0" * 64, crawl, search, hashlib.sha256(b"doomed").hexdigest()} <= set(report.partial)
    assert (world.store.partial(kept) / "half").read_text() == "half a fit"


def test_a_task_says_what_its_unfinished_work_comes_from(tmp_path: Path) -> None:
    """Once, in task.json beside the work."""
    task = Task(key="1" * 64, stage="train", version=1, params={}, seed=0, inputs=(("labels", "2" * 64),), slot="a/b")
    folder = Out(Store(tmp_path), task).partial()
    assert json.loads((folder / "task.json").read_bytes()) == {"stage": "train", "slot": "a/b", "inputs": ["2" * 64]}
    (folder / "task.json").write_text("as it was")
    assert Out(Store(tmp_path), task).partial() == folder
    assert (folder / "task.json").read_text() == "as it was"


def test_pages_that_show_a_photo_or_may_go(tmp_path: Path, world: World) -> None:
    """By the photo's id, by the name of a folder's file, and by the recipe whose results went; no other page."""
    pages = tmp_path / "reports"
    (pages / "old").mkdir(parents=True)
    texts = {
        "farm.html": "pictures without names", "a.html": "<b>cow-flickr-1</b>", "old/b.html": "see cow/a.jpg",
        "c.html": "flickr-11, cow-flickr-12, xflickr-1 and ba.jpg", "d.html": "", "notes.txt": "cow-flickr-1",
    }  # fmt: skip
    for name, text in texts.items():
        (pages / name).write_text(text)
    report = world.store.purge(["flickr-1", folder_id("cow", "a.jpg")], pages=pages)
    assert {str(Path(page).relative_to(pages)) for page in report.pages} == {"farm.html", "a.html", "old/b.html"}
    left = {str(path.relative_to(pages)) for path in pages.rglob("*") if path.is_file()}
    assert left == {"c.html", "d.html", "notes.txt"}


def test_a_slice_of_an_unknown_form_is_only_deleted(tmp_path: Path, world: World) -> None:
    """Where the rest cannot be told for sure, it is fetched again."""
    key = world.holders({"flickr-1"})[0]
    record = world.records[key]
    extra = world.store.put(marker("flickr-1").encode())
    more = replace(record.outputs[0], name="notes.json", digest=extra.digest, size=extra.size)
    world.store.replace(replace(record, outputs=(*record.outputs, more)))
    report = world.store.purge(["flickr-1"])
    assert report.derived == ()
    assert marker("flickr-1") not in traces(tmp_path)
    assert world.store.verify().ok


def test_what_was_made_from_a_lost_record_goes(tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged slice says no more which photos it held, so what it led to is not shown to be free of any."""
    key = world.holders({"flickr-1"})[0]
    path = tmp_path / "cache" / "records" / key[:2] / f"{key}.json"
    path.write_bytes(path.read_bytes().replace(b"resized", b"resizeb"))
    with caplog.at_level(logging.WARNING, "replaygen.store"):
        report = world.store.purge(["flickr-1"])
    assert "its input" in caplog.text
    assert set(report.records) == world.below([key])
    assert marker("flickr-1") not in traces(tmp_path)
    left = set(world.records) - world.below([key])
    assert {status.state for status in world.store.statuses(left).values()} == {"cached"}


def test_the_command_names_weights_first_and_pages(tmp_path: Path, world: World) -> None:
    """`cache purge`: a dry run, the purge, and what is told as JSON; without a photo it finishes what was begun."""
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "mine.html").write_text("cow-flickr-1")

    def run(*more: str) -> str:
        command = [sys.executable, "-m", "replaygen", "cache", "purge", "--cache", str(tmp_path / "cache"), *more]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    before = everything(tmp_path)
    first = run("--photo", "cow-flickr-1", "--dry-run").splitlines()
    assert first[0].startswith("weights that were trained with them: would delete train/")
    assert everything(tmp_path) == before
    told = json.loads(run("--photo", "cow-flickr-1", "--photo", "flickr-2", "--reason", "asked", "--json"))
    assert told["photos"] == ["flickr-1", "flickr-2"]
    assert [Path(page).name for page in told["pages"]] == ["mine.html"]
    assert world.store.tombstones()["flickr-2"].reason == "asked"
    assert check(world, tmp_path / "cache", {"flickr-1", "flickr-2"}) == []
    assert run().startswith("no photo was named")
