"""The proof of every photo: who made it, and the last word on it, read from the records of a crawl."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replaygen.canonical import digest_of
from replaygen.classes import slug
from replaygen.crawl.photos import Candidate
from replaygen.errors import StoreError
from replaygen.inpainters.base import identity_of
from replaygen.inpainters.specs import EraseSpec
from replaygen.runs.execute import execute
from replaygen.runs.proof import Proof, proofs
from replaygen.sample import encode_jpeg, encode_png
from replaygen.stages import Task
from replaygen.stages.erase import EraseStage
from replaygen.stages.replay import ReplayStage
from replaygen.store import Counts, OutputObject, Record, Store, task_key, write_shard
from replaygen.testing.bad_inpainter import BadInpainter

# a crawl in a real store, its records as the stages write them


def candidate(photo: str, **more: Any) -> dict[str, Any]:
    """A candidate as a search writes it."""
    told: dict[str, Any] = {
        "photo": photo, "url": f"https://live.example.org/{photo}.jpg", "page": f"https://example.org/photos/{photo}",
        "owner": "Ann Example", "owner_page": "https://example.org/people/ann", "title": f"Title of {photo}",
        "licence": "cc-by-2.0",
    }  # fmt: skip
    return Candidate(**{**told, **more}).as_json()


@dataclass
class Crawl:
    """Publishes the records of a crawl, and stands for the plan that would have made them."""

    root: Path
    tasks: dict[str, Task] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = Store(self.root)

    def task(
        self, stage: str, params: dict[str, Any], inputs: Sequence[tuple[str, str]] = (),
        outputs: dict[str, bytes] | None = None, *, provenance: dict[str, Any] | None = None, slot: str = "",
        samples: int = 1, rejected: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """Plan a task and, where outputs are given, publish its record; `rejected` are reasons."""
        key = task_key(stage, 1, params, None, inputs)
        slot = slot or f"{stage}/{key[:8]}"
        self.tasks[key] = Task(key, stage, 1, params, None, tuple(inputs), slot)
        if outputs is None:
            return key
        objects = []
        for name, data in outputs.items():
            ref = self.store.put(data)
            objects.append(OutputObject(name, ref.digest, ref.size, samples))
        counts = Counts(samples + len(rejected), samples, dict(Counter(rejected)))
        self.store.publish(
            Record(
                key, stage, 1, params, None, tuple(inputs), slot, tuple(objects), counts, {}, provenance or {},
                {}, "2026-03-01T10:00:00+00:00", 1.0,
            )
        )  # fmt: skip
        return key

    def search(
        self, name: str, candidates: list[dict[str, Any]], rejected: dict[str, str] | None = None, *,
        stage: str = "flickr-search", made: bool = True, text: str = "",
    ) -> str:  # fmt: skip
        refused = [{"id": photo, "reason": reason} for photo, reason in (rejected or {}).items()]
        told = {"candidates": candidates, "rejected": refused, "asked": {}}
        outputs = {"candidates.json": encoded(told)} if made else None
        return self.task(stage, {"class_name": name, "text": text}, (), outputs)

    def fetch(
        self, name: str, search: str, taken: list[dict[str, Any]], *, index: int = 0, size: int = 64,
        rejected: dict[str, str] | None = None, failed: dict[str, str] | None = None, source: str = "flickr",
        made: bool = True, keep: str = "resized", without: Sequence[str] = (), headers: dict[str, str] | None = None,
        seen: dict[str, dict[str, Any]] | None = None,
    ) -> str:  # fmt: skip
        """Slice `index`: `taken` are candidates that became images; `seen` is the proof of those that did not."""
        params = {
            "class_name": name, "source": source, "slice": index, "size": size, "keep": keep, "without": list(without),
        }  # fmt: skip
        if not made:
            return self.task("fetch", params, [("search", search)])
        items, proof = [], {}
        for one in taken:
            raw = hashlib.sha256(one["photo"].encode()).hexdigest()
            picture = np.full((96, 128, 3), int(raw[:2], 16), np.uint8)
            picture[20:76, 30:98] = [int(raw[i : i + 2], 16) for i in (2, 4, 6)]
            data = encode_jpeg(picture)
            about = {
                **one, "class": name, "source": source, "sha256": raw, "height": 96, "width": 128, "parent": None,
                "file": None, "licence_url": None,
            }  # fmt: skip
            items.append((sample(name, one["photo"]), {"jpg": data, "json": encoded(about)}))
            derived = raw if keep == "unchanged" else hashlib.sha256(data).hexdigest()
            proof[one["photo"]] = {"fetched_at": "2026-03-01T10:00:00Z", "headers": headers or {}, "requests": 1,
                                   "derived_sha256": derived, "final_url": one["url"], "status": 200}  # fmt: skip
        for photo in {**(rejected or {}), **(failed or {})}:
            proof[photo] = (seen or {}).get(photo, {"fetched_at": "2026-03-02T10:00:00Z", "requests": 4})
        tar, positions = write_shard(items)
        outputs = {"images.tar": tar, "images.index.json": positions, **refused(rejected, failed)}
        reasons = [*(rejected or {}).values(), *(failed or {}).values()]
        return self.task("fetch", params, [("search", search)], outputs, provenance={"photos": proof},
                         samples=len(items), rejected=reasons)  # fmt: skip

    def select(self, name: str, fetches: Sequence[str], kept: list[str], rejected: list[dict[str, Any]]) -> str:
        looks = [("looks", self.task("looks", {}, [("images", key)], {"looks.json": b"[]"})) for key in fetches]
        told = {"kept": kept, "rejected": rejected}
        return self.task("select", {"class_name": name}, looks, {"selection.json": encoded(told)}, samples=len(kept),
                         rejected=[one["reason"] for one in rejected])  # fmt: skip

    def label(
        self, fetch: str, kept: list[str], rejected: dict[str, str] | None = None, *, model: str = "a",
        channel: int = 1, selection: str | None = None, marks: dict[str, int] | None = None,
    ) -> str:  # fmt: skip
        """`marks`: above which row other classes are in a picture."""
        mask = np.zeros((96, 128), np.uint8)
        mask[20:76, 30:98] = channel
        items = []
        for one in kept:
            members = {"mask.png": encode_png(mask), "label.json": encoded({"visible": [channel], "labeler": model})}
            if marks is not None and one in marks:
                above = np.arange(96)[:, None] < marks[one]
                members["erase.png"] = encode_png(np.broadcast_to(above, mask.shape).astype(np.uint8))
            items.append((one, members))
        tar, positions = write_shard(items)
        inputs = [("images", fetch), ("model", digest_of(model)), *([("selection", selection)] if selection else [])]
        outputs = {"labels.tar": tar, "labels.index.json": positions, **refused(rejected, None)}
        return self.task("label", {"channel": channel}, inputs, outputs, samples=len(kept),
                         rejected=list((rejected or {}).values()))  # fmt: skip

    def made(self, task: Task) -> str:
        """Plan a task of a real stage, and do it."""
        self.tasks[task.key] = task
        assert execute(str(self.root), task).state == "made"
        return task.key

    def trust(self, labels: Sequence[str], kept: list[str], rejected: dict[str, str]) -> str:
        reasons = [{"id": one, "reason": why, "value": 0.1} for one, why in rejected.items()]
        told = {"kept": kept, "rejected": reasons, "scores": {}, "order": "best"}
        inputs = [("standards", digest_of("standards")), *(("labels", key) for key in labels)]
        return self.task("trust", {}, inputs, {"selection.json": encoded(told)}, samples=len(kept),
                         rejected=list(rejected.values()))  # fmt: skip

    def erase(self, fetch: str, label: str, trust: str | None = None, **changes: Any) -> Task:
        """The real task that erases what the labels' marks say."""
        spec = EraseSpec(**changes)
        params = {"erase": spec.identity(), "inpainter": identity_of(spec.identity()), "threads": 1}
        inputs = [("images", fetch), ("labels", label), *([("trusted", trust)] if trust else [])]
        return EraseStage.task(params, inputs=inputs, slot=f"erase/{fetch[:8]}", where=spec.where())

    def knowledge(self, images: str, label: str, trust: str) -> str:
        """The same labels under another key, as a later step would write them."""
        record = self.store.get(label)
        assert record is not None
        names = ("labels.tar", "labels.index.json")
        outputs = {name: self.store.read(record.output(name).digest) for name in names}
        inputs = [("labels", label), ("images", images), ("helper", digest_of("helper")), ("trusted", trust)]
        return self.task("knowledge", {"step": 2}, inputs, outputs, samples=record.output("labels.tar").samples)

    def close(self, images: str, labels: str, trust: str, wanted: int) -> Task:
        """The real task that closes a set."""
        inputs = [("images", images), ("labels", labels), ("trusted", trust)]
        params = {"class_name": "cow", "channel": 1, "wanted": wanted}
        return ReplayStage.task(params, inputs=inputs, slot=f"replay/{labels[:8]}")

    def replay(
        self, name: str, parts: Sequence[tuple[str, str, int]], *, channel: int = 1, slot: str = "", wanted: int = 10
    ) -> str:
        """Close a set: (fetch, label, samples taken of it) each."""
        shards = []
        for fetch, label, samples in parts:
            found = {}
            for kind, key in (("images", fetch), ("labels", label)):
                record = self.store.get(key)
                assert record is not None
                found[kind] = record.output(f"{kind}.tar").digest
                found[f"{kind}_index"] = record.output(f"{kind}.index.json").digest
            shards.append({**found, "samples": samples})
        total = sum(shard["samples"] for shard in shards)
        manifest = {"class": name, "channel": channel, "samples": total, "wanted": wanted,
                    "shortfall": max(0, wanted - total), "shards": shards}  # fmt: skip
        inputs = [("images", fetch) for fetch, _, _ in parts] + [("labels", label) for _, label, _ in parts]
        params = {"class_name": name, "channel": channel, "wanted": wanted}
        return self.task("replay", params, inputs, {"manifest.json": encoded(manifest)}, slot=slot, samples=total)


