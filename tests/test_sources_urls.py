"""Lists of addresses: every format, every way a list or a row can be wrong, and what is let in."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaygen.crawl.photos import Candidate, web_photo
from replaygen.crawl.specs import WebSpec
from replaygen.errors import DataError
from replaygen.sources import url_lists, urls
from replaygen.sources.urls import Found, candidates_of, clean_address, list_digest, list_file, read_list

SHA = "0123456789abcdef" * 4
ROWS: list[dict[str, Any]] = [
    {
        "url": "https://a.example/1.jpg", "licence": "https://creativecommons.org/licenses/by/4.0/", "owner": "Ann",
        "title": 'A "red" cow,\nresting', "page": "https://a.example/1", "sha256": SHA,
    },
    {"url": "https://a.example/2.jpg", "licence": "CC0", "owner": None, "title": "二頭の牛", "page": "", "sha256": ""},
    {"url": "https://a.example/3.jpg", "licence": "all rights reserved", "title": "no", "page": "ftp://x/"},
]  # fmt: skip
COLUMNS = ("url", "licence", "owner", "title", "page", "sha256")


def nobody(photo: str) -> bool:
    """No photo was removed."""
    return False


def ask(path: Path, wanted: int = 100, gone: Callable[[str], bool] = nobody, name: str = "cow", **spec: Any) -> Found:
    """The candidates of cows; whoever tells no licence is accepted unless told otherwise."""
    return candidates_of(path, name, WebSpec(**{"unknown_licence": "accept", **spec}), wanted=wanted, gone=gone)


def as_csv(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    """Rows as CSV."""
    import io

    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]], **more: Any) -> bytes:
    """Rows as Parquet."""
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink, **more)
    data: bytes = sink.getvalue().to_pybytes()
    return data


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".csv": lambda rows: as_csv(rows, ","),
    ".tsv": lambda rows: as_csv(rows, "\t"),
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".jsonl": lambda rows: "\n".join(json.dumps(row) for row in rows).encode(),
    ".ndjson": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows).encode(),
    ".parquet": as_parquet,
}


def write(path: Path, data: bytes | str) -> Path:
    """A list on disk, packed where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(told) if path.name.endswith(".gz") else told)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_says_the_same(tmp_path: Path, suffix: str, packed: str) -> None:
    """The same rows give the same candidates and rejections in every format, packed or not."""
    write(tmp_path / f"cow{suffix}{packed}", WRITERS[suffix](ROWS))
    found = ask(tmp_path)
    first, second, third = (web_photo(row["url"]) for row in ROWS)
    assert found.candidates == [
        Candidate(
            first, ROWS[0]["url"], page="https://a.example/1", owner="Ann", title='A "red" cow, resting',
            licence="cc-by-4.0", sha256=SHA,
        ),
        Candidate(second, ROWS[1]["url"], title="二頭の牛", licence="cc0-1.0"),
    ]  # fmt: skip
    assert found.rejected == [(third, "licence-not-allowed")]
    assert (found.calls, found.total, found.unnamed) == (0, 3, {})


@pytest.mark.parametrize("name", ["cow.txt", "cow.TXT.GZ"])
def test_a_list_in_text(tmp_path: Path, name: str) -> None:
    """A list in text has an address a line; empty lines and comments are skipped, a byte order mark and CRLF too."""
    text = "\ufeffhttps://a.example/1.jpg\r\n# comment\r\n\r\n  https://a.example/2.jpg#part  \n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("GZ") else text.encode())
    assert [one.url for one in ask(tmp_path).candidates] == ["https://a.example/1.jpg", "https://a.example/2.jpg"]


def test_one_list_with_a_column_of_classes(tmp_path: Path) -> None:
    """One list serves all classes, by name or by slug."""
    path = write(
        tmp_path / "all.csv",
        "url,class\nhttp://a.example/1,cow\nhttp://a.example/2,potted plant\nhttp://a.example/3, cow \n"
        f"http://a.example/4,{urls.slug('potted plant')}\n",
    )
    assert [one.url[-1] for one in ask(path).candidates] == ["1", "3"]
    assert [one.url[-1] for one in ask(path, name="potted plant").candidates] == ["2", "4"]
    assert ask(path).total == 2


