"""Revalidation: what may no longer be kept goes, what nobody can tell about stays, and nothing is lost by a mistake."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Workspace
from test_crawl_end_to_end import CRAWLING
from test_crawl_web import LISTS, _photo
from typer.testing import CliRunner

from replaygen.cli.app import app
from replaygen.crawl.fetch import Rules, take_all
from replaygen.crawl.photos import Candidate
from replaygen.plan import Plan, Recipe
from replaygen.runs import run
from replaygen.runs.crawl import Revalidation, crawl_part, expire, revalidate
from replaygen.runs.proof import proofs
from replaygen.sources.flickr import ApiFault
from replaygen.store import Shard
from replaygen.testing.local_flickr import LocalFlickr
from replaygen.testing.web import Reply, Server

ONE_CLASS = CRAWLING.replace('source = "flickr"', 'source = "flickr"\nonly = ["three"]')


def _fetched(workspace: Workspace, text: str = ONE_CLASS) -> Plan:
    recipe = Recipe.load(workspace.recipe(text))
    plan = crawl_part(recipe.plan(recipe.store()))
    run(plan)
    return plan


def _numbers(plan: Plan) -> list[str]:
    """Flickr's numbers of the photos that are kept."""
    found = []
    for key, task in plan.tasks.items():
        record = plan.store.get(key) if task.stage == "fetch" else None
        if record is not None:
            shard = Shard(*(plan.store.read(record.output(f"images.{part}").digest) for part in ("tar", "index.json")))
            found += [sample.rsplit("-", 1)[1] for sample in shard.ids]
    return sorted(found)


def _revalidate(plan: Plan, days: float = 0.0, **options: Any) -> Revalidation:
    from replaygen.stages.crawling import downloader_of, flickr_api

    where: dict[str, Any] = {"crawl": {"rate": 1000.0, "tries": 1, "deadline": 2.0}}
    return revalidate(
        plan, api=lambda: flickr_api(where), downloader=lambda opt_out: downloader_of(where, opt_out=opt_out),
        older_than=timedelta(days=days), **options,
    )  # fmt: skip


def test_what_went_away_expires_and_the_rest_is_noted(workspace: Workspace, flickr: LocalFlickr) -> None:
    """Hidden photos and changed licences are removed; the others are not asked about again the same day."""
    plan = _fetched(workspace)
    numbers = _numbers(plan)
    flickr.hide(numbers[:2])
    flickr.relicense(numbers[2:3], 0)
    result = _revalidate(plan)
    assert result.expired.keys() == {f"flickr-{number}" for number in numbers[:3]}
    assert "all-rights-reserved" in result.expired[f"flickr-{numbers[2]}"]
    expire(plan.store, result)
    planned = _fetched(workspace)
    assert _numbers(planned) == numbers[3:]
    assert _revalidate(planned, days=1.0).skipped == len(numbers) - 3
    assert all(one.revalidated_at for one in proofs(planned) if one.decision == "accepted")


def test_a_dry_run_hides_nothing_from_the_next(workspace: Workspace, flickr: LocalFlickr) -> None:
    """What would have been removed is found again, whether or not anything was written down before."""
    plan = _fetched(workspace)
    flickr.hide(_numbers(plan)[:2])
    later = datetime.now(UTC) + timedelta(days=2)
    assert len(_revalidate(plan, days=1.0, now=later, note=False).expired) == 2
    assert plan.store.checked() == {}
    assert len(_revalidate(plan, days=1.0, now=later).expired) == 2
    again = _revalidate(plan, days=1.0, now=later + timedelta(hours=1))
    assert len(again.expired) == 2
    assert again.skipped == len(_numbers(plan)) - 2


def test_what_nobody_can_tell_is_kept(workspace: Workspace, flickr: LocalFlickr) -> None:
    """With the API out of reach it stops after ten photos, expires none and notes none."""
    plan = _fetched(workspace)
    flickr.lies = frozenset({"server-errors", "stat-fail"})

    class Down:
        def info(self, number: str) -> Any:
            raise ApiFault("nobody answers", transient=True)

    result = revalidate(plan, api=Down, downloader=lambda opt_out: None, older_than=timedelta())  # type: ignore[arg-type, return-value]
    assert result.stopped
    assert len(result.unknown) == 10
    assert result.expired == {}
    assert plan.store.checked() == {}


def test_a_photo_of_two_sources_needs_the_licence_of_both(workspace: Workspace, flickr: LocalFlickr) -> None:
    """Share-alike is allowed by one of two sources: a photo that became share-alike must leave."""
    second = (
        ONE_CLASS[ONE_CLASS.index("[replay.flickr]") : ONE_CLASS.index("[run.crawl]")]
        .replace("replay.flickr", "replay.wide")
        .replace("as_of = 2026-11-01", 'as_of = 2026-11-01\nlicences = ["free", "share-alike"]')
    )
    rows = '[[method]]\nname = "wide"\ntrainer = "recall"\nreplay = "wide"\n'
    first, rest = ONE_CLASS.split("[run.crawl]")
    plan = _fetched(workspace, f"{first}{second}[run.crawl]{rest}{rows}")
    numbers = sorted(set(_numbers(plan)))
    flickr.relicense(numbers, 5)
    assert len(_revalidate(plan).expired) == len(numbers)


