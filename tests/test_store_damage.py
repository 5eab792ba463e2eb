"""Damaged files are noticed, moved to quarantine and rebuilt; hostile names stay inside the store."""

from __future__ import annotations

import logging
import os
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_store_support import make_record, skip_syncs, tree

from replaygen.classes import slug
from replaygen.errors import DataError, ObjectDamaged, ObjectMissing, StoreError
from replaygen.store import Record, Store, fsops, write_shard


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    fsops.trace = skip_syncs
    yield
    fsops.trace = None


def _truth(number: int) -> tuple[bytes, Record, dict[str, object]]:
    """The object, record and ref that slice `number` should have."""
    data = random.Random(number).randbytes(200 + 50 * number)
    record = make_record({"slice": number}, {}, slot=f"cow/{number}")
    return data, record, {"slots": {"cow": record.key}, "slice": number}


def _build(store: Store, number: int) -> None:
    """Make slice `number` as a run does: only where it is not cached."""
    data, bare, ref = _truth(number)
    record = make_record({"slice": number}, {"images": store.put(data)}, slot=f"cow/{number}")
    if store.status(bare.key).state != "cached":
        store.publish(record)
    if store.read_ref("recipe", f"ref-{number}") != ref:
        store.write_ref("recipe", f"ref-{number}", ref)


_SLICES = 6


def _mutate(root: Path, chance: random.Random) -> tuple[str, list[Path]]:
    """Damage one file, or swap two, keeping size and mtime where the kind of damage allows it."""
    files = sorted(
        path for part in ("objects", "records", "refs") for path in (root / part).rglob("*") if path.is_file()
    )
    path = chance.choice(files)
    kind = chance.choice(["flip", "truncate", "swap", "zeros", "delete"])
    data, status = path.read_bytes(), path.stat()
    if kind == "flip":
        where = chance.randrange(len(data))
        path.write_bytes(data[:where] + bytes([data[where] ^ (1 << chance.randrange(8))]) + data[where + 1 :])
    elif kind == "truncate":
        path.write_bytes(data[: chance.randrange(len(data))])
    elif kind == "zeros":
        path.write_bytes(bytes(len(data)))
    elif kind == "delete":
        path.unlink()
    else:
        other = chance.choice([file for file in files if file != path])
        aside = root / "aside"
        path.rename(aside)
        other.rename(path)
        aside.rename(other)
        return kind, [path, other]
    if kind != "delete":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return kind, [path]


def _served(store: Store) -> dict[str, object]:
    """Everything that the store serves as good."""
    served: dict[str, object] = {}
    for number in range(_SLICES):
        _, bare, _ = _truth(number)
        status = store.status(bare.key)
        record = store.get(bare.key)
        if record is not None:
            served[f"records/{bare.key[:2]}/{bare.key}.json"] = record
        if status.state == "cached":
            assert record is not None
            served[f"cached {number}"] = store.open_object(record.output("images").digest).read_bytes()
        ref = store.read_ref("recipe", f"ref-{number}")
        if ref is not None:
            served[f"refs/recipe/ref-{number}.json"] = ref
    return served


def _hit(root: Path, seed: int, truth: dict[str, object], files: dict[str, bytes]) -> list[str]:
    """What went wrong after one seeded mutation."""
    kind, paths = _mutate(root, random.Random(seed))
    store = Store(root)
    wrong = []
    served = _served(store)
    wrong += [f"served {name} differently" for name, value in served.items() if truth[name] != value]
    for path in paths:
        name = str(path.relative_to(root))
        if name in served:
            wrong.append(f"{name} was damaged and served")
        if name.startswith("objects"):
            try:
                store.read(path.name)
                wrong.append(f"{name} was damaged and read")
            except (ObjectDamaged, ObjectMissing):
                pass
    for number in range(_SLICES):
        _build(store, number)
    if tree(root) != files or _served(Store(root)) != truth:
        wrong.append("rebuilding gave something else")
    return [f"seed {seed} {kind} {[str(path) for path in paths]}: {line}" for line in wrong]


def _mutations(root: Path, count: int) -> list[str]:
    store = Store(root)
    for number in range(_SLICES):
        _build(store, number)
    truth, files = _served(store), tree(root)
    assert len(truth) == 3 * _SLICES
    return [line for seed in range(count) for line in _hit(root, seed, truth, files)]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_no_damage_is_silent(tmp_path: Path) -> None:
    """Row 4: 100 seeded mutations of objects, records and refs: each is noticed, and rebuilt to the same bytes."""
    assert _mutations(tmp_path, 100) == []


@pytest.mark.soak
def test_no_damage_is_silent_at_length(tmp_path: Path) -> None:
    """Row 4: 1,000 of them."""
    assert _mutations(tmp_path, 1000) == []


