"""Keys, records, and whether a result is cached."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store_support import make_record, publish, skip_syncs

from replaygen.errors import ObjectMissing, StoreError
from replaygen.store import Counts, OutputObject, Record, Store, canonical, fsops, task_key

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    fsops.trace = skip_syncs
    yield
    fsops.trace = None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@settings(max_examples=100, deadline=None)
@given(value=JSON)
def test_canonical_json_is_json_and_stays_the_same(value: Any) -> None:
    """It parses to the value, and the canonical text of what was parsed is the same text."""
    text = canonical(value)
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text


@settings(max_examples=60, deadline=None)
@given(params=st.dictionaries(TEXT, JSON, max_size=5), seed=st.integers() | st.none())
def test_a_key_depends_on_content_not_on_order(params: dict[str, Any], seed: int | None) -> None:
    """Parameters in another order give the same key; another seed, version, stage or input does not."""
    key = task_key("source", 1, params, seed, [])
    assert task_key("source", 1, dict(reversed(params.items())), seed, []) == key
    others = [
        task_key("source", 1, params, (seed or 0) + 1, []),
        task_key("source", 2, params, seed, []),
        task_key("screen", 1, params, seed, []),
        task_key("source", 1, {**params, "one more than eight": 1}, seed, []),
        task_key("source", 1, params, seed, [("images", key)]),
    ]
    assert len({key, *others}) == 6


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1: 2}, {"a": {None: 1}}, {1, 2}, b"x", "\ud800", object()]
)
def test_what_has_no_canonical_json_is_refused(value: Any) -> None:
    """Rather than changed in silence."""
    with pytest.raises(StoreError, match="no canonical JSON"):
        canonical({"value": [value]})


def test_the_key_of_a_task_does_not_move() -> None:
    """Keys name results for years; this one is written down."""
    text = (
        b'{"inputs":[["images","' + b"a" * 64 + b'"]],"params":{"count":300,"lr":0.1},"seed":0,"stage":"x","version":1}'
    )
    import hashlib

    assert task_key("x", 1, {"lr": 0.1, "count": 300}, 0, [("images", "a" * 64)]) == hashlib.sha256(text).hexdigest()


def test_counts_must_add_up() -> None:
    """Nothing vanishes from the counts."""
    with pytest.raises(StoreError, match="5 requested, 4 accounted for"):
        Counts(5, 3, {"dark": 1}, {})
    assert Counts(5, 3, {"dark": 1}, {"timeout": 1}).requested == 5


@settings(max_examples=60, deadline=None)
@given(params=st.dictionaries(TEXT, JSON, max_size=4), provenance=st.dictionaries(TEXT, JSON, max_size=4), slot=TEXT)
def test_a_record_round_trips(params: dict[str, Any], provenance: dict[str, Any], slot: str) -> None:
    """Any record is read as it was written, from bytes that do not depend on the order of its tables."""
    record = replace(make_record(params, {}, slot=slot), provenance=provenance)
    again = Record.from_json(record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()


@settings(max_examples=150, deadline=None)
@given(where=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_record_passes(where: int, bit: int) -> None:
    """Each byte of a record's file is checked."""
    data = make_record({"count": 3}, {}).to_json()
    where %= len(data)
    with pytest.raises(StoreError, match="damaged"):
        Record.from_json(data[:where] + bytes([data[where] ^ (1 << bit)]) + data[where + 1 :])


def test_a_record_under_another_tasks_key_is_refused(store: Store) -> None:
    """A key that is not that of the ingredients is never published."""
    record = make_record({"count": 3}, {})
    with pytest.raises(StoreError, match="not the key of its ingredients"):
        store.publish(replace(record, params={"count": 4}))


def test_an_output_is_found_by_name() -> None:
    """A wrong name is answered with the nearest one."""
    record = replace(make_record({}, {}), outputs=(OutputObject("images", "a" * 64, 1, 1),))
    assert record.output("images").digest == "a" * 64
    with pytest.raises(StoreError, match="did you mean 'images'"):
        record.output("image")