def _web(workspace: Workspace, server: Server, monkeypatch: pytest.MonkeyPatch, count: int = 8) -> Path:
    monkeypatch.setenv("REPLAYGEN_ALLOW_HOSTS", server.host)
    lists = workspace.root / "lists"
    lists.mkdir(exist_ok=True)
    (lists / "three.csv").write_text(
        "url,licence\n" + "".join(f"{server.url(f'{i}.jpg')},cc-by-4.0\n" for i in range(count))
    )
    path = workspace.root / "pipelines" / "lists.toml"
    path.write_text(LISTS.format(data=workspace.data, lists=lists))
    return path


def test_a_server_that_answers_nothing_but_get_keeps_its_photos(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """405 to HEAD says nothing of a photo; 404 to GET does, and an address that may not be asked does not."""
    monkeypatch.setenv("REPLAYGEN_STATE", str(tmp_path / "rates"))
    gone: set[str] = set()
    heads = False

    def answer(path: str) -> Reply:
        if path in gone:
            return 404, {}, b""
        return (405, {}, b"") if heads and len(server.asked) % 2 else (200, {}, _photo(int(path[1:-4])))

    with Server(answer) as server:
        recipe = Recipe.load(_web(workspace, server, monkeypatch))
        plan = crawl_part(recipe.plan(recipe.store()))
        run(plan)
        heads = True
        gone.add("/3.jpg")
        result = _revalidate(plan)
        assert list(result.expired.values()) == ["gone"]
        monkeypatch.delenv("REPLAYGEN_ALLOW_HOSTS")
        elsewhere = _revalidate(plan)
        assert elsewhere.expired == {}
        assert len(elsewhere.unknown) == 8


def test_many_photos_do_not_go_without_a_word(workspace: Workspace, flickr: LocalFlickr) -> None:
    """More than a fifth at once: the command tells, removes nothing, and does it with --yes."""
    plan = _fetched(workspace)
    numbers = _numbers(plan)
    flickr.hide(numbers)
    command = ["crawl", "revalidate", str(plan.recipe.path), "--older-than", "0", "--json"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code != 0
    assert "nothing was removed" in str(refused.exception)
    assert plan.store.tombstones() == {}
    done = CliRunner().invoke(app, [*command, "--yes"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.strip().splitlines()[-1])["removed"]
    assert len(plan.store.tombstones()) == len(numbers)


def test_one_fault_of_the_api_costs_one_photo(workspace: Workspace, flickr: LocalFlickr) -> None:
    """A photo that cannot be confirmed is counted as failed; the others are fetched."""
    recipe = Recipe.load(workspace.recipe(ONE_CLASS), {"replay.flickr.flickr.confirm": True})
    from replaygen.sources.flickr import FlickrApi

    before, broken = FlickrApi.info, sorted(photo.id for photo in flickr.photos.values() if "three" in photo.words)[0]

    def info(self: FlickrApi, number: str) -> Any:
        if number == broken:
            raise ApiFault("the answer is about another photo")
        return before(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlickrApi, "info", info)
        plan = crawl_part(recipe.plan(recipe.store()))
        run(plan)
    records = [plan.store.get(key) for key, task in plan.tasks.items() if task.stage == "fetch"]
    failed = sum(record.counts.failed.get("api-fault", 0) for record in records if record is not None)
    assert failed <= 1
    assert broken not in _numbers(plan)
    assert len(_numbers(plan)) >= 10


def test_a_damaged_list_of_candidates_is_found_again(workspace: Workspace, flickr: LocalFlickr) -> None:
    """A purge and then a flipped byte: the plan says that the search is to run, and it does."""
    plan = _fetched(workspace)
    plan.store.purge([f"flickr-{_numbers(plan)[0]}"], "asked for")
    search = next(key for key, task in plan.tasks.items() if task.stage == "flickr-search")
    record = plan.store.get(search)
    assert record is not None
    path = plan.store.open_object(record.output("candidates.json").digest)
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    planned = _fetched(workspace)
    assert _numbers(planned) == _numbers(plan)[1:] or len(_numbers(planned)) >= 8


def test_bytes_that_were_purged_are_not_taken_from_elsewhere() -> None:
    """The same file at another address is refused, once its digest is known."""
    import hashlib

    from replaygen.crawl.client import Got

    class Downloads:
        def get(self, url: str) -> Got:
            return Got(b"the bytes", url, 200, {}, 1, 0.0)

    class Decodes:
        def __len__(self) -> int:
            return 1

        def ingest_many(self, photos: Any, **options: Any) -> Any:
            raise AssertionError("never decoded")

    rules = Rules(256, 0, "resized", frozenset({hashlib.sha256(b"the bytes").hexdigest()}))
    (taken,) = take_all([Candidate("web-1", "http://a.example/1.jpg")], Downloads(), Decodes(), rules, threads=1)
    assert (taken.state, taken.reason) == ("rejected", "tombstoned")