def test_a_class_that_no_row_has(tmp_path: Path) -> None:
    """A class that the column of classes never names is an error with the nearest name."""
    path = write(tmp_path / "all.csv", "url,class\nhttp://a.example/1,cows\nhttp://a.example/2,sheep\n")
    with pytest.raises(DataError, match=r"(?s)no row has 'cow'.*all\.csv.*did you mean 'cows'"):
        ask(path)


def test_the_list_of_a_class_in_a_folder(tmp_path: Path) -> None:
    """A folder holds a list a class, by name or slug; a class with two lists, or none, is an error."""
    write(tmp_path / "cow.csv", "url\n")
    plant = write(tmp_path / "potted plant.jsonl.gz", "")
    sofa = write(tmp_path / f"{urls.slug('Sofa ü')}.txt", "")
    write(tmp_path / "README.md", "no list")
    assert list_file(tmp_path, "potted plant") == plant
    assert list_file(tmp_path, "Sofa ü") == sofa
    with pytest.raises(DataError, match=r"(?s)no list of class 'cwo'.*did you mean 'cow'"):
        list_file(tmp_path, "cwo")
    with pytest.raises(DataError, match=r"no list of class '\.\./cow'"):
        list_file(tmp_path, "../cow")
    write(tmp_path / "cow.txt", "")
    with pytest.raises(DataError, match=r"more than one list: cow\.csv, cow\.txt"):
        list_file(tmp_path, "cow")


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    """A missing path, and a file of another kind, are errors that say what is expected."""
    with pytest.raises(DataError, match="no list of addresses here"):
        ask(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"(?s)no list of a known format.*\.parquet"):
        ask(write(tmp_path / "list.xlsx", "x"))


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    """The digest covers the bytes of the file that is read, and no other."""
    path = write(tmp_path / "cow.csv.gz", "url\nhttp://a.example/1\n")
    write(tmp_path / "dog.csv", "url\n")
    assert list_digest(tmp_path, "cow") == hashlib.sha256(path.read_bytes()).hexdigest()
    before = list_digest(tmp_path, "cow")
    write(tmp_path / "dog.csv", "url\nhttp://a.example/2\n")
    assert list_digest(tmp_path, "cow") == before != list_digest(tmp_path, "dog")


BAD = [
    "", "cow.jpg", "ftp://a.example/1", "file:///etc/passwd", "//a.example/1", "javascript:alert(1)", "http://",
    "http:///1.jpg", "http://user@a.example/1", "http://user:word@a.example/1", "http://a.example:port/1",
    "http://a.example:99999/1", "http://a.example\\@b.example/", "http://[::1/1", "http://a example/1", "http://@/1",
    "http://a.example/\x00", "http://a.example/1\u202egpj.exe", "http://a.example/\u200b1", "http://a.ex\tample/1",
    "http://a.example/" + "x" * 1984, "http://a.example/\ud800", "http://a%00.example/1",
]  # fmt: skip


@pytest.mark.parametrize("address", BAD)
def test_bad_addresses(tmp_path: Path, address: str) -> None:
    """What is no plain address of the web is refused by name, and the rest of the list is read."""
    rows = [{"url": address}, {"url": "http://a.example/good"}]
    found = ask(write(tmp_path / "cow.jsonl", WRITERS[".jsonl"](rows)).parent)
    assert [reason for _, reason in found.rejected] == ["bad-address"]
    assert [one.url for one in found.candidates] == ["http://a.example/good"]


@pytest.mark.parametrize(
    ("told", "clean"),
    [
        ("HTTPS://A.Example:443/B c.JPG?x=1&y=%20#z", "https://a.example/B%20c.JPG?x=1&y=%20"),
        ("http://a.example", "http://a.example/"),
        ("http://a.example:8080/ü.jpg", "http://a.example:8080/ü.jpg"),
        ("http://[2001:DB8::1]:80/1", "http://[2001:db8::1]/1"),
        ("http://a.example/" + "x" * 1983, "http://a.example/" + "x" * 1983),
    ],
)
def test_addresses_have_one_spelling(told: str, clean: str) -> None:
    """Host in lower case, no default port, no fragment; path and query stay."""
    assert clean_address(told) == clean


