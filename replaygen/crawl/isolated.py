"""`ingest` in a child process, because decoders are C code and the bytes come from strangers.

    with Decoders(2) as decoders:                    # for many threads
        photo = decoders.ingest(data, max_side=256, min_side=64, keep="resized")

The child holds nothing worth having: a socket to its parent, no terminal, no standard streams, an environment of a few
harmless names. It cannot write files or dump core; its address space is limited, and its CPU time for each image. It
dies with its parent, and a Ctrl-C does not reach it. Images and answers travel as length-prefixed frames; nothing is
unpickled.

A child that crashes, hangs or runs out of memory costs the one image it was given, never the run. To keep such a
verdict the image's own, an image that ends a child which had served others is tried once more in a fresh one.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from replaygen.crawl.formats import TAKEN
from replaygen.crawl.ingest import Ingested, Keep, Unfit
from replaygen.crawl.isolated_child import NO_MEMORY, READY, REPLY, REQUEST, UNFIT, take
from replaygen.errors import ReplaygenError
from replaygen.sample import MAX_PIXELS

_REASONS = frozenset({"not-an-image", "format", "damaged", "too-small", "too-many-pixels", "decoder-crashed"})

_START = 60.0  # seconds within which a child must be ready; about 0.2 where nobody else wants the disk
_WALL = 3.0  # seconds on the clock for each second of CPU that an image may take
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")  # what of the environment a child may see
_CALM = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONDONTWRITEBYTECODE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20),  # no page faults at each image
}  # fmt: skip


class _Lost(Unfit):
    """The child is of no use any more."""


class Decoder(AbstractContextManager["Decoder"]):
    """One child process that ingests one image at a time; it starts with the first image, and again when needed.

    Args:
        memory_mb: address space that an image may take, in 2^20 bytes, besides the libraries. 1,024 is enough for 50
            million pixels as JPEG, and for 30 million in the other formats.
        seconds: CPU time that an image may take; three times as long on the clock.
    """

    def __init__(self, *, memory_mb: int = 1024, seconds: float = 20.0) -> None:
        self._memory_mb = memory_mb
        self._seconds = seconds
        self._turn = threading.Lock()
        self._life = threading.Lock()  # guards the two below, and is never held for long
        self._child: _Child | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process id of the child, None while there is none."""
        child = self._child
        return child.process.pid if child is not None else None

    def ingest(self, data: bytes, *, max_side: int | None, min_side: int, keep: Keep) -> Ingested:
        """As `crawl.ingest.ingest`, elsewhere. Safe for many threads, which wait for one another.

        Raises:
            Unfit: as `ingest`, and "decoder-crashed", "decoder-timeout", "decoder-memory".
            ReplaygenError: no child can be started (a library is missing), or this decoder is closed.
        """
        return _only(self.ingest_many([data], max_side=max_side, min_side=min_side, keep=keep))

    def ingest_many(
        self, photos: Sequence[bytes], *, max_side: int | None, min_side: int, keep: Keep
    ) -> list[Ingested | Unfit]:
        """Several images in one exchange, which costs less; an answer each, in their order, and none is raised.

        Where the child is lost among several, each is tried alone, so that only the one to blame is refused.

        Raises:
            ReplaygenError: as `ingest`.
        """
        side = -1 if max_side is None else max_side
        last = len(photos) - 1
        request = b"".join(
            part
            for i, data in enumerate(photos)
            for part in (REQUEST.pack(len(data), side, min_side, keep == "verbatim", i < last), data)
        )
        if len(request) > self._memory_mb << 19 and last == 0:
            return [Unfit("decoder-memory", f"the file alone has {len(photos[0]):,} bytes")]
        with self._turn:
            while True:
                child = self._living()
                try:
                    answers = child.ask(request, len(photos), _WALL * self._seconds)
                    child.served += len(photos)
                    return answers
                except _Lost as lost:
                    self._drop(child)
                    if last == 0 and not self._closed and (lost.reason == "decoder-timeout" or not child.served):
                        return [Unfit(lost.reason, lost.detail)]
                except BaseException:  # interrupted: an answer is under way that must not be taken for the next one's
                    self._drop(child)
                    raise
                if last > 0:
                    break
        return [self.ingest_many([data], max_side=max_side, min_side=min_side, keep=keep)[0] for data in photos]

    def close(self) -> None:
        """End the child. Threads that wait for it get ReplaygenError."""
        with self._life:
            self._closed = True
            child, self._child = self._child, None
        if child is not None:
            child.end()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _living(self) -> _Child:
        with self._life:
            if self._child is not None:
                return self._child
            if self._closed:
                raise _closed()
        child = _Child(self._memory_mb, self._seconds)
        with self._life:
            if not self._closed:
                self._child = child
                return child
        child.end()
        raise _closed()

    def _drop(self, child: _Child) -> None:
        with self._life:
            if self._child is child:
                self._child = None
        child.end()


