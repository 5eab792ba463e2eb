"""A store in a bucket, on moto's server: what is written is whole, read by other machines, and never served damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_store_s3_support import BUCKET, Machines, bucket_files, bucket_server, names
from test_store_support import make_record

from replaygen.errors import ObjectDamaged, ObjectMissing, StoreError
from replaygen.store import Record, Store
from replaygen.store.keys import sha256_hex
from replaygen.store.remote import Remote

_OTHERS = [f"{number:064x}" for number in range(20)]
"""Keys of no record: so many that the bucket is listed."""


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with bucket_server() as environment:
        yield environment


@pytest.fixture
def machines(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Machines on an empty prefix of the bucket."""
    return Machines(tmp_path, f"s3://{BUCKET}/{sha256_hex(str(tmp_path).encode())[:12]}", monkeypatch)


def _made(store: Store, text: str, **params: object) -> Record:
    return store.publish(make_record({"text": text, **params}, {"images": store.put(text.encode())}))


def _since(store: Store, before: Counter[str]) -> dict[str, int]:
    return dict(store.requests - before)


def test_what_one_machine_makes_another_reads(machines: Machines) -> None:
    """Objects, records, refs and tombstones; the bucket has the layout of a folder."""
    one = machines.store("one")
    record = _made(one, "cow")
    one.write_ref("digits", "main", {"slots": {"cow": record.key}})
    one.bury(["flickr-1"], "asked")
    other = machines.store("other")
    assert other.root != one.root
    assert other.get(record.key) == record
    assert other.read(record.output("images").digest) == b"cow"
    assert other.open_object(record.output("images").digest).read_bytes() == b"cow"
    assert other.read_ref("digits", "main") == {"slots": {"cow": record.key}}
    assert list(other.refs()) == [("digits", "main", {"slots": {"cow": record.key}})]
    assert other.tombstones()["flickr-1"].reason == "asked"
    digest = record.output("images").digest
    assert names(machines.address) == [
        "format", f"objects/{digest[:2]}/{digest}", f"records/{record.key[:2]}/{record.key}.json",
        "refs/digits/main.json", "tombstones/flickr-1.json",
    ]  # fmt: skip


def test_a_store_is_shipped_by_its_address(machines: Machines) -> None:
    """Sent to a worker, it is an address: no credentials, no local path; opened there it has another local folder."""
    store = machines.store("one")
    opens, sent = store.__reduce__()
    assert sent == (machines.address, False)
    machines.use("other")
    again = opens(*sent)
    assert again.address == store.address == machines.address
    assert again.root != store.root
    assert repr(again) == f"Store({machines.address!r})"


@pytest.mark.parametrize(
    "address",
    ["s3://id:secret@bucket/x", "s3://bucket/x?secret=1", "s3://bucket:secret/x", "s3://", "s3://b", "s3:/bucket/x",
     "s3://bucket/../x", "s3://bucket//x", "s3://BUCKET/x", "s3://bucket/a%2e", "gs://bucket/x", "https://secret/x"],
)  # fmt: skip
def test_odd_addresses_are_refused(address: str) -> None:
    """Without a request, and without telling a secret that an address may carry."""
    with pytest.raises(StoreError) as caught:
        Store(address)
    assert "secret" not in str(caught.value)
    assert caught.value.hint


def test_statuses_of_a_plan_take_two_listings(machines: Machines) -> None:
    """However many keys; a machine that has none of the records gets each once, and no object."""
    one = machines.store("one")
    records = [_made(one, f"cow {number}") for number in range(20)]
    keys = [record.key for record in records] + ["f" * 64]
    before = one.requests.copy()
    states = one.statuses(keys)
    assert _since(one, before) == {"ListObjectsV2": 2}
    assert Counter(status.state for status in states.values()) == {"cached": 20, "missing": 1}
    other = machines.store("other")
    before = other.requests.copy()
    assert other.statuses(keys) == states
    assert _since(other, before) == {"ListObjectsV2": 2, "GetObject": 20}
    assert other.statuses(keys) == states
    assert _since(other, before) == {"ListObjectsV2": 4, "GetObject": 20}
    assert [path for path in (other.root / "objects").rglob("*") if path.is_file()] == []


def test_requests_of_one_task(machines: Machines) -> None:
    """A task asks for its record once, and writes lock, object, record; its lock goes."""
    store = machines.store("one")
    store.tombstones()
    task = make_record({"text": "cow"}, {})
    before = store.requests.copy()
    with store.lock(task.key):
        assert store.get(task.key) is None
        made = store.publish(make_record({"text": "cow"}, {"images": store.put(b"cow")}))
    assert store.get(task.key) == made
    assert _since(store, before) == {"PutObject": 3, "GetObject": 1, "DeleteObject": 1}


