"""What became of every labelled sample of a replay set: kept or rejected, why, by which scores, and what was erased.

Only what the stages wrote is read here, no picture: selections, refusals, side-cars of labels and images.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from replaygen.report.reasons import Limit, as_limit, as_number, words
from replaygen.runs.behind import Slice, open_shard, read_json, slices_of, verdicts
from replaygen.runs.replay import ReplaySet
from replaygen.store import Record

State = Literal["kept", "rejected", "screened"]

PLACES: Final = ("source", "door", "label", "trust", "erase", "set")
"""Where a sample can be refused, in the order that it meets them."""

ELSEWHERE: Final = frozenset({"screened", "untrusted"})
"""Reasons that say only that an earlier stage refused it."""

_AREAS: Final = ("area-too-small", "area-too-large")

_SHARES: Final = (*_AREAS, "too-much-to-erase")
"""Reasons whose value is told as a share of the picture."""


@dataclass(frozen=True)
class Erased:
    """What was erased from an image: its share of the picture 0..1, by which backend, and shares by why."""

    share: float
    backend: str
    why: Mapping[str, float]


@dataclass(frozen=True)
class Judged:
    """One sample that was looked at.

    Attributes:
        slice: which of the set's slices holds it.
        state: kept, rejected by its label, or screened at the door.
        at: one of `PLACES`, "" where it was kept.
        reason: a kebab-case word; `words`: the same in plain words, with value and limit.
        of: the sample that it is too near to.
        scores: numbers by name, "trust" first where there is one; shares, confidences and agreements 0..1.
    """

    id: str
    slice: int
    state: State
    at: str = ""
    reason: str = ""
    words: str = ""
    value: float | None = None
    limit: Limit = None
    of: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    erased: Erased | None = None

    @property
    def score(self) -> float | None:
        """Its trust; its labeler's confidence where nobody judged further; None where neither is known."""
        return self.scores.get("trust", self.scores.get("confidence"))

    def as_json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        told: dict[str, Any] = {"id": self.id, "state": self.state, "score": self.score, "scores": dict(self.scores)}
        if self.erased is not None:
            told["erased"] = {"share": self.erased.share, "backend": self.erased.backend, "why": dict(self.erased.why)}
        if self.state == "kept":
            return told
        limit = list(self.limit) if isinstance(self.limit, tuple) else self.limit
        why = {"reason": self.reason, "at": self.at, "value": self.value, "limit": limit, "words": self.words}
        return {**told, **why, **({"of": self.of} if self.of else {})}


@dataclass(frozen=True)
class Reason:
    """How many samples were refused for one reason, and where."""

    reason: str
    at: str
    samples: int


@dataclass(frozen=True)
class Judgement:
    """Every sample of one replay set.

    Attributes:
        labelled: who labelled it, "recall/seed0"; "" for the data set's own labels.
        kept: in the set, best first.
        rejected: grouped by reason, the most frequent first, then by score, best first.
        reasons: what was refused where, pictures that never came into a shard included.
        trusted: whether labels were judged; erasing: whether images may have been changed.
    """

    replay_set: ReplaySet
    slices: tuple[Slice, ...]
    labelled: str
    kept: tuple[Judged, ...]
    rejected: tuple[Judged, ...]
    reasons: tuple[Reason, ...]
    trusted: bool
    erasing: bool

    @property
    def name(self) -> str:
        """The class."""
        return str(self.replay_set.manifest["class"])

    @property
    def source(self) -> str:
        """The recipe's name of where the images come from."""
        return self.replay_set.source

    @property
    def looked(self) -> int:
        """All samples that were asked for: those kept and those refused."""
        return len(self.kept) + sum(reason.samples for reason in self.reasons)

    @property
    def erased(self) -> tuple[Judged, ...]:
        """The kept samples from which something was erased, most first."""
        found = [(one.erased.share, one) for one in self.kept if one.erased is not None]
        return tuple(one for _, one in sorted(found, key=lambda pair: (-pair[0], pair[1].id)))

    @property
    def by_reason(self) -> dict[str, int]:
        """Samples refused for each reason, wherever that was, the most frequent first."""
        counted: Counter[str] = Counter()
        for reason in self.reasons:
            counted[reason.reason] += reason.samples
        return dict(counted.most_common())

    def refused(self, *places: str) -> int:
        """How many were refused at these places."""
        return sum(reason.samples for reason in self.reasons if reason.at in places)

    def by_score(self) -> list[Judged]:
        """The rejected, best score first, those without a score last."""
        return sorted(self.rejected, key=_by_score)


