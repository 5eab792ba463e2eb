"""The pace of requests to a host, and the deadlines of requests in flight."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from replaygen.crawl.pace import Busy, Pace, Ticket, Watchdog
from replaygen.errors import StoreError

FOREVER = 1e9


class Clock:
    """A clock that moves only when somebody sleeps on it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def stamps(pace: Pace, clock: Clock, turns: int) -> list[float]:
    """When each of some turns came."""
    told = []
    for _ in range(turns):
        pace.turn(FOREVER, FOREVER, clock.sleep)
        told.append(clock.now)
    return told


def test_turns_are_evenly_spaced(tmp_path: Path, clock: Clock) -> None:
    """At ten requests a second, one goes out every 0.1 s, the first at once."""
    start = clock.now
    assert stamps(Pace(tmp_path, "a:80", 10.0, clock=clock), clock, 5) == pytest.approx(
        [start, start + 0.1, start + 0.2, start + 0.3, start + 0.4]
    )


def test_idle_time_gives_no_burst(tmp_path: Path, clock: Clock) -> None:
    """A minute without requests is not made up for."""
    pace = Pace(tmp_path, "a:80", 10.0, clock=clock)
    stamps(pace, clock, 1)
    clock.now += 60.0
    told = stamps(pace, clock, 3)
    assert told[2] - told[0] == pytest.approx(0.2)


def test_two_holders_of_one_folder_share_the_pace(tmp_path: Path, clock: Clock) -> None:
    """Turns alternate between two paces of a host; another host has its own."""
    one, two = Pace(tmp_path, "a:80", 10.0, clock=clock), Pace(tmp_path, "a:80", 10.0, clock=clock)
    start = clock.now
    for _ in range(5):
        stamps(one, clock, 1)
        stamps(two, clock, 1)
    assert clock.now - start == pytest.approx(0.9)
    assert Pace(tmp_path, "b:80", 10.0, clock=clock).turn(0.0, 0.0) == 0.0


def test_processes_share_the_pace(tmp_path: Path) -> None:
    """Two processes with forty turns each at a hundred a second take the time of eighty turns."""
    code = (
        "import sys, time, pathlib; from replaygen.crawl.pace import Pace\n"
        "pace = Pace(pathlib.Path(sys.argv[1]), 'a:80', 100.0)\n"
        "for _ in range(40): pace.turn(60, 60); print(time.time())"
    )
    run = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = sorted(float(line) for child in children for line in child.communicate(timeout=60)[0].split())
    assert len(told) == 80
    for first, tenth in zip(told, told[20:], strict=False):
        assert tenth - first > 0.1, "twenty turns within half their time"


