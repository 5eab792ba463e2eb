"""A plan's crawl: its part of the plan, trying again what failed, and whether photos may still be kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from replaygen.errors import DataError
from replaygen.plan import Plan
from replaygen.plan.build import Built
from replaygen.stages.crawl import HAD
from replaygen.store.fsops import replace_file

if TYPE_CHECKING:
    from replaygen.crawl.client import Downloader
    from replaygen.sources.flickr import FlickrApi
    from replaygen.store import Store

CRAWL_STAGES = frozenset({"flickr-search", "url-list", "fetch", "looks", "looks-evaluated", "select"})
"""Stages that stand before any model."""

_TOGETHER = 50
"""Checked photos that are written down at once."""


def crawl_part(plan: Plan) -> Plan:
    """The part of a plan that fetches and screens photos of other people.

    Raises:
        DataError: the recipe has no such source.
    """
    crawls = {key for key, task in plan.tasks.items() if task.stage in CRAWL_STAGES}
    if not any(plan.tasks[key].stage == "fetch" for key in crawls):
        raise DataError(
            "the recipe fetches no photos", where=str(plan.recipe.path),
            hint='add a [replay.NAME] with source = "flickr" or "web", and a method that uses it',
        )  # fmt: skip
    built = Built(
        {key: task for key, task in plan.tasks.items() if key in crawls},
        {slot: key for slot, key in plan.slots.items() if key in crawls},
    )
    return replace(plan, recipe=replace(plan.recipe, partial=True), built=built)


def ask_again(plan: Plan) -> int:
    """Make every fetch with failed photos run again, for these photos only; how many photos that are.

    What such a fetch has is remembered in its unfinished work, then its record is set aside.
    """
    store, failed = plan.store, 0
    for key, task in plan.tasks.items():
        record = store.get(key) if task.stage == "fetch" else None
        if record is None or not record.counts.failed:
            continue
        refused = json.loads(store.read(record.output("refused.json").digest))
        had = {
            "images": record.output("images.tar").digest, "index": record.output("images.index.json").digest,
            "rejected": {one["id"]: one["reason"] for one in refused["rejected"]},
            "photos": record.provenance["photos"],
        }  # fmt: skip
        replace_file(store.partial(key) / HAD, json.dumps(had, sort_keys=True).encode())
        store.quarantine_record(key, "its failed photos are asked for again")
        failed += sum(record.counts.failed.values())
    return failed


@dataclass
class Revalidation:
    """What became of kept photos.

    Attributes:
        expired: photo -> why it may no longer be kept.
        unknown: photo -> why nobody could tell; kept, to be asked again.
    """

    checked: int = 0
    skipped: int = 0
    expired: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """A photo in the store: where it came from, what is allowed, and when it was last looked at."""

    photo: str
    source: str
    url: str
    licences: frozenset[str]
    seen_at: str


def revalidate(
    plan: Plan, *, api: Callable[[], FlickrApi], downloader: Callable[[], Downloader], older_than: timedelta,
    now: datetime | None = None, told: Callable[[Revalidation], None] = lambda result: None,
) -> Revalidation:  # fmt: skip
    """Ask again whether every photo of a plan is still visible, under an allowed licence, and not opted out.

    What was found is written down as it goes, so that an interrupted revalidation goes on where it stopped. Nothing is
    removed here; see `Store.purge`.

    Args:
        api, downloader: made when the first photo of their kind comes.
        older_than: photos that were looked at more recently are left alone.
        now: the time, for tests.
        told: is called now and then with what was found so far.
    """
    store, result, rows = plan.store, Revalidation(), {}
    at = now or datetime.now(UTC)
    for kept in _kept(plan):
        if datetime.fromisoformat(kept.seen_at) > at - older_than:
            result.skipped += 1
            continue
        licence, reason, sure = _look(kept, api, downloader)
        if not sure:
            result.unknown[kept.photo] = reason
            continue
        result.checked += 1
        if reason:
            result.expired[kept.photo] = reason
        rows[kept.photo] = {"at": _iso(at), "licence": licence, "visible": not reason}
        if len(rows) >= _TOGETHER:
            store.note_checked(rows)
            rows = {}
            told(result)
    store.note_checked(rows)
    return result


def _look(
    kept: Kept, api: Callable[[], FlickrApi], downloader: Callable[[], Downloader]
) -> tuple[str | None, str, bool]:
    """(licence now, why the photo may not be kept or "", whether that is sure)."""
    if kept.source == "flickr":
        from replaygen.sources.flickr import ApiFault

        try:
            info = api().info(kept.photo.removeprefix("flickr-"))
        except ApiFault as fault:
            if not fault.transient:
                raise
            return None, fault.what, False
        if not info.visible:
            return info.licence, "no longer visible", True
        if info.licence not in kept.licences:
            return info.licence, f"its licence is now {info.licence or 'unknown'}", True
        return info.licence, "", True
    from replaygen.crawl.client import Refused

    try:
        downloader().head(kept.url)
    except Refused as refused:
        return None, refused.reason, not refused.transient
    return None, "", True


def _kept(plan: Plan) -> Iterator[Kept]:
    """Every photo of a plan's fetches once."""
    from replaygen.store import Shard

    store, told = plan.store, set()
    checked = store.checked()
    for key, task in plan.tasks.items():
        record = store.get(key) if task.stage == "fetch" else None
        if record is None:
            continue
        shard = Shard(*(store.read(record.output(name).digest) for name in ("images.tar", "images.index.json")))
        for sample in shard.ids:
            about = json.loads(shard.read(sample, "json"))
            photo = str(about["photo"])
            if photo in told:
                continue
            told.add(photo)
            seen = checked.get(photo, {}).get("at") or record.provenance["photos"][photo]["fetched_at"]
            yield Kept(photo, about["source"], about["url"], frozenset(task.params["licences"]), seen)


def expire(store: Store, result: Revalidation, **options: Any) -> list[Any]:
    """Purge what may no longer be kept, with all that was made from it; one report a reason."""
    reports = []
    for reason in sorted(set(result.expired.values())):
        photos = [photo for photo, why in result.expired.items() if why == reason]
        reports.append(store.purge(photos, f"expired: {reason}", **options))
    return reports


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
