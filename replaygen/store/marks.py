"""Locks and leases between machines: small objects of the bucket that their holders keep changing.

A holder writes its mark with a conditional PUT and rewrites it every third of its time to live, each time only in
place of its own last writing. Whoever waits, and sees the same ETag for a whole time to live by its own clock, takes
the mark over with a conditional PUT. A mark that was lost costs double work, never a wrong result: records are
published by a conditional PUT of their own. On one machine `flock`s stand before the marks, so a mark of the same
local folder that is there although its flock was free is that of a dead process, and nobody waits for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from replaygen.errors import LockTimeout, StoreError
from replaygen.store.remote import Blob, Remote

log = logging.getLogger("replaygen.store")

TTL = "REPLAYGEN_LOCK_SECONDS"
"""The environment variable: after how many seconds without a sign of life a mark may be taken over; default 30."""

GC = "locks/gc.lock"


def time_to_live() -> float:
    """Seconds; the same on every machine that uses a bucket. StoreError where it is no number above 0."""
    text = os.environ.get(TTL, "30")
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 86_400:
            return float(text)
    raise StoreError(f"{TTL} is no number of seconds: {text[:40]!r}")


@dataclass
class _Mark:
    """A mark that this process holds; `etag` is that of its last writing."""

    name: str
    token: str
    etag: str = ""
    beats: int = 0
    again: bool = False
    mutex: threading.Lock = field(default_factory=threading.Lock)


class Marks:
    """The marks of one bucket, as one process sees them.

    Args:
        remote: the bucket.
        folder: the id of the local folder.
    """

    def __init__(self, remote: Remote, folder: str) -> None:
        self._remote = remote
        self._folder = f"{folder}@{platform.node()}"
        self._ttl = time_to_live()
        self._held: dict[str, _Mark] = {}
        self._watched: dict[str, tuple[str, float]] = {}
        self._pid = 0
        self._mutex = threading.Lock()
        self._more = threading.Event()

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float | None) -> Iterator[None]:
        """Hold a lock; the caller holds the flock of the same name.

        Raises:
            LockTimeout: another machine kept it for `timeout` seconds.
        """
        mark = self._taken(name, timeout)
        try:
            yield
        finally:
            self._let_go(mark)

    @contextlib.contextmanager
    def lease(self, name: str, local_gc: Callable[[], None]) -> Iterator[None]:
        """Be a live run, once no gc is at work: the lease stands first, so one of both sees the other.

        Args:
            local_gc: waits until no process of this machine collects.
        """
        mark = _Mark(name, os.urandom(16).hex(), again=True)
        mark.etag = self._remote.put(name, self._body(mark), create=True) or ""
        self._keep(mark)
        try:
            self._wait_for_gc(local_gc)
            yield
        finally:
            self._let_go(mark)

    @contextlib.contextmanager
    def collecting(self, timeout: float, is_live: Callable[[str], bool]) -> Iterator[None]:
        """Be the only one that uses the bucket; the caller holds the flock of gc.

        Args:
            timeout: seconds to wait for another gc; at least as long as a dead one needs to be given up.
            is_live: whether a lease or lock of this local folder, by its name, has a living holder.

        Raises:
            StoreError: a run has a lease or a lock; nothing was changed.
        """
        with self.lock(GC, max(timeout, 2 * self._ttl)):
            marks = {**self._remote.listing("leases/"), **self._remote.listing("locks/")}
            marks.pop(GC, None)
            for name, entry in marks.items():
                blob = self._remote.get(name)
                if blob is None:
                    continue
                if is_live(name) if self._is_mine(blob) else entry.age < 2 * self._ttl:
                    raise StoreError(
                        f"a run is using the bucket ({_who(blob)}), so nothing was changed",
                        where=f"{self._remote.address}/{name}",
                        hint="wait until it has ended, or stop it, and try again",
                    )  # fmt: skip
            yield
            self._remote.delete(marks)

    def _taken(self, name: str, timeout: float | None) -> _Mark:
        mark = _Mark(name, os.urandom(16).hex())
        deadline = None if timeout is None else time.monotonic() + timeout
        seen, since = self._watched.pop(name, ("", 0.0))
        while True:
            etag = self._remote.put(name, self._body(mark), create=True) if not seen else None
            blob = None if etag else self._remote.get(name)
            if blob is not None:
                if blob.etag != seen:
                    seen, since = blob.etag, time.monotonic()
                if self._token(blob) == mark.token:  # the answer to our own PUT was lost
                    etag = blob.etag
                elif self._is_mine(blob) or time.monotonic() - since >= self._ttl:
                    etag = self._remote.put(name, self._body(mark), match=seen)
                    if etag:
                        log.warning("took over %s of %s, which gave no sign of life", name, _who(blob))
            if etag:
                mark.etag = etag
                self._keep(mark)
                return mark
            if blob is None:
                seen = ""
                continue
            if deadline is not None and time.monotonic() >= deadline:
                self._watched[name] = seen, since  # whoever tries again goes on watching the same silence
                raise LockTimeout(
                    f"the lock is held by {_who(blob)}", where=f"{self._remote.address}/{name}",
                    hint="wait for that run, or stop it, and try again",
                )  # fmt: skip
            time.sleep(min(1.0, self._ttl / 10))

    def _wait_for_gc(self, local_gc: Callable[[], None]) -> None:
        seen, since = "", 0.0
        while (blob := self._remote.get(GC)) is not None:
            if blob.etag != seen:
                seen, since = blob.etag, time.monotonic()
            elif time.monotonic() - since >= self._ttl:
                return
            if self._is_mine(blob):
                local_gc()
                after = self._remote.get(GC)
                if after is None or self._token(after) == self._token(blob):
                    return
            time.sleep(min(1.0, self._ttl / 10))

    # signs of life

    def _keep(self, mark: _Mark) -> None:
        with self._mutex:
            if self._pid != os.getpid():  # a forked child holds nothing of its parent's
                self._pid, self._held, self._more = os.getpid(), {}, threading.Event()
                threading.Thread(target=self._beat, name="replaygen-marks", daemon=True).start()
            self._held[mark.token] = mark
        self._more.set()

    def _let_go(self, mark: _Mark) -> None:
        with self._mutex:
            self._held.pop(mark.token, None)
        with mark.mutex:
            if mark.etag:
                try:
                    self._remote.delete_if(mark.name, mark.etag)
                except StoreError as error:
                    log.warning("%s stays until its time is over: %s", mark.name, error.what)

    def _beat(self) -> None:
        pid = self._pid
        while self._pid == pid:
            if not self._held:
                self._more.clear()
                if not self._held:
                    self._more.wait()
            time.sleep(self._ttl / 3)
            for mark in list(self._held.values()):
                with mark.mutex:
                    if mark.token in self._held:
                        self._refresh(mark)

    def _refresh(self, mark: _Mark) -> None:
        mark.beats += 1
        try:
            etag = self._remote.put(mark.name, self._body(mark), match=mark.etag) if mark.etag else None
            if etag is None and self._stands(mark):
                return
            if etag is None and mark.again:
                etag = self._remote.put(mark.name, self._body(mark), create=True)
        except StoreError as error:
            log.warning("no sign of life could be given for %s: %s", mark.name, error.what)
            return
        if etag is None:
            log.warning("%s was lost: this process was silent for too long", mark.name)
            self._held.pop(mark.token, None)
        mark.etag = etag or ""

    def _stands(self, mark: _Mark) -> bool:
        """Whether the mark is still ours: the answer to an earlier PUT was lost."""
        blob = self._remote.get(mark.name)
        ours = blob is not None and self._token(blob) == mark.token
        if blob is not None and ours:
            mark.etag = blob.etag
        return ours

    def _body(self, mark: _Mark) -> bytes:
        who = f"process {os.getpid()} on {platform.node() or 'a machine'}"
        told = {"who": who, "since": datetime.now(UTC).isoformat(timespec="seconds"), "beat": mark.beats,
                "token": mark.token, "folder": self._folder}  # fmt: skip
        return json.dumps(told).encode() + b"\n"

    def _is_mine(self, blob: Blob) -> bool:
        """Whether the mark was made through this local folder."""
        return _told(blob, "folder") == self._folder

    @staticmethod
    def _token(blob: Blob) -> str:
        return _told(blob, "token")


def _told(blob: Blob, what: str) -> str:
    try:
        return str(json.loads(blob.data or b"{}")[what])
    except (ValueError, KeyError, TypeError):
        return ""


def _who(blob: Blob) -> str:
    return ascii(_told(blob, "who") or "another machine")[1:-1][:120]
