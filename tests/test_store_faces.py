"""gc, locks, leases, refs, read-only stores, formats, why and du."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251 - only to show that a store can travel to a worker
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_store_support import child, child_result, make_record, publish, skip_syncs, tree

from replaygen.errors import LockTimeout, StoreError
from replaygen.store import Store, fsops


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    fsops.trace = skip_syncs
    yield
    fsops.trace = None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def age(store: Store) -> None:
    """Let every file be an hour older, so that only what comes now is new."""
    for path in store.root.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 3600,) * 2)


def test_gc_keeps_what_refs_reach(store: Store) -> None:
    """Inputs are followed; the rest goes, with its unfinished work; a dry run only tells."""
    images = publish(store, {"count": 3})
    labels = publish(store, {}, b"masks", stage="label", inputs=(("images", images.key),))
    garbage = publish(store, {"count": 4}, b"garbage")
    store.write_ref("recipe", "main", {"slots": {"cow": labels.key}})
    (store.partial(garbage.key) / "half").write_bytes(b"12345")
    (store.partial(labels.key) / "half").write_bytes(b"finished")
    wanted = make_record({"count": 9}, {}).key
    store.write_ref("recipe", "next", {"slots": {"cow": wanted}})
    (store.partial(wanted) / "half").write_bytes(b"wanted")
    before = tree(store.root)
    told = store.gc(dry_run=True)
    assert tree(store.root) == before
    assert told.records == (garbage.key,)
    assert told.objects == (garbage.output("images").digest,)
    assert set(told.partial) == {garbage.key, labels.key}
    assert told.bytes > len(b"garbage12345")
    assert replace(store.gc(), dry_run=True) == told
    assert {key: store.status(key).state for key in (images.key, labels.key, garbage.key)} == {
        images.key: "cached", labels.key: "cached", garbage.key: "missing",
    }  # fmt: skip
    assert [path.name for path in (store.root / "partial").iterdir()] == [wanted]


def test_gc_keeps_what_is_newer_than_a_live_run(store: Store) -> None:
    """And what that run named; older things go, and all goes when the run has ended."""
    old, named = publish(store, {"count": 1}), publish(store, {"count": 2})
    age(store)
    with store.lease("run", [named.key]):
        new = publish(store, {"count": 3})
        loose = store.put(b"not yet in a record")
        adopted = store.put(json.dumps({"count": 1}).encode())
        (store.root / "tmp" / "being-written").write_bytes(b"x")
        assert store.gc().records == (old.key,)
        assert store.status(named.key).state == store.status(new.key).state == "cached"
        assert store.read(loose.digest) == b"not yet in a record"
        assert store.read(adopted.digest)
        assert (store.root / "tmp" / "being-written").exists()
    gone = store.gc()
    assert set(gone.records) == {named.key, new.key}
    assert gone.tmp == ("being-written",)
    assert tree(store.root) == {}


def test_gc_removes_lock_files_that_nobody_holds(store: Store) -> None:
    """A held one stays."""
    held, free = make_record({"count": 1}, {}).key, make_record({"count": 2}, {}).key
    with store.lock(free):
        pass
    with store.lock(held):
        store.gc()
        assert {path.name for path in (store.root / "locks").iterdir()} == {f"{held}.lock", "gc.lock"}


def test_a_lock_excludes_other_threads_and_not_its_own(store: Store) -> None:
    """The same thread takes it again; another one waits until it is free."""
    key = make_record({}, {}).key
    order: list[str] = []

    def other() -> None:
        with store.lock(key):
            order.append("other")

    thread = threading.Thread(target=other)
    with store.lock(key), store.lock(key, timeout=0):
        thread.start()
        with pytest.raises(LockTimeout), Store(store.root).lock(key, timeout=0.05):
            pass
        order.append("mine")
    thread.join(5)
    assert order == ["mine", "other"]


def test_a_lock_file_unlinked_while_waiting_does_not_count(store: Store) -> None:
    """Whoever gets the lock holds the file that is at the path now, so two never hold it."""
    key = make_record({}, {}).key
    path = store.root / "locks" / f"{key}.lock"
    holding, done = threading.Event(), threading.Event()

    def other() -> None:
        with store.lock(key):
            holding.set()
            done.wait(5)

    thread = threading.Thread(target=other)
    with store.lock(key):
        thread.start()
        time.sleep(0.05)
        path.unlink()
    assert holding.wait(5)
    with pytest.raises(LockTimeout), store.lock(key, timeout=0.05):
        pass
    done.set()
    thread.join(5)


def test_readonly_serves_and_explains(store: Store) -> None:
    """Row 24: hits work, every write says why not, damage is reported and stays where it is."""
    record, damaged = publish(store, {"count": 3}), publish(store, {"count": 4}, b"will be damaged")
    store.write_ref("recipe", "main", {"slots": {"cow": record.key}})
    path = store.open_object(damaged.output("images").digest)
    path.write_bytes(b"damaged")
    before = tree(store.root)
    reader = Store(store.root, readonly=True)
    assert reader.status(record.key).state == "cached"
    assert reader.get(record.key) == record
    assert reader.read(record.output("images").digest)
    assert reader.read_ref("recipe", "main") == {"slots": {"cow": record.key}}
    assert [damage.name for damage in reader.verify().damaged] == [path.name]
    assert reader.gc(dry_run=True).records == (damaged.key,)
    writes = [
        lambda: reader.put(b"x"), lambda: reader.put_file(path), lambda: reader.publish(record),
        lambda: reader.replace(record), lambda: reader.write_ref("a", "b", {}), lambda: reader.gc(),
        lambda: reader.partial(record.key), lambda: reader.clear_partial(record.key),
        lambda: reader.quarantine_record(record.key, "x"), lambda: reader.lock(record.key).__enter__(),
        lambda: reader.lease("x").__enter__(),
    ]  # fmt: skip
    for write in writes:
        with pytest.raises(StoreError, match="open read-only"):
            write()
    assert tree(store.root) == before


@pytest.mark.parametrize(
    "content", [b"replaygen-store 2\n", b"replaygen-store 0", b"", b"\xff\xfe", b"replaygen-store 11"]
)
def test_another_format_is_refused(store: Store, content: bytes) -> None:
    """Row 24: older, newer or odd: never guessed, nothing written."""
    (store.root / "format").write_bytes(content)
    for readonly in (False, True):
        with pytest.raises(StoreError, match="format"):
            Store(store.root, readonly=readonly)
    assert (store.root / "format").read_bytes() == content


def test_a_store_without_its_format_file_is_refused(store: Store, tmp_path: Path) -> None:
    """A full folder is not taken for an empty one; an absent one is not made in read-only mode."""
    (store.root / "format").unlink()
    with pytest.raises(StoreError, match="no format file"):
        Store(store.root)
    with pytest.raises(StoreError, match="no store here"):
        Store(tmp_path / "nowhere", readonly=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_is_laid_out_beside_its_readme(tmp_path: Path) -> None:
    """The tracked cache folder, with a README alone, becomes a store; a copy of a store is one too."""
    (tmp_path / "README.md").write_text("look")
    record = publish(Store(tmp_path), {"count": 3})
    shutil.copytree(tmp_path, tmp_path.parent / "copied")
    assert Store(tmp_path.parent / "copied").status(record.key).state == "cached"


def test_a_store_travels_to_a_worker(store: Store) -> None:
    """As its path and mode."""
    record = publish(store, {"count": 3})
    again = pickle.loads(pickle.dumps(Store(store.root, readonly=True)))  # noqa: S301
    assert again.readonly
    assert again.get(record.key) == record


def test_why_names_the_difference_to_the_nearest_record(store: Store) -> None:
    """The same slot first, then the fewest differences; a prefix of the key will do."""
    publish(store, {"count": 500, "crop": {"size": 64}}, b"1", slot="cow")
    publish(store, {"count": 300, "crop": {"size": 32}}, b"2", slot="dog")
    publish(store, {"count": 300}, b"3", stage="screen", slot="cow")
    mine = publish(store, {"count": 300, "crop": {"size": 64}}, b"4", slot="cow")
    report = store.why(mine.key[:10])
    assert report.key == mine.key
    assert report.nearest_slot == "cow"
    assert report.differences == {"count": [300, 500]}
    other = publish(store, {"count": 300, "crop": {"size": 16}}, b"5", slot="hen")
    assert (
        store.why(other.key).differences == {"crop.size": [16, min(32, 64)]} or store.why(other.key).nearest == mine.key
    )
    for prefix, complaint in (("abc", "no key"), ("0" * 64, "no record"), ("../../x", "no key")):
        with pytest.raises(StoreError, match=complaint):
            store.why(prefix)


def test_du_counts_bytes_by_stage_and_ref(store: Store) -> None:
    """An object that two refs reach counts in each, and once in the whole."""
    images = publish(store, {"count": 3}, b"i" * 100)
    labels = publish(store, {}, b"m" * 10, stage="label", inputs=(("images", images.key),))
    store.put(b"o" * 7)
    store.write_ref("a", "main", {"slots": {"cow": labels.key}})
    store.write_ref("b", "main", {"slots": {"cow": images.key}})
    report = store.du()
    assert report.stages == {"label": 10, "source": 100}
    assert report.refs == {"a/main": 110, "b/main": 100}
    assert (report.objects, report.unreferenced) == (117, 7)
    assert report.total >= 117 + report.records


def test_refs_are_read_listed_and_rewritten(store: Store) -> None:
    """The last one written counts; an odd slot is refused before anything is written."""
    assert store.read_ref("recipe", "main") is None
    store.write_ref("recipe", "main", {"slots": {}})
    store.write_ref("recipe", "main", {"slots": {"cow": "a" * 64}, "note": "é"})
    store.write_ref("Recipe", "main", {})
    assert store.read_ref("recipe", "main") == {"slots": {"cow": "a" * 64}, "note": "é"}
    assert sorted((recipe, name) for recipe, name, _ in store.refs()) == [("Recipe", "main"), ("recipe", "main")]
    with pytest.raises(StoreError, match="slot 'cow'"):
        store.write_ref("recipe", "main", {"slots": {"cow": "../../x"}})


def test_a_child_that_is_forked_does_not_keep_a_lock(store: Store) -> None:
    """The lock is free when its holder lets go, though a forked child lives on."""
    assert child_result(child("forked", store.root, make_record({}, {}).key)) is True


def test_only_fsops_changes_files() -> None:
    """Every other module of the store leaves the file system alone, so that the tests of crashes miss nothing."""
    import ast

    import replaygen.store as package

    changing = {
        "mkdir", "makedirs", "link", "rename", "replace", "unlink", "remove", "rmdir", "symlink", "truncate",
        "write", "pwrite", "utime", "chmod", "write_bytes", "write_text", "touch", "rmtree", "copy", "copyfile", "move",
        "ftruncate", "fsync", "hardlink_to", "symlink_to",
    }  # fmt: skip
    found = []
    for path in sorted(Path(package.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if path.name != "fsops.py" and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                module = node.func.value
                name = module.id if isinstance(module, ast.Name) else ""
                if node.func.attr in changing and name in {"os", "shutil", "path", "Path", "folder", "temp", "file"}:
                    found.append(f"{path.name}:{node.lineno} {name}.{node.func.attr}")
    assert found == []
