"""When a cron line falls due, by the wall clock of its time zone.

APScheduler's CronTrigger computes on plain wall clock time; the way to moments is ours, so that of an hour that the
clock skips the due times come once, at the moment when it is skipped, and of an hour that it doubles each comes once,
the first time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from replaygen.errors import ReplaygenError

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
SHORT = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
MOST_COUNTED = 100
"""Missed times are counted up to here."""

_FIRST_LOOK = timedelta(hours=3)


class ScheduleError(ReplaygenError):
    """A job of the schedule that cannot be, or is not there."""


class Cron:
    """A cron line in a time zone.

    Args:
        line: minute, hour, day of month, month, day of week; or @daily and its kin. Where both days are given, either
            will do, as in cron; Sunday is 0 or 7.
        zone: a name such as Europe/Rome, or UTC.

    Attributes:
        at: the time zone.

    Raises:
        ScheduleError: no such line or zone, or a line that never falls due.
    """

    def __init__(self, line: str, zone: str) -> None:
        self.line, self.zone = line, zone
        self.at = _zone(zone)
        self._triggers = _triggers(SHORT.get(line.strip().lower(), line))
        if self.next(datetime(2024, 1, 1, tzinfo=UTC)) is None:
            raise ScheduleError(f"{line!r} never falls due", hint=_HINT)

    def next(self, after: datetime) -> datetime | None:
        """The first due moment behind `after`, in UTC; None where there is none."""
        return next(self._behind(after), None)

    def latest(self, after: datetime, now: datetime) -> tuple[datetime, int] | None:
        """The last due moment in (after, now], and how many there are, counted up to `MOST_COUNTED`.

        It costs about the same however long ago `after` is.
        """
        back = _FIRST_LOOK
        while True:
            start = max(after, now - back)
            found = None
            for due in self._behind(start):
                if due > now:
                    break
                found = due
            if found is not None:
                return found, self._count(after, found)
            if start == after:
                return None
            back *= 8

    def _count(self, after: datetime, last: datetime) -> int:
        count = 0
        for due in self._behind(after):
            count += 1
            if due >= last or count == MOST_COUNTED:
                break
        return count

    def _behind(self, after: datetime) -> Iterator[datetime]:
        """Due moments behind `after`, in order, each once."""
        last = after
        for wall in self._walls(after.astimezone(self.at).replace(tzinfo=UTC, microsecond=0)):
            due = moment_of(wall, self.at)
            if due > last:
                last = due
                yield due

    def _walls(self, wall: datetime) -> Iterator[datetime]:
        """Times of the wall clock that fit the line, from `wall` on, as if they were UTC."""
        while True:
            found = [trigger.get_next_fire_time(None, wall) for trigger in self._triggers]
            times = [time for time in found if time is not None]
            if not times:
                return
            yield min(times)
            wall = min(times) + timedelta(seconds=1)


_HINT = 'five fields, such as --cron "0 3 * * 0": minute, hour, day of month, month, day of week'


def moment_of(wall: datetime, zone: ZoneInfo) -> datetime:
    """The moment, in UTC, when the wall clock of a zone shows `wall` first; one that it skips: when it skips it."""
    first = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if first.astimezone(zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return first
    before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    offset = before.astimezone(zone).utcoffset()
    while first - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=(first - before) // timedelta(seconds=2))
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            first = middle
    return first


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ScheduleError(
            f"no time zone {name!r}", hint="a name such as Europe/Rome; pip install tzdata where the system has none"
        ) from None


@lru_cache(maxsize=64)
def _triggers(line: str) -> tuple[CronTrigger, ...]:
    """The triggers that together are a cron line, on plain wall clock time."""
    try:
        from apscheduler.triggers.cron import CronTrigger
    except ModuleNotFoundError:
        raise ScheduleError("schedules need APScheduler", hint="pip install 'replaygen[schedule]'") from None
    fields = line.split()
    if len(fields) != 5:
        raise ScheduleError(f"{line!r} has {len(fields)} fields", where="--cron", hint=_HINT)
    minute, hour, day, month, weekday = (field.lower() for field in fields)
    ways = [{"day": day, "day_of_week": _weekdays(weekday, line)}]
    if day[0] != "*" and weekday[0] != "*":
        ways = [{"day": day}, {"day_of_week": _weekdays(weekday, line)}]
    try:
        return tuple(CronTrigger(minute=minute, hour=hour, month=month, timezone=UTC, **way) for way in ways)
    except (ValueError, TypeError) as error:
        raise ScheduleError(f"{line!r} is no cron line: {error}", where="--cron", hint=_HINT) from None


def _weekdays(text: str, line: str) -> str:
    """Days by name: APScheduler counts from Monday, cron from Sunday."""
    if text == "*":
        return text
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, dash, last = ("0", "-", "6") if span == "*" else span.partition("-")
        try:
            low, jump = _weekday(first), int(step or 1)
            high = _weekday(last) if dash else (6 if step else low)
        except ValueError:
            raise ScheduleError(f"{line!r}: {part!r} is no day of the week", where="--cron", hint=_HINT) from None
        if not 0 < jump <= 7 or not 0 <= low <= 7 or not 0 <= high <= 7:
            raise ScheduleError(f"{line!r}: {part!r} is no day of the week", where="--cron", hint=_HINT)
        high += 7 * (high < low)
        found.update(day % 7 for day in range(low, high + 1, jump))
    return ",".join(DAYS[day] for day in sorted(found))


def _weekday(text: str) -> int:
    return DAYS.index(text) if text in DAYS else int(text)