def test_one_of_two_records_wins_and_the_other_adopts_it(machines: Machines) -> None:
    """Two machines publish one key with other bytes: both have the first one's record then."""
    one, other = machines.store("one"), machines.store("other")
    first = make_record({"text": "cow"}, {"images": one.put(b"by one")})
    second = make_record({"text": "cow"}, {"images": other.put(b"by the other")})
    assert one.publish(first) == first
    assert other.publish(second) == first
    assert one.get(first.key) == other.get(first.key) == first


def test_a_replaced_record_is_seen_elsewhere(machines: Machines) -> None:
    """The local copy of a record is compared with the bucket, and so is one that is gone."""
    one, other = machines.store("one"), machines.store("other")
    first = _made(one, "cow")
    assert other.get(first.key) == first
    second = make_record({"text": "cow"}, {"images": one.put(b"made again")})
    one.replace(second)
    again = machines.store("other")
    assert again.get(first.key) == second
    one.forget(first.key)
    assert machines.store("other").get(first.key) is None
    assert machines.store("other").status(first.key).state == "missing"
    assert (
        machines.store("other").statuses([first.key, *(f"{n:064x}" for n in range(20))])[first.key].state == "missing"
    )


def test_a_damaged_object_in_the_bucket_is_never_served(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """It goes to the local quarantine, loudly, and from the bucket; its task is run again and heals it."""
    one = machines.store("one")
    record = _made(one, "cow")
    digest = record.output("images").digest
    bucket_files().pipe_file(f"{machines.address}/objects/{digest[:2]}/{digest}", b"dog")
    other = machines.store("other")
    with pytest.raises(ObjectDamaged):
        other.read(digest)
    assert "damaged object" in caplog.text
    assert [path.read_bytes() for path in (other.root / "quarantine").iterdir()] == [b"dog"]
    with pytest.raises(ObjectMissing):
        other.open_object(digest)
    assert other.status(record.key).state == "damaged"
    rebuilt = machines.store("one")
    assert rebuilt.status(record.key).state == "damaged"
    rebuilt.replace(make_record({"text": "cow"}, {"images": rebuilt.put(b"cow")}))
    assert machines.store("other").read(digest) == b"cow"


def test_one_bad_read_deletes_nothing(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the network turned is read again before it counts as damaged."""
    digest = machines.store("one").put(b"cow").digest
    stream, turned = Remote.stream, []

    def turns_the_first(remote: Remote, name: str) -> tuple[str, Iterator[bytes]] | None:
        found = stream(remote, name)
        if found is None or turned:
            return found
        turned.append(b"".join(found[1]))
        return found[0], iter([b"dog"])

    monkeypatch.setattr(Remote, "stream", turns_the_first)
    other = machines.store("other")
    assert other.read(digest) == b"cow"
    assert turned == [b"cow"]
    assert f"objects/{digest[:2]}/{digest}" in names(machines.address)
    assert [*(other.root / "quarantine").iterdir(), *(other.root / "tmp").iterdir()] == []


def test_unfinished_work_of_a_running_task_outlives_a_purge_elsewhere(machines: Machines) -> None:
    """What nobody is at goes when a new tombstone is seen; what a task of this machine is at stays."""
    one, other = machines.store("one"), machines.store("other")
    running, left = "a" * 64, "b" * 64
    for key in (running, left):
        (other.partial(key) / "half").write_text("half a fit")
    one.bury(["flickr-1"])
    with other.lock(running):
        assert other.tombstones().keys() == {"flickr-1"}
    assert [path.name for path in (other.root / "partial").iterdir()] == [running]
    one.bury(["flickr-2"])
    other.tombstones()
    assert [*(other.root / "partial").iterdir()] == []


def test_a_cut_object_is_seen_by_its_size_and_healed(machines: Machines) -> None:
    """One listing, or one HEAD, tells; to put it again writes over it."""
    store = machines.store("one")
    record = _made(store, "cow")
    digest = record.output("images").digest
    bucket_files().pipe_file(f"{machines.address}/objects/{digest[:2]}/{digest}", b"co")
    fresh = machines.store("other")
    assert fresh.status(record.key).state == "damaged"
    assert fresh.statuses([record.key, *_OTHERS])[record.key].state == "damaged"
    fresh.put(b"cow")
    assert machines.store("third").read(digest) == b"cow"
    bucket_files().rm_file(f"{machines.address}/objects/{digest[:2]}/{digest}")
    assert machines.store("other").status(record.key).state == "damaged"
    assert machines.store("other").statuses([record.key, *_OTHERS])[record.key].state == "damaged"
    fresh.put(b"cow")
    assert machines.store("third").status(record.key).state == "cached"


def test_records_are_compared_where_etags_are_no_md5(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in buckets with keys of their own: known ones are not sent again, changed ones are."""
    monkeypatch.setattr("replaygen.store.mirror._md5", sha256_hex)
    monkeypatch.setattr("replaygen.store.shelf.FRESH_SECONDS", 0.0)
    one, other = machines.store("one"), machines.store("other")
    first = _made(one, "cow")
    assert other.get(first.key) == other.get(first.key) == first
    mirror = other._layout.mirror
    assert mirror is not None
    known = mirror.remote.get(mirror.name(other._records.path(first.key)), mirror._etag(other._records.path(first.key)))
    assert known is not None
    assert known.data is None
    second = make_record({"text": "cow"}, {"images": one.put(b"made again")})
    one.replace(second)
    assert other.get(first.key) == second


def test_a_damaged_record_in_the_bucket_is_moved_away(machines: Machines) -> None:
    """And what is damaged only here is read again from there."""
    one = machines.store("one")
    record = _made(one, "cow")
    name = f"records/{record.key[:2]}/{record.key}.json"
    (one.root / name).write_bytes(b"{}")
    (one.root / "objects" / record.output("images").digest[:2] / record.output("images").digest).write_bytes(b"dog")
    again = machines.store("one")
    assert again.get(record.key) == record
    assert again.read(record.output("images").digest) == b"cow"
    bucket_files().pipe_file(f"{machines.address}/{name}", b"{}")
    assert machines.store("other").get(record.key) is None
    assert name not in names(machines.address)


def test_read_only_writes_nothing(machines: Machines, server: dict[str, str]) -> None:
    """No PUT and no DELETE, whatever is damaged; and where there is no store, none is made."""
    with pytest.raises(StoreError, match="none is made in read-only"):
        machines.store("one", readonly=True)
    assert names(machines.address) == []
    one = machines.store("one")
    good, bad = _made(one, "cow"), _made(one, "dog")
    digest = bad.output("images").digest
    bucket_files().pipe_file(f"{machines.address}/objects/{digest[:2]}/{digest}", b"pig")
    before = names(machines.address)
    store = machines.store("reader", readonly=True)
    sent = store.requests.copy()
    assert store.read(good.output("images").digest) == b"cow"
    with pytest.raises(ObjectDamaged):
        store.read(digest)
    assert not store.verify().ok
    store.du(), store.gc(dry_run=True), store.why(good.key), store.purge(["flickr-1"], dry_run=True)
    for write in (lambda: store.put(b"x"), lambda: store.bury(["flickr-1"]), lambda: store.gc()):
        with pytest.raises(StoreError, match="read-only"):
            write()
    assert names(machines.address) == before
    assert set(_since(store, sent)) == {"GetObject", "ListObjectsV2"}


def test_another_format_is_refused(machines: Machines) -> None:
    """As for a folder: never guessed."""
    bucket_files().pipe_file(f"{machines.address}/format", b"replaygen-store 99\n")
    with pytest.raises(StoreError, match="replaygen-store 99"):
        machines.store("one")
    bucket_files().pipe_file(f"{machines.address}/b/objects/aa/x", b"")
    with pytest.raises(StoreError, match="no format file"):
        Store(f"{machines.address}/b")


def test_what_is_wrong_is_said_without_secrets(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """No bucket, no server, no credentials: an error with a way out; even at DEBUG nothing of the keys is logged."""
    secret = "canary-secret-canary"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_SESSION_TOKEN", secret)
    caplog.set_level("DEBUG")
    _made(machines.store("one"), "cow")
    machines.use("other")
    with pytest.raises(StoreError, match="no such bucket") as missing:
        Store("s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("replaygen.store.remote._CONFIG", {"retries": {"max_attempts": 1}})
    with pytest.raises(StoreError, match="does not answer") as silent:
        Store(machines.address)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="no credentials") as nobody:
        Store(machines.address)
    for caught in (missing, silent, nobody):
        assert caught.value.where.startswith("s3://")
        assert caught.value.hint
        assert secret not in str(caught.value)
    assert secret not in caplog.text


def test_the_local_folder_keeps_to_its_limit(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects leave it and come back on demand; what the task in hand has opened stays, whoever reads beside it."""
    writer = machines.store("writer")
    digests = [writer.put(bytes([number]) * 1000).digest for number in range(30)]
    monkeypatch.setenv("REPLAYGEN_CACHE_LIMIT", "10kB")
    store, beside = machines.store("reader"), machines.store("reader")

    def held() -> set[str]:
        return {path.name for path in (store.root / "objects").rglob("*") if path.is_file()}

    with store.lock("a" * 64):
        opened = store.open_object(digests[0])
        for number, digest in enumerate(digests[1:], 1):
            assert beside.read(digest) == bytes([number]) * 1000
            assert len(held()) <= 10
        assert opened.read_bytes() == bytes(1000)
    for digest in digests[1:15]:
        beside.read(digest)
    assert digests[0] not in held()
    assert store.read(digests[0]) == bytes(1000)
    monkeypatch.setenv("REPLAYGEN_CACHE_LIMIT", "plenty")
    with pytest.raises(StoreError, match="no size"):
        machines.store("reader")


def test_large_objects_go_in_parts(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """And come back whole."""
    monkeypatch.setattr("replaygen.store.mirror.WHOLE", 1000)
    data = bytes(range(256)) * 50_000
    store = machines.store("one")
    digest = store.put(data).digest
    store.put(data)
    assert machines.store("other").read(digest) == data