def test_threads_share_the_pace(tmp_path: Path) -> None:
    """Eight threads with five turns each at two hundred a second take 39 intervals at least."""
    pace = Pace(tmp_path, "a:80", 200.0)
    began = time.monotonic()
    threads = [threading.Thread(target=lambda: [pace.turn(60, 60) for _ in range(5)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= 39 / 200 - 0.01


def test_a_turn_that_comes_too_late_is_refused_at_once_and_not_used_up(tmp_path: Path, clock: Clock) -> None:
    """Busy names the wait; who can wait longer gets that very turn."""
    pace = Pace(tmp_path, "a:80", 1.0, clock=clock)
    stamps(pace, clock, 1)
    for _ in range(3):
        with pytest.raises(Busy) as busy:
            pace.turn(0.5, FOREVER, clock.sleep)
        assert busy.value.seconds == pytest.approx(1.0)
    assert pace.turn(2.0, FOREVER, clock.sleep) == pytest.approx(1.0)


def test_a_block_holds_for_everybody_and_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    """Retry-After: 30, seen by one, is kept by all; whoever waits no such time is told at once."""
    first = Pace(tmp_path, "a:80", 10.0, clock=clock)
    assert first.push_back(30.0, clock.now) == pytest.approx(30.0)
    first.close()
    start = clock.now
    other = Pace(tmp_path, "a:80", 10.0, clock=clock)
    with pytest.raises(Busy):
        other.turn(FOREVER, 29.0, clock.sleep)
    assert clock.now == start
    assert other.turn(FOREVER, 31.0, clock.sleep) == pytest.approx(30.0)


def test_a_block_that_comes_while_a_turn_is_waited_for_is_kept(tmp_path: Path, clock: Clock) -> None:
    """The host says 429 to another request while we sleep: we do not go out before it is over."""
    mine, others = Pace(tmp_path, "a:80", 1.0, clock=clock), Pace(tmp_path, "a:80", 1.0, clock=clock)
    stamps(mine, clock, 1)
    start = clock.now

    def sleep(seconds: float) -> None:
        if clock.now == start:
            others.push_back(20.0, clock.now)
        clock.sleep(seconds)

    mine.turn(FOREVER, FOREVER, sleep)
    assert clock.now - start >= 20.0


def _gap(pace: Pace, clock: Clock) -> float:
    first, second = stamps(pace, clock, 2)
    return second - first


def test_a_limit_that_is_not_known_is_looked_for(tmp_path: Path, clock: Clock) -> None:
    """Fifty requests at once, then 429 with a second to wait: 0.8 x 50/s at most, and a quarter more each second."""
    pace = Pace(tmp_path, "a:80", 1000.0, clock=clock)
    stamps(pace, clock, 50)
    pace.push_back(1.0, clock.now)
    first = _gap(pace, clock)
    assert 1 / 42 < first < 1 / 30
    for _ in range(4):
        clock.now += 1.0
        later = _gap(pace, clock)
    assert 1.9 < first / later < 2.6


def test_a_limit_that_was_met_is_neared_slowly(tmp_path: Path, clock: Clock) -> None:
    """An even rate that was borne for seconds and then refused: 0.8 of it, and 1 % more each second."""
    pace = Pace(tmp_path, "a:80", 1000.0, clock=clock)
    stamps(pace, clock, 50)
    pace.push_back(1.0, clock.now)
    stamps(pace, clock, 300)
    before = _gap(pace, clock)
    pace.push_back(1.0, clock.now)
    first = _gap(pace, clock)
    assert first / before == pytest.approx(1.25, rel=0.05)
    for _ in range(12):
        clock.now += 1.0
        later = _gap(pace, clock)
    assert 1.05 < first / later < 1.25


def test_a_refusal_of_the_first_requests_halves_the_rate(tmp_path: Path, clock: Clock) -> None:
    """Where next to nothing was borne there is nothing to measure."""
    pace = Pace(tmp_path, "a:80", 10.0, clock=clock)
    stamps(pace, clock, 1)
    pace.push_back(1.0, clock.now)
    told = stamps(pace, clock, 2)
    assert told[1] - told[0] == pytest.approx(0.2)


def test_requests_that_were_in_flight_together_slow_down_once(tmp_path: Path, clock: Clock) -> None:
    """Eight refusals of requests that went out before the first of them came back count as one."""
    pace = Pace(tmp_path, "a:80", 10.0, clock=clock)
    stamps(pace, clock, 1)
    asked = clock.now
    clock.now += 0.05
    for _ in range(8):
        pace.push_back(1.0, asked)
    told = stamps(pace, clock, 2)
    assert told[1] - told[0] == pytest.approx(0.2)


def test_without_a_retry_after_the_block_doubles(tmp_path: Path, clock: Clock) -> None:
    """0.5 s, 1 s, 2 s, 4 s for a host that refuses again and again."""
    pace = Pace(tmp_path, "a:80", 10.0, clock=clock)
    told = []
    for _ in range(4):
        stamps(pace, clock, 1)
        told.append(pace.push_back(None, clock.now))
    assert told == pytest.approx([0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\0" * 80, b"rgpace1\n" + b"\xff" * 72, b"something else entirely" * 50], ids=len
)
def test_a_damaged_or_foreign_file_is_begun_anew(tmp_path: Path, clock: Clock, content: bytes) -> None:
    """Whatever the file holds, turns go on, and the next process reads good state."""
    Pace(tmp_path, "a:80", 10.0, clock=clock).close()
    (file,) = tmp_path.glob("*.pace")
    file.write_bytes(content)
    pace = Pace(tmp_path, "a:80", 10.0, clock=clock)
    assert pace.turn(0.0, 0.0) == 0.0
    with pytest.raises(Busy):
        Pace(tmp_path, "a:80", 10.0, clock=clock).turn(0.0, 0.0)


def test_every_flipped_byte_of_the_state_is_noticed(tmp_path: Path, clock: Clock) -> None:
    """A block of a day in a damaged file is not believed, and nothing crashes."""
    Pace(tmp_path, "a:80", 10.0, clock=clock).push_back(86_400.0, clock.now)
    (file,) = tmp_path.glob("*.pace")
    good = file.read_bytes()
    for place in range(len(good)):
        file.write_bytes(good[:place] + bytes([good[place] ^ 0x41]) + good[place + 1 :])
        assert Pace(tmp_path, "a:80", 10.0, clock=clock).turn(0.0, 0.0) == 0.0


def test_a_clock_that_is_set_back_leaves_waits_as_long_as_they_were(tmp_path: Path, clock: Clock) -> None:
    """An hour back: a block of ten seconds stays one of ten seconds."""
    pace = Pace(tmp_path, "a:80", 10.0, clock=clock)
    pace.push_back(10.0, clock.now)
    clock.now -= 3600.0
    assert pace.turn(FOREVER, FOREVER, clock.sleep) == pytest.approx(10.0)


def test_a_rate_beyond_counting_touches_no_file(tmp_path: Path) -> None:
    """At 10,000 a second and more, a turn is a look at a clock: nothing is written."""
    pace = Pace(tmp_path, "a:80", 1e6)
    (file,) = tmp_path.glob("*.pace")
    state = Pace(tmp_path, "a:80", 1.0)
    state.turn(0.0, 0.0)
    before = file.read_bytes()
    assert sum(pace.turn(0.0, 0.0) for _ in range(1000)) == 0.0
    assert file.read_bytes() == before


def test_a_rate_beyond_counting_keeps_blocks_too(tmp_path: Path) -> None:
    """A block by another process is seen within a twentieth of a second."""
    quick, other = Pace(tmp_path, "a:80", 1e6), Pace(tmp_path, "a:80", 1.0)
    other.turn(0.0, 0.0)
    quick.turn(0.0, 0.0)
    other.push_back(30.0, time.time())
    time.sleep(0.06)
    with pytest.raises(Busy):
        quick.turn(1.0, 1.0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The error says which variable names another."""
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="REPLAYGEN_STATE"):
        Pace(tmp_path / "rates", "a:80", 1.0)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    """The same where something else has the folder's name."""
    (tmp_path / "rates").write_text("")
    with pytest.raises(StoreError, match="REPLAYGEN_STATE"):
        Pace(tmp_path / "rates", "a:80", 1.0)


def test_a_deadline_ends_a_read_that_would_wait_for_ever() -> None:
    """The watchdog shuts the socket, the read returns, and the ticket says why."""
    here, there = socket.socketpair()
    dog, ticket = Watchdog(), Ticket(time.monotonic() + 0.2)
    with here, there:
        ticket.sock = here
        dog.watch(ticket)
        assert here.recv(1) == b""
        assert ticket.late
        assert time.monotonic() >= ticket.end
    dog.close()


def test_a_request_that_is_over_keeps_its_socket() -> None:
    """After `leave`, the deadline touches nothing: the connection serves the next photo."""
    here, there = socket.socketpair()
    dog, ticket = Watchdog(), Ticket(time.monotonic() + 0.1)
    with here, there:
        ticket.sock = here
        dog.watch(ticket)
        dog.leave(ticket)
        time.sleep(0.3)
        there.send(b"x")
        assert here.recv(1) == b"x"
        assert not ticket.late
    dog.close()


def test_a_closed_watchdog_leaves_no_thread() -> None:
    """Closing ends the thread and whatever was in flight."""
    here, there = socket.socketpair()
    dog, ticket = Watchdog(), Ticket(time.monotonic() + 3600.0)
    before = set(threading.enumerate())
    with here, there:
        ticket.sock = here
        dog.watch(ticket)
        dog.close()
        assert here.recv(1) == b""
    assert set(threading.enumerate()) <= before
