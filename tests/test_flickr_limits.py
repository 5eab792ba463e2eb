"""Never more API calls in an hour than allowed: fake clock, real processes, restarts, clocks that jump."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from replaygen.crawl.limits import ApiLimit
from replaygen.errors import StoreError


class FakeClock:
    """Time that passes only when somebody sleeps; sleeping takes a little longer than asked, as it does."""

    def __init__(self, start: float = 1.7e9, late: float = 0.0) -> None:
        self.now = start
        self.late = late
        self.slept = 0.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds + self.late
        self.slept += seconds


def most_in_any(times: list[float], stretch: float) -> int:
    """The most calls that any half-open stretch of time holds."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - stretch:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_a_hundred_thousand_calls_never_exceed_the_hour(tmp_path: Path) -> None:
    """Row 15: over busy and idle stretches and ten restarts, no hour holds more than 3,000 calls, and some hold all."""
    clock, draw, times = FakeClock(), random.Random(15), []
    limit = ApiLimit(tmp_path, "key", 3000, durable=False, clock=clock)
    for call in range(100_000):
        if call % 10_000 == 0:
            limit.close()
            limit = ApiLimit(tmp_path, "key", 3000, durable=False, clock=clock)
        limit.wait()
        times.append(clock.now)
        clock.now += draw.expovariate(2.0) if draw.random() < 0.999 else draw.uniform(0, 1200)
    limit.close()
    assert most_in_any(times, 3600.0) == 3000
    assert most_in_any(times, 1.0) <= 5


def test_a_late_wake_does_not_borrow_from_the_next_hour(tmp_path: Path) -> None:
    """A process that sleeps longer than it meant to is counted at the time it really called."""
    clock = FakeClock(late=0.3)
    limit = ApiLimit(tmp_path, "key", 3, per_second=1000, hour=0.5, clock=clock)
    times = []
    for _ in range(60):
        limit.wait()
        times.append(clock.now)
    assert most_in_any(times, 0.5) <= 3


@pytest.mark.parametrize(
    ("per_hour", "hour", "per_second"), [(1, 3600, 5), (2, 3600, 5), (5, 1, 5), (1, 0.01, 5), (9, 1, 1)]
)
def test_odd_limits_hold_too(tmp_path: Path, per_hour: int, hour: float, per_second: float) -> None:
    """One call an hour, and hours that the pace within a second already keeps, are limits like any other."""
    clock, times = FakeClock(), []
    limit = ApiLimit(tmp_path, "key", per_hour, hour=hour, per_second=per_second, clock=clock)
    for _ in range(25):
        limit.wait()
        times.append(clock.now)
    assert most_in_any(times, hour) <= per_hour
    assert most_in_any(times, 1.0) <= per_second


def test_a_clock_set_back_a_year_waits_an_hour_and_not_a_year(tmp_path: Path) -> None:
    """Calls written down by a clock that was ahead count as made now."""
    clock = FakeClock(start=1.8e9)
    limit = ApiLimit(tmp_path, "key", 10, clock=clock)
    for _ in range(10):
        limit.wait()
    clock.now -= 365 * 86400
    before = clock.slept
    limit.wait()
    assert 3590 < clock.slept - before < 3610


def test_a_deadline_ends_the_wait_at_once_and_costs_no_call(tmp_path: Path) -> None:
    """Where the next call is further away than the deadline, TimeoutError comes without waiting."""
    clock = FakeClock()
    limit = ApiLimit(tmp_path, "key", 2, clock=clock)
    limit.wait()
    limit.wait(deadline=clock.now + 1)
    clock.now += 5
    slept = clock.slept
    with pytest.raises(TimeoutError):
        limit.wait(deadline=clock.now + 60)
    assert clock.slept == slept
    clock.now += 3601
    limit.wait(deadline=clock.now)


def test_two_names_do_not_share_a_limit_and_no_name_shows(tmp_path: Path) -> None:
    """Each key has its own calls; the file's name and contents do not tell the key."""
    clock = FakeClock()
    for name in ("flickr canary-one", "flickr canary-two"):
        limit = ApiLimit(tmp_path, name, 1, clock=clock)
        limit.wait(deadline=clock.now)
        assert "canary" not in repr(limit)
        limit.close()
    assert len(list(tmp_path.glob("*.sqlite"))) == 2
    for path in tmp_path.iterdir():
        assert "canary" not in path.name
        assert b"canary" not in path.read_bytes()


def test_threads_of_one_process_share_the_limit(tmp_path: Path) -> None:
    """Eight threads on one limit keep its pace together."""
    limit = ApiLimit(tmp_path, "key", 1000, per_second=50)
    times: list[float] = []

    def call() -> None:
        for _ in range(4):
            limit.wait()
            times.append(time.time())

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(times) == 32
    assert max(times) - min(times) >= 31 * 0.020 - 0.01


CHILD = """
import sys, time
from pathlib import Path
from replaygen.crawl.limits import ApiLimit
limit = ApiLimit(Path(sys.argv[1]), "key", 20, per_second=200, hour=1.0)
for _ in range(int(sys.argv[2])):
    limit.wait()
    print(time.time(), flush=True)
time.sleep(float(sys.argv[3]))
"""


def test_three_processes_share_the_limit_and_one_may_be_killed(tmp_path: Path) -> None:
    """No second holds more than 20 calls of three processes and of a fourth that was killed before; none starves."""

    def start(calls: int, linger: float = 0.0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(calls), str(linger)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = start(10, linger=60)
    assert killed.stdout is not None
    times = [float(killed.stdout.readline()) for _ in range(10)]
    killed.kill()
    killed.communicate()
    children = [start(15) for _ in range(3)]
    for child in children:
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        times += [float(line) for line in out.split()]
    assert len(times) == 55
    # the limit counts when a call was allowed; a child prints it a moment later
    assert most_in_any(sorted(times), 0.9) <= 20
    assert max(times) - min(times) >= 1.9


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """A file of past calls that is no database ends in an error that says where and what to do."""
    limit = ApiLimit(tmp_path, "key", 10)
    limit.path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match="cannot be used") as caught:
        limit.wait()
    assert str(limit.path) in str(caught.value)