def encoded(told: Any) -> bytes:
    return json.dumps(told, sort_keys=True).encode()


def refused(rejected: dict[str, str] | None, failed: dict[str, str] | None) -> dict[str, bytes]:
    """refused.json, where something was."""
    if not rejected and not failed:
        return {}
    told = {
        kind: [{"id": one, "reason": reason} for one, reason in (words or {}).items()]
        for kind, words in (("rejected", rejected), ("failed", failed))
    }
    return {"refused.json": encoded(told)}


def sample(name: str, photo: str) -> str:
    return f"{slug(name)}-{photo}"


def words(found: list[Proof]) -> dict[str, tuple[str, str]]:
    return {proof.photo: (proof.decision, proof.reason) for proof in found}


@pytest.fixture
def crawl(tmp_path: Path) -> Crawl:
    return Crawl(tmp_path / "store")


def test_a_plan_without_a_crawl_has_no_proofs(crawl: Crawl) -> None:
    """Folders, generators and exemplars are told elsewhere."""
    crawl.task("photos", {"class_name": "cow"}, (), {"images.tar": b""})
    crawl.task("label", {}, [("images", next(iter(crawl.tasks)))], {"labels.tar": b"", "labels.index.json": b"{}"})
    assert proofs(crawl) == []


def test_a_photo_in_the_replay_set_is_told_in_full(crawl: Crawl) -> None:
    """Owner, page, licence, times, both digests and the server's wishes stand in one place."""
    one = candidate("flickr-1")
    search = crawl.search("cow", [one])
    fetch = crawl.fetch("cow", search, [one], headers={"X-Robots-Tag": "noindex", "etag": '"a"'})
    label = crawl.label(fetch, ["cow-flickr-1"])
    crawl.replay("cow", [(fetch, label, 1)])
    crawl.store.note_checked({"flickr-1": {"at": "2026-04-01T00:00:00Z", "licence": "cc-by-2.0", "visible": True}})
    (proof,) = proofs(crawl)
    record = crawl.store.get(fetch)
    assert record is not None
    assert proof == Proof(
        "flickr-1", "flickr", "cow", "cow-flickr-1", owner="Ann Example", owner_page="https://example.org/people/ann",
        title="Title of flickr-1", page="https://example.org/photos/flickr-1",
        url="https://live.example.org/flickr-1.jpg", licence="cc-by-2.0", licence_name="CC BY 2.0",
        licence_url="https://creativecommons.org/licenses/by/2.0/", fetched_at="2026-03-01T10:00:00Z",
        revalidated_at="2026-04-01T00:00:00Z", sha256_raw=hashlib.sha256(b"flickr-1").hexdigest(),
        sha256_derived=record.provenance["photos"]["flickr-1"]["derived_sha256"], opt_out="x-robots-tag: noindex",
        decision="accepted", changes="resized and re-encoded",
    )  # fmt: skip


