"""How fast a host is asked, over all threads, processes and restarts; and the deadlines of requests in flight.

Each host has one small file in the state folder: when its next request may go out, until when it is blocked, and the
rate that it turned out to bear. Every request takes its turn there, under a lock, so requests are evenly spaced
whoever makes them. A host that answers 429 or 503 is blocked for as long as it says, and its rate falls. Where it had
borne an even rate for some seconds, that falls to 0.8 of itself, and then rises by 1 % a second. Where the answer came
at once, what the host bears is not known yet: its rate falls to 0.8 of what it just bore (requests over the time, the
wait included), and rises by a quarter a second until the host says stop.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from replaygen.errors import StoreError

QUICK = 10_000.0
"""Requests a second from which spacing means nothing: only blocks are looked for, every 50 ms."""
SLOWEST = 0.2
"""Requests a second below which a host's refusals never push the rate."""
LONGEST_BLOCK = 86_400.0
"""Seconds; a longer Retry-After is taken as this."""
_GROWTH = 0.01
_SEARCH = 0.25
_KNOWN = 3.0
"""By how much a rate rises in a second, where the host's limit was met and where it is still looked for; and seconds
after which an even rate counts as borne."""
_LOOK = 0.05
_FORGET = 60.0
_FORM = struct.Struct("<8s9dI")
_MAGIC = b"rgpace2\n"


class Busy(Exception):
    """A turn would come too late. `seconds`: until it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(slots=True)
class _State:
    """What the file holds; times are seconds since 1970. `given`: turns since `window`; `rate` 0: none learnt."""

    seen: float = 0.0
    next_free: float = 0.0
    blocked: float = 0.0
    rate: float = 0.0
    raised: float = 0.0
    lowered: float = 0.0
    window: float = 0.0
    given: float = 0.0
    growth: float = _GROWTH
    strikes: int = 0

    def pack(self) -> bytes:
        body = _FORM.pack(
            _MAGIC, self.seen, self.next_free, self.blocked, self.rate, self.raised, self.lowered, self.window,
            self.given, self.growth, self.strikes,
        )  # fmt: skip
        return body + zlib.crc32(body).to_bytes(4, "little")


_SIZE = _FORM.size + 4


def _unpack(raw: bytes) -> _State | None:
    """The state that a file holds; None where it is damaged, empty or somebody else's."""
    if len(raw) != _SIZE or zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "little") or raw[:8] != _MAGIC:
        return None
    state = _State(*_FORM.unpack(raw[:-4])[1:])
    return state if all(abs(value) < 1e12 for value in (state.seen, state.next_free, state.blocked)) else None