# the judgement


def judge(replay_set: ReplaySet, labelled: str = "") -> Judgement:
    """Gather what became of every sample of a set.

    Raises:
        StoreError, DataError: an object is missing or damaged.
    """
    found = _Reader(replay_set)
    kept, rejected = found.samples()
    counted = Counter((one.reason, one.at) for one in rejected) + found.unnamed()
    order = sorted(counted.items(), key=lambda item: (-item[1], PLACES.index(item[0][1]), item[0][0]))
    rank = {pair: i for i, (pair, _) in enumerate(order)}
    return Judgement(
        replay_set, found.slices, labelled, tuple(kept),
        tuple(sorted(rejected, key=lambda one: (rank[one.reason, one.at], *_by_score(one)))),
        tuple(Reason(reason, at, count) for (reason, at), count in order),
        trusted=bool(found.trusts), erasing=any(one.erases() for one in found.slices),
    )  # fmt: skip


def _by_score(one: Judged) -> tuple[bool, float, str]:
    return one.score is None, -(one.score or 0.0), one.id


@dataclass(frozen=True)
class _Word:
    """A refusal as it was written, and where."""

    at: str
    told: Mapping[str, Any]
    limit: Any = None

    @property
    def reason(self) -> str:
        return str(self.told.get("reason") or "no-reason")


