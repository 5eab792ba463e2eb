"""Stages of a crawl: a search or a list fixes the order of the photos, each fetch takes its slice of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from replaygen.crawl.photos import Candidate, sample_of
from replaygen.errors import DataError, ReplaygenError
from replaygen.stages.base import Inputs, Out, Stage, Task
from replaygen.store import Shard

if TYPE_CHECKING:
    from replaygen.crawl.fetch import Confirm, Taken
    from replaygen.crawl.photos import Found

HAD = "had.json"
"""In a fetch's unfinished work: an earlier record of it, whose photos need not be fetched again."""


@dataclass(frozen=True)
class FlickrSearchParams:
    """api: "flickr.com", or "another server"; query: text, synonyms, tags, any_tag, exclude; licences: allowed ids.

    as_of, since: days, ISO 8601, UTC.
    max_side, min_side: pixels, for the choice among the sizes that Flickr offers; wanted: candidates.
    """

    class_name: str
    api: str
    query: dict[str, Any]
    as_of: str
    since: str
    licences: tuple[str, ...]
    sort: str
    safe: bool
    max_side: int | None
    min_side: int
    wanted: int


class FlickrSearchStage(Stage[FlickrSearchParams]):
    """A query -> candidates.json: candidates in their order, and what was refused of the answers."""

    name = "flickr-search"
    version = 1
    modules = (
        "replaygen.sources.flickr_search",
        "replaygen.sources.flickr",
        "replaygen.crawl.licences",
        "replaygen.crawl.photos",
    )
    seconds_per_sample = 0.01
    bytes_per_sample = 500
    resource = "IO"
    Params = FlickrSearchParams

    @classmethod
    def api_calls(cls, task: Task) -> int:
        """Pages of each text, and the table of licences."""
        texts = 1 + len(task.params["query"]["synonyms"])
        return 1 + texts * -(-int(task.params["wanted"]) // 500)

    def run(self, params: FlickrSearchParams, inputs: Inputs, out: Out) -> None:
        """Ask, check every photo's own licence, keep the order."""
        from datetime import date

        from replaygen.sources.flickr_search import Search, search
        from replaygen.stages.crawling import flickr_api

        query = params.query
        asked = Search(
            text=query["text"], synonyms=tuple(query["synonyms"]), tags=tuple(query["tags"]),
            any_tag=query["any_tag"], exclude=tuple(query["exclude"]), as_of=date.fromisoformat(params.as_of),
            since=date.fromisoformat(params.since), licences=frozenset(params.licences), sort=params.sort,
            safe=params.safe, max_side=params.max_side, min_side=params.min_side,
        )  # fmt: skip
        buried = inputs.buried()
        found = search(
            flickr_api(inputs.where), asked, wanted=params.wanted, memory=out.partial(), gone=buried.__contains__
        )
        _offer(found, out)


@dataclass(frozen=True)
class UrlListParams:
    """list: sha256 of the list's file; columns: as `WebSpec` names them; wanted: candidates."""

    class_name: str
    list: str
    columns: dict[str, Any]
    licences: tuple[str, ...]
    unknown_licence: Literal["reject", "accept"]
    wanted: int


class UrlListStage(Stage[UrlListParams]):
    """A list of addresses -> candidates.json, as a search gives it."""

    name = "url-list"
    version = 1
    modules = (
        "replaygen.sources.urls",
        "replaygen.sources.url_lists",
        "replaygen.crawl.licences",
        "replaygen.crawl.photos",
    )
    seconds_per_sample = 0.0001
    bytes_per_sample = 300
    resource = "IO"
    Params = UrlListParams

    def run(self, params: UrlListParams, inputs: Inputs, out: Out) -> None:
        """Read the list, refuse what may not be fetched, keep the order."""
        from pathlib import Path

        from replaygen.crawl.specs import WebSpec
        from replaygen.sources.urls import candidates_of, list_digest

        path = Path(inputs.where["list"])
        if list_digest(path, params.class_name) != params.list:
            raise DataError("the list changed after the plan was made", where=str(path), hint="run the recipe again")
        spec = WebSpec(**params.columns, licences=params.licences, unknown_licence=params.unknown_licence)
        buried = inputs.buried()
        found = candidates_of(path, params.class_name, spec, wanted=params.wanted, gone=buried.__contains__)
        _offer(found, out)


def _offer(found: Found, out: Out) -> None:
    out.put_json(
        "candidates.json",
        {
            "candidates": [candidate.as_json() for candidate in found.candidates],
            "rejected": [{"id": photo, "reason": reason} for photo, reason in found.rejected],
            "asked": {"total": found.total, "repeated": found.repeated, "unnamed": found.unnamed},
        },
    )  # fmt: skip
    out.provenance = {"calls": found.calls}
    out.accept(len(found.candidates))
    for photo, reason in found.rejected:
        out.reject(photo, reason)
    for reason, count in found.unnamed.items():
        out.reject_unnamed(reason, count)


@dataclass(frozen=True)
class FetchParams:
    """slice, size: candidates [slice * size, (slice + 1) * size); keep, max_side, min_side: see `crawl.ingest`.

    opt_out, robots: what is honoured; confirm: ask the API for each photo before it is fetched; licences: allowed ids;
    without: photos of the slice that were purged.
    """

    class_name: str
    source: Literal["flickr", "web"]
    slice: int
    size: int
    max_side: int | None
    min_side: int
    keep: Literal["resized", "verbatim"]
    opt_out: bool
    robots: bool
    confirm: bool
    licences: tuple[str, ...]
    without: tuple[str, ...]


class FetchStage(Stage[FetchParams]):
    """Slice i of a search's candidates -> image shard i, with the proof of every photo in the record."""

    name = "fetch"
    version = 1
    modules = (
        "replaygen.crawl.fetch",
        "replaygen.crawl.client",
        "replaygen.crawl.replies",
        "replaygen.crawl.ingest",
        "replaygen.crawl.formats",
        "replaygen.crawl.licences",
        "replaygen.crawl.photos",
    )
    seconds_per_sample = 0.05
    bytes_per_sample = 25_000
    resource = "IO"
    Params = FetchParams

    @classmethod
    def api_calls(cls, task: Task) -> int:
        """One a photo where each is confirmed."""
        return task.requested if task.params["confirm"] else 0

    def run(self, params: FetchParams, inputs: Inputs, out: Out) -> None:
        """Download, decode in a child process, write; every photo gets a decision."""
        from replaygen.crawl.fetch import Rules, take_all
        from replaygen.stages.crawling import crawler, flickr_api

        told = inputs.read_json(inputs.record("search"), "candidates.json")["candidates"]
        part = told[params.slice * params.size : (params.slice + 1) * params.size]
        buried = inputs.buried()
        left = [one for one in part if not one.get("purged") and one["photo"] not in params.without]
        asked = [Candidate.from_json(one) for one in left]
        had = _had(inputs, out, params.class_name)
        items, photos = had.keep([one.photo for one in asked], out)
        missing = []
        for one in (one for one in asked if one.photo not in had):
            if one.photo in buried:
                out.reject(one.photo, "tombstoned")
            else:
                missing.append(one)
        downloader, decoders, threads = crawler(inputs.where, opt_out=params.opt_out, robots=params.robots)
        taken = take_all(
            missing, downloader, decoders,
            Rules(params.max_side, params.min_side, params.keep, inputs.buried_bytes()), threads=threads,
            confirm=_confirm(params, inputs.where, flickr_api) if params.confirm else None,
        )  # fmt: skip
        for done in taken:
            photo = done.candidate.photo
            photos[photo] = done.proof
            if done.state == "accepted":
                items.append((sample_of(params.class_name, photo), _members(done, params)))
                out.accept()
            elif done.state == "rejected":
                out.reject(photo, done.reason)
            else:
                out.fail(photo, done.reason)
        out.shard("images", items)
        out.provenance = {"photos": photos}


def _members(taken: Taken, params: FetchParams) -> dict[str, bytes]:
    """The shard members of an accepted photo: its bytes, and what is known of it."""
    from replaygen.crawl.licences import LICENCES

    one, photo = taken.candidate, taken.photo
    assert photo is not None
    licence = LICENCES.get(one.licence or "")
    about = {
        "class": params.class_name, "source": params.source, "photo": one.photo, "url": one.url, "page": one.page,
        "owner": one.owner, "owner_page": one.owner_page, "title": one.title, "licence": one.licence,
        "licence_url": licence.url if licence else None, "sha256": taken.proof["sha256"],
        "height": photo.height, "width": photo.width, "parent": None, "file": None,
    }  # fmt: skip
    return {photo.kind: photo.data, "json": json.dumps(about, sort_keys=True).encode()}


def _confirm(params: FetchParams, where: Mapping[str, Any], api_of: Any) -> Confirm:
    """Ask Flickr for a photo's own licence and visibility, now. Refused where it cannot tell of this photo."""
    from replaygen.crawl.client import Refused
    from replaygen.sources.flickr import ApiFault

    api = api_of(where)

    def ask(one: Candidate) -> str | None:
        try:
            info = api.info(one.photo.removeprefix("flickr-"))
        except ApiFault as fault:
            if fault.refuses_us:
                raise
            raise Refused("api-fault", fault.what, transient=True) from None
        if info.visible is None or (info.visible and info.licence is None):
            raise Refused("api-fault", "the answer does not tell licence or visibility", transient=True)
        if not info.visible:
            return "gone"
        return None if info.licence in params.licences else "licence-not-allowed"

    return ask


class _Had:
    """What an earlier record of the same fetch has: its photos, its refusals for good, and their proof."""

    def __init__(
        self, shard: Shard | None, class_name: str, rejected: Mapping[str, str], proof: dict[str, Any]
    ) -> None:
        self._shard, self._class, self._rejected, self._proof = shard, class_name, rejected, proof
        self._samples = set(shard.ids) if shard is not None else set()

    def __contains__(self, photo: str) -> bool:
        return photo in self._rejected or sample_of(self._class, photo) in self._samples

    def keep(self, photos: list[str], out: Out) -> tuple[list[tuple[str, dict[str, bytes]]], dict[str, Any]]:
        """Take over what is there of some photos: shard items and proof."""
        items = []
        kept = [photo for photo in photos if photo in self]
        for photo in kept:
            if photo in self._rejected:
                out.reject(photo, self._rejected[photo])
                continue
            assert self._shard is not None
            sample = sample_of(self._class, photo)
            items.append((sample, {kind: self._shard.read(sample, kind) for kind in self._shard.extensions(sample)}))
            out.accept()
        return items, {photo: self._proof[photo] for photo in kept if photo in self._proof}


def _had(inputs: Inputs, out: Out, class_name: str) -> _Had:
    path = out.partial() / HAD
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        shard = Shard(inputs.read_object(told["images"]), inputs.read_object(told["index"]))
    except (OSError, ValueError, KeyError, ReplaygenError):
        return _Had(None, class_name, {}, {})  # what it named is gone: everything is fetched again
    return _Had(shard, class_name, told["rejected"], told["photos"])
