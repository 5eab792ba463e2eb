"""What a process that crawls holds between tasks: one pool of connections, and its decoders."""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.canonical import digest_of

if TYPE_CHECKING:
    from replaygen.crawl.client import Downloader
    from replaygen.crawl.isolated import Decoders
    from replaygen.crawl.specs import CrawlHow
    from replaygen.sources.flickr import FlickrApi


def crawler(where: Mapping[str, Any], *, opt_out: bool, robots: bool) -> tuple[Downloader, Decoders, int]:
    """The process's downloader and decoders for a recipe's `[run.crawl]`, and how many threads may use them.

    With several workers each takes its part of the connections and of the cores.
    """
    downloader = downloader_of(where, opt_out=opt_out, robots=robots)
    return downloader, _decoders(_workers(where)), _how(where).connections


def downloader_of(where: Mapping[str, Any], *, opt_out: bool, robots: bool = False) -> Downloader:
    """The process's downloader; one for each way to ask."""
    from replaygen.crawl.client import crawl_environment

    state, agent, allow = crawl_environment()
    return _downloader(_how(where).model_dump_json(), str(state), agent, opt_out, robots, allow)


def flickr_api(where: Mapping[str, Any]) -> FlickrApi:
    """The process's seam to Flickr; the key comes from the environment, and its hourly limit is shared."""
    from replaygen.crawl.client import crawl_environment

    told = [os.environ.get(name, "") for name in ("REPLAYGEN_FLICKR_URL", "FLICKR_API_KEY", "FLICKR_API_SECRET")]
    state, _, _ = crawl_environment()
    return _flickr(_how(where).calls_per_hour, str(state), digest_of(told))


def _how(where: Mapping[str, Any]) -> CrawlHow:
    """`[run.crawl]`, with this worker's part of the connections."""
    from replaygen.crawl.specs import CrawlHow

    how = CrawlHow.model_validate(where.get("crawl", {}))
    return how.model_copy(update={"connections": max(1, how.connections // _workers(where))})


def _workers(where: Mapping[str, Any]) -> int:
    return max(1, int(where.get("workers", 0)))


@lru_cache(maxsize=4)
def _downloader(how: str, state: str, agent: str, opt_out: bool, robots: bool, allow: frozenset[str]) -> Downloader:
    from replaygen.crawl.client import Downloader
    from replaygen.crawl.specs import CrawlHow

    made = Downloader(
        CrawlHow.model_validate(json.loads(how)), state=Path(state), agent=agent, opt_out=opt_out, robots=robots,
        allow=allow,
    )  # fmt: skip
    atexit.register(made.close)
    return made


@lru_cache(maxsize=1)
def _decoders(workers: int) -> Decoders:
    from replaygen.crawl.isolated import Decoders

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    made = Decoders(max(1, cores // workers))
    atexit.register(made.close)
    return made


@lru_cache(maxsize=1)
def _flickr(calls_per_hour: int, state: str, environment: str) -> FlickrApi:
    """`environment` is a digest of the variables that the seam reads by itself, so that another key makes another."""
    from replaygen.sources.flickr import FlickrApi, flickr_limit

    return FlickrApi(limit=flickr_limit(Path(state), calls_per_hour))