class Decoders(AbstractContextManager["Decoders"]):
    """A pool of `n` decoders: `ingest` takes a free one, or waits for it. Children start as they are needed."""

    def __init__(self, n: int, *, memory_mb: int = 1024, seconds: float = 20.0) -> None:
        self._all = [Decoder(memory_mb=memory_mb, seconds=seconds) for _ in range(max(1, n))]
        self._free: queue.LifoQueue[Decoder] = queue.LifoQueue()
        for decoder in self._all:
            self._free.put(decoder)

    def ingest(self, data: bytes, *, max_side: int | None, min_side: int, keep: Keep) -> Ingested:
        """As `Decoder.ingest`, in whichever child is free."""
        return _only(self.ingest_many([data], max_side=max_side, min_side=min_side, keep=keep))

    def ingest_many(
        self, photos: Sequence[bytes], *, max_side: int | None, min_side: int, keep: Keep
    ) -> list[Ingested | Unfit]:
        """As `Decoder.ingest_many`, in whichever child is free."""
        decoder = self._free.get()
        try:
            return decoder.ingest_many(photos, max_side=max_side, min_side=min_side, keep=keep)
        finally:
            self._free.put(decoder)

    def __len__(self) -> int:
        return len(self._all)

    def close(self) -> None:
        """End every child."""
        for decoder in self._all:
            decoder.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


def _only(answers: list[Ingested | Unfit]) -> Ingested:
    """The one answer, raised where it is a refusal."""
    (answer,) = answers
    if isinstance(answer, Unfit):
        raise answer
    return answer


def _closed() -> ReplaygenError:
    return ReplaygenError("the image decoder is closed", hint="make a new one")


def _no_start(why: str) -> ReplaygenError:
    return ReplaygenError(
        f"the image decoder cannot start: {why}", where=f"{sys.executable} -m replaygen.crawl.isolated_child",
        hint="pip install 'replaygen[crawl]'; if it is installed, see whether memory or processes are limited",
    )  # fmt: skip


class _Child:
    """The parent's end of a running child."""

    def __init__(self, memory_mb: int, seconds: float) -> None:
        self.served = 0
        self._socket, theirs = socket.socketpair()
        told = [str(theirs.fileno()), str(memory_mb), str(seconds)]
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "replaygen.crawl.isolated_child", *told],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()], cwd="/", env=_environment(), start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            self._socket.close()
            raise _no_start(error.strerror or "") from None
        try:
            kind, why, _ = self._receive(time.monotonic() + _START)
            if kind != READY:
                raise _Lost("decoder-crashed", str(why)[:300])
        except BaseException as error:
            self.end()
            raise _no_start(error.detail) if isinstance(error, _Lost) else error from None

    def ask(self, request: bytes, count: int, timeout: float) -> list[Ingested | Unfit]:
        """Send `count` requests and wait for their answers, for `timeout` seconds; _Lost where not all come."""
        deadline = time.monotonic() + timeout
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(request)
        except TimeoutError:
            raise _Lost("decoder-timeout", "the decoder does not read") from None
        except OSError:
            raise self._gone() from None
        return [self._answer(deadline) for _ in range(count)]

    def _answer(self, deadline: float) -> Ingested | Unfit:
        kind, told, data = self._receive(deadline)
        if kind == NO_MEMORY:
            raise _Lost("decoder-memory", "the picture needs more memory than it may have")
        try:
            return _unfit(*told) if kind == UNFIT else _ingested(data, *told)
        except (TypeError, ValueError, LookupError):
            raise _Lost("decoder-crashed", "the decoder answered nonsense") from None

    def end(self) -> None:
        """Kill the child: it has nothing to tidy up."""
        self.process.kill()
        self.process.wait()
        self._socket.close()

    def _receive(self, deadline: float) -> tuple[int, Any, bytes]:
        kind, told, size = REPLY.unpack(self._read(REPLY.size, deadline))
        if told > 4096 or size > 4 * MAX_PIXELS:
            raise _Lost("decoder-crashed", "the decoder answered nonsense")
        body = self._read(told + size, deadline)
        try:
            return kind, json.loads(body[:told]), bytes(memoryview(body)[told:])
        except (ValueError, RecursionError):
            raise _Lost("decoder-crashed", "the decoder answered nonsense") from None

    def _read(self, size: int, deadline: float) -> bytearray:
        try:
            frame = take(self._socket, size, deadline)
        except TimeoutError:
            raise _Lost("decoder-timeout", "the decoder did not answer in time") from None
        except OSError:
            frame = None
        if frame is None:
            raise self._gone()
        return frame

    def _gone(self) -> _Lost:
        try:
            status = self.process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            return _Lost("decoder-crashed", "the decoder hung up")
        if status == -signal.SIGXCPU:
            return _Lost("decoder-timeout", "the picture takes more CPU time than it may have")
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return _Lost("decoder-crashed", f"the decoder ended with {how}")


def _environment() -> dict[str, str]:
    """What a child may know: where modules are, and nothing that is a secret."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    modules = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {**passed, **_CALM, "PYTHONPATH": modules}


def _unfit(reason: Any, detail: Any) -> Unfit:
    if reason not in _REASONS:
        raise ValueError("no answer")
    return Unfit(reason, str(detail)[:300])


def _ingested(data: bytes, kind: Any, *told: Any) -> Ingested:
    """The answer, once it was seen to be one; ValueError, TypeError or LookupError where it is not."""
    width, height, from_width, from_height, form, encoded = told
    sizes = (width, height, from_width, from_height)
    fits = all(type(size) is int and 0 < size <= MAX_PIXELS for size in sizes) and width * height <= MAX_PIXELS
    magic = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG"}[kind]
    if not (fits and data.startswith(magic) and form in TAKEN and type(encoded) is bool):
        raise ValueError("no answer")
    return Ingested(data, kind, *sizes, form, encoded)
