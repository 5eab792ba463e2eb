"""The proof of every crawled photo: who made it, under which licence, when it was fetched, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from replaygen.crawl.licences import LICENCES
from replaygen.crawl.photos import sample_of
from replaygen.runs.behind import line, open_shard, played, read_json
from replaygen.stages import Task
from replaygen.store import Record, Store

SEARCHES: Final = {"flickr-search": "flickr", "url-list": "web"}
"""Stages that offer photos, and the source they offer them from."""

DECISIONS: Final = ("purged", "accepted", "rejected", "failed", "not-fetched")
"""The last word on a photo, strongest first: where a photo was offered twice for a class, the first of these stands."""

OPT_OUTS: Final = ("x-robots-tag", "tdm-reservation", "tdm-policy")


@dataclass(frozen=True)
class Proof:
    """One photo that was on offer for one class; "" where a thing is not known. All text is as others wrote it.

    Attributes:
        photo: its id, "flickr-53412" or "web-<20 hex>".
        source: "flickr" or "web".
        sample: its id in shards.
        page: where people look at it; url: where its bytes were.
        licence: the id in `crawl.licences`; licence_name, licence_url: as people write it, and where its text stands.
        licence_now: the id of the licence that it had when it was last looked at, None where that is the same.
        fetched_at: when its bytes were asked for, ISO 8601, UTC.
        revalidated_at: when licence and visibility were last looked at.
        sha256_raw: of the bytes as they came; sha256_derived: of the image that was made of them when they came.
        opt_out: what the server said of use by machines: "x-robots-tag: noai; tdm-reservation: 1".
        decision: one of `DECISIONS`; "accepted" only where the photo is in a replay set, as far as it was built.
        reason: a kebab-case word, for all but accepted and purged photos; of an accepted one only "no longer visible".
        of: the sample or the evaluation image that it is too near to.
        changes: what was done to the image: "none", "metadata removed", "resized and re-encoded", each perhaps with
            "parts erased"; "" where none was made.
    """

    photo: str
    source: str
    class_name: str
    sample: str = ""
    owner: str = ""
    owner_page: str = ""
    title: str = ""
    page: str = ""
    url: str = ""
    licence: str = ""
    licence_name: str = ""
    licence_url: str = ""
    licence_now: str | None = None
    fetched_at: str = ""
    revalidated_at: str = ""
    sha256_raw: str = ""
    sha256_derived: str = ""
    opt_out: str = ""
    decision: str = "not-fetched"
    reason: str = ""
    of: str = ""
    changes: str = ""


class Planned(Protocol):
    """What is needed of a plan; `replaygen.plan.Plan` is one."""

    @property
    def tasks(self) -> Mapping[str, Task]: ...
    @property
    def store(self) -> Store: ...


@dataclass(frozen=True)
class Word:
    """What was decided of a photo; erased: the image that it was decided of had lost parts."""

    decision: str
    reason: str = ""
    of: str = ""
    erased: bool = False


ACCEPTED: Final = Word("accepted")
LEFT: Final = Word("rejected", "more-than-wanted")
HIDDEN: Final = "no longer visible"


def proofs(plan: Planned) -> list[Proof]:
    """Every photo that a plan's searches and lists offered, once a class; a plan without a crawl has none.

    Classes stand in plan order, photos in the order they were offered, those that a search refused behind them. What
    was not made yet has no say: a photo that was fetched and is not labelled yet is accepted so far. A purged photo
    is told with its id, its class and nothing else.

    Raises:
        StoreError, DataError: an object is missing or damaged.
    """
    read = _Reader(plan)
    found: dict[tuple[str, str], Proof] = {}
    for (search, class_name), fetches in read.searches().items():
        for proof in read.offered(search, class_name, fetches):
            name = (proof.class_name, proof.photo)
            if name not in found or _rank(proof.decision) < _rank(found[name].decision):
                found[name] = proof
    order = {name: i for i, name in enumerate(dict.fromkeys(class_name for class_name, _ in found))}
    return sorted(found.values(), key=lambda proof: order[proof.class_name])


def licence_told(licence: str, address: str = "") -> tuple[str, str]:
    """A licence's name and the address of its text; the id and the address that came with it where it is unknown."""
    known = LICENCES.get(licence)
    return (known.name, known.url) if known is not None else (licence, address)


