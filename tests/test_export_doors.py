"""Who may leave: by licence, by what was purged or withdrawn, then and at the end; and what the card says of it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Workspace
from test_crawl_end_to_end import CRAWLING
from test_export_peers import KEPT
from test_export_support import planned

from replaygen.errors import DataError
from replaygen.exports import FORMATS, export
from replaygen.exports.samples import HIDDEN, PURGED, RESTRICTED, UNKNOWN, Door
from replaygen.runs import run
from replaygen.store import Store
from replaygen.testing.local_flickr import LocalFlickr

NOW = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"licence": None}, ""), ({"licence": "cc-by-2.0", "photo": "flickr-9"}, ""),
        ({"licence": "cc-by-nc-sa-4.0", "photo": "flickr-9"}, ""), ({"licence": "cc-by-nd-4.0"}, RESTRICTED),
        ({"licence": "cc-by-nc-nd-2.0", "photo": "flickr-9"}, RESTRICTED),
        ({"licence": "all-rights-reserved", "photo": "web-1"}, RESTRICTED), ({"licence": "my own terms"}, RESTRICTED),
        ({"licence": None, "photo": "web-1"}, UNKNOWN), ({"licence": "cc-by-2.0", "photo": "flickr-1"}, PURGED),
        ({"licence": "cc-by-2.0", "photo": "flickr-2"}, HIDDEN),
        ({"licence": "cc-by-2.0", "photo": "flickr-3"}, RESTRICTED),
    ],
)  # fmt: skip
def test_who_may_leave(tmp_path: Path, about: Mapping[str, Any], reason: str) -> None:
    """By licence, then and now, by what was purged or withdrawn, for which no word of one's own opens the door."""
    store = Store(tmp_path / "store")
    store.bury(["flickr-1"], "asked")
    store.note_checked({
        "flickr-2": {"at": NOW, "licence": "cc-by-2.0", "visible": False},
        "flickr-3": {"at": NOW, "licence": "all-rights-reserved", "visible": True},
    })  # fmt: skip
    door = Door(store)
    assert door.opens("cow-1", about) == (reason == "")
    assert dict(door.left_out) == ({reason: 1} if reason else {})
    asked = Door(store, "I asked them")
    assert asked.opens("cow-1", about) == (reason not in (PURGED, HIDDEN))
    assert dict(asked.let_through) == ({reason: 1} if reason in (RESTRICTED, UNKNOWN) else {})


@pytest.mark.parametrize(
    ("row", "without", "allowed"),
    [
        ({"licence": "cc-by-2.0", "visible": True}, True, True), ({"licence": None, "visible": True}, True, True),
        ({"licence": "cc-by-2.0", "visible": False}, False, False),
        ({"licence": "all-rights-reserved", "visible": True}, False, True),
    ],
)  # fmt: skip
def test_who_is_withdrawn_meanwhile(tmp_path: Path, row: Mapping[str, Any], without: bool, allowed: bool) -> None:
    """A photo that went out and was looked after since: gone or forbidden stops the export, another's row does not."""
    store = Store(tmp_path / "store")
    doors = Door(store), Door(store, "I asked them")
    assert all(door.opens("cow-1", {"licence": "cc-by-2.0", "photo": "flickr-1"}) for door in doors)
    store.note_checked({"flickr-2": {"at": NOW, "licence": None, "visible": False}})
    assert [door.still_open() for door in doors] == [True, True]
    store.note_checked({"flickr-1": {"at": NOW, **row}})
    assert [door.still_open() for door in doors] == [without, allowed]


def test_what_is_purged_meanwhile_stops_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_digits: Path
) -> None:
    """A purge between the first look and the end: the export is not finished."""
    plan = planned(Workspace(tmp_path / "work", tiny_digits), KEPT)
    run(plan)
    real = FORMATS["folders"].close

    def purged_now(self: Any) -> None:
        plan.store.bury(["flickr-77"], "asked just now")
        real(self)

    monkeypatch.setattr(FORMATS["folders"], "close", purged_now)
    with pytest.raises(DataError, match="were purged or withdrawn while"):
        export(plan, "folders", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_photos_go_with_their_makers(workspace: Workspace, flickr: LocalFlickr, tmp_path: Path) -> None:
    """Of a crawl: each photo's owner, page and licence in its row and in ATTRIBUTION; Flickr's notice; none purged."""
    plan = planned(workspace, CRAWLING)
    plan = plan.recipe.narrowed(methods=["crawled"]).plan(plan.store)
    run(plan)
    plan = plan.recipe.plan(plan.store)
    done = export(plan, "folders", tmp_path / "out")
    rows = [json.loads(line) for line in (done.out / "samples.jsonl").read_text().splitlines()]
    assert done.photos == len(rows) == sum(done.samples.values()) > 8
    for row in rows:
        assert all(row[name] for name in ("owner", "page", "licence", "licence_url", "title", "photo", "sha256"))
        assert "url" not in row or row["url"].startswith("http")
    told = list(csv.DictReader(io.StringIO((done.out / "ATTRIBUTION.csv").read_text())))
    assert {row["sample"] for row in told} == {row["id"] for row in rows}
    assert all(row["fetched_at"] and row["changes"] for row in told)
    card = (done.out / "README.md").read_text()
    assert "not endorsed or certified by SmugMug" in card
    plan.store.bury([rows[0]["photo"]], "asked")
    again = export(plan, "webdataset", tmp_path / "again")
    assert again.left_out == {PURGED: 1}
    assert rows[0]["photo"] not in (again.out / "ATTRIBUTION.md").read_text()

    why = "I asked them"
    plan.store.note_checked({rows[1]["photo"]: {"at": NOW, "licence": rows[1]["licence"], "visible": False}})
    done = export(plan, "folders", tmp_path / "hidden", allow_restricted=why)
    assert (done.left_out, done.let_through) == ({PURGED: 1, HIDDEN: 1}, {})
    card = (done.out / "README.md").read_text()
    assert "no longer visible at their source, are never in it" in card
    assert why not in card
    assert rows[1]["photo"] not in (done.out / "ATTRIBUTION.csv").read_text()

    plan.store.note_checked({rows[2]["photo"]: {"at": NOW, "licence": "all-rights-reserved", "visible": True}})
    done = export(plan, "folders", tmp_path / "allowed", allow_restricted=why)
    assert done.let_through == {RESTRICTED: 1} == json.loads((done.out / "export.json").read_text())["let_through"]
    assert (
        f"1 image whose licence forbids to hand on changed copies, or is not known, went in too, because: {why}"
        in (done.out / "README.md").read_text()
    )

    class_of = rows[1]["class"]
    gone = {
        row["photo"]: {"at": NOW, "licence": row["licence"], "visible": False}
        for row in rows
        if row["class"] == class_of
    }
    plan.store.note_checked(gone)
    with pytest.raises(DataError, match="nothing is left to export") as error:
        export(plan, "folders", tmp_path / "none", classes=[class_of], allow_restricted=why)
    assert error.value.hint == "these may never leave"
