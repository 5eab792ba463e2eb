"""When cron lines fall due: days as cron counts them, hours that the clock skips or doubles once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from replaygen.schedule import ScheduleError
from replaygen.schedule.rehearsal import due_moments
from replaygen.schedule.times import Cron


@pytest.mark.parametrize("zone", ["Europe/Rome", "America/New_York", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize("line", ["30 2 * * *", "0 3 * * 0", "15 */2 * * *", "0,30 1,2 * 3,4,10,11 *"])
def test_due_moments_are_those_of_every_minute_looked_at(line: str, zone: str) -> None:
    """Over the months when clocks are set: the same moments as by brute force, so no hour twice and none left out."""
    for begin in (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC)):
        end, cron = begin + timedelta(days=40), Cron(line, zone)
        found, moment = [], cron.next(begin)
        while moment is not None and moment <= end:
            found.append(moment)
            moment = cron.next(moment)
        assert found == due_moments(line, zone, begin, end)
        assert len(found) >= 5


def test_a_skipped_hour_and_a_doubled_one_fall_due_once() -> None:
    cron = Cron("30 2 * * *", "Europe/Rome")
    skipped = cron.next(datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert skipped == datetime(2026, 3, 29, 1, tzinfo=UTC)  # the clock goes from 2 to 3
    assert cron.next(skipped) == datetime(2026, 3, 30, 0, 30, tzinfo=UTC)
    doubled = cron.next(datetime(2026, 10, 24, 12, tzinfo=UTC))
    assert doubled == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert cron.next(doubled) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "days"),
    [("0 3 * * 0", "Sun"), ("0 3 * * 7", "Sun"), ("0 3 * * 1-5", "Mon Tue Wed Thu Fri"), ("0 3 * * 5-7", "Sun Fri Sat"),
     ("0 3 * * sat,0", "Sun Sat"), ("0 3 * * fri-mon", "Sun Mon Fri Sat"), ("0 3 * * */3", "Sun Wed Sat")],
)  # fmt: skip
def test_days_are_counted_as_cron_counts_them(line: str, days: str) -> None:
    """Sunday is 0: APScheduler's own reading would make `0 3 * * 0` a Monday."""
    found, moment = set(), datetime(2026, 6, 1, tzinfo=UTC)
    for _ in range(10):
        moment = Cron(line, "UTC").next(moment) or moment
        found.add(f"{moment:%a}")
    assert found == set(days.split())


def test_where_both_days_are_given_either_will_do() -> None:
    cron, found, moment = Cron("0 0 13 * 5", "UTC"), [], datetime(2026, 6, 1, tzinfo=UTC)
    for _ in range(4):
        moment = cron.next(moment) or moment
        found.append(moment.day)
    assert found == [5, 12, 13, 19]


@pytest.mark.parametrize(
    ("line", "zone"),
    [("0 3 * *", "UTC"), ("61 * * * *", "UTC"), ("0 3 * * 8", "UTC"), ("0 3 * * x", "UTC"), ("0 0 31 2 *", "UTC"),
     ("@sometimes", "UTC"), ("0 3 * * *", "Rome"), ("0 3 * * *", "../etc/passwd"), ("", "UTC")],
)  # fmt: skip
def test_a_line_or_zone_that_cannot_be_is_refused(line: str, zone: str) -> None:
    with pytest.raises(ScheduleError):
        Cron(line, zone)