def _rank(decision: str) -> int:
    return DECISIONS.index(decision)


@dataclass(frozen=True)
class _Way:
    """A slice's way into a replay set.

    Attributes:
        fetch: the key of its fetch.
        labels: the task that labelled it, then those that made its labels anew ("erase", "knowledge").
        trust: the keys of the selections of its labels.
        part: what the set's manifest says of it; None where there is none.
    """

    fetch: str
    labels: tuple[Task, ...]
    trust: tuple[str, ...] = ()
    part: Mapping[str, Any] | None = None


class _Reader:
    """Reads what the tasks of a crawl wrote, each once."""

    def __init__(self, plan: Planned) -> None:
        self.store, self.tasks = plan.store, plan.tasks
        self.buried, self.checked = self.store.tombstones(), self.store.checked()
        self.erased: dict[str, frozenset[str]] = {}
        self.selections = self._selections()
        self.labels = self._labels()

    def searches(self) -> dict[tuple[str, str], list[Task]]:
        """(search key, class) -> its fetch tasks, by slice; classes may share a list of addresses."""
        found: dict[tuple[str, str], list[Task]] = {}
        for task in self._of("fetch"):
            for key in played(task, "search"):
                found.setdefault((key, str(task.params["class_name"])), []).append(task)
        searched = {key for key, _ in found}
        for key, task in self.tasks.items():
            if task.stage in SEARCHES and key not in searched:
                found[key, str(task.params["class_name"])] = []
        return {name: sorted(tasks, key=lambda task: int(task.params["slice"])) for name, tasks in found.items()}

    def offered(self, search: str, class_name: str, fetches: Sequence[Task]) -> Iterator[Proof]:
        """The photos of one search: those of each slice, those beyond the last, and those it refused."""
        told = self._json(self.store.get(search), "candidates.json") or {}
        candidates: list[dict[str, Any]] = told.get("candidates", [])
        task = self.tasks.get(search)
        source = SEARCHES.get(task.stage, "") if task is not None else ""
        covered = 0
        for fetch in fetches:
            start, size = int(fetch.params["slice"]) * int(fetch.params["size"]), int(fetch.params["size"])
            covered = max(covered, start + size)
            yield from self._slice(fetch, candidates[start : start + size], source)
        for one in candidates[covered:]:
            yield self._proof(one, {}, class_name, source, Word("not-fetched", "more-than-asked"))
        for one in told.get("rejected", []):
            yield self._proof({"photo": one["id"], **one}, {}, class_name, source, _word("rejected", one))

    def _slice(self, fetch: Task, candidates: Sequence[Mapping[str, Any]], source: str) -> Iterator[Proof]:
        record = self.store.get(fetch.key)
        samples = self._samples(record)
        refused = self._refused(record)
        seen = record.provenance.get("photos", {}) if record is not None else {}
        without = set(fetch.params.get("without", ()))
        by_photo = {str(one["photo"]): one for one in candidates}
        for photo in dict.fromkeys([*by_photo, *seen, *samples, *refused]):
            sample, about = samples.get(photo, ("", {}))
            if photo in without:
                word = Word("purged")
            elif record is None:
                word = Word("not-fetched", "not-run-yet")
            elif sample:
                word = self._fate(fetch.key, sample)
            else:
                word = refused.get(photo, Word("not-fetched", "not-recorded"))
            known = {**by_photo.get(photo, {"photo": photo}), **{k: v for k, v in about.items() if v is not None}}
            proof = seen.get(photo, {})
            # the digest that a list declares is not what came
            known["sha256"] = _text(proof, "sha256") or _text(about, "sha256")
            yield self._proof(known, proof, str(fetch.params["class_name"]), source, word,
                              sample=sample, keep=str(fetch.params.get("keep", "")))  # fmt: skip

    def _proof(
        self, known: Mapping[str, Any], seen: Mapping[str, Any], class_name: str, source: str, word: Word, *,
        sample: str = "", keep: str = "",
    ) -> Proof:  # fmt: skip
        photo = str(known["photo"])
        source = _text(known, "source") or source or photo.partition("-")[0]
        gone = known.get("purged") or seen.get("purged") or photo in self.buried or word.reason == "tombstoned"
        if gone or word.decision == "purged":
            return Proof(photo, source, class_name, decision="purged")
        name, address = licence_told(_text(known, "licence"), _text(known, "licence_url"))
        fetched = word.decision != "not-fetched"
        raw, derived = _text(known, "sha256") if seen or sample else "", _text(seen, "derived_sha256")
        checked = self.checked.get(photo, {})
        now = _text(checked, "licence")
        hidden = word.decision == "accepted" and checked.get("visible") is False
        return Proof(
            photo, source, class_name, sample=sample or sample_of(class_name, photo),
            owner=_text(known, "owner"), owner_page=_text(known, "owner_page"), title=_text(known, "title"),
            page=_text(known, "page"), url=_text(known, "url"),
            licence=_text(known, "licence"), licence_name=name, licence_url=address,
            licence_now=now if now and now != _text(known, "licence") else None,
            fetched_at=_text(seen, "fetched_at") if fetched else "",
            revalidated_at=_text(checked, "at"),
            sha256_raw=raw, sha256_derived=derived, opt_out=_opt_out(seen.get("headers", {})),
            decision=word.decision, reason=HIDDEN if hidden else word.reason, of=word.of,
            changes=_changes(keep, raw, derived, word.erased) if sample or derived else "",
        )  # fmt: skip

    # what became of a sample

    def _fate(self, fetch: str, sample: str) -> Word:
        """The last word on a sample of an image shard: of its selection, else of those who labelled it."""
        for verdicts in (self.selections, self.labels):
            words = [told[sample] for told in verdicts.get(fetch, []) if sample in told]
            best = min(words, key=lambda word: (_rank(word.decision), not word.erased), default=ACCEPTED)
            if best != ACCEPTED:
                return best
        return ACCEPTED

    def _selections(self) -> dict[str, list[dict[str, Word]]]:
        """Fetch key -> what each selection made of its samples."""
        found: dict[str, list[dict[str, Word]]] = {}
        for task in self._of("select"):
            told = self._json(self.store.get(task.key), "selection.json")
            if told is None:
                continue
            words = {str(sample): ACCEPTED for sample in told["kept"]}
            words |= {str(one["id"]): _word("rejected", one) for one in told["rejected"]}
            looks = [self.tasks[key] for key in played(task, "looks") if key in self.tasks]
            for key in dict.fromkeys(key for look in looks for key in played(look, "images")):
                found.setdefault(key, []).append(words)
        return found

    def _labels(self) -> dict[str, list[dict[str, Word]]]:
        """Fetch key -> what became of its samples on each way from their labels into a replay set."""
        found: dict[str, list[dict[str, Word]]] = {}
        for way in self._ways():
            words = self._words(way)
            if words:
                found.setdefault(way.fetch, []).append(words)
        return found

    def _ways(self) -> Iterator[_Way]:
        """Every way of a fetched slice into a set of the plan; labels that are in none come last."""
        closed: set[str] = set()
        for task in self._of("replay"):
            told = self._json(self.store.get(task.key), "manifest.json")
            parts = told["shards"] if told else []
            for i, (images, labels) in enumerate(zip(played(task, "images"), played(task, "labels"), strict=False)):
                begun = list(line(self.tasks.get, images, "images"))
                made = tuple(reversed(list(line(self.tasks.get, labels, "labels"))))
                if not begun or begun[-1].stage != "fetch" or not made or made[0].stage != "label":
                    continue
                closed.add(made[0].key)
                trust = dict.fromkeys(key for one in (*made, task) for key in played(one, "trusted"))
                yield _Way(begun[-1].key, made, tuple(trust), parts[i] if i < len(parts) else None)
        for task in self._of("label"):
            for key in played(task, "images"):
                if task.key not in closed and key in self.tasks and self.tasks[key].stage == "fetch":
                    yield _Way(key, (task,))

    def _words(self, way: _Way) -> dict[str, Word]:
        """The first that refused a sample has the last word on it; none where nothing was labelled yet."""
        records = [record for task in way.labels if (record := self.store.get(task.key)) is not None]
        if not records or records[0].key != way.labels[0].key:
            return {}
        words = self._refused(records[0])
        for key in way.trust:
            told = self._json(self.store.get(key), "selection.json") or {"rejected": []}
            words = {str(one["id"]): _word("rejected", one) for one in told["rejected"]} | words
        for record in records[1:]:
            words = self._refused(record) | words
        held = sorted(self._json(records[-1], "labels.index.json") or {})
        taken = held if way.part is None else way.part.get("kept", held[: int(way.part["samples"])])
        labelled = self._json(records[0], "labels.index.json") or {}
        words = dict.fromkeys(labelled, ACCEPTED if way.part is None else LEFT) | dict.fromkeys(taken, ACCEPTED) | words
        lost = {sample for record in records if record.stage == "erase" for sample in self._lost(record)}
        return words | {sample: replace(words[sample], erased=True) for sample in lost if sample in words}

    # reading

    def _of(self, stage: str) -> Iterator[Task]:
        return (task for task in self.tasks.values() if task.stage == stage)

    def _json(self, record: Record | None, name: str) -> Any:
        """A JSON output; None where the record or the output is not there."""
        return None if record is None else read_json(self.store, record, name)

    def _refused(self, record: Record | None) -> dict[str, Word]:
        told = self._json(record, "refused.json") or {}
        pairs = ((kind, one) for kind in ("rejected", "failed") for one in told.get(kind, []))
        return {str(one["id"]): _word(kind, one) for kind, one in pairs}

    def _samples(self, record: Record | None) -> dict[str, tuple[str, dict[str, Any]]]:
        """Photo id -> (sample id, side-car) of an image shard; no image is read."""
        if record is None:
            return {}
        shard = open_shard(self.store, record, "images")
        about = {sample: json.loads(shard.read(sample, "json")) for sample in shard.ids}
        return {str(told.get("photo") or sample): (sample, told) for sample, told in about.items()}

    def _lost(self, record: Record) -> frozenset[str]:
        """The samples of which parts were erased; of sets that share them they are read once."""
        if record.key not in self.erased:
            told = self._samples(record).values()
            self.erased[record.key] = frozenset(sample for sample, about in told if about.get("erased"))
        return self.erased[record.key]


def _word(decision: str, one: Mapping[str, Any]) -> Word:
    return Word(decision, _text(one, "reason"), _text(one, "of"))


def _text(told: Mapping[str, Any], name: str) -> str:
    value = told.get(name)
    return value if isinstance(value, str) else ""


def _opt_out(headers: Mapping[str, Any]) -> str:
    told: Iterable[tuple[str, str]] = sorted((str(name).lower(), str(value)) for name, value in headers.items())
    return "; ".join(f"{name}: {value}" for name, value in told if name in OPT_OUTS)


def _changes(keep: str, raw: str, derived: str, erased: bool) -> str:
    told = "metadata removed" if keep == "verbatim" else "resized and re-encoded"
    if raw and raw == derived:
        return "parts erased" if erased else "none"
    return f"{told}, parts erased" if erased else told