class Pace:
    """The turns of one host ("name:port").

    Args:
        folder: where the files of all hosts are; made if missing.
        rate: requests a second that are never exceeded by this process, > 0.
        clock: seconds since 1970; for tests.

    Raises:
        StoreError: the folder cannot be used.
    """

    def __init__(self, folder: Path, host: str, rate: float, *, clock: Callable[[], float] = time.time) -> None:
        self.ceiling = rate
        self._clock = clock
        self._path = folder / f"{hashlib.sha256(host.encode()).hexdigest()[:32]}.pace"
        self._lock = threading.Lock()
        self._looked = 0.0
        self._quick_given = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                "the pace of requests cannot be kept", where=str(folder), hint="REPLAYGEN_STATE names another folder"
            ) from error

    def turn(self, most: float, most_block: float, pause: Callable[[float], None] = time.sleep) -> float:
        """Wait for a turn; seconds waited.

        Args:
            most: seconds to wait at most, all in all.
            most_block: seconds for which the host may be blocked still.
            pause: sleeps; may raise to end the wait.

        Raises:
            Busy: at once, where the turn would come later than that; no turn is used up.
        """
        if self.ceiling >= QUICK and self._open_road():
            return 0.0
        waited = 0.0
        while True:
            wait = self._reserve(most - waited, most_block)
            if wait <= 0.0:
                return waited
            pause(wait)
            waited += wait
            state = self._peek()
            if state is not None and state.blocked <= self._clock() + 0.005:  # no new turn for waking a little early
                return waited

    def push_back(self, retry_after: float | None, asked: float) -> float:
        """Note that the host answered 429 or 503: block it, and slow down.

        Args:
            retry_after: seconds that the host asked for; None where it did not say: 0.5, doubled with every repetition.
            asked: when the refused request went out, seconds since 1970. One that went out before the last
                slowing-down tells nothing new.

        Returns:
            seconds for which the host is blocked now.
        """
        with self._held() as state:
            now = state.seen
            news = asked >= state.lowered
            given = state.given + self._quick_given
            self._quick_given = 0
            self._looked = 0.0
            if news:
                state.strikes = 1 if given >= 5 or now - state.lowered > _FORGET else min(state.strikes + 1, 20)
            delay = retry_after if retry_after is not None else min(60.0, 0.25 * 2.0**state.strikes)
            delay = min(max(delay, 0.0), LONGEST_BLOCK)
            state.blocked = max(state.blocked, now + delay)
            state.next_free = max(state.next_free, state.blocked)
            if news:
                current = self._rate(state)
                known = state.rate > 0.0 and now - state.window >= _KNOWN
                borne = given / max(now - state.window + delay, 1e-3) if given >= 5 else current / 1.6
                state.rate = max(0.8 * (current if known else min(borne, current)), min(SLOWEST, self.ceiling))
                state.growth = _GROWTH if known else _SEARCH
                state.lowered = now
                state.raised = state.window = state.blocked
                state.given = 0.0
            return state.blocked - now

    def now(self) -> float:
        """The clock that `asked` is told in."""
        return self._clock()

    def close(self) -> None:
        """Let go of the file; what it says stays."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _open_road(self) -> bool:
        """Whether neither a block nor a learnt rate stands against going at once; looked up every 50 ms."""
        now = time.monotonic()
        if now - self._looked > _LOOK:
            state = self._peek()
            if state is None or state.rate > 0.0 or state.blocked > self._clock():
                return False
            self._looked = now
        self._quick_given += 1
        return True

    def _reserve(self, most: float, most_block: float) -> float:
        """Take the next free turn; seconds until it."""
        with self._held() as state:
            now = state.seen
            start = max(now, state.next_free, state.blocked)
            if start - now > most or state.blocked - now > most_block:
                raise Busy(start - now)
            rate = self._rate(state)
            state.next_free = start + 1.0 / rate
            state.given += 1 + self._quick_given
            self._quick_given = 0
            if state.rate > 0.0 and now - state.raised >= 0.5:
                state.rate *= 1.0 + state.growth * min(now - state.raised, 60.0)
                state.raised = now
                if state.rate > 1e5:
                    state.rate = 0.0
            if now - state.window > _FORGET:  # what the host bears now matters, not what it bore this morning
                state.given *= 0.5 * _FORGET / (now - state.window)
                state.window = now - 0.5 * _FORGET
            return start - now

    def _rate(self, state: _State) -> float:
        return min(self.ceiling, state.rate) if state.rate > 0.0 else self.ceiling

    @contextlib.contextmanager
    def _held(self) -> Iterator[_State]:
        """The state under the locks of threads and processes; written back unless the body raises."""
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                now = self._clock()
                state = _unpack(os.pread(self._file, _SIZE, 0))
                if state is None:
                    state = _State(seen=now, window=now)
                if now < state.seen:  # the clock was set back: what lies ahead stays as far ahead as it was
                    back = state.seen - now
                    for name in ("next_free", "blocked", "raised", "lowered", "window"):
                        setattr(state, name, getattr(state, name) - back)
                state.seen = now
                state.next_free = min(state.next_free, now + LONGEST_BLOCK)
                state.blocked = min(state.blocked, now + LONGEST_BLOCK)
                yield state
                os.pwrite(self._file, state.pack(), 0)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _peek(self) -> _State | None:
        """The state without the lock; None where it cannot be read, or is being written."""
        return _unpack(os.pread(self._file, _SIZE, 0))


class Ticket:
    """One photo's deadline. `end`: monotonic seconds; `sock`: what it reads from; `late`: the deadline passed."""

    __slots__ = ("end", "late", "sock")

    def __init__(self, end: float) -> None:
        self.end = end
        self.late = False
        self.sock: socket.socket | None = None


class Watchdog:
    """Shuts the sockets of requests whose deadline has passed: a socket's own timeout bounds one read, not a drip.

    One thread looks every 0.1 s while anything is in flight, and sleeps otherwise.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tickets: set[Ticket] = set()
        self._some = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, ticket: Ticket) -> None:
        """Begin to watch; call `leave` when the request is over. After `close` every ticket is late."""
        with self._lock:
            if self._over.is_set():
                ticket.late = True
            self._tickets.add(ticket)
            if not self._some.is_set():
                self._some.set()
                if self._thread is None and not self._over.is_set():
                    self._thread = threading.Thread(target=self._look, name="crawl-deadlines", daemon=True)
                    self._thread.start()

    def leave(self, ticket: Ticket) -> None:
        """No longer watch; the socket is not touched after this."""
        with self._lock:
            self._tickets.discard(ticket)
            ticket.sock = None

    def close(self) -> None:
        """Shut everything that is in flight and end the thread."""
        self._over.set()
        self._some.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._shut(list(self._tickets))

    def _look(self) -> None:
        quiet = 0
        while not self._over.is_set():
            self._some.wait()
            self._over.wait(0.1)
            now = time.monotonic()
            with self._lock:
                self._shut([ticket for ticket in self._tickets if ticket.end <= now])
                quiet = 0 if self._tickets else quiet + 1
                if quiet > 20 and not self._over.is_set():
                    self._some.clear()

    def _shut(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            ticket.late = True
            self._tickets.discard(ticket)
            if ticket.sock is not None:
                with contextlib.suppress(OSError):  # the plain method: a TLS socket's own would drop its session first
                    socket.socket.shutdown(ticket.sock, socket.SHUT_RDWR)
