"""Candidates -> taken photos: downloaded by a few threads, decoded in child processes, each with a decision.

Every candidate comes back, in order: accepted with its bytes, rejected (refused for good), or failed (could not be
looked at, worth trying again). One bad photo is a counted reason and nothing more.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from replaygen.crawl.ingest import Keep, Unfit
from replaygen.crawl.photos import Candidate

if TYPE_CHECKING:
    from replaygen.crawl.client import Got
    from replaygen.crawl.ingest import Ingested

State = Literal["accepted", "rejected", "failed"]

SLACK = 2
"""Pixels by which a photo may differ from its declared size."""

_TOGETHER = 8
_MOST_TOGETHER = 1 << 20
"""Photos, and bytes, that go to a decoder in one exchange."""
_MOST_WAITING = 16 << 20
"""Bytes that may wait to be decoded before downloads wait too."""
_BY_SETTINGS = frozenset({"bad-address", "private-address", "too-large", "tls"})
"""Refusals that hang on `[run.crawl]`, on the environment or on this machine: another time they may be none."""
_PATIENCE = 0.02
"""Seconds after which a decoder takes what there is, be it less than a batch."""

Confirm = Callable[[Candidate], str | None]
"""Asked before a photo is fetched: None, or the reason why it must not be."""


class Downloads(Protocol):
    """What is needed of a downloader; `crawl.client.Downloader` is one."""

    def get(self, url: str) -> Got: ...


class Decodes(Protocol):
    """What is needed of decoders; `crawl.isolated.Decoders` is one."""

    def __len__(self) -> int: ...

    def ingest_many(
        self, photos: Sequence[bytes], *, max_side: int | None, min_side: int, keep: Keep
    ) -> list[Ingested | Unfit]: ...


@dataclass(frozen=True)
class Rules:
    """max_side, min_side, keep: see `crawl.ingest`; buried: sha256 of the raw bytes of purged photos."""

    max_side: int | None
    min_side: int
    keep: Keep
    buried: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Taken:
    """What became of one candidate.

    Attributes:
        state: "accepted", "rejected" (for good) or "failed" (worth trying again).
        reason: a short word, empty where accepted.
        photo: the decoded and cleaned photo, where accepted.
        proof: when and how it was asked for: fetched_at, status, final_url, headers, requests, sha256 of the raw bytes,
            and where accepted derived_sha256, from_width, from_height, encoded.
    """

    candidate: Candidate
    state: State
    reason: str = ""
    photo: Ingested | None = None
    proof: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Raw:
    """A photo that was downloaded and is not decoded yet."""

    place: int
    candidate: Candidate
    data: bytes
    proof: dict[str, Any]


def take_all(
    candidates: Sequence[Candidate], downloads: Downloads, decodes: Decodes, rules: Rules, *, threads: int,
    confirm: Confirm | None = None,
) -> list[Taken]:  # fmt: skip
    """Fetch `threads` candidates at once and decode them in as many children as there are; results in their order.

    Downloads wait while more than a few bytes' worth of photos is not decoded yet, so memory is bounded.
    """
    if not candidates:
        return []
    with _Line(candidates, downloads, decodes, rules, confirm) as line:
        return line.run(threads)


class _Line:
    """Downloading threads put raw photos in a queue, decoding threads take them from it in small batches."""

    def __init__(
        self, candidates: Sequence[Candidate], downloads: Downloads, decodes: Decodes, rules: Rules,
        confirm: Confirm | None,
    ) -> None:  # fmt: skip
        self._candidates, self._downloads, self._decodes = candidates, downloads, decodes
        self._rules, self._confirm = rules, confirm
        self._taken: list[Taken | None] = [None] * len(candidates)
        self._raw: deque[_Raw] = deque()
        self._waiting = 0  # bytes in the queue
        self._next = 0
        self._downloading = len(candidates)
        self._change = threading.Condition()
        self._fault: BaseException | None = None

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._stop(error)

    def run(self, threads: int) -> list[Taken]:
        """All of it; raises what a thread raised."""
        count = min(threads, len(self._candidates))
        workers = [threading.Thread(target=self._work, args=(self._download,), daemon=True) for _ in range(count)]
        workers += [threading.Thread(target=self._work, args=(self._decode,), daemon=True) for _ in self._decoders()]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if self._fault is not None:
            raise self._fault
        taken = [one for one in self._taken if one is not None]
        assert len(taken) == len(self._candidates)
        return taken

    def _decoders(self) -> range:
        return range(min(len(self._decodes), len(self._candidates)))

    def _work(self, job: Callable[[], bool]) -> None:
        try:
            while job():
                pass
        except BaseException as error:  # told by `run`, in the thread that asked
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        with self._change:
            self._fault = self._fault or error
            self._change.notify_all()

    def _download(self) -> bool:
        """Fetch the next candidate; False where there is none left."""
        with self._change:
            while self._waiting > _MOST_WAITING and self._fault is None:
                self._change.wait()
            if self._fault is not None or self._next == len(self._candidates):
                return False
            place = self._next
            self._next += 1
        got = _fetch(place, self._candidates[place], self._downloads, self._confirm, self._rules.buried)
        with self._change:
            self._downloading -= 1
            if isinstance(got, Taken):
                self._taken[place] = got
            else:
                self._raw.append(got)
                self._waiting += len(got.data)
            if len(self._raw) >= _TOGETHER or self._downloading == 0:
                self._change.notify_all()
        return True

    def _decode(self) -> bool:
        """Decode some of what was fetched; False where nothing more will come."""
        with self._change:
            while not (self._raw or self._downloading == 0 or self._fault is not None):
                self._change.wait(_PATIENCE)
            if self._fault is not None or not self._raw:
                return False
            batch = [self._raw.popleft()]
            size = len(batch[0].data)
            while self._raw and len(batch) < _TOGETHER and size + len(self._raw[0].data) <= _MOST_TOGETHER:
                batch.append(self._raw.popleft())
                size += len(batch[-1].data)
        rules = self._rules
        answers = self._decodes.ingest_many(
            [raw.data for raw in batch], max_side=rules.max_side, min_side=rules.min_side, keep=rules.keep
        )
        for raw, answer in zip(batch, answers, strict=True):
            self._taken[raw.place] = _judged(raw, answer)
        with self._change:
            self._waiting -= size
            self._change.notify_all()
        return True


def _fetch(
    place: int, candidate: Candidate, downloads: Downloads, confirm: Confirm | None, buried: frozenset[str]
) -> _Raw | Taken:
    from replaygen.crawl.client import Refused

    proof: dict[str, Any] = {"fetched_at": _now()}
    try:
        if confirm is not None and (reason := confirm(candidate)) is not None:
            return Taken(candidate, "rejected", reason, proof=proof)
        got = downloads.get(candidate.url)
    except Refused as refused:
        if refused.headers:
            proof["headers"] = refused.headers
        again = refused.transient or refused.reason in _BY_SETTINGS
        return Taken(candidate, "failed" if again else "rejected", refused.reason, proof=proof)
    sha256 = hashlib.sha256(got.data).hexdigest()
    proof |= {
        "status": got.status, "final_url": got.url, "headers": got.headers, "requests": got.requests, "sha256": sha256,
    }  # fmt: skip
    if candidate.sha256 is not None and candidate.sha256 != sha256:
        return Taken(candidate, "rejected", "other-bytes", proof=proof)
    if sha256 in buried:
        return Taken(candidate, "rejected", "tombstoned", proof=proof)
    return _Raw(place, candidate, got.data, proof)


def _judged(raw: _Raw, answer: Ingested | Unfit) -> Taken:
    if isinstance(answer, Unfit):  # a decoder that ran out of time may have been on a busy machine
        state: State = "failed" if answer.reason == "decoder-timeout" else "rejected"
        return Taken(raw.candidate, state, answer.reason, proof=raw.proof)
    if not _as_declared(raw.candidate, answer):
        return Taken(raw.candidate, "rejected", "not-the-declared-size", proof=raw.proof)
    proof = raw.proof | {
        "derived_sha256": hashlib.sha256(answer.data).hexdigest(), "from_width": answer.from_width,
        "from_height": answer.from_height, "encoded": answer.encoded,
    }  # fmt: skip
    return Taken(raw.candidate, "accepted", photo=answer, proof=proof)


def _as_declared(candidate: Candidate, photo: Ingested) -> bool:
    """Whether a photo has the size that was told of it, upright or not; a placeholder seldom has."""
    if candidate.width is None or candidate.height is None:
        return True
    told = sorted((candidate.width, candidate.height))
    found = sorted((photo.from_width, photo.from_height))
    return all(abs(a - b) <= SLACK for a, b in zip(told, found, strict=True))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