def test_every_photo_on_offer_has_a_decision(crawl: Crawl) -> None:
    """Refused by the search, by the fetch, failed, not asked for, screened, not labelled: nothing vanishes."""
    offered = [candidate(f"flickr-{i}") for i in range(1, 9)]
    search = crawl.search("cow", offered, {"flickr-90": "licence-not-allowed"})
    taken = [offered[0], offered[3], offered[4], offered[5]]
    fetch = crawl.fetch(
        "cow", search, taken, size=6, rejected={"flickr-2": "too-small"}, failed={"flickr-3": "timeout"}
    )
    crawl.fetch("cow", search, [], index=1, size=1, made=False)
    ids = [sample("cow", one["photo"]) for one in taken]
    crawl.select("cow", [fetch], [ids[0], ids[2], ids[3]],
                 [{"id": ids[1], "reason": "duplicate", "of": ids[0], "distance": 3}])  # fmt: skip
    label = crawl.label(fetch, [ids[0], ids[3]], {ids[1]: "screened", ids[2]: "class-absent"})
    crawl.replay("cow", [(fetch, label, 1)])
    found = proofs(crawl)
    assert words(found) == {
        "flickr-1": ("accepted", ""), "flickr-2": ("rejected", "too-small"), "flickr-3": ("failed", "timeout"),
        "flickr-4": ("rejected", "duplicate"), "flickr-5": ("rejected", "class-absent"),
        "flickr-6": ("rejected", "more-than-wanted"), "flickr-7": ("not-fetched", "more-than-asked"),
        "flickr-8": ("not-fetched", "more-than-asked"), "flickr-90": ("rejected", "licence-not-allowed"),
    }  # fmt: skip
    assert found[3].of == "cow-flickr-1"
    assert [proof.photo for proof in found][-1] == "flickr-90"


