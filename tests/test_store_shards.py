"""Shards: deterministic, opened by tarfile and webdataset, and never trusted on reading."""

from __future__ import annotations

import gc
import io
import json
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaygen.errors import DataError
from replaygen.store import Shard, write_shard

IDS = st.from_regex(r"[a-z0-9_-]{1,40}", fullmatch=True)
EXTENSIONS = st.sampled_from(["jpg", "png", "json", "mask.png", "label.json"])
SAMPLES = st.dictionaries(IDS, st.dictionaries(EXTENSIONS, st.binary(max_size=1500), min_size=1), max_size=5)


@settings(max_examples=60, deadline=None)
@given(samples=SAMPLES)
def test_what_was_written_is_read(samples: dict[str, dict[str, bytes]]) -> None:
    """Any samples come back, in order of ids, with and without the index, which a scan of the headers equals."""
    data, index = write_shard(samples.items())
    ordered = [(sample_id, dict(sorted(samples[sample_id].items()))) for sample_id in sorted(samples)]
    assert list(Shard(data, index)) == ordered
    assert list(Shard(data)) == ordered
    assert Shard(data).ids == tuple(sorted(samples))


@settings(max_examples=30, deadline=None)
@given(samples=SAMPLES, seed=st.integers(0, 99))
def test_the_bytes_depend_on_the_samples_alone(samples: dict[str, dict[str, bytes]], seed: int) -> None:
    """The order in which samples and files come is of no matter."""
    items = [(sample_id, dict(reversed(files.items()))) for sample_id, files in samples.items()]
    random.Random(seed).shuffle(items)
    assert write_shard(items) == write_shard(samples.items())


@settings(max_examples=60, deadline=None)
@given(where=st.integers(0, 10**6), bit=st.integers(0, 7), with_index=st.booleans())
def test_a_flipped_bit_outside_the_content_is_refused_or_harmless(where: int, bit: int, with_index: bool) -> None:
    """A shard with a bit flipped in a header raises a DataError; no other error, and no other member's bytes."""
    samples = {"cow-1": {"jpg": b"c" * 700, "json": b"{}"}, "dog-1": {"jpg": b"d" * 10}}
    data, index = write_shard(samples.items())
    where %= len(data)
    flipped = data[:where] + bytes([data[where] ^ (1 << bit)]) + data[where + 1 :]
    try:
        found = dict(Shard(flipped, index if with_index else None))
    except DataError:
        return
    changed = [(i, e) for i, files in samples.items() for e in files if found[i][e] != samples[i][e]]
    assert len(changed) <= 1
    assert {i: set(files) for i, files in found.items()} == {i: set(files) for i, files in samples.items()}


def test_a_shard_on_disk_is_read_by_id(tmp_path: Path) -> None:
    """One member by id and extension, from a file."""
    data, index = write_shard([("cow-1", {"jpg": b"moo", "json": b"{}"})])
    (tmp_path / "shard.tar").write_bytes(data)
    shard = Shard(tmp_path / "shard.tar", index)
    assert shard.read("cow-1", "jpg") == b"moo"
    assert shard.extensions("cow-1") == ("jpg", "json")
    assert "cow-1" in shard
    with pytest.raises(DataError, match="no sample 'cow-2'"):
        shard.read("cow-2", "jpg")
    with pytest.raises(DataError, match="has no 'png'"):
        shard.read("cow-1", "png")


def test_the_format_is_written_down() -> None:
    """The bytes of a shard do not move between versions: they are in keys' results and in people's files."""
    data, index = write_shard([("b", {"jpg": b"2"}), ("a", {"mask.png": b"1", "jpg": b"0"})])
    assert json.loads(index) == {"a": {"jpg": [512, 1], "mask.png": [1536, 1]}, "b": {"jpg": [2560, 1]}}
    assert data[:100].rstrip(b"\0") == b"a.jpg"
    assert data[257:265] == b"ustar\x0000"
    assert len(data) == 10240


def test_tarfile_reads_a_shard() -> None:
    """Python's own reader finds the same names and bytes, without times and owners."""
    data, _ = write_shard([("b", {"jpg": b"2"}), ("a", {"mask.png": b"1" * 600})])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        contents = [tar.extractfile(member) for member in members]
        assert [content.read() for content in contents if content] == [b"1" * 600, b"2"]
    assert [member.name for member in members] == ["a.mask.png", "b.jpg"]
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_webdataset_reads_a_shard(tmp_path: Path) -> None:
    """WebDataset gives a sample with the same id and extensions."""
    webdataset = pytest.importorskip("webdataset")
    data, _ = write_shard([("cow-1", {"jpg": b"moo", "mask.png": b"m"}), ("_dog_", {"jpg": b"wuff", "mask.png": b"w"})])
    path = tmp_path / "shard.tar"
    path.write_bytes(data)
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [(sample["__key__"], sample["jpg"], sample["mask.png"]) for sample in samples] == [
        ("_dog_", b"wuff", b"w"),
        ("cow-1", b"moo", b"m"),
    ]
    gc.collect()


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ([("a", {"jpg": b""}), ("a", {"png": b""})], "given twice"),
        ([("A", {"jpg": b""})], "sample id 'A' is odd"),
        ([("../a", {"jpg": b""})], "is odd"),
        ([("a", {"jp/g": b""})], "extension 'jp/g' is odd"),
        ([("a", {})], "has no files"),
        ([("a" * 99, {"jpg": b""})], "has 103 bytes"),
    ],
)
def test_odd_samples_are_refused(items: list[tuple[str, dict[str, bytes]]], complaint: str) -> None:
    """Each with the reason."""
    with pytest.raises(DataError, match=complaint):
        write_shard(items)


def _tar(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


def _member(name: str, **changes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = 3
    for attribute, value in changes.items():
        setattr(info, attribute, value)
    return info


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a tar" * 200,
        _tar(_member("../../etc/passwd.jpg")),
        _tar(_member("/a.jpg")),
        _tar(_member("a.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0)),
        _tar(_member("a.jpg", mtime=5)),
        _tar(_member("a.jpg"), _member("a.jpg")),
        _tar(_member("b.jpg"), _member("a.jpg")),
        _tar(_member("a")),
        write_shard([("a", {"jpg": b"x" * 2000})])[0][:1500],
    ],
)
def test_a_tar_that_is_no_shard_is_refused(data: bytes) -> None:
    """Links, paths, times, repeated or unsorted names and cut files: DataError, whatever tarfile thinks of them."""
    with pytest.raises(DataError, match="damaged"):
        list(Shard(data))


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b'{"a":{"jpg":[512]}}',
        b'{"a":{"jpg":["512",3]}}',
        b'{"a":{"jpg":[-512,3]}}',
        b'{"a":{"jpg":[512,-1]}}',
        b'{"a":{"jpg":[512,99999999]}}',
        b'{"a":{"jpg":[512,2]}}',
        b'{"a":{"jpg":[513,3]}}',
        b'{"b":{"jpg":[512,3]}}',
        b'{"../a":{"jpg":[512,3]}}',
        b"[" * 100_000,
    ],
)
def test_an_index_that_lies_is_refused(index: bytes) -> None:
    """An index of another shard, or of nothing, gives a DataError and no bytes."""
    data, _ = write_shard([("a", {"jpg": b"xyz"})])
    with pytest.raises(DataError, match="damaged"):
        list(Shard(data, index))
