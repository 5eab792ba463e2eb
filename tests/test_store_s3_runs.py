"""Runs on a bucket: killed and resumed, two at once, locks of the dead, gc and purge, a whole recipe."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BUILD_ONLY, Workspace
from test_store_s3_support import BUCKET, Machines, bucket_files, bucket_server, child, names, result
from test_store_support import make_record

from replaygen.errors import LockTimeout, StoreError
from replaygen.plan import Recipe
from replaygen.runs import run
from replaygen.store import Store
from replaygen.store.keys import sha256_hex
from replaygen.store.marks import GC
from replaygen.store.mirror import Mirror

KEY = "a" * 64
SMALL = BUILD_ONLY.replace('task = "5-1"', 'task = "9-1"').replace("count = 24", "count = 6")
LOCK = f"locks/{KEY}.lock"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with bucket_server() as environment:
        yield environment


@pytest.fixture
def machines(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Machines on an empty prefix of the bucket; a silent holder is given up after 3 seconds."""
    monkeypatch.setenv("REPLAYGEN_LOCK_SECONDS", "3")
    return Machines(tmp_path, f"s3://{BUCKET}/{sha256_hex(str(tmp_path).encode())[:12]}", monkeypatch)


def _collected(store: Store) -> None:
    """Collect, as soon as the lease of a dead machine counts for nothing any more."""
    until = time.monotonic() + 60
    while True:
        try:
            store.gc()
            return
        except StoreError as error:
            if "is using the bucket" not in error.what or time.monotonic() > until:
                raise
        time.sleep(0.5)


def _killed(machines: Machines, verb: str, *args: str, word: str) -> None:
    """Start a child and SIGKILL it when it says `word`."""
    process = child(verb, machines.address, *args)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_lock_holds_on_every_machine_and_its_holder_gives_signs_of_life(machines: Machines) -> None:
    """Longer than a silent one is given up; then it goes."""
    one, other = machines.store("one"), machines.store("other")
    with one.lock(KEY), one.lock(KEY):
        began = time.monotonic()
        with pytest.raises(LockTimeout, match=f"process {os.getpid()} on"), other.lock(KEY, timeout=5):
            pass
        assert time.monotonic() - began >= 5
    with other.lock(KEY, timeout=0):
        pass
    assert LOCK not in names(machines.address)


def test_a_dead_holders_lock_is_taken_over(machines: Machines) -> None:
    """At once by the same machine, whose kernel knows; elsewhere after the time to live."""
    machines.use("one")
    _killed(machines, "hold", KEY, word="held")
    assert LOCK in names(machines.address)
    with machines.store("one").lock(KEY, timeout=0.5):
        pass
    machines.use("one")
    _killed(machines, "hold", KEY, word="held")
    other = machines.store("other")
    with pytest.raises(LockTimeout), other.lock(KEY, timeout=0):
        pass
    with other.lock(KEY, timeout=60):
        pass
    assert LOCK not in names(machines.address)


