"""At most so many API calls in any hour, over threads, processes and restarts.

The calls of the last hour stand in pyrate-limiter's SQLite bucket. Its own `Limiter` is not used: while it waits it
adds up what it meant to sleep instead of reading the clock, so that on a busy or suspended machine calls are written
down too early and a window can hold more than its limit. Here the clock is read each time, under a file lock that the
kernel frees when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from replaygen.errors import StoreError

if TYPE_CHECKING:
    from pyrate_limiter import SQLiteBucket

_log = logging.getLogger(__name__)
_TABLE: Final = "calls"
_TELL: Final = 10.0
_TIDY: Final = 500


class Clock(Protocol):
    """What `ApiLimit` needs to know of time; the module `time` is one."""

    def time(self) -> float:
        """Seconds since 1970."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


class ApiLimit:
    """At most `per_hour` calls in any hour and `per_second` in any second.

    Args:
        folder: where the file of past calls lies; made where there is none. All who share it share the limit.
        name: whose calls these are, such as "flickr " and the key. Only its digest is in the file's name.
        per_hour: calls in any stretch of `hour` seconds.
        per_second: calls in any second, evenly apart.
        hour: seconds; other values are for tests.
        durable: each call is on disk before it may be made; without it a power cut may forget the last ones.
        clock: default the machine's.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        per_hour: int,
        *,
        per_second: float = 5.0,
        hour: float = 3600.0,
        durable: bool = True,
        clock: Clock | None = None,
    ) -> None:
        if per_hour < 1 or per_second <= 0 or hour <= 0:
            raise ValueError("a limit is at least one call, and its rates are above 0")
        self._folder = Path(folder)
        digest = hashlib.sha256(f"replaygen {name}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.path = self._folder / f"calls-{digest}.sqlite"
        self._rates = _rates(per_hour, hour, per_second)
        self._durable = durable
        self._clock: Clock = clock or time
        self._inside = threading.Lock()
        self._process = os.getpid()
        self._lock: int | None = None
        self._bucket: SQLiteBucket | None = None
        self._passed = 0

    def __repr__(self) -> str:
        return f"ApiLimit({self.path.name})"

    def wait(self, deadline: float | None = None) -> None:
        """Return when one more call may be made; it is written down as made.

        Args:
            deadline: moment of the clock's `monotonic`, in seconds, at which to give up.

        Raises:
            TimeoutError: the call may not be made before the deadline; nothing was written down.
            StoreError: the file of past calls cannot be used.
        """
        told = False
        while (pause := self._try()) > 0.0:
            if deadline is not None and self._clock.monotonic() + pause > deadline:
                raise TimeoutError(f"the API's limit leaves no call for {pause:.0f} s")
            if pause > _TELL and not told:
                _log.warning("the API's hourly limit is used up: waiting %.0f s for the next call", pause)
                told = True
            self._clock.sleep(pause)

    def close(self) -> None:
        """Close the file; `wait` opens it again."""
        if self._process == os.getpid():
            with self._inside:
                self._drop()

    def _try(self) -> float:
        """Write one call down and give 0, or give the seconds after which to try again."""
        import sqlite3

        from pyrate_limiter import RateItem

        if self._process != os.getpid():  # a fork carries neither the connection nor a lock that another thread held
            self._inside, self._bucket, self._lock, self._process = threading.Lock(), None, None, os.getpid()
        try:
            with self._inside, self._locked():
                bucket = self._bucket = self._bucket or self._open()
                now = int(self._clock.time() * 1000)
                _mend_future(bucket.conn, now)
                self._passed += 1
                if self._passed % _TIDY == 1:
                    bucket.leak(now)
                item = RateItem("call", now)
                if bucket.put(item):
                    return 0.0
                pause = bucket.waiting(item)
                assert isinstance(pause, int)
                return max(pause, 1) / 1000
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the file of past API calls cannot be used: {error}",
                where=str(self.path),
                hint="free space or give a writable REPLAYGEN_STATE; a damaged file may be removed after an hour",
            ) from error

    def _open(self) -> SQLiteBucket:
        from pyrate_limiter import SQLiteBucket

        bucket = SQLiteBucket.init_from_file(self._rates, table=_TABLE, db_path=str(self.path))
        bucket.conn.execute("PRAGMA journal_mode=WAL")
        bucket.conn.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'OFF'}")
        return bucket

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._lock = os.open(self.path.with_suffix(".lock"), flags, 0o666)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        """Let go of the file and of the lock."""
        bucket, lock = self._bucket, self._lock
        self._bucket = self._lock = None
        if bucket is not None:
            bucket.close()  # type: ignore[no-untyped-call]
        if lock is not None:
            os.close(lock)


def _mend_future(connection: Any, now: int) -> None:
    """Calls that were made while the clock was ahead count as made now: it waits too long by an hour at most."""
    if connection.execute(f"SELECT 1 FROM {_TABLE} WHERE item_timestamp > ? LIMIT 1", (now,)).fetchone():
        connection.execute(f"UPDATE {_TABLE} SET item_timestamp = ? WHERE item_timestamp > ?", (now, now))
        connection.commit()


def _rates(per_hour: int, hour: float, per_second: float) -> list[Any]:
    """The rates, as the bucket takes them: the wider allows more calls, and is the tighter one."""
    from pyrate_limiter import Rate

    whole = Rate(per_hour, max(1, int(hour * 1000)))
    apart = Rate(1, max(1, round(1000 / per_second)))
    if per_hour == 1:
        return [max(whole, apart, key=lambda rate: rate.interval)]
    if per_hour * apart.interval >= whole.interval:
        return [apart]
    return [apart, whole]
