"""Manifests: digests of files, and what is remembered of them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from replaygen.canonical import canonical, digest_of
from replaygen.datasets import Manifest, build_manifest
from replaygen.errors import DataError


def write_files(root: Path, **files: bytes) -> Path:
    """Files whose modification time is always the same."""
    root.mkdir(exist_ok=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
        os.utime(root / name, (1_500_000_000, 1_500_000_000))
    return root


def forge(cache: Path, old: str, new: str) -> None:
    """Change what is remembered, checksum included: a manifest that shows it did not read the file."""
    body = cache.read_bytes().split(b"\n", 1)[1].replace(old.encode(), new.encode())
    header = json.loads(cache.read_bytes().split(b"\n", 1)[0]) | {"sha256": hashlib.sha256(body).hexdigest()}
    cache.write_bytes(json.dumps(header).encode() + b"\n" + body)


def test_entries_are_name_size_and_sha256(tmp_path: Path) -> None:
    """A manifest holds name, size and sha256 of each file, sorted by name."""
    root = write_files(tmp_path / "x", b=b"two", a=b"one!")
    manifest = build_manifest(root, ["b", "a"], tmp_path / "cache.jsonl")
    assert manifest.entries == (
        ("a", 4, hashlib.sha256(b"one!").hexdigest()),
        ("b", 3, hashlib.sha256(b"two").hexdigest()),
    )


def test_fresh_files_are_not_remembered(tmp_path: Path) -> None:
    """A file changed within two seconds of its hashing is hashed again next time: it could change in the same tick."""
    root = write_files(tmp_path / "x", a=b"one")
    build_manifest(root, ["a"], tmp_path / "cache.jsonl")
    assert not (tmp_path / "cache.jsonl").exists()


def test_remembered_files_are_not_read(tmp_path: Path) -> None:
    """The hash of a file that did not change is the remembered one."""
    root = write_files(tmp_path / "x", a=b"one")
    cache = tmp_path / "cache.jsonl"
    first = build_manifest(root, ["a"], cache, settle_s=0)
    forge(cache, first.entries[0][2], "f" * 64)
    assert build_manifest(root, ["a"], cache, settle_s=0).entries == (("a", 3, "f" * 64),)


def test_changed_content_is_seen(tmp_path: Path) -> None:
    """New content of the same size and modification time is seen, because the change time moved."""
    root = write_files(tmp_path / "x", a=b"one")
    first = build_manifest(root, ["a"], tmp_path / "cache.jsonl", settle_s=0)
    write_files(root, a=b"two")
    assert build_manifest(root, ["a"], tmp_path / "cache.jsonl", settle_s=0).digest != first.digest


@pytest.mark.parametrize("position", [0.2, 0.7, 1.0])
def test_damaged_memory_is_ignored(tmp_path: Path, position: float) -> None:
    """A flipped byte in the remembered hashes never reaches a manifest."""
    root = write_files(tmp_path / "x", a=b"one", b=b"two")
    cache = tmp_path / "cache.jsonl"
    first = build_manifest(root, ["a", "b"], cache, settle_s=0)
    data = bytearray(cache.read_bytes())
    data[int(position * (len(data) - 2))] ^= 1
    cache.write_bytes(data)
    assert build_manifest(root, ["a", "b"], cache, settle_s=0) == first


def test_asking_for_fewer_files_forgets_none(tmp_path: Path) -> None:
    """Opening a part of the files keeps what is remembered of the others."""
    root = write_files(tmp_path / "x", a=b"one", b=b"two")
    cache = tmp_path / "cache.jsonl"
    build_manifest(root, ["a", "b"], cache, settle_s=0)
    write_files(root, c=b"three")
    build_manifest(root, ["a", "c"], cache, settle_s=0)
    forge(cache, hashlib.sha256(b"two").hexdigest(), "f" * 64)
    assert build_manifest(root, ["b"], cache, settle_s=0).entries == (("b", 3, "f" * 64),)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is a DataError with its path."""
    with pytest.raises(DataError) as caught:
        build_manifest(tmp_path, ["gone"], tmp_path / "cache.jsonl")
    assert caught.value.where.endswith("gone")


def test_names_are_unique_and_sorted() -> None:
    """A manifest with a name twice is refused; `of` sorts."""
    entry = ("a", 1, "0" * 64)
    with pytest.raises(DataError):
        Manifest((entry, entry))
    assert Manifest.of([("b", 1, "0" * 64), entry]).entries[0] == entry


def test_canonical_is_one_text_for_one_value() -> None:
    """Order of keys and list against tuple do not matter; all else does."""
    assert canonical({"b": (1, 2.5), "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
    assert digest_of({"a": 1}) != digest_of({"a": 1.0})


@pytest.mark.parametrize("value", [float("nan"), {"a": [float("inf")]}, {1: 2}, {"a": {1, 2}}, {"a": b"x"}, "\ud800"])
def test_canonical_refuses_what_json_cannot_say(value: object) -> None:
    """NaN, infinity, keys that are no text, sets, bytes and half characters are refused."""
    with pytest.raises((TypeError, ValueError)):
        canonical(value)