def test_what_was_not_made_yet_has_no_say(crawl: Crawl) -> None:
    """A slice that was not fetched is told so; a fetched photo is accepted until somebody refuses it."""
    offered = [candidate("flickr-1"), candidate("flickr-2")]
    search = crawl.search("cow", offered)
    crawl.fetch("cow", search, offered[:1], size=1)
    crawl.fetch("cow", search, [], index=1, size=1, made=False)
    crawl.fetch("horse", crawl.search("horse", [], made=False), [], made=False)
    assert words(proofs(crawl)) == {"flickr-1": ("accepted", ""), "flickr-2": ("not-fetched", "not-run-yet")}


def test_one_labelling_that_keeps_a_photo_is_enough(crawl: Crawl) -> None:
    """Two chains label the same shard: a photo that either trains on is in a replay set."""
    offered = [candidate("flickr-1"), candidate("flickr-2")]
    fetch = crawl.fetch("cow", crawl.search("cow", offered), offered)
    first, second = "cow-flickr-1", "cow-flickr-2"
    one = crawl.label(fetch, [first], {second: "class-absent"}, model="a")
    two = crawl.label(fetch, [], {first: "class-absent", second: "area-too-small"}, model="b")
    crawl.replay("cow", [(fetch, one, 1)])
    crawl.replay("cow", [(fetch, two, 0)], wanted=9)
    assert words(proofs(crawl)) == {"flickr-1": ("accepted", ""), "flickr-2": ("rejected", "class-absent")}


def test_screened_and_erased_photos_are_told_behind_every_stage(crawl: Crawl) -> None:
    """Label screens, erasing, later steps' labels and the best that are wanted: each tells from when on it stands."""
    offered = [candidate(f"flickr-{i}") for i in range(1, 7)]
    fetch = crawl.fetch("cow", crawl.search("cow", offered), offered)
    lost, plain, odd, much, last, absent = (sample("cow", one["photo"]) for one in offered)
    label = crawl.label(fetch, [lost, plain, odd, much, last], {absent: "class-absent"}, marks={lost: 16, much: 96})
    told = dict.fromkeys((f"flickr-{i}" for i in range(1, 7)), ("accepted", ""))
    told["flickr-6"] = ("rejected", "class-absent")
    assert words(proofs(crawl)) == told
    trust = crawl.trust([label], [plain, much, lost, last], {odd: "atypical"})
    erase = crawl.erase(fetch, label, trust)
    first = crawl.close(erase.key, erase.key, trust, 2)
    crawl.tasks |= {task.key: task for task in (erase, first)}
    told["flickr-3"] = ("rejected", "atypical")
    assert words(proofs(crawl)) == told
    crawl.made(erase)
    told["flickr-4"] = ("rejected", "too-much-to-erase")
    assert words(proofs(crawl)) == told
    crawl.made(first)
    told["flickr-5"] = ("rejected", "more-than-wanted")
    later = crawl.knowledge(erase.key, erase.key, trust)
    for sets in ([], [crawl.close(erase.key, later, trust, 2)]):
        for task in sets:
            crawl.made(task)
        found = proofs(crawl)
        assert words(found) == told
        assert [proof.photo for proof in found if "parts erased" in proof.changes] == ["flickr-1"]
        assert found[0].changes == "resized and re-encoded, parts erased"


