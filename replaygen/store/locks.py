"""Locks that the kernel frees when their holder dies: one a key, one for gc, and leases of running runs.

All are `flock`s, so a SIGKILL frees them at once; a forked child does not inherit them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from replaygen.classes import slug
from replaygen.errors import LockTimeout, StoreError
from replaygen.store import flocks, fsops
from replaygen.store.flocks import OpenLock, tried
from replaygen.store.keys import check_digest, is_digest
from replaygen.store.layout import Layout

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Lease:
    """A live run: when it began by the file system's clock (ns), and the keys that it wants kept."""

    name: str
    started_ns: int
    keys: tuple[str, ...]


class Locks:
    """The locks of one open store. A key's lock may be taken again by the thread that holds it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._held = threading.local()

    @contextlib.contextmanager
    def key(self, key: str, timeout: float | None) -> Iterator[None]:
        """Hold the lock of a key.

        Args:
            key: a task's key.
            timeout: seconds to wait; None waits for ever, 0 tries once.

        Raises:
            LockTimeout: another holder kept it for that long.
        """
        path = self._layout.locks / f"{check_digest(key, 'key')}.lock"
        held: set[tuple[int, str]] = self._held.__dict__.setdefault("keys", set())
        mine = (os.getpid(), key)
        if mine in held:
            yield
            return
        with fsops.explained("take a lock", path):
            lock = _locked(path, fcntl.LOCK_EX, timeout)
        try:
            with contextlib.suppress(OSError):
                fsops.note(lock.descriptor, path, _who())
            with self._everywhere(path, timeout):
                held.add(mine)
                yield
        finally:
            held.discard(mine)
            lock.release()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Held, shared, while something is written: gc waits for it, and it waits for gc."""
        path = self._layout.locks / "gc.lock"
        with fsops.explained("take the store's lock", path):
            lock = _locked(path, fcntl.LOCK_SH, None)
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def collecting(self, timeout: float) -> Iterator[None]:
        """Held by gc: nothing is being written. In a bucket nobody else may have a lease or a lock: StoreError."""
        mirror = self._layout.mirror
        with self.alone(timeout):
            if mirror is None:
                yield
            else:
                with mirror.marks.collecting(timeout, self._is_live):
                    yield

    @contextlib.contextmanager
    def alone(self, timeout: float) -> Iterator[None]:
        """Nothing is being written to this folder."""
        path = self._layout.locks / "gc.lock"
        with fsops.explained("take the store's lock", path):
            lock = _locked(path, fcntl.LOCK_EX, timeout)
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def lease(self, name: str, keys: Iterable[str]) -> Iterator[None]:
        """Be a live run: gc keeps `keys`, their inputs, and all that is newer than this moment."""
        wanted = [check_digest(key, "key") for key in keys]
        path = self._layout.leases / f"{slug(name)}-{os.getpid()}-{os.urandom(4).hex()}.lease"
        with self.writing(), fsops.explained("take a lease", path):
            lock = _locked(path, fcntl.LOCK_EX, 0)
            try:
                fsops.note(
                    lock.descriptor, path, json.dumps({"name": name, "who": _who().decode(), "keys": wanted}).encode()
                )
            except BaseException:
                lock.release()
                raise
        try:
            with self._leased(path):
                yield
        finally:
            with contextlib.suppress(OSError):
                fsops.remove(path)
            lock.release()

    def leases(self) -> tuple[list[Lease], list[Path]]:
        """The live leases, and the files that dead ones left."""
        live, dead = [], []
        for path in sorted(self._layout.leases.glob("*.lease")):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                if tried(descriptor, fcntl.LOCK_SH):
                    dead.append(path)
                else:
                    live.append(_parsed_lease(path, descriptor))
            finally:
                os.close(descriptor)
        return live, dead

    def is_held(self, key: str) -> bool:
        """Whether anybody holds the lock of a key now; a name that is no key is never held."""
        return flocks.is_held(self._layout.locks / f"{key}.lock")

    @contextlib.contextmanager
    def _everywhere(self, path: Path, timeout: float | None) -> Iterator[None]:
        """Hold a lock on the other machines too; the end of a task lets go of what it had opened."""
        mirror = self._layout.mirror
        if mirror is None:
            yield
            return
        with mirror.marks.lock(mirror.name(path), timeout):
            try:
                yield
            finally:
                if len(self._held.keys) == 1:
                    mirror.limit.unpin()

    @contextlib.contextmanager
    def _leased(self, path: Path) -> Iterator[None]:
        mirror = self._layout.mirror
        if mirror is None:
            yield
            return

        def until_collected() -> None:
            with self.writing():
                pass

        with mirror.marks.lease(mirror.name(path), until_collected):
            yield

    def _is_live(self, name: str) -> bool:
        """Whether a lease or a key's lock of this folder, by its name in the bucket, has a living holder."""
        live, _ = self.leases()
        path = self._layout.root / name
        return any(lease.name == path.name for lease in live) or self.is_held(path.name.removesuffix(".lock"))

    def remove_unused(self, path: Path) -> bool:
        """Remove the lock file of a key that nobody holds."""
        try:
            lock = _locked(path, fcntl.LOCK_EX, 0)
        except LockTimeout:
            return False
        try:
            return fsops.remove(path)
        finally:
            lock.release()


def _parsed_lease(path: Path, descriptor: int) -> Lease:
    stat = os.fstat(descriptor)
    try:
        data = json.loads(os.pread(descriptor, stat.st_size, 0))
        keys = tuple(key for key in data["keys"] if is_digest(key))
        if len(keys) != len(data["keys"]):
            raise ValueError("odd key")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"the lease of a live run cannot be read: {error}", where=str(path), hint="wait until that run has ended"
        ) from None
    return Lease(path.name, stat.st_mtime_ns, keys)


def _locked(path: Path, kind: int, timeout: float | None) -> OpenLock:
    """The file *now* at `path`, locked: one that was unlinked while we waited does not count."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        lock = OpenLock(path)
        try:
            _wait(lock.descriptor, kind, deadline, path)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.descriptor), os.stat(path, follow_symlinks=False)):
                    return lock
        except BaseException:
            lock.release()
            raise
        lock.release()


def _wait(descriptor: int, kind: int, deadline: float | None, path: Path) -> None:
    if deadline is None:
        fcntl.flock(descriptor, kind)
        return
    while not tried(descriptor, kind):
        if time.monotonic() >= deadline:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise LockTimeout(
                f"the lock is held by {holder}", where=str(path), hint="wait for that run, or stop it, and try again"
            )
        time.sleep(_POLL_SECONDS)


def _who() -> bytes:
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {platform.node() or 'this machine'} since {moment}\n".encode()
