"""Results that are copied from another store: with their inputs, of the same bytes, and nothing that is buried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BUILD_ONLY, Workspace
from test_store_support import make_record, publish, skip_syncs
from typer.testing import CliRunner

from replaygen.cli.app import app
from replaygen.store import Record, Store, fsops
from replaygen.store.also import Brought, bring

PHOTO = "c" * 64


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    fsops.trace = skip_syncs
    yield
    fsops.trace = None


@pytest.fixture
def mine(tmp_path: Path) -> Store:
    return Store(tmp_path / "mine")


@pytest.fixture
def theirs(tmp_path: Path) -> Store:
    return Store(tmp_path / "theirs")


def chain(store: Store, data: bytes = b"") -> list[Record]:
    """Images, and labels that were made from them."""
    images = publish(store, {"count": 3}, data)
    read = {images.key: images.outputs_digest}
    return [images, publish(store, {}, b"masks", stage="label", inputs=(("images", images.key),), read=read)]


def states(store: Store, records: list[Record]) -> list[str]:
    """The states of some keys."""
    found = store.statuses([record.key for record in records])
    return [found[record.key].state for record in records]


def test_what_stands_there_is_copied_and_then_stands_here(mine: Store, theirs: Store) -> None:
    records = chain(theirs)
    absent = make_record({"count": 9}, {}).key
    keys = [*(record.key for record in records), absent]
    reader = Store(theirs.root, readonly=True)
    told = bring(mine, reader, keys, dry_run=True)
    assert told == Brought(2, sum(one.size for record in records for one in record.outputs), 0, 1)
    assert states(mine, records) == ["missing", "missing"]
    assert bring(mine, reader, keys) == told
    assert [mine.get(record.key) for record in records] == records
    assert states(mine, records) == ["cached", "cached"]
    assert mine.verify().ok
    assert bring(mine, reader, keys) == Brought(0, 0, 2, 1)


def test_what_was_made_from_other_bytes_does_not_come(mine: Store, theirs: Store) -> None:
    """The images here are not those that the labels there were made from."""
    records = chain(theirs)
    own = publish(mine, {"count": 3}, b"images of another machine")
    assert bring(mine, theirs, [record.key for record in records]) == Brought(0, 0, 1, 1)
    assert mine.get(own.key) == own


def test_nothing_comes_without_its_inputs(mine: Store, theirs: Store) -> None:
    records = chain(theirs)
    theirs.open_object(records[0].outputs[0].digest).write_bytes(b"damaged")
    assert bring(mine, theirs, [record.key for record in records]) == Brought(0, 0, 0, 2)
    assert bring(mine, theirs, [records[1].key]) == Brought(0, 0, 0, 1)
    assert states(mine, records) == ["missing", "missing"]


def test_a_damaged_result_here_is_replaced(mine: Store, theirs: Store) -> None:
    records = chain(theirs)
    keys = [record.key for record in records]
    bring(mine, theirs, keys)
    mine.open_object(records[1].outputs[0].digest).write_bytes(b"damaged")
    assert bring(mine, theirs, keys).records == 1
    assert states(mine, records) == ["cached", "cached"]


def test_buried_photos_stay_buried(mine: Store, theirs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo that was purged here does not come back from a store that still has its bytes, nor what it became."""
    images = publish(theirs, {"files": [["a.jpg", PHOTO]]}, stage="photos")
    read = {images.key: images.outputs_digest}
    labels = publish(theirs, {}, b"masks", stage="label", inputs=(("images", images.key),), read=read)
    monkeypatch.setattr(Store, "buried_bytes", lambda _self: frozenset([PHOTO]))
    assert bring(mine, theirs, [images.key, labels.key]) == Brought(0, 0, 0, 2)
    monkeypatch.setattr(Store, "buried_bytes", lambda _self: frozenset(["d" * 64]))
    assert bring(mine, theirs, [images.key, labels.key]).records == 2


def test_the_command_is_a_live_run_for_gc(workspace: Workspace, theirs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it copies is named by no ref yet: its lease keeps it. A dry run takes none."""
    recipe, root = workspace.recipe(BUILD_ONLY, "build"), workspace.root / "own"
    wanted: list[tuple[set[str], set[str]]] = []

    def looks(store: Store, other: Store, keys: dict[str, object], *, dry_run: bool) -> Brought:
        leased = {key for lease in store._locks.leases()[0] for key in lease.keys}
        wanted.append((leased, set(keys)))
        return bring(store, other, keys, dry_run=dry_run)

    monkeypatch.setattr("replaygen.store.also.bring", looks)
    for more in ([], ["--dry-run"]):
        given = ["cache", "bring", str(recipe), "--from", str(theirs.root), "--cache", str(root), *more]
        done = CliRunner().invoke(app, given)
        assert done.exit_code == 0, done.output
    (leased, keys), (none, _) = wanted
    assert leased == keys != set()
    assert none == set()
    assert Store(root)._locks.leases() == ([], [])