@given(st.one_of(st.text(), st.text().map("https://a.example/".__add__), st.from_regex(r"https?://[^\s]{1,40}")))
def test_a_clean_address_stays_clean(text: str) -> None:
    """Any text either is no address or has a spelling that cleaning leaves alone, without anything hidden."""
    clean = clean_address(text)
    if clean is not None:
        assert clean_address(clean) == clean
        assert clean.startswith(("http://", "https://"))
        assert "@" not in clean.split("/")[2]
        assert clean.isprintable() or all(ord(letter) > 127 or letter.isprintable() for letter in clean)


def test_an_address_counts_once(tmp_path: Path) -> None:
    """An address that an earlier candidate has is dropped, however it is spelt."""
    write(tmp_path / "cow.txt", "http://a.example/1\nHTTP://A.EXAMPLE:80/1#x\nhttp://a.example/2\n")
    found = ask(tmp_path)
    assert found.rejected == [(web_photo("http://a.example/1"), "duplicate-address")]
    assert len(found.candidates) == 2


def test_removed_photos_stay_away(tmp_path: Path) -> None:
    """A photo that was removed for good is refused."""
    flickr = "https://live.staticflickr.com/65535/53412_0a1b2c_b.jpg"
    write(tmp_path / "cow.txt", f"http://a.example/1\n{flickr}\nhttp://a.example/2\n")
    found = ask(tmp_path, gone={web_photo("https://a.example/1"), "flickr-53412"}.__contains__)
    assert found.rejected == [(web_photo("http://a.example/1"), "tombstoned"), ("flickr-53412", "tombstoned")]
    assert [one.url for one in found.candidates] == ["http://a.example/2"]


@pytest.mark.parametrize(
    ("licence", "reject", "accept"),
    [
        ("", "licence-unknown", None),
        ("  ", "licence-unknown", None),
        (None, "licence-unknown", None),
        (float("nan"), "licence-unknown", None),
        ("my own terms", "licence-unknown", "licence-unknown"),
        ("(c) 2020 Jane, all rights reserved", "licence-unknown", "licence-unknown"),
        ("CC BY-ND", "licence-unknown", "licence-unknown"),
        (["all rights reserved"], "licence-unknown", "licence-unknown"),
        ({"name": "CC BY-ND 4.0"}, "licence-unknown", "licence-unknown"),
        (False, "licence-unknown", "licence-unknown"),
        ("cc-by-nd-4.0", "licence-not-allowed", "licence-not-allowed"),
        ("cc-by-sa-4.0", "licence-not-allowed", "licence-not-allowed"),
        ("CC BY 3.0", None, None),
        (4, "licence-unknown", "licence-unknown"),
        (9.0, "licence-unknown", "licence-unknown"),
        ("4", "licence-unknown", "licence-unknown"),
    ],
)
def test_licences(tmp_path: Path, licence: Any, reject: str | None, accept: str | None) -> None:
    """Only allowed licences pass; where the recipe accepts what tells none, what cannot be read is still refused."""
    write(tmp_path / "cow.json", json.dumps([{"url": "http://a.example/1", "licence": licence}]))
    for choice, expected in (("reject", reject), ("accept", accept)):
        found = ask(tmp_path, unknown_licence=choice)
        assert [reason for _, reason in found.rejected] == ([expected] if expected else [])
        assert len(found.candidates) == (not expected)


def test_http_and_https_are_one_photo(tmp_path: Path) -> None:
    """One address with both schemes is one photo, and is offered once."""
    write(tmp_path / "cow.txt", "http://a.example/1\nhttps://a.example/1\nhttps://A.example:443/1#x\n")
    found = ask(tmp_path)
    assert [one.url for one in found.candidates] == ["http://a.example/1"]
    assert found.rejected == [(web_photo("https://a.example/1"), "duplicate-address")] * 2


