"""A plan's crawl: its part of the plan, trying again what failed, and whether photos may still be kept."""

from __future__ import annotations

import json
from collections.abc import Callable
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
_ENOUGH = 10
"""Photos in a row that nobody can tell about, after which the rest is left for another day."""
_SURE = frozenset({"gone", "opted-out"})
"""Refusals of a web server that say something about the photo, and not about us, the server or today."""


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

    What such a fetch has is remembered in its unfinished work, then its record is removed.
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
        store.forget(key)
        failed += sum(record.counts.failed.values())
    return failed


@dataclass
class Revalidation:
    """What became of kept photos.

    Attributes:
        expired: photo -> why it may no longer be kept.
        unknown: photo -> why nobody could tell; kept, to be asked again.
        stopped: why it ended early, empty where it did not.
    """

    checked: int = 0
    skipped: int = 0
    expired: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    stopped: str = ""


@dataclass(frozen=True)
class Kept:
    """A photo in the store: where it came from, what all sources that have it allow, when it was last seen good."""

    photo: str
    source: str
    url: str
    licences: frozenset[str]
    opt_out: bool
    seen_at: str


class _Unknown(Exception):
    """Nobody can tell about a photo now."""


def revalidate(
    plan: Plan, *, api: Callable[[], FlickrApi], downloader: Callable[[bool], Downloader], older_than: timedelta,
    note: bool = True, now: datetime | None = None, told: Callable[[Revalidation], None] = lambda result: None,
) -> Revalidation:  # fmt: skip
    """Ask again whether every photo of a plan is still visible, under an allowed licence, and not opted out.

    Only what is sure expires a photo: its page is gone or private, its licence is another one that is not allowed, its
    server says that it is gone or reserved. Photos that are still good are written down as it goes, so that an
    interrupted revalidation goes on where it stopped; the others are asked about until they are purged. Nothing is
    removed here; see `expire`.

    Args:
        api, downloader: made when the first photo of their kind comes; a downloader for `opt_out`.
        older_than: photos that were found good more recently are left alone.
        note: write down what is still good.
        now: the time, for tests.
        told: is called now and then with what was found so far.

    Raises:
        ApiFault: the key or the account is refused.
    """
    store, result, rows, in_a_row = plan.store, Revalidation(), {}, 0
    at = now or datetime.now(UTC)
    for kept in _kept(plan).values():
        if datetime.fromisoformat(kept.seen_at) > at - older_than:
            result.skipped += 1
            continue
        try:
            licence, reason = _look(kept, api, downloader)
        except _Unknown as unknown:
            result.unknown[kept.photo] = str(unknown)
            in_a_row += 1
            if in_a_row == _ENOUGH:
                result.stopped = f"{_ENOUGH} photos in a row could not be looked at ({unknown})"
                break
            continue
        in_a_row = 0
        result.checked += 1
        if reason:
            result.expired[kept.photo] = reason
        else:
            rows[kept.photo] = {"at": _iso(at), "licence": licence, "visible": True}
        if len(rows) >= _TOGETHER:
            _note(store, rows, note)
            told(result)
    _note(store, rows, note)
    return result


def _note(store: Store, rows: dict[str, dict[str, Any]], note: bool) -> None:
    if note and rows:
        store.note_checked(rows)
    rows.clear()


def _look(kept: Kept, api: Callable[[], FlickrApi], downloader: Callable[[bool], Downloader]) -> tuple[str | None, str]:
    """(licence now, why the photo may not be kept or "")."""
    if kept.source == "flickr":
        return _ask(kept, api())
    from replaygen.crawl.client import Refused

    fetching = downloader(kept.opt_out)
    try:
        try:
            fetching.head(kept.url)
        except Refused as refused:
            if refused.reason not in ("not-served", "unexpected-status", "server-error"):
                raise
            fetching.get(kept.url)  # some servers answer nothing but GET
    except Refused as refused:
        if refused.reason in _SURE:
            return None, refused.reason
        raise _Unknown(refused.reason) from None
    return None, ""


def _ask(kept: Kept, api: FlickrApi) -> tuple[str | None, str]:
    from replaygen.sources.flickr import ApiFault

    try:
        info = api.info(kept.photo.removeprefix("flickr-"))
    except ApiFault as fault:
        if fault.refuses_us:
            raise
        raise _Unknown(fault.what) from None
    if info.visible is None:
        raise _Unknown("its visibility is not told")
    if not info.visible:
        return info.licence, "no longer visible"
    if info.licence is None:
        raise _Unknown("its licence is not told, or not known")
    return info.licence, "" if info.licence in kept.licences else f"its licence is now {info.licence}"


def _kept(plan: Plan) -> dict[str, Kept]:
    """Every photo of a plan's fetches once, with what all of them allow."""
    from replaygen.store import Shard

    store, kept = plan.store, dict[str, Kept]()
    checked = store.checked()
    for key, task in plan.tasks.items():
        record = store.get(key) if task.stage == "fetch" else None
        if record is None:
            continue
        tar, index = (record.output(name).digest for name in ("images.tar", "images.index.json"))
        shard = Shard(store.open_object(tar), store.read(index))
        licences, opt_out = frozenset(task.params["licences"]), bool(task.params["opt_out"])
        for sample in shard.ids:
            about = json.loads(shard.read(sample, "json"))
            photo = str(about["photo"])
            before = kept.get(photo)
            if before is not None:
                kept[photo] = replace(before, licences=before.licences & licences, opt_out=before.opt_out or opt_out)
                continue
            row = checked.get(photo, {})
            seen = row["at"] if row.get("visible") else record.provenance["photos"][photo]["fetched_at"]
            kept[photo] = Kept(photo, about["source"], about["url"], licences, opt_out, seen)
    return kept


def expire(store: Store, result: Revalidation, **options: Any) -> list[Any]:
    """Purge what may no longer be kept, with all that was made from it; one report a reason."""
    reports = []
    for reason in sorted(set(result.expired.values())):
        photos = [photo for photo, why in result.expired.items() if why == reason]
        reports.append(store.purge(photos, f"expired: {reason}", **options))
    return reports


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