def test_a_dead_holder_is_given_up_by_who_asks_often_and_shortly(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its silence is counted over the tries; a gc waits longer than a dead one needs to be given up."""
    monkeypatch.setenv("REPLAYGEN_LOCK_SECONDS", "0.5")
    other = machines.store("other")
    for name in (LOCK, GC):
        bucket_files().pipe_file(f"{machines.address}/{name}", b"{}")

    def taken() -> bool:
        try:
            with other.lock(KEY, timeout=0):
                return True
        except LockTimeout:
            time.sleep(0.1)
            return False

    assert not taken()
    assert any(taken() for _ in range(30))
    mirror = other._layout.mirror
    assert mirror is not None
    with mirror.marks.collecting(0.0, lambda _name: False):
        assert GC in names(machines.address)
    assert GC not in names(machines.address)


def test_gc_and_purge_wait_for_no_live_run_and_are_stopped_by_none_that_is_dead(machines: Machines) -> None:
    """A lease or a lock of another machine refuses both; a dead one is cleared away."""
    one, other = machines.store("one"), machines.store("other")
    with one.lease("run"):
        for act in (other.gc, lambda: other.purge(["flickr-1"])):
            with pytest.raises(StoreError, match="a run is using the bucket"):
                act()
    assert "tombstones/flickr-1.json" not in names(machines.address)
    machines.use("one")
    _killed(machines, "hold", KEY, word="held")
    machines.store("one").gc()
    assert [name for name in names(machines.address) if name.startswith(("leases/", "locks/"))] == []


def test_a_run_waits_while_another_machine_collects(machines: Machines) -> None:
    """Its lease stands first; a gc that died is not waited for longer than its time to live."""
    one = machines.store("one")
    bucket_files().pipe_file(f"{machines.address}/{GC}", b"{}")
    with one.lease("run"):
        pass
    with pytest.raises(LockTimeout):
        machines.store("other")._layout.mirror.marks._taken(GC, 0.0)  # type: ignore[union-attr]


def test_gc_takes_what_no_ref_reaches_from_the_bucket(machines: Machines) -> None:
    """Records and objects, those too that this machine never had; what stays is whole."""
    one = machines.store("one")
    kept = one.publish(make_record({"n": 1}, {"images": one.put(b"kept")}))
    lost = one.publish(make_record({"n": 2}, {"images": one.put(b"lost")}))
    one.write_ref("digits", "main", {"slots": {"cow": kept.key}})
    other = machines.store("other")
    told = other.gc(dry_run=True)
    assert told.records == (lost.key,)
    assert told.bytes >= 4
    before = names(machines.address)
    assert other.gc().objects == (lost.output("images").digest,) == told.objects
    digest = lost.output("images").digest
    gone = {f"objects/{digest[:2]}/{digest}", f"records/{lost.key[:2]}/{lost.key}.json"}
    assert set(before) - set(names(machines.address)) == gone
    assert other.verify().ok
    report = other.du()
    assert (report.objects, report.unreferenced) == (4, 0)
    assert one.get(lost.key) is None or machines.store("one").get(lost.key) is None


def test_verify_reads_every_object_of_the_bucket(machines: Machines) -> None:
    """What is damaged there goes, what is gone is told."""
    store = machines.store("one")
    bad = store.publish(make_record({"n": 1}, {"images": store.put(b"bad")}))
    gone = store.publish(make_record({"n": 2}, {"images": store.put(b"gone")}))
    digests = [record.output("images").digest for record in (bad, gone)]
    files = bucket_files()
    files.pipe_file(f"{machines.address}/objects/{digests[0][:2]}/{digests[0]}", b"BAD")
    files.rm_file(f"{machines.address}/objects/{digests[1][:2]}/{digests[1]}")
    report = machines.store("other").verify()
    assert [damage.name for damage in report.damaged] == [digests[0]]
    assert (gone.key, "images") in report.missing
    assert f"objects/{digests[0][:2]}/{digests[0]}" not in names(machines.address)
    assert machines.store("other").status(bad.key).state == "damaged"


def test_two_machines_run_at_once(machines: Machines) -> None:
    """Every task is done by one of them, and nothing of one is lost to the other."""
    machines.use("one")
    first = child("tasks", machines.address, "12", "0.05")
    machines.use("other")
    second = child("tasks", machines.address, "12", "0.05")
    told = [result(first), result(second)]
    assert sum(one["made"] for one in told) == 12
    assert [one["gone"] for one in told] == [0, 0]
    store = machines.store("third")
    assert store.verify().ok
    assert len(store.du().refs) == 1


def test_a_killed_run_is_resumed_here_and_elsewhere(machines: Machines) -> None:
    """Killed between an object and its record: what stood stays, the rest is made; the same names in the bucket."""
    machines.use("whole")
    whole = Machines(machines.folder, f"{machines.address}/whole", machines._patch)
    assert result(child("tasks", whole.address, "6", "0")) == {"made": 6, "gone": 0}
    machines.use("one")
    process = child("tasks", machines.address, "6", "0.3")
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    machines.use("other")
    assert result(child("tasks", machines.address, "6", "0")) == {"made": 4, "gone": 0}
    _collected(machines.store("other"))

    def published(address: str) -> set[str]:
        return {name for name in names(address) if name.startswith(("objects/", "records/", "refs/"))}

    elsewhere = {name for name in published(machines.address) if not name.startswith("whole/")}
    assert elsewhere == published(whole.address)
    assert machines.store("third").verify().ok


def test_a_recipe_is_built_once_and_read_everywhere(workspace: Workspace, machines: Machines) -> None:
    """Cold, warm, and warm from a machine that has nothing: 0 tasks again, objects only where they are asked for.

    `[run] store` names the bucket; the bytes are those of a folder's store.
    """
    recipe = workspace.recipe(SMALL + f'[run]\nstore = "{machines.address}"\n')
    machines.use("one")
    plan = Recipe.load(recipe).plan(Recipe.load(recipe).store())
    assert plan.store.address == machines.address
    cold = run(plan)
    assert cold.tally.made == len(plan.tasks)
    local = run(Recipe.load(recipe).plan(Store(workspace.root / "local"))).plan
    for key in plan.tasks:
        mine, theirs = plan.store.get(key), local.store.get(key)
        assert mine is not None
        assert theirs is not None
        assert mine.outputs == theirs.outputs
    machines.use("other")
    again = Recipe.load(recipe).plan(Recipe.load(recipe).store())
    sent = again.store.requests.copy()
    warm = run(again)
    assert (warm.tally.made, warm.tally.adopted, warm.tally.cached) == (0, 0, len(plan.tasks))
    assert (again.store.requests - sent)["GetObject"] in range(len(plan.tasks), len(plan.tasks) + 10)
    fetched = [path for path in (again.store.root / "objects").rglob("*") if path.is_file()]
    assert len(fetched) <= 1 + len(again.opened.rows.methods())


def test_purge_takes_a_photo_from_the_bucket_and_from_other_machines(
    workspace: Workspace, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped midway, another machine finishes it; its tombstone stands; who comes back drops its own copies."""
    recipe = workspace.recipe(SMALL + f'[run]\nstore = "{machines.address}"\n')
    machines.use("one")
    plan = Recipe.load(recipe).plan(Recipe.load(recipe).store())
    run(plan)
    photos = next(plan.store.get(key) for key, task in plan.tasks.items() if task.stage == "photos")
    assert photos is not None
    name = sorted(plan.store.read(photos.output("images.index.json").digest).decode().split('"'))
    sample = next(part for part in name if part.count("-") == 1 and len(part.rpartition("-")[2]) == 16)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    breaks_off = machines.store("breaks-off")
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "remove", stopped)
        with pytest.raises(KeyboardInterrupt):
            breaks_off.purge([sample], "asked")
    other = machines.store("other")
    assert not other.tombstones()[sample].done
    assert other.get(photos.key) == photos
    report = other.purge()
    assert report.photos == (sample,)
    assert photos.key in report.records
    assert other.tombstones()[sample].done
    left = set(names(machines.address))
    assert f"tombstones/{sample}.json" in left
    digest = photos.output("images.tar").digest
    assert f"records/{photos.key[:2]}/{photos.key}.json" not in left
    assert f"objects/{digest[:2]}/{digest}" not in left
    kept = plan.store.root / "objects" / digest[:2] / digest
    assert kept.exists()
    machines.use("one")
    again = Recipe.load(recipe).plan(Recipe.load(recipe).store())
    assert photos.key not in again.tasks
    assert not kept.exists()
    rerun = run(again)
    assert rerun.tally.made < len(again.tasks), "the other photos were derived, not made again"
    assert machines.store("third").verify().ok