def test_columns_are_named_by_the_recipe(tmp_path: Path) -> None:
    """Other names of columns are those that the recipe gives."""
    rows = [{"URL": "http://a.example/1", "caption": "cow", "LICENSE": "?", "rights": "cc0"}]
    write(tmp_path / "cow.parquet", as_parquet(rows))
    (one,) = ask(tmp_path, url="URL", title="caption", licence="rights", unknown_licence="reject").candidates
    assert (one.title, one.licence) == ("cow", "cc0-1.0")


def test_metadata_of_img2dataset(tmp_path: Path) -> None:
    """Its metadata is read as it is: what could not be had is refused, sizes are those of the original."""
    row = {
        "url": "http://a.example/1", "key": "000000000", "status": "success", "error_message": None, "width": 256,
        "height": 256, "original_width": 1024, "original_height": 768, "exif": "{}", "sha256": SHA.upper(),
    }  # fmt: skip
    rows = [row, {**row, "url": "http://a.example/2", "status": "failed_to_download", "original_width": None}]
    write(tmp_path / "cow.parquet", as_parquet(rows))
    found = ask(tmp_path)
    (one,) = found.candidates
    assert (one.width, one.height, one.sha256) == (1024, 768, SHA)
    assert found.rejected == [(web_photo("http://a.example/2"), "listed-as-failed")]