def test_put_publish_and_read(store: Store, tmp_path: Path) -> None:
    """What was put is read, by this store and by the next one that opens the folder."""
    (tmp_path / "model").write_bytes(b"weights" * 1000)
    ref = store.put_file(tmp_path / "model")
    assert ref == store.put(b"weights" * 1000)
    record = store.publish(make_record({"count": 3}, {"model": ref}))
    again = Store(store.root)
    assert again.get(record.key) == record
    assert again.read(ref.digest) == b"weights" * 1000
    assert again.open_object(ref.digest).read_bytes() == b"weights" * 1000
    assert again.status(record.key).state == "cached"
    assert again.status("0" * 64).state == "missing"
    with pytest.raises(ObjectMissing):
        again.read("0" * 64)


def test_a_record_waits_for_its_objects(store: Store) -> None:
    """A record that names an object that was never put is not published."""
    record = replace(make_record({}, {}), outputs=(OutputObject("images", "a" * 64, 1, 1),))
    with pytest.raises(ObjectMissing, match="output 'images'"):
        store.publish(record)
    assert store.get(record.key) is None


def test_the_first_record_of_a_key_stays(store: Store) -> None:
    """Publishing other outputs under a key gives back the record that is there."""
    first = publish(store, {"count": 3}, b"first")
    assert publish(store, {"count": 3}, b"second") == first
    assert store.get(first.key) == first


def test_a_record_with_a_lost_object_is_replaced(store: Store) -> None:
    """Publishing what was rebuilt differently puts the new record in place of the broken one."""
    first = publish(store, {"count": 3}, b"first")
    store.open_object(first.output("images").digest).unlink()
    assert store.status(first.key).state == "damaged"
    second = publish(store, {"count": 3}, b"second")
    assert second.outputs_digest != first.outputs_digest
    assert store.get(first.key) == second
    assert store.status(first.key).state == "cached"


def test_a_result_made_from_another_input_is_not_cached(store: Store) -> None:
    """An input that was rebuilt with other bytes makes what read the old ones run again."""
    images = publish(store, {"count": 3}, b"first")
    more = {"stage": "label", "inputs": (("images", images.key),)}
    labels = publish(store, {}, b"masks", read={images.key: images.outputs_digest}, **more)
    assert store.status(labels.key).state == "cached"
    rebuilt = store.replace(make_record({"count": 3}, {"images": store.put(b"second")}))
    for status in (store.status(labels.key), store.statuses([images.key, labels.key])[labels.key]):
        assert status.state == "damaged"
        assert status.changed == (images.key,)
        assert "rebuilt differently" in status.detail
    publish(store, {}, b"new masks", read={images.key: rebuilt.outputs_digest}, **more)
    assert store.status(labels.key).state == "cached"


def test_statuses_of_many_keys_are_quick(store: Store) -> None:
    """2,000 warm records take at most twice their share of the 3 s that 50,000 may take, in time of this process."""
    keys = [publish(store, {"slice": number}, b"same").key for number in range(2000)]
    time.sleep(0.03)
    store.statuses(keys)
    started = time.process_time()
    statuses = store.statuses(keys)
    assert time.process_time() - started < 2 * 3.0 * 2000 / 50_000
    assert {status.state for status in statuses.values()} == {"cached"}


@pytest.mark.parametrize(
    "content", [None, b"", b"\0" * 300, b"[[[\n{}\nnull\n[1,2,3]\n", b'[["' + b"a" * 64 + b'",1,1,1,1,1],"00000000"]\n']
)
def test_the_index_is_only_a_cache(store: Store, content: bytes | None) -> None:
    """Deleted, torn or odd, it costs a hash and changes nothing."""
    record = publish(store, {"count": 3})
    time.sleep(0.03)
    assert store.status(record.key).state == "cached"
    index = store.root / "verified.jsonl"
    assert record.output("images").digest in index.read_text()
    if content is None:
        index.unlink()
    else:
        index.write_bytes(index.read_bytes()[:-7] + content)
    again = Store(store.root)
    assert again.status(record.key).state == "cached"
    again.open_object(record.output("images").digest).write_bytes(b"x")
    assert again.status(record.key).state == "damaged"


def test_a_file_changed_right_after_it_was_written_is_noticed(store: Store) -> None:
    """Within one tick of the file system's clock, the time stamp shows nothing; the object is hashed again."""
    for number in range(50):
        record = publish(store, {"slice": number}, b"%03d" % number)
        path = store.open_object(record.output("images").digest)
        path.write_bytes(b"bad")
        assert store.status(record.key).state == "damaged"