def test_verify_moves_what_is_damaged_and_tells_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full check finds damage that no time stamp shows, loudly, and counts the rest."""
    store = Store(tmp_path)
    for number in range(3):
        _build(store, number)
    orphan = store.put(b"nobody names me")
    damaged = store.get(_truth(0)[1].key)
    assert damaged is not None
    path = store.open_object(damaged.output("images").digest)
    path.write_bytes(bytes(path.stat().st_size))
    with caplog.at_level(logging.WARNING, "replaygen.store"):
        report = store.verify()
    assert not report.ok
    assert [(damage.kind, damage.name) for damage in report.damaged] == [("object", path.name)]
    assert report.missing == ((damaged.key, "images"),)
    assert report.orphans == (orphan.digest,)
    assert (report.objects, report.records, report.refs) == (3, 3, 3)
    assert "moved to" in caplog.text
    assert [file.name.startswith(f"object-{path.name}") for file in (tmp_path / "quarantine").iterdir()] == [True]
    _build(store, 0)
    assert store.verify().ok


def test_a_file_that_belongs_to_no_store_is_reported(tmp_path: Path) -> None:
    """verify names stray files and leaves them alone."""
    store = Store(tmp_path)
    _build(store, 0)
    stray = tmp_path / "objects" / "notes.txt"
    stray.write_bytes(b"mine")
    assert [(damage.kind, damage.name) for damage in store.verify().damaged] == [("stray", "notes.txt")]
    assert stray.exists()


def test_a_folder_or_link_in_place_of_an_object_is_damage(tmp_path: Path) -> None:
    """Neither is followed or read."""
    store = Store(tmp_path)
    (tmp_path / "secret").write_bytes(b"secret")
    for number, plant in enumerate((Path.mkdir, lambda path: path.symlink_to(tmp_path / "secret"))):
        digest = store.put(b"%d" % number).digest
        path = store.open_object(digest)
        path.unlink()
        plant(path)
        with pytest.raises(ObjectDamaged):
            store.read(digest)
        assert store.put(b"%d" % number).digest == digest
        assert store.read(digest) == b"%d" % number


def test_gc_refuses_while_a_ref_is_damaged(tmp_path: Path) -> None:
    """What a damaged ref names is unknown, so nothing is collected until its recipe ran again."""
    store = Store(tmp_path)
    _build(store, 0)
    path = tmp_path / "refs" / "recipe" / "ref-0.json"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreError, match="gc refuses to run: ref is damaged") as refused:
        store.gc()
    assert str(path) in refused.value.where
    assert store.status(_truth(0)[1].key).state == "cached"
    _build(store, 0)
    assert store.gc().records == ()


def test_gc_refuses_while_a_reachable_record_is_damaged(tmp_path: Path) -> None:
    """What a damaged record was made from is unknown."""
    store = Store(tmp_path)
    _build(store, 0)
    key = _truth(0)[1].key
    (tmp_path / "records" / key[:2] / f"{key}.json").write_bytes(b"{}")
    with pytest.raises(StoreError, match="gc refuses to run: record is damaged"):
        store.gc()


def _hostile_names(count: int) -> list[str]:
    """Distinct texts that would like to leave the folder, break it, or be taken for each other."""
    chance = random.Random(12)
    names = [
        "..", ".", "", "/", "../../x", "..\\..\\x", "/etc/passwd", "a/b", "a\0b", "\0", "x" * 5000, "con", "NUL", "~",
        "-rf", "cow", "Cow", "COW", "cow ", " cow", "cow\n", "cow.", "cow.json", "c\u043ew", "co\u200bw", "\ufeffcow",
        "\u202ecow", "\ud800", "caf\u00e9", "cafe\u0301", "\u212b", "\u00c5", "A\u030a", "\ufb01", "fi", "\u0130",
        "i\u0307", "\u00df", "ss", "%2e%2e%2f", "$(id)", "`id`",
    ]  # fmt: skip
    pieces = [*names, "\u00e9", "e\u0301", "_", "-", "é", "É", "\U0001f404", "\x1b[31m", "<script>", "=HYPERLINK("]
    found = dict.fromkeys([*names, *(slug(name) for name in names)])
    while len(found) < count:
        found["".join(chance.choice(pieces)[:80] for _ in range(chance.randrange(1, 5)))] = None
    return list(found)


def test_hostile_names_stay_inside_and_apart(tmp_path: Path) -> None:
    """Row 12: 1,000 names as recipe and ref: none outside the root, no two in one file, each is read back."""
    store = Store(tmp_path / "store")
    names = _hostile_names(1000)
    written = {}
    for number, name in enumerate(names):
        if "\ud800" in name:
            with pytest.raises(StoreError, match="surrogates not allowed"):
                store.write_ref("recipe", name, {})
        else:
            store.write_ref("recipe" if number % 2 else name, name, {"number": number})
            written[name] = number
    assert len(written) > 900
    for name, number in written.items():
        assert store.read_ref("recipe" if number % 2 else name, name) == {"number": number}
    assert len(list(store.refs())) == len(written)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert {path.name for path in (tmp_path / "store").iterdir()} <= {
        "format", "objects", "records", "refs", "partial", "tmp", "locks", "leases", "quarantine", "verified.jsonl",
    }  # fmt: skip


def test_no_two_names_share_a_slug_on_any_file_system() -> None:
    """Row 12: slugs of 1,000 hostile names differ, even where case and Unicode form are not told apart."""
    names = _hostile_names(1000)
    slugs = [unicodedata.normalize("NFKD", slug(name)).casefold() for name in names]
    assert len(set(slugs)) == len(names)
    assert all(set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") and 0 < len(text) <= 60 for text in slugs)


def test_hostile_sample_ids_and_keys_are_refused(tmp_path: Path) -> None:
    """Row 12: a shard takes an id that is its own slug or refuses it; a key or digest is 64 hex digits."""
    store = Store(tmp_path)
    for name in _hostile_names(1000):
        if set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") and name:
            continue
        with pytest.raises(DataError):
            write_shard([(name, {"jpg": b""})])
        with pytest.raises(DataError):
            write_shard([("cow", {f"jpg.{name}/": b""})])
        for verb in (store.get, store.status, store.read, store.open_object, store.partial, store.why):
            with pytest.raises(StoreError):
                verb(name)  # type: ignore[operator]
