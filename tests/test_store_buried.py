"""What a tombstone keeps of a photo's bytes, names that nothing holds, folders of pages, tombstones lifted again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_store_purge import World, farm, folder_id, raw
from test_store_support import skip_syncs

from replaygen.errors import StoreError
from replaygen.stages.base import Inputs, Task
from replaygen.store import Store, fsops
from replaygen.store.fsops import Op
from replaygen.store.keys import canonical
from replaygen.store.records import seal


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    fsops.trace = skip_syncs
    yield
    fsops.trace = None


@pytest.fixture
def world(tmp_path: Path) -> World:
    return farm(tmp_path / "cache")


def cache(*more: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "replaygen", "cache", *more, "--cache", str(cwd / "cache")]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


# bytes


def test_a_tombstone_keeps_what_the_bytes_were(world: World) -> None:
    """By the fetch's proof, refused photos included, and by a folder's files; a second purge loses none."""
    photo = folder_id("cow", "a.jpg")
    world.store.purge(["flickr-1", "flickr-4", photo])
    found = world.store.tombstones()
    assert {name: one.sha256 for name, one in found.items()} == {
        "flickr-1": (raw("flickr-1"),), "flickr-4": (raw("flickr-4"),),
        photo: (hashlib.sha256(b"a.jpg").hexdigest(),),
    }  # fmt: skip
    assert world.store.buried_bytes() == {one for tombstone in found.values() for one in tombstone.sha256}
    world.store.purge(["flickr-1", "flickr-2"], "again")
    assert world.store.tombstones()["flickr-1"].sha256 == (raw("flickr-1"),)


def test_a_photo_that_came_back_as_other_bytes_has_both_digests(world: World) -> None:
    """A later purge looks for every buried photo, and keeps what it finds."""
    old = world.records[world.holders({"flickr-1"})[0]]
    files = [world.store.read(output.digest) for output in old.outputs]
    world.store.purge(["flickr-1"])
    for data in files:
        world.store.put(data)
    other = {**old.provenance["photos"], "flickr-1": {"sha256": "c" * 64}}
    world.store.publish(replace(old, provenance={"photos": other}))
    world.store.purge()
    tombstone = world.store.tombstones()["flickr-1"]
    assert (tombstone.sha256, tombstone.done) == (tuple(sorted([raw("flickr-1"), "c" * 64])), True)


def test_the_bytes_are_kept_before_any_record_goes(world: World) -> None:
    """At the first file of a record that is removed, the tombstone on the disk has the digest already."""
    seen: list[frozenset[str]] = []

    def look(op: Op, act: Callable[[], None]) -> None:
        if op.kind == "unlink" and "records" in Path(op.path).parts:
            seen.append(Store(world.store.root, readonly=True).buried_bytes())
        skip_syncs(op, act)

    fsops.trace = look
    world.store.purge(["flickr-1"])
    assert seen
    assert set(seen) == {frozenset({raw("flickr-1")})}


def test_a_tombstone_without_the_field_still_reads(tmp_path: Path) -> None:
    """Written before digests were kept: nobody knows the bytes."""
    store = Store(tmp_path)
    store.purge(["flickr-1"])
    told = {"photo": "flickr-1", "at": "2026-01-01T00:00:00Z", "reason": "asked", "done": True}
    (tmp_path / "tombstones" / "flickr-1.json").write_bytes(seal(b'"tombstone":%s' % canonical(told)))
    assert store.tombstones()["flickr-1"].sha256 == ()
    assert store.buried_bytes() == frozenset()
    assert store.verify().ok


def test_a_stage_is_told_of_buried_bytes(world: World) -> None:
    """So that a fetch can refuse the same file at another address."""
    world.store.purge(["flickr-1"])
    task = Task(key="1" * 64, stage="fetch", version=1, params={}, seed=0, inputs=(), slot="a/b")
    assert Inputs(world.store, task).buried_bytes() == {raw("flickr-1")}


# names that nothing holds


@pytest.mark.parametrize(
    ("name", "meant"), [("1727518399", "flickr-1727518399"), ("0123456789abcdef012a", "web-0123456789abcdef012a")]
)
def test_an_id_without_its_source_is_refused_with_the_right_one(tmp_path: Path, name: str, meant: str) -> None:
    """Nothing is buried: the photo that was meant would stay."""
    farm(tmp_path / "cache")
    done = cache("purge", "--photo", name, cwd=tmp_path)
    assert done.returncode == 1
    assert f"nothing in the store holds {name}; did you mean {meant}?" in done.stderr
    assert Store(tmp_path / "cache").tombstones() == {}


def test_what_nothing_held_is_said_and_buried(world: World, tmp_path: Path) -> None:
    """A photo that a record holds, or that a search refused, is known; a tombstone makes it known too."""
    asked = ("purge", "--photo", "flickr-12345", "--photo", "flickr-1", "--photo", "flickr-99")
    refused = cache(*asked, cwd=tmp_path)
    assert refused.returncode == 1
    assert "nothing in the store holds flickr-12345; nothing was changed" in refused.stderr
    assert world.store.tombstones() == {}
    told = cache(*asked, "--unseen", cwd=tmp_path).stdout
    assert [line for line in told.splitlines() if line.startswith("nothing in")] == [
        "nothing in the store held flickr-12345; it is buried all the same, so that it is never taken"
    ]
    assert world.store.tombstones().keys() == {"flickr-1", "flickr-99", "flickr-12345"}
    assert world.store.purge(["flickr-12345", "cow-flickr-777"]).unknown == ("flickr-777",)


# pages


def test_pages_of_several_folders_go(world: World, tmp_path: Path) -> None:
    """Each once, also where a folder is named twice or lies in another."""
    folders = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "c", tmp_path / "none"]
    for folder in folders[:3]:
        folder.mkdir()
        (folder / "page.html").write_text("cow-flickr-1")
    report = world.store.purge(["flickr-1"], pages=[*folders, tmp_path / "a"])
    assert sorted(report.pages) == sorted(str(folder / "page.html") for folder in folders[:3])
    assert list(tmp_path.rglob("*.html")) == []


def test_the_command_looks_for_pages_in_three_places(tmp_path: Path) -> None:
    """Beside the store, in the current folder, and where it is said; a folder that is not there is an error."""
    farm(tmp_path / "store" / "cache")
    for folder in ("store/reports", "reports", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "page.html").write_text("cow-flickr-1")
    command = [sys.executable, "-m", "replaygen", "cache", "purge", "--photo", "flickr-1", "--cache", "store/cache"]
    wrong = subprocess.run(
        [*command, "--reports", "nowhere"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (wrong.returncode, "no folder of reports" in wrong.stderr) == (1, True)
    subprocess.run([*command, "--reports", "other"], check=True, cwd=tmp_path, capture_output=True)
    assert list(tmp_path.rglob("*.html")) == []


# lifted again


def test_a_lifted_tombstone_is_gone(world: World) -> None:
    """The file itself; the photo and its bytes may come again."""
    world.store.purge(["flickr-1"], "a mistake")
    assert world.store.lift("cow-flickr-1").reason == "a mistake"
    assert Store(world.store.root).tombstones() == {}
    assert world.store.buried_bytes() == frozenset()
    assert list((world.store.root / "tombstones").iterdir()) == []


def test_a_tombstone_stays_until_its_purge_is_done(tmp_path: Path) -> None:
    """What was buried and not purged, what has no tombstone, and a store that is read-only: refused."""
    store = Store(tmp_path)
    store.bury(["flickr-1"])
    with pytest.raises(StoreError, match="not purged yet"):
        store.lift("flickr-1")
    with pytest.raises(StoreError, match="has no tombstone"):
        store.lift("flickr-2")
    store.purge()
    with pytest.raises(StoreError, match="read-only"):
        Store(tmp_path, readonly=True).lift("flickr-1")
    assert store.tombstones().keys() == {"flickr-1"}


def test_a_tombstone_of_an_id_that_is_refused_today_can_be_lifted(tmp_path: Path) -> None:
    """Ids without a source were buried once."""
    store = Store(tmp_path)
    store.purge(["flickr-5"])
    told = {"photo": "5", "at": "", "reason": "", "done": True}
    (tmp_path / "tombstones" / "5.json").write_bytes(seal(b'"tombstone":%s' % canonical(told)))
    store.lift("5")
    assert store.tombstones().keys() == {"flickr-5"}


def test_the_commands_list_tombstones_and_lift_one(tmp_path: Path) -> None:
    """Photo, time and reason; `--lift` says that the photo may come again, and stands alone."""
    store = farm(tmp_path / "cache").store
    store.purge(["flickr-1"], "asked by its owner")
    store.bury(["flickr-2"], "soon")
    first, second = cache("tombstones", cwd=tmp_path).stdout.splitlines()
    assert first.split(maxsplit=2) == ["flickr-1", store.tombstones()["flickr-1"].at, "asked by its owner"]
    assert second.endswith("soon (not purged yet: run `replaygen cache purge`)")
    told = json.loads(cache("tombstones", "--json", cwd=tmp_path).stdout)["tombstones"]
    assert [(one["photo"], one["done"], one["sha256"]) for one in told] == [
        ("flickr-1", True, [raw("flickr-1")]), ("flickr-2", False, []),
    ]  # fmt: skip
    assert cache("purge", "--lift", "flickr-1", "--photo", "flickr-3", cwd=tmp_path).returncode == 2
    assert "flickr-1 may be fetched again" in cache("purge", "--lift", "flickr-1", cwd=tmp_path).stdout
    assert store.tombstones().keys() == {"flickr-2"}