def test_a_photo_whose_filling_failed_says_so(crawl: Crawl) -> None:
    """A server that spoils the picture: the photo is in no set, and the reason is the server's."""
    offered = [candidate("flickr-1"), candidate("flickr-2")]
    fetch = crawl.fetch("cow", crawl.search("cow", offered), offered)
    label = crawl.label(fetch, ["cow-flickr-1", "cow-flickr-2"], marks={"cow-flickr-2": 16})
    with BadInpainter("black-hole") as server:
        erase = crawl.made(crawl.erase(fetch, label, backend="lama", server=server.url, sha256="0" * 64))
    crawl.replay("cow", [(erase, erase, 1)])
    assert words(proofs(crawl)) == {"flickr-1": ("accepted", ""), "flickr-2": ("failed", "inpainter-black")}


def test_an_erased_photo_that_is_also_kept_whole_says_that_parts_were_erased(crawl: Crawl) -> None:
    """Two sources share a label shard, and one erases: one copy in use that was changed is enough."""
    one = candidate("flickr-1")
    fetch = crawl.fetch("cow", crawl.search("cow", [one]), [one], keep="unchanged")
    label = crawl.label(fetch, ["cow-flickr-1"], marks={"cow-flickr-1": 16})
    crawl.replay("cow", [(fetch, label, 1)])
    assert [proof.changes for proof in proofs(crawl)] == ["none"]
    erase = crawl.made(crawl.erase(fetch, label))
    closed = crawl.replay("cow", [(erase, erase, 0)])
    assert [(proof.decision, proof.changes) for proof in proofs(crawl)] == [("accepted", "none")], "not in use"
    del crawl.tasks[closed]
    crawl.replay("cow", [(erase, erase, 1)], wanted=5)
    assert [(proof.decision, proof.changes) for proof in proofs(crawl)] == [("accepted", "parts erased")]


def test_a_photo_is_told_once_a_class(crawl: Crawl) -> None:
    """Two searches of a class offer the same photo: its best word stands. Another class has its own."""
    one = candidate("flickr-1")
    first = crawl.fetch("cow", crawl.search("cow", [one], text="cow"), [], rejected={"flickr-1": "too-small"})
    crawl.fetch("cow", crawl.search("cow", [one], text="cattle"), [one])
    crawl.fetch("horse", crawl.search("horse", [one]), [], failed={"flickr-1": "timeout"})
    assert first in crawl.tasks
    assert [(p.class_name, p.decision) for p in proofs(crawl)] == [("cow", "accepted"), ("horse", "failed")]


def test_two_classes_may_share_a_list(crawl: Crawl) -> None:
    """One list of addresses serves two classes: each photo is told for both."""
    one = candidate("web-0123456789abcdef0123", owner=None, page=None, licence=None)
    search = crawl.search("animals", [one], {"web-1": "no-address"}, stage="url-list")
    crawl.fetch("cow", search, [one], source="web")
    crawl.fetch("horse", search, [one], source="web")
    found = proofs(crawl)
    assert [(p.class_name, p.source, p.decision) for p in found] == [
        ("cow", "web", "accepted"), ("cow", "web", "rejected"),
        ("horse", "web", "accepted"), ("horse", "web", "rejected"),
    ]  # fmt: skip
    assert (found[0].owner, found[0].page, found[0].licence_name) == ("", "", "")


def test_a_purged_photo_is_told_with_its_id_alone(crawl: Crawl) -> None:
    """Whether the plan, the search or the store knows of the purge: no title, owner, address or digest is left."""
    offered = [candidate("flickr-1"), {"photo": "flickr-2", "purged": True}, candidate("flickr-3")]
    search = crawl.search("cow", offered)
    crawl.fetch("cow", search, [offered[2]], without=["flickr-1"])
    crawl.store.bury(["flickr-3"], "its owner asked")
    assert proofs(crawl) == [
        Proof(f"flickr-{i}", "flickr", "cow", decision="purged") for i in (1, 2, 3)
    ]  # fmt: skip


