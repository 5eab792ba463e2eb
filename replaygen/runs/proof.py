"""The proof of every crawled photo: who made it, under which licence, when it was fetched, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from replaygen.crawl.licences import LICENCES
from replaygen.crawl.photos import sample_of
from replaygen.stages import Task
from replaygen.store import Record, Shard, Store

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
        sha256_raw: of the bytes as they came; sha256_derived: of the image that was made of them.
        opt_out: what the server said of use by machines: "x-robots-tag: noai; tdm-reservation: 1".
        decision: one of `DECISIONS`; "accepted" only where the photo is in a replay set, as far as it was built.
        reason: a kebab-case word, for all but accepted and purged photos; of an accepted one only "no longer visible".
        of: the sample or the evaluation image that it is too near to.
        changes: what was done to the image: "none", "metadata removed", "resized and re-encoded"; "" where none was
            made.
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
    """What one task decided of a photo."""

    decision: str
    reason: str = ""
    of: str = ""


ACCEPTED: Final = Word("accepted")
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


class _Reader:
    """Reads what the tasks of a crawl wrote, each once."""

    def __init__(self, plan: Planned) -> None:
        self.store, self.tasks = plan.store, plan.tasks
        self.buried, self.checked = self.store.tombstones(), self.store.checked()
        self.selections = self._selections()
        self.labels = self._labels()

    def searches(self) -> dict[tuple[str, str], list[Task]]:
        """(search key, class) -> its fetch tasks, by slice; classes may share a list of addresses."""
        found: dict[tuple[str, str], list[Task]] = {}
        for task in self._of("fetch"):
            for key in _inputs(task, "search"):
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
        hidden = word == ACCEPTED and checked.get("visible") is False
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
            changes=_changes(keep, raw, derived) if sample or derived else "",
        )  # fmt: skip

    # what became of a sample

    def _fate(self, fetch: str, sample: str) -> Word:
        """The last word on a sample of an image shard: of its selection, else of those who labelled it."""
        for verdicts in (self.selections, self.labels):
            words = [told[sample] for told in verdicts.get(fetch, []) if sample in told]
            if words and (best := min(words, key=lambda word: _rank(word.decision))) != ACCEPTED:
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
            looks = [self.tasks[key] for key in _inputs(task, "looks") if key in self.tasks]
            for key in dict.fromkeys(key for look in looks for key in _inputs(look, "images")):
                found.setdefault(key, []).append(words)
        return found

    def _labels(self) -> dict[str, list[dict[str, Word]]]:
        """Fetch key -> what each labelling, and the replay set that took it, made of its samples."""
        taken = self._taken()
        found: dict[str, list[dict[str, Word]]] = {}
        for task in self._of("label"):
            images = [key for key in _inputs(task, "images") if key in self.tasks and self.tasks[key].stage == "fetch"]
            record = self.store.get(task.key) if images else None
            if record is None:
                continue
            labelled = sorted(self._json(record, "labels.index.json") or {})
            most = taken.get(task.key, len(labelled))
            words = self._refused(record)
            words |= dict.fromkeys(labelled[:most], ACCEPTED)
            words |= dict.fromkeys(labelled[most:], Word("rejected", "more-than-wanted"))
            for key in images:
                found.setdefault(key, []).append(words)
        return found

    def _taken(self) -> dict[str, int]:
        """Label key -> how many of its samples are in the replay set that was made of it."""
        taken: dict[str, int] = {}
        for task in self._of("replay"):
            labels = _inputs(task, "labels")
            if not any(self.tasks[key].stage == "label" for key in labels if key in self.tasks):
                continue
            told = self._json(self.store.get(task.key), "manifest.json")
            for key, shard in zip(labels, told["shards"] if told else [], strict=False):
                taken[key] = max(taken.get(key, 0), int(shard["samples"]))
        return taken

    # reading

    def _of(self, stage: str) -> Iterator[Task]:
        return (task for task in self.tasks.values() if task.stage == stage)

    def _json(self, record: Record | None, name: str) -> Any:
        """A JSON output; None where the record or the output is not there."""
        if record is None or name not in {output.name for output in record.outputs}:
            return None
        return json.loads(self.store.read(record.output(name).digest))

    def _refused(self, record: Record | None) -> dict[str, Word]:
        told = self._json(record, "refused.json") or {}
        pairs = ((kind, one) for kind in ("rejected", "failed") for one in told.get(kind, []))
        return {str(one["id"]): _word(kind, one) for kind, one in pairs}

    def _samples(self, record: Record | None) -> dict[str, tuple[str, dict[str, Any]]]:
        """Photo id -> (sample id, side-car) of an image shard; no image is read."""
        if record is None:
            return {}
        index = self.store.read(record.output("images.index.json").digest)
        shard = Shard(self.store.open_object(record.output("images.tar").digest), index)
        about = {sample: json.loads(shard.read(sample, "json")) for sample in shard.ids}
        return {str(told.get("photo") or sample): (sample, told) for sample, told in about.items()}


def _inputs(task: Task, role: str) -> list[str]:
    return [key for played, key in task.inputs if played == role]


def _word(decision: str, one: Mapping[str, Any]) -> Word:
    return Word(decision, _text(one, "reason"), _text(one, "of"))


def _text(told: Mapping[str, Any], name: str) -> str:
    value = told.get(name)
    return value if isinstance(value, str) else ""


def _opt_out(headers: Mapping[str, Any]) -> str:
    told: Iterable[tuple[str, str]] = sorted((str(name).lower(), str(value)) for name, value in headers.items())
    return "; ".join(f"{name}: {value}" for name, value in told if name in OPT_OUTS)


def _changes(keep: str, raw: str, derived: str) -> str:
    if raw and raw == derived:
        return "none"
    return "metadata removed" if keep == "verbatim" else "resized and re-encoded"