class _Reader:
    """Reads what the stages wrote of one set, each thing once."""

    def __init__(self, replay_set: ReplaySet) -> None:
        self.replay_set, self.store = replay_set, replay_set.store
        self.slices = slices_of(self.store, replay_set.record)
        self.doors = verdicts(self.store, replay_set.record, "select")
        self.trusts = verdicts(self.store, replay_set.record, "trust")
        self.best: dict[str, int] = {}
        self.scores: dict[str, dict[str, float]] = {}
        self.refused = self._refused()

    def samples(self) -> tuple[list[Judged], list[Judged]]:
        """Kept, best first; rejected, in no order."""
        kept, rejected = [], []
        for i, part in enumerate(self.slices):
            came = open_shard(self.store, part.images, "images").ids
            labels = open_shard(self.store, part.labels, "labels")
            for sample in labels.ids:
                own = json.loads(labels.read(sample, "label.json")) if "label.json" in labels.extensions(sample) else {}
                self.scores[sample] = _numbers(own.get("scores")) | self.scores.get(sample, {})
            taken = self._taken(part)
            self._note_filled(part, taken)
            erased = self._erased(part, taken)
            kept += [Judged(one, i, "kept", scores=self._told(one), erased=erased.get(one)) for one in taken]
            rejected += [self._rejected(one, i) for one in came if one not in set(taken)]
        most = len(self.best)
        kept.sort(key=lambda one: (self.best.get(one.id, most), *_by_score(one)))
        return kept, rejected

    def unnamed(self) -> Counter[tuple[str, str]]:
        """(reason, place) of what was refused before it had an image, or without its name being written."""
        counted: Counter[tuple[str, str]] = Counter()
        for part in self.slices:
            of_images = Counter(part.images.counts.rejected) + Counter(part.images.counts.failed)
            counted.update({(reason, "source"): count for reason, count in of_images.items()})
            if part.labels.key != part.images.key:
                of_labels = Counter(part.labels.counts.rejected) + Counter(part.labels.counts.failed)
                of_labels -= Counter(str(one.get("reason")) for one in self._told_by(part.labels))
                counted.update({(why, "label"): count for why, count in of_labels.items() if why not in ELSEWHERE})
        return counted

    def _refused(self) -> dict[str, _Word]:
        """The first word that refused each sample; one that only points to an earlier one gives way to it."""
        found: dict[str, _Word] = {}
        for record in self.doors:
            told = read_json(self.store, record, "selection.json") or {}
            self._take(found, "door", told.get("rejected", []))
        for part in self.slices:
            least = part.labels.params.get("min_share")
            self._take(found, "label", self._told_by(part.labels), least)
        for record in self.trusts:
            told = read_json(self.store, record, "selection.json") or {}
            self.best |= {str(sample): len(self.best) + i for i, sample in enumerate(told.get("kept", []))}
            self.scores |= {str(sample): _numbers(scores) for sample, scores in told.get("scores", {}).items()}
            self._take(found, "trust", told.get("rejected", []))
        for part in self.slices:
            for record in (part.last_images, part.last_labels):
                if record.key not in (part.images.key, part.labels.key):
                    self._take(found, "erase", self._told_by(record))
        return found

    def _take(
        self, found: dict[str, _Word], at: str, told: Iterable[Mapping[str, Any]], limit: Any = None
    ) -> None:  # fmt: skip
        for one in told:
            sample, before = str(one["id"]), found.get(str(one["id"]))
            if before is None or (before.reason in ELSEWHERE and str(one.get("reason")) not in ELSEWHERE):
                found[sample] = _Word(at, one, limit)

    def _told_by(self, record: Record) -> list[dict[str, Any]]:
        told = read_json(self.store, record, "refused.json") or {}
        return [one for kind in ("rejected", "failed") for one in told.get(kind, [])]

    def _taken(self, part: Slice) -> list[str]:
        """The samples of a slice that are in the set: as the manifest says, else the first of those not refused."""
        shards: Sequence[Mapping[str, Any]] = self.replay_set.manifest["shards"]
        here = open_shard(self.store, part.last_labels, "labels").ids
        if part.index >= len(shards):
            return []
        told = shards[part.index]
        if "kept" in told:
            named = frozenset(map(str, told["kept"]))
            return [sample for sample in here if sample in named]
        fit = [sample for sample in here if not self.trusts or sample in self.best]
        return fit[: int(told["samples"])]

    def _rejected(self, sample: str, i: int) -> Judged:
        word, scores = self.refused.get(sample), self._told(sample)
        if word is None:
            labelled = sample in self.best or sample in self.scores
            word = _Word("set", {"reason": "more-than-wanted" if labelled else "left-out"})
        reason, told = word.reason, word.told
        at = "door" if reason == "screened" else word.at
        value = as_number(told.get("value"))
        if value is None and reason in _SHARES:
            value = as_number(told.get("share"))
        by_recipe = at == "label" and reason in _AREAS
        limit = as_limit(told.get("limit", word.limit if by_recipe else None))
        of = str(told.get("of") or "")
        scores = scores or _numbers({name: told[name] for name in ("share", "confidence") if name in told})
        return Judged(
            sample, i, "screened" if at == "door" else "rejected", at, reason,
            words(reason, value, limit, of=of, by_recipe=by_recipe), value, limit, of, scores,
        )  # fmt: skip

    def _told(self, sample: str) -> dict[str, float]:
        scores = self.scores.get(sample, {})
        return {**({"trust": scores["trust"]} if "trust" in scores else {}), **scores}

    def _note_filled(self, part: Slice, samples: Iterable[str]) -> None:
        """Beside the other scores: the share of each picture that later steps gave to their classes."""
        if part.last_labels.stage != "knowledge":
            return
        labels = open_shard(self.store, part.last_labels, "labels")
        for sample in samples:
            filled = _numbers(json.loads(labels.read(sample, "label.json")).get("scores")).get("knowledge")
            self.scores[sample] |= {"knowledge": filled} if filled is not None else {}

    def _erased(self, part: Slice, samples: Sequence[str]) -> dict[str, Erased]:
        if not part.erases():
            return {}
        images, found = open_shard(self.store, part.last_images, "images"), {}
        for sample in samples:
            told = json.loads(images.read(sample, "json")).get("erased")
            if isinstance(told, dict):
                share = as_number(told.get("share")) or 0.0
                found[sample] = Erased(share, str(told.get("backend") or ""), _numbers(told.get("why")))
        return found


def _numbers(told: Any) -> dict[str, float]:
    found = {str(name): as_number(value) for name, value in told.items()} if isinstance(told, dict) else {}
    return {name: value for name, value in found.items() if value is not None}