def test_a_digest_that_is_none(tmp_path: Path) -> None:
    """A sha256 that is none is refused, so that a wrong column is seen."""
    write(tmp_path / "cow.csv", "url,sha256\nhttp://a.example/1,d41d8cd98f00b204e9800998ecf8427e\n")
    assert [reason for _, reason in ask(tmp_path).rejected] == ["bad-sha256"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cow.csv", b"URL,title\nx,y\n", r"no column 'url'.*row 1.*'URL', 'title'; write url = \"URL\""),
        ("cow.csv", b"", "no column 'url'.*the list is empty"),
        ("cow.csv", b"http://a.example/1.jpg\n", "its first row must name the columns"),
        ("cow.parquet", as_parquet([{"link": "x"}]), "no column 'url'.*'link'"),
        ("cow.json", b'[{"urls": "x"}]', 'no column.*write url = "urls"'),
        ("cow.csv", "url\nhttp://a/1\nhttp://ä/2\n".encode("latin-1"), "not UTF-8.*row 2"),
        ("cow.txt", "http://a/1\n".encode("utf-16"), "not UTF-8"),
        ("cow.json", '[{"url": "ü"}]'.encode("latin-1"), "not UTF-8"),
        ("cow.csv", b'url\nhttp://a/1\n"open\n', "broken CSV.*row 2"),
        ("cow.csv", b'url\n"a"b,c\n', "broken CSV"),
        ("cow.csv", b"url\n" + b"x" * 200_000, "broken CSV .field larger"),
        ("cow.txt", b"x" * 1_000_002, "line has more than 1,000,000"),
        ("cow.jsonl", b'{"url": "http://a/1"}\n{"url"\n', "broken JSON.*row 2.*one object a line"),
        ("cow.jsonl", b'["http://a/1"]\n', "no JSON object"),
        ("cow.jsonl", b"[" * 100_000, "too deeply nested"),
        ("cow.json", b'{"url": "http://a/1"}', "broken JSON.*array of objects"),
        ("cow.json", b'[{"url": "http://a/1"}', "broken JSON.*row 2"),
        ("cow.json", b'[{"url": "http://a/1"},]', "broken JSON"),
        ("cow.json", b'[{"url": "http://a/1"} {"url": "http://a/2"}]', "broken JSON"),
        ("cow.json", b"[] []", "broken JSON"),
        ("cow.json", b"", "broken JSON"),
        ("cow.json", b"[" + b"9" * 5000 + b"]", "broken JSON"),
        ("cow.json", b"[" * 100_000, "too deeply nested"),
        ("cow.parquet", b"PAR1 no PAR1", "broken Parquet"),
        ("cow.parquet", as_parquet(ROWS)[:-20], "broken Parquet"),
        ("cow.csv.gz", None, "damaged or cut short"),
    ],
)
def test_broken_lists(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    """A list that cannot be read is an error that names file, row and way out, whatever is wrong."""
    if data is None:
        (tmp_path / name).write_bytes(gzip.compress(b"url\n" + b"http://a.example/1\n" * 5000)[:-30])
    else:
        write(tmp_path / name, data)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        ask(tmp_path)
    assert name in caught.value.where
    assert "row " in caught.value.where
    assert caught.value.hint


def test_a_list_in_text_has_no_classes(tmp_path: Path) -> None:
    """A list in text cannot say which class a row is of, and the error says what to do."""
    with pytest.raises(DataError, match=r"(?s)no column 'class'.*a folder of one list a class"):
        ask(write(tmp_path / "all.txt", "http://a.example/1\n"))


@pytest.mark.parametrize("suffix", [".txt.gz", ".csv.gz", ".parquet.gz"])
def test_bombs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """A packed list is unpacked so far and no further."""
    monkeypatch.setattr(url_lists, "MOST_UNPACKED", 100_000)
    write(tmp_path / f"cow{suffix}", b"url\n" + b"#\n" * 60_000)
    with pytest.raises(DataError, match="unpacks to more than 100,000 bytes"):
        ask(tmp_path)


def test_a_parquet_list_that_unpacks_too_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group that announces too much is refused before it is read; columns that nobody asks for do not count."""
    rows = [{"url": f"http://a.example/{n}", "jpg": "x" * 2000} for n in range(500)]
    write(tmp_path / "cow.parquet", as_parquet(rows, use_dictionary=False))
    monkeypatch.setattr(url_lists, "MOST_UNPACKED", 50_000)
    assert len(ask(tmp_path).candidates) == 100
    monkeypatch.setattr(url_lists, "MOST_UNPACKED", 5_000)
    with pytest.raises(DataError, match="row group 0 unpacks to more"):
        ask(tmp_path)


def test_an_array_larger_than_the_window(tmp_path: Path) -> None:
    """A JSON array is decoded piece by piece: objects on the borders of pieces, and large ones, come out whole."""
    rows = [
        {"url": f"http://a.example/{n}", "title": "ü" * (n % 97), "more": ["]", "}"] * (n % 50)} for n in range(900)
    ]
    rows[450]["more"] = "x" * 300_000
    write(tmp_path / "cow.json", json.dumps(rows, ensure_ascii=False))
    assert [row.get("url") for row in read_list(tmp_path / "cow.json", WebSpec())] == [row["url"] for row in rows]


def test_reading_ends_with_the_last_wanted(tmp_path: Path) -> None:
    """Rows behind the last wanted candidate are not read, broken ones included."""
    write(tmp_path / "cow.jsonl", WRITERS[".jsonl"](ROWS[:2]) + b"\n{broken")
    found = ask(tmp_path, wanted=1)
    assert (len(found.candidates), found.total) == (1, 1)
    assert ask(tmp_path, wanted=0).candidates == []


def test_a_long_list_takes_little_memory(tmp_path: Path) -> None:
    """Of 60,000 rows that are refused the first are named and the others counted, in bounded memory."""
    with gzip.open(tmp_path / "cow.csv.gz", "wt", compresslevel=1) as file:
        file.write("url,licence,title\n")
        file.writelines(f"http://a.example/{n},unclear,{'t' * 1500}\n" for n in range(60_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = ask(tmp_path, unknown_licence="reject")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024
    assert found.total == 60_000
    assert len(found.rejected) == urls.MOST_NAMED
    assert found.unnamed == {"licence-unknown": 60_000 - urls.MOST_NAMED}


def test_parquet_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow a Parquet list is an error that says what to install; other lists are read."""
    import sys

    write(tmp_path / "cow.parquet", as_parquet(ROWS))
    write(tmp_path / "dog.csv", as_csv(ROWS, ","))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"(?s)needs pyarrow.*pip install 'replaygen\[crawl\]'"):
        ask(tmp_path)
    assert len(ask(tmp_path, name="dog").candidates) == 2
