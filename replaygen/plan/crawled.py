"""Tasks of photos that other people made: search, fetch, looks, selection; and what was purged since."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.crawl.licences import allowed_licences
from replaygen.crawl.specs import CrawlSpec, FlickrQuery, WebSpec
from replaygen.errors import DataError, StoreError
from replaygen.plan.recipe import ReplayTable
from replaygen.sources.flickr_wire import api_is_elsewhere
from replaygen.sources.urls import list_digest
from replaygen.stages.crawl import FetchStage, FlickrSearchStage, UrlListStage
from replaygen.stages.screen import EvaluatedLookStage, LookStage, SelectStage
from replaygen.store import Store

if TYPE_CHECKING:
    from replaygen.plan.build import Builder

CRAWLED = frozenset({"flickr", "web"})
"""Sources whose photos are fetched from other people's servers."""


class Purged:
    """The photos that were purged from a store, and the slices of searches that held them."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self.photos = frozenset(store.tombstones()) if store is not None else frozenset()
        self._searches: dict[str, list[str]] = {}

    def within(self, search: str, start: int, end: int) -> list[str]:
        """The purged photos among a search's candidates [start, end), sorted; none where it has not run yet."""
        if not self.photos:
            return []
        if search not in self._searches:
            self._searches[search] = self._candidates(search)
        return sorted(photo for photo in self._searches[search][start:end] if photo in self.photos)

    def _candidates(self, search: str) -> list[str]:
        import json

        record = self._store.get(search) if self._store is not None else None
        if record is None or self._store is None:
            return []
        try:
            told = json.loads(self._store.read(record.output("candidates.json").digest))
        except StoreError:  # damaged: the search runs again, and refuses what was purged by itself
            return []
        return [str(one["photo"]) for one in told["candidates"]]


class CrawledTasks:
    """Adds a recipe's crawls to a plan; made by `plan.build.Builder`."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.recipe, self.opened, self.scenario = builder.recipe, builder.opened, builder.scenario
        self.searches: dict[tuple[str, int], str] = {}
        self.selections: dict[tuple[str, int], str] = {}
        self.how = {"crawl": self.recipe.run.crawl.model_dump(mode="json"), "workers": self.recipe.run.workers}

    def images(self, source: str, table: ReplayTable, channel: int) -> list[str]:
        """The fetch tasks of a class, behind its search."""
        name, size = self.scenario.names[channel], self.recipe.shard
        search = self._search(source, table, channel)
        keys = []
        for i, start in enumerate(range(0, wanted(table), size)):
            end = min(start + size, wanted(table))
            params = {
                "class_name": name, "source": table.source, "slice": i, "size": size,
                "max_side": table.max_side, "min_side": table.min_side, **_taken_in(table),
                "without": self.opened.purged.within(search, start, end),
            }  # fmt: skip
            task = FetchStage.task(
                params, inputs=[("search", search)], slot=f"fetch/{source}/{name}/{i:04d}", where=self.how,
                requested=end - start,
            )  # fmt: skip
            keys.append(self.builder.built.add(task))
        return keys

    def selection(self, source: str, table: ReplayTable, channel: int, images: Sequence[str]) -> str | None:
        """What of a class's images passes the screens; None where it has none."""
        screen = table.screens()
        if screen is None:
            return None
        if (source, channel) in self.selections:
            return self.selections[source, channel]
        name, built = self.scenario.names[channel], self.builder.built
        inputs = [("search", self.searches[source, channel])] if (source, channel) in self.searches else []
        for i, image in enumerate(images):
            look = LookStage.task(
                {}, inputs=[("images", image)], slot=f"looks/{source}/{name}/{i:04d}",
                requested=built.tasks[image].requested,
            )  # fmt: skip
            inputs.append(("looks", built.add(look)))
        if screen.duplicates >= 0:
            earlier = [at for of, at in self.selections if of == source and at < channel]
            inputs += [("before", self.selections[source, at]) for at in sorted(earlier)]
        if screen.leaks >= 0:
            inputs += [("evaluated", key) for key in self._evaluated()]
        task = SelectStage.task(
            {"class_name": name, **screen.model_dump(mode="json")}, inputs=inputs, slot=f"select/{source}/{name}",
            requested=sum(built.tasks[image].requested for image in images),
        )  # fmt: skip
        self.selections[source, channel] = built.add(task)
        return self.selections[source, channel]

    def _evaluated(self) -> list[str]:
        keys = []
        for i, ids in self.builder.slices(self.builder.evaluation_ids()):
            task = EvaluatedLookStage.task(
                {"dataset": self.opened.dataset.digest, "ids": list(ids)}, slot=f"looks/evaluated/{i:04d}",
                where=self.builder.current_where, requested=len(ids),
            )  # fmt: skip
            keys.append(self.builder.built.add(task))
        return keys

    def _search(self, source: str, table: ReplayTable, channel: int) -> str:
        name = self.scenario.names[channel]
        slot = f"search/{source}/{name}"
        if table.source == "flickr":
            params, where = _flickr_params(table, name), self.how
            key = self.builder.built.add(
                FlickrSearchStage.task(params, slot=slot, where=where, requested=wanted(table))
            )
        else:
            spec = table.web or WebSpec()
            path, listed = self.opened.lists[source], table.folders.get(name, name)
            columns = spec.model_dump(mode="json", exclude={"licences", "unknown_licence", "robots"})
            params = {
                "class_name": listed, "list": list_digest(path, listed), "columns": columns,
                "licences": sorted(allowed_licences(spec.licences)), "unknown_licence": spec.unknown_licence,
                "wanted": wanted(table),
            }  # fmt: skip
            where = {"list": str(path)}
            key = self.builder.built.add(UrlListStage.task(params, slot=slot, where=where, requested=wanted(table)))
        self.searches[source, channel] = key
        return key