def test_after_a_purge_the_others_of_the_slice_are_still_told(crawl: Crawl) -> None:
    """The store takes a photo out; the next plan's slice leaves it out, and nothing but its id is told."""
    offered = [candidate("flickr-1"), candidate("flickr-2")]
    crawl.fetch("cow", crawl.search("cow", offered), offered)
    crawl.store.purge(["flickr-1"], "its owner asked")
    later = Crawl(crawl.root)
    later.fetch("cow", later.search("cow", [], made=False), [], made=False, without=["flickr-1"])
    gone, other = proofs(later)
    assert gone == Proof("flickr-1", "flickr", "cow", decision="purged")
    assert (other.photo, other.decision, other.owner) == ("flickr-2", "accepted", "Ann Example")


@pytest.mark.parametrize(
    ("keep", "changes"),
    [("resized", "resized and re-encoded"), ("verbatim", "metadata removed"), ("unchanged", "none")],
)
def test_what_was_done_to_an_image_is_told(crawl: Crawl, keep: str, changes: str) -> None:
    """The licences ask to say so; equal digests mean that nothing was done."""
    one = candidate("flickr-1")
    crawl.fetch("cow", crawl.search("cow", [one]), [one], keep=keep)
    (proof,) = proofs(crawl)
    assert proof.changes == changes


def test_a_fetch_whose_search_is_gone_still_tells(crawl: Crawl) -> None:
    """The side-car in the shard carries owner, page and licence of its own."""
    one = candidate("flickr-1")
    crawl.fetch("cow", crawl.search("cow", [], made=False), [one], rejected={"flickr-2": "not-an-image"})
    found = proofs(crawl)
    assert words(found) == {"flickr-1": ("accepted", ""), "flickr-2": ("rejected", "not-an-image")}
    assert found[0].owner == "Ann Example"


def test_a_photo_refused_after_its_download_tells_its_bytes(crawl: Crawl) -> None:
    """What came is told from the fetch's own proof, not from the digest that a list declares; no image was made."""
    one, other = (candidate(f"flickr-{i}", sha256="d" * 64) for i in (1, 2))
    seen: dict[str, dict[str, Any]] = {
        "flickr-1": {"fetched_at": "2026-03-02T10:00:00Z", "sha256": "a" * 64},
        "flickr-2": {"requests": 4},
    }
    crawl.fetch("cow", crawl.search("cow", [one, other]), [],
                rejected={"flickr-1": "other-bytes", "flickr-2": "gone"}, seen=seen)  # fmt: skip
    assert [(proof.sha256_raw, proof.changes) for proof in proofs(crawl)] == [("a" * 64, ""), ("", "")]


@pytest.mark.parametrize(("now", "told"), [("cc-by-nc-sa-2.0", "cc-by-nc-sa-2.0"), ("cc-by-2.0", None), (None, None)])
def test_a_licence_that_changed_is_told_beside_the_old_one(crawl: Crawl, now: str | None, told: str | None) -> None:
    """Revalidation keeps a photo whose new licence is allowed too: both are told, one where they are the same."""
    one = candidate("flickr-1")
    crawl.fetch("cow", crawl.search("cow", [one]), [one])
    crawl.store.note_checked({"flickr-1": {"at": "2026-04-01T00:00:00Z", "licence": now, "visible": True}})
    (proof,) = proofs(crawl)
    assert (proof.licence, proof.licence_now) == ("cc-by-2.0", told)


def test_a_photo_in_use_that_is_hidden_now_says_so(crawl: Crawl) -> None:
    """Until it is purged it is in the replay set, so accepted; a refused one keeps its own reason."""
    offered = [candidate("flickr-1"), candidate("flickr-2")]
    crawl.fetch("cow", crawl.search("cow", offered), offered[:1], rejected={"flickr-2": "too-small"})
    row = {"at": "2026-04-01T00:00:00Z", "licence": None, "visible": False}
    crawl.store.note_checked({"flickr-1": row, "flickr-2": row})
    assert words(proofs(crawl)) == {
        "flickr-1": ("accepted", "no longer visible"),
        "flickr-2": ("rejected", "too-small"),
    }


def test_a_damaged_record_of_a_crawl_is_an_error(crawl: Crawl) -> None:
    """No proof is guessed: an object that is gone is said."""
    search = crawl.search("cow", [candidate("flickr-1")])
    record = crawl.store.get(search)
    assert record is not None
    crawl.store.open_object(record.outputs[0].digest).unlink()
    with pytest.raises(StoreError):
        proofs(crawl)