def wanted(table: ReplayTable) -> int:
    """Candidates to look at: count x oversample, rounded up; nothing is back-filled."""
    return math.ceil(table.count * table.oversample)


_FETCHING = ("urllib3", "simplejpeg", "cv2")
_PACKAGES = {"flickr": (*_FETCHING, "flickrapi", "pyrate_limiter"), "web": (*_FETCHING, "protego")}


def open_crawls(
    replay: Mapping[str, ReplayTable], paths: Mapping[str, Path], names: Sequence[str], *, where: str
) -> None:
    """Look for the packages that crawls and screens need, and for the list of every class, before any work.

    Raises:
        DataError: a missing package, a class without a list, a list that cannot be read; names the way out.
    """
    for source, table in replay.items():
        if table.flickr is not None and table.flickr.as_of > datetime.now(UTC).date():
            raise DataError(
                f"replay.{source}.flickr.as_of = {table.flickr.as_of} lies ahead", where=where,
                hint="give today or a day before: what is uploaded until then would never be seen",
            )  # fmt: skip
        for package in (*_PACKAGES.get(table.source, ()), *(("imagehash", "cv2") if table.screens() else ())):
            if find_spec(package) is None:
                raise DataError(
                    f"replay.{source} needs the package {package}", where=where, hint="pip install 'replaygen[crawl]'"
                )
    for source, path in paths.items():
        table = replay[source]
        for name in names if table.only is None else table.only:
            list_digest(path, table.folders.get(name, name))


def _flickr_params(table: ReplayTable, name: str) -> dict[str, Any]:
    spec = table.flickr
    assert spec is not None
    query = spec.query.get(name, FlickrQuery())
    asked = query.model_dump(mode="json") | {"text": query.text if query.text is not None else name}
    return {
        "class_name": name, "api": "another server" if api_is_elsewhere() else "flickr.com",
        "query": asked, "as_of": spec.as_of.isoformat(), "since": spec.since.isoformat(),
        "licences": sorted(allowed_licences(spec.licences)), "sort": spec.sort, "safe": spec.safe,
        "max_side": table.max_side, "min_side": table.min_side, "wanted": wanted(table),
    }  # fmt: skip


def _taken_in(table: ReplayTable) -> dict[str, Any]:
    """What a fetch does with a photo, by the recipe."""
    crawl = table.crawl or CrawlSpec()
    flickr, web = table.flickr, table.web or WebSpec()
    licences = flickr.licences if flickr is not None else web.licences
    return {
        "keep": crawl.keep, "opt_out": crawl.opt_out, "robots": flickr is None and web.robots,
        "confirm": flickr is not None and flickr.confirm, "licences": sorted(allowed_licences(licences)),
    }  # fmt: skip
