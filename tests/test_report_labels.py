"""Labels as the report shows them: kept and rejected, with reasons in words, scores, and what was erased."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from test_report import EVIL, Maker, Seen, small_world

from replaygen.plan import Plan
from replaygen.report import sheet, write_report
from replaygen.report.attribution import FLICKR_NOTICE
from replaygen.report.labels import Judgement, judge
from replaygen.report.reasons import percent, words
from replaygen.report.rejected import rejected
from replaygen.report.sheets import MOST_FLICKR, from_flickr, labelled_by, refusals, sheets
from replaygen.report.strips import PAGE_FLICKR, STRIPES, by_turns, groups, judged_sheet, striped
from replaygen.runs.behind import identity
from replaygen.runs.replay import ReplaySet, replay_sets
from replaygen.sample import decode_image, encode_jpeg, encode_png
from replaygen.stages import Inputs, Task
from replaygen.stages.base import Out
from replaygen.store import Store, task_key

U8 = npt.NDArray[np.uint8]
Fill = Callable[[Inputs, Out], None]


# the walk of some samples through a real store, each record written as a task writes it


def picture(i: int, *, second: bool) -> U8:
    """uint8 [80, 100, 3]: a bright square, and a dark one at the right where a second animal stands."""
    image = np.random.default_rng(i).integers(90, 150, (80, 100, 3)).astype(np.uint8)
    image[20:60, 20:50] = (220, 180, 40 + 10 * (i % 10))
    if second:
        image[30:60, 70:90] = (20, 30, 60)
    return image


def without_second(image: U8, _: int) -> U8:
    """The image, filled where the second animal stands."""
    filled = image.copy()
    filled[28:62, 68:92] = 120
    return filled


def square(channel: int) -> U8:
    mask = np.zeros((80, 100), np.uint8)
    mask[20:60, 20:50] = channel
    return mask


def encoded(told: Any) -> bytes:
    return json.dumps(told, sort_keys=True).encode()


@dataclass
class Walk:
    """Writes the records of one class's replay, stage after stage, and adds their tasks to a plan."""

    maker: Maker
    name: str = "cat"
    channel: int = 1
    source: str = "web"
    chain: str = "base/seed0"
    photos: str = "web"
    about: Mapping[str, Any] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return self.maker.store

    def task(self, stage: str, inputs: Sequence[tuple[str, str]], fill: Fill, *, chain: str = "", **params: Any) -> str:
        """Run `fill` as a task of `stage`, publish its record, and plan it."""
        given = {"class_name": self.name, **params}
        key, slot = task_key(stage, 1, given, None, inputs), f"{stage}/{self.source}/{chain or self.chain}/{self.name}"
        planned = Task(key, stage, 1, given, None, tuple(inputs), slot)
        seen, out = Inputs(self.store, planned), Out(self.store, planned)
        fill(seen, out)
        self.store.publish(out.record(seen, {"replaygen": "0.1.0"}, "2026-03-01T10:00:00+00:00", 0.5))
        self.maker.built.add(planned)
        self.made[stage] = key
        return key

    def ids(self, count: int) -> list[str]:
        return [f"{self.name}-{self.photos}-{i:03d}" for i in range(count)]

    def images(self, count: int, **refused: int) -> str:
        """Image shard; every third picture shows a second animal."""

        def fill(_: Inputs, out: Out) -> None:
            items = []
            for i, one in enumerate(self.ids(count)):
                about = {
                    "class": self.name, "source": self.photos, "file": f"{one}.jpg", "licence": "cc-by-2.0",
                    "owner": "Ann Example", "owner_page": "https://example.org/people/ann", "parent": None,
                    "page": f"https://example.org/photos/{one}", "photo": f"{self.photos}-{i}", **self.about,
                }  # fmt: skip
                items.append((one, {"jpg": encode_jpeg(picture(i, second=i % 3 == 0)), "json": encoded(about)}))
                out.accept()
            for reason, number in refused.items():
                for i in range(number):
                    out.reject(f"{self.photos}-{900 + i}", reason.replace("_", "-"))
            if self.photos == "flickr":
                out.provenance = {"photos": {f"flickr-{i}": {} for i in range(count)}}
            out.shard("images", items)

        stage = "fetch" if self.photos in ("flickr", "web") else "photos"
        self.made["images"] = self.task(stage, [], fill, source=self.photos, slice=0, size=64)
        return self.made["images"]

    def select(self, rejected: Mapping[str, Mapping[str, Any]]) -> str:
        def fill(_: Inputs, out: Out) -> None:
            for one, why in rejected.items():
                out.reject(one, why["reason"])
            out.put_json("selection.json", {"kept": [], "rejected": [{"id": o, **w} for o, w in rejected.items()]})

        return self.task("select", [("looks", self.made["images"])], fill)

    def label(self, rejected: Mapping[str, Mapping[str, Any]], *, selection: bool = False, marks: bool = True) -> str:
        """Every image gets the square; confidence falls from picture to picture. Every third has something to erase."""
        images = self.made["images"]

        def fill(inputs: Inputs, out: Out) -> None:
            items = []
            for i, one in enumerate(inputs.shard(inputs.record("images"), "images").ids):
                if one in rejected:
                    why = dict(rejected[one])
                    out.reject(one, why.pop("reason"), **why)
                    continue
                scores = {"share": 0.15, "confidence": round(0.95 - 0.01 * i, 5), "agreement": 0.8}
                told = {"visible": [self.channel], "scores": scores, "labeler": "a"}
                members = {"mask.png": encode_png(square(self.channel)), "label.json": encoded(told)}
                if marks and i % 3 == 0:
                    gone = np.zeros((80, 100), np.uint8)
                    gone[30:60, 70:90], gone[30:40, 70:90] = 1, 2
                    members["erase.png"] = encode_png(gone)
                items.append((one, members))
                out.accept()
            out.shard("labels", items)

        extra = [("selection", self.made["select"])] if selection else []
        key = self.task("label", [("images", images), *extra], fill, min_share=0.02)
        self.made["labels"] = key
        return key

    def trust(self, kept: Sequence[str], rejected: Mapping[str, Mapping[str, Any]], **scores: Mapping[str, Any]) -> str:
        told = {"kept": list(kept), "rejected": [{"id": one, **why} for one, why in rejected.items()],
                "scores": {one: {"trust": round(0.9 - 0.02 * i, 5), "confidence": 0.7, "share": 0.15, "distance": 1.25}
                           for i, one in enumerate([*kept, *rejected])} | scores}  # fmt: skip

        def fill(_: Inputs, out: Out) -> None:
            out.accept(len(kept))
            for one, why in rejected.items():
                out.reject(one, str(why["reason"]))
            out.put_json("selection.json", told)

        return self.task("trust", [("labels", self.made["labels"])], fill)

    def erase(self, refused: Sequence[str] = ()) -> str:
        """The dark square goes; what has none is carried over."""
        source = self.made["images"]

        def fill(inputs: Inputs, out: Out) -> None:
            images = inputs.shard(inputs.record("images"), "images")
            kept = {one for record in inputs.records("trusted")
                    for one in inputs.read_json(record, "selection.json")["kept"]}  # fmt: skip
            new_images, new_labels = [], []
            for one, label in inputs.shard(inputs.record("labels"), "labels"):
                if inputs.records("trusted") and one not in kept:
                    out.reject(one, "untrusted")
                    continue
                if one in refused:
                    out.reject(one, "too-much-to-erase", share=0.62)
                    continue
                out.accept()
                if "erase.png" in label:
                    image = without_second(decode_image(images.read(one, "jpg")), int(one[-3:]))
                    told = {"share": 0.075, "backend": "opencv", "why": {"others": 0.05, "unsure": 0.025}}
                    about = {**json.loads(images.read(one, "json")), "parent": {"shard": source, "id": one},
                             "erased": told}  # fmt: skip
                    new_images.append((one, {"png": encode_png(image), "json": encoded(about)}))
                else:
                    new_images.append((one, {kind: images.read(one, kind) for kind in images.extensions(one)}))
                new_labels.append((one, {kind: label[kind] for kind in ("mask.png", "label.json")}))
            out.shard("images", new_images)
            out.shard("labels", new_labels)

        extra = [("trusted", self.made["trust"])] if "trust" in self.made else []
        inputs = [("images", source), ("labels", self.made["labels"]), *extra]
        self.made["images"] = self.made["labels"] = self.task("erase", inputs, fill)
        return self.made["labels"]

    def knowledge(self, channel: int, step: int) -> str:
        """A strip at the left receives a class that is learnt later."""

        def fill(inputs: Inputs, out: Out) -> None:
            items = []
            for one, members in inputs.shard(inputs.record("labels"), "labels"):
                told = json.loads(members["label.json"])
                told["visible"] = sorted({*told["visible"], channel})
                told["scores"] = {**told["scores"], "knowledge": 0.08}
                mask = square(self.channel)
                mask[:, :8] = channel
                items.append((one, {**members, "mask.png": encode_png(mask), "label.json": encoded(told)}))
                out.accept()
            out.shard("labels", items)

        inputs = [("labels", self.made["labels"]), ("images", self.made["images"])]
        self.made["labels"] = self.task("knowledge", inputs, fill, chain=f"recall/seed0/step{step}", step=step)
        return self.made["labels"]

    def replay(self, wanted: int = 50, *, chain: str = "") -> str:
        """Close the set as the replay stage does: the best where somebody judged, else the first."""

        def fill(inputs: Inputs, out: Out) -> None:
            images, labels = inputs.record("images"), inputs.record("labels")
            ids = inputs.shard(labels, "labels").ids[:wanted]
            shard: dict[str, Any] = {}
            for record in inputs.records("trusted"):
                best = inputs.read_json(record, "selection.json")["kept"]
                there = inputs.shard(labels, "labels").ids
                ids = shard["kept"] = sorted([one for one in best if one in there][:wanted])
            shard["samples"] = len(ids)
            for kind, record in (("images", images), ("labels", labels)):
                shard[kind] = record.output(f"{kind}.tar").digest
                shard[f"{kind}_index"] = record.output(f"{kind}.index.json").digest
            out.accept(len(ids))
            manifest = {"class": self.name, "channel": self.channel, "samples": len(ids), "wanted": wanted,
                        "shortfall": max(0, wanted - len(ids)), "shards": [shard]}  # fmt: skip
            out.put_json("manifest.json", manifest)

        trusted = [("trusted", self.made["trust"])] if "trust" in self.made else []
        inputs = [("images", self.made["images"]), ("labels", self.made["labels"]), *trusted]
        return self.task("replay", inputs, fill, chain=chain, channel=self.channel, wanted=wanted)


def whole(maker: Maker, count: int = 24, erase: bool = True, **changes: Any) -> Walk:
    """All of the walk: two refused at the door, two by the labeler, six by the screens on labels, one while erasing."""
    walk = Walk(maker, **changes)
    walk.images(count, too_small=3)
    ids = walk.ids(count)
    walk.select({ids[1]: {"reason": "exact-duplicate", "of": ids[0], "distance": 0}, ids[2]: {"reason": "leak"}})
    walk.label({
        ids[1]: {"reason": "screened"}, ids[2]: {"reason": "screened"}, ids[4]: {"reason": "class-absent"},
        ids[5]: {"reason": "area-too-small", "share": 0.004},
    }, selection=True)  # fmt: skip
    refused: dict[str, dict[str, Any]] = {
        ids[7]: {"reason": "area-too-small", "value": 0.004, "limit": [0.021, 0.71]},
        ids[8]: {"reason": "unsure", "value": 0.52, "limit": 0.61},
        ids[10]: {"reason": "unsure", "value": 0.41, "limit": 0.61},
        ids[11]: {"reason": "atypical", "value": 3.44, "limit": 2.7},
        ids[13]: {"reason": "near-duplicate", "of": ids[6]}, ids[14]: {"reason": "not-among-best"},
    }  # fmt: skip
    rest = [ids[0], ids[3], *(one for one in ids[6:] if one not in refused)]
    walk.trust(rest[::-1], refused)
    if erase:
        walk.erase(refused=[ids[3]])
    walk.replay()
    return walk


def judged(plan: Plan, slot: str = "replay/web/base/seed0/cat") -> Judgement:
    return judge(replay_sets(plan)[slot], "base/seed0")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    maker = Maker(tmp_path_factory.mktemp("store"), small_world())
    whole(maker)
    return maker.plan()


@pytest.fixture(scope="module")
def page(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(plan, tmp_path_factory.mktemp("out") / "run.html").read_text(encoding="utf-8")


# the judgement


def test_every_sample_is_kept_or_has_a_reason(plan: Plan) -> None:
    """Nothing vanishes from the counts, from the pictures that never came to what was lost while erasing."""
    told = judged(plan)
    assert {(one.reason, one.at): one.samples for one in told.reasons} == {
        ("too-small", "source"): 3, ("exact-duplicate", "door"): 1, ("leak", "door"): 1, ("class-absent", "label"): 1,
        ("area-too-small", "label"): 1, ("area-too-small", "trust"): 1, ("unsure", "trust"): 2,
        ("atypical", "trust"): 1, ("near-duplicate", "trust"): 1, ("not-among-best", "trust"): 1,
        ("too-much-to-erase", "erase"): 1,
    }  # fmt: skip
    assert (told.looked, len(told.kept), len(told.rejected)) == (27, 13, 11)
    assert len({one.id for one in (*told.kept, *told.rejected)}) == 24
    assert told.trusted
    assert told.erasing
    assert [one.state for one in told.rejected].count("screened") == 2


def test_kept_stand_best_first_and_rejected_by_reason_and_score(plan: Plan) -> None:
    """The order of the selection for what is kept; the most frequent reason first for what is not."""
    told = judged(plan)
    scores = [one.score or 0 for one in told.kept]
    assert scores == sorted(scores, reverse=True)
    assert told.kept[0].id == "cat-web-023"
    assert next(iter(told.kept[0].scores)) == "trust"
    assert [one.reason for one in told.rejected][:2] == ["unsure", "unsure"]
    assert (told.rejected[0].score or 0) > (told.rejected[1].score or 0)
    by_score = told.by_score()
    known = [one.score for one in by_score if one.score is not None]
    assert known == sorted(known, reverse=True)
    assert all(one.score is None for one in by_score[len(known) :])


def test_values_and_limits_come_with_their_words(plan: Plan) -> None:
    """What the class covers beside what real ones cover; a limit of the recipe is told as one."""
    by_id = {one.id: one for one in judged(plan).rejected}
    learnt, given = by_id["cat-web-007"], by_id["cat-web-005"]
    assert learnt.words == "the class covers 0.4 % of the picture; real ones of this class cover 2.1 to 71 %"
    assert (learnt.value, learnt.limit) == (0.004, (0.021, 0.71))
    assert given.words == "the class covers 0.4 % of the picture; the recipe asks for at least 2 %"
    assert (given.value, given.limit, given.at) == (0.004, 0.02, "label")
    assert by_id["cat-web-008"].words == "the labeler is unsure: mean confidence 0.52, at least 0.61 is asked"
    assert by_id["cat-web-013"].words == "nearly the same picture as cat-web-006"
    assert by_id["cat-web-003"].words == "62 % would have to be erased"
    assert by_id["cat-web-001"].words == "the same file as another: cat-web-000"


def test_erased_shares_are_those_of_the_kept_images(plan: Plan) -> None:
    """Each third picture lost its second animal; what was refused lost nothing."""
    found = judged(plan).erased
    assert {int(one.id[-3:]) % 3 for one in found} == {0}
    assert len(found) == 7
    assert found[0].erased is not None
    assert (found[0].erased.share, found[0].erased.why) == (0.075, {"others": 0.05, "unsure": 0.025})


def test_without_screens_on_labels_the_labeler_has_the_last_word(tmp_path: Path) -> None:
    """Confidence is the score, best first, and what the set does not take is left over."""
    maker = Maker(tmp_path, small_world())
    walk = Walk(maker)
    walk.images(6)
    walk.label({"cat-web-002": {"reason": "class-absent"}})
    walk.replay(wanted=3)
    told = judged(maker.plan())
    assert [one.id[-3:] for one in told.kept] == ["000", "001", "003"]
    assert told.kept[0].score == 0.95
    assert [(one.id[-3:], one.reason, one.at) for one in told.rejected] == [
        ("004", "more-than-wanted", "set"), ("005", "more-than-wanted", "set"), ("002", "class-absent", "label"),
    ]  # fmt: skip
    assert not told.trusted


def test_the_set_takes_the_best_and_leaves_the_others_over(tmp_path: Path) -> None:
    """What was trusted and not wanted any more has a reason, too."""
    maker = Maker(tmp_path, small_world())
    walk = Walk(maker)
    walk.images(6)
    walk.label({})
    walk.trust([f"cat-web-{i:03d}" for i in (5, 1, 3)], {f"cat-web-{i:03d}": {"reason": "unsure"} for i in (0, 2, 4)})
    walk.replay(wanted=2)
    told = judged(maker.plan())
    assert [one.id[-3:] for one in told.kept] == ["005", "001"]
    assert [(one.id[-3:], one.at) for one in told.rejected if one.reason == "more-than-wanted"] == [("003", "set")]


def test_sets_that_later_steps_added_to_are_told_once(tmp_path: Path) -> None:
    """Knowledge of later steps changes the labels, not what was judged: the last labels are shown."""
    maker = Maker(tmp_path, small_world())
    walk = whole(maker)
    walk.knowledge(2, 1)
    walk.replay(chain="recall/seed0/step1")
    walk.knowledge(3, 2)
    walk.replay(chain="recall/seed0/step2")
    plan = maker.plan()
    sets = replay_sets(plan)
    assert len(sets) == 3
    assert len({identity(one) for one in sets.values()}) == 1
    (group,) = groups(plan, 0)
    assert group.judgement.kept[0].scores["knowledge"] == 0.08
    assert [name for name, _ in group.legend] == ["cat", "bus"]
    (shown,) = sheets(plan, 0)
    assert shown.labelled == ("the step-0 model, seed 0",)
    assert group.labelled == "the step-0 model, seed 0"
    assert labelled_by("replay/web/recall/seed0/step2/cat", {"source": "web", "class": "cat"}) == "recall/seed0"


def test_a_sheets_refusals_are_counted_once(plan: Plan) -> None:
    """Whoever passes on what an earlier stage refused gives no second reason."""
    (found,) = replay_sets(plan).values()
    assert refusals(found) == {
        "too-small": 3, "area-too-small": 2, "unsure": 2, "exact-duplicate": 1, "leak": 1, "class-absent": 1,
        "atypical": 1, "near-duplicate": 1, "not-among-best": 1, "too-much-to-erase": 1,
    }  # fmt: skip


# the words


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (words("area-too-large", 0.93, (0.021, 0.71)),
         "the class covers 93 % of the picture; real ones of this class cover 2.1 to 71 %"),
        (words("area-too-small", 0.0002, 0.02),
         "the class covers less than 0.1 % of the picture; real ones of this class cover at least 2 %"),
        (words("area-too-small"), "the class covers too little of the picture"),
        (words("views-disagree", 0.4, 0.6),
         "two looks at the picture disagree: agreement 0.40, at least 0.60 is asked"),
        (words("atypical", 0.25), "unlike real ones of this class: likeness 0.25"),
        (words("not-like-real", 0.1, 0.5),
         "told apart from real ones of this class: likeness 0.10, at least 0.50 is asked"),
        (words("not-among-best", 71, 64), "place 71; the first 64 are kept"),
        (words("not-among-best", 0.4, 0.5), "score 0.40; the last that is kept has 0.50"),
        (words("not-among-best", 0.4, 64), "the best 64 are kept; its score is 0.40"),
        (words("not-among-best"), "others of this class are better"),
        (words("mostly-text", 0.4), "text covers 40 % of the picture"),
        (words("inpainter-timeout"), "nothing could be erased: inpainter timeout"),
        (words("some-new-screen", 0.4, 0.5), "some new screen: value 0.40, at least 0.50 is asked"),
        (words("some-new-screen", 0.6, 0.5), "some new screen: value 0.60, at most 0.50 is asked"),
        (words("atypical", 0.2, 0.3), "unlike real ones of this class: likeness 0.20, at least 0.30 is asked"),
        (words("some-new-screen"), "some new screen"),
    ],
)  # fmt: skip
def test_reasons_are_told_in_plain_words(told: str, expected: str) -> None:
    """With value and limit where they are known, also for screens that this room has never heard of."""
    assert told == expected


def test_percent_is_short() -> None:
    """One decimal below ten."""
    assert [percent(share) for share in (0, 0.0001, 0.004, 0.021, 0.0999, 0.71, 1)] == [
        "0 %", "less than 0.1 %", "0.4 %", "2.1 %", "10 %", "71 %", "100 %",
    ]  # fmt: skip


# the page


def section(page: str) -> str:
    return page.partition('<section id="labels">')[2].partition("</section>")[0]


def text_of(page: str) -> str:
    return " ".join(" ".join(Seen(section(page)).text).split())


def test_page_has_a_section_of_labels(page: str) -> None:
    """Counts by reason, the best and the last of the kept, the rejected with reasons, pairs before and after."""
    text = text_of(page)
    assert "cat web 27 13" in text
    assert "too-small 3, unsure 2, area-too-small 2, exact-duplicate 1" in text
    for title in ("Kept, the best by trust", "Kept, the last", "Rejected 9 samples", "Erased before and after"):
        assert title in text
    assert "trust 0.90" in text
    assert "real ones of this class cover 2.1 to 71 %" in text
    assert "7.5 % erased: others 5 %, unsure 2.5 %" in text
    assert '<a href="#labels">Labels</a>' in page


def test_page_shows_few_of_each(page: str) -> None:
    """Six a strip at most, one of each reason before the second of any, none from the door."""
    strips = section(page).split('<h3 class="rg-strip">')[1:]
    assert [strip.count("<li data-sample") for strip in strips] == [6, 6, 6, 3]
    refused = re.findall('data-sample="cat-web-(...)"', strips[2])
    assert len(set(refused)) == 6
    assert not {"001", "002"} & set(refused)


def test_every_picture_has_an_alternative(page: str) -> None:
    """What it is, by whom, and what is shown; only overlays stand without words."""
    seen = Seen(section(page))
    pictures = [told for tag, told in seen.tags if tag == "img"]
    spoken = [told["alt"] for told in pictures if told.get("class") != "rg-mask"]
    assert all(told["alt"] == "" for told in pictures if told.get("class") == "rg-mask")
    assert all("photo by Ann Example, CC BY 2.0" in alt for alt in spoken)
    assert any(alt.endswith("rejected, unsure: the labeler is unsure: mean confidence 0.52, at least 0.61 is asked")
               for alt in spoken)  # fmt: skip
    assert any(alt.startswith("before: ") for alt in spoken)
    assert any(alt.startswith("after: ") and alt.endswith("labelled cat") for alt in spoken)


def test_page_stays_inside_itself_with_the_section(page: str) -> None:
    """Links lead to the photos' pages; nothing is fetched; ids are unique; headings have no gap."""
    seen = Seen(page)
    assert all(address.startswith("data:") for address in seen.attributes("src"))
    assert all(address.startswith(("data:", "#", "https://")) for address in seen.attributes("href"))
    ids = list(seen.attributes("id"))
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in Seen(section(page)).tags if re.fullmatch("h[1-6]", tag)] == ["h2", *["h3"] * 4]


def test_page_is_the_same_every_time(plan: Plan, page: str, tmp_path: Path) -> None:
    """Equal records give equal bytes."""
    assert write_report(plan, tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_page_without_judged_labels_has_no_such_section(tmp_path: Path) -> None:
    """Neither section nor link; what the labeler refused stands under Rejected."""
    maker = Maker(tmp_path / "store", small_world())
    walk = Walk(maker)
    walk.images(6)
    walk.label({"cat-web-002": {"reason": "class-absent"}})
    walk.replay(wanted=3)
    text = write_report(maker.plan(), tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'href="#labels"' not in text
    (found,) = [one for one in Seen(text).tags if one[1].get("data-reason")]
    assert found[1] == {"data-sample": "cat-web-002", "data-reason": "class-absent", "data-class": "cat"}
    assert not list(Seen(text).attributes("data-filter"))  # one reason and one class: nothing to choose


def test_screens_without_erasing_have_a_section_too(tmp_path: Path) -> None:
    """Then there is no strip of pairs."""
    maker = Maker(tmp_path / "store", small_world())
    whole(maker, erase=False)
    text = text_of(write_report(maker.plan(), tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Kept, the best" in text
    assert "Erased" not in text


def test_hostile_text_makes_no_element(tmp_path: Path, page: str) -> None:
    """Class, file, owner, title and licence come from outside and stay text."""
    world = small_world(names=("background", EVIL[0], EVIL[1] + EVIL[3], EVIL[2]))
    maker = Maker(tmp_path / "store", world)
    nasty = {"file": EVIL[3] + EVIL[5], "owner": EVIL[2], "licence": EVIL[0], "page": "javascript:alert(1)",
             "owner_page": "https://user@evil.example/", "class": EVIL[0]}  # fmt: skip
    whole(maker, about=nasty)
    found = replay_sets(maker.plan())
    assert found
    text = write_report(maker.plan(), tmp_path / "page.html").read_text(encoding="utf-8")
    seen, usual = Seen(text), Seen(page)
    assert {tag for tag, _ in seen.tags} <= {tag for tag, _ in usual.tags}
    assert seen.scripts == usual.scripts
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]
    assert not any("evil" in address or "javascript" in address for address in seen.attributes("href", "src"))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert not [one for one in seen.text if one.strip().startswith(("=", "+", "@"))]


def test_rejected_images_are_shown_by_reason_and_counted(plan: Plan, page: str) -> None:
    """Each reason has its samples and how many of them are shown; each shown one says its reason and its class."""
    told = rejected(plan, 0)
    assert told is not None
    shown = [attributes["data-reason"] for _, attributes in Seen(page).tags if "data-reason" in attributes]
    assert {cause.reason: cause.shown for cause in told.causes if cause.shown} == Counter(shown) == told.reasons
    assert told.samples == sum(cause.samples for cause in told.causes) > len(shown)
    (small,) = [cause for cause in told.causes if cause.reason == "too-small"]
    assert (small.samples, small.shown, small.where) == (3, 0, "before there was an image")
    assert told.names == ("cat",)


# the terms of Flickr


@pytest.fixture(scope="module")
def flickr_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    maker = Maker(tmp_path_factory.mktemp("flickr"), small_world())
    for channel, name in ((1, "cat"), (2, "cow"), (3, "bus")):
        whole(maker, name=name, channel=channel, photos="flickr")
    return maker.plan()


def test_page_shows_thirty_photos_of_flickr_with_the_section(flickr_plan: Plan, tmp_path: Path) -> None:
    """Strips and sheets share what a page may show; images that were changed are still photos of Flickr."""
    assert all(from_flickr(one) for one in replay_sets(flickr_plan).values())
    text = write_report(flickr_plan, tmp_path / "page.html").read_text(encoding="utf-8")
    shown, strips = re.findall('data-sample="([^"]*)"', text), re.findall('data-sample="([^"]*)"', section(text))
    assert len(set(strips)) == PAGE_FLICKR
    assert len(shown) - len(strips) + len(set(strips)) == MOST_FLICKR
    assert {name.partition("-")[0] for name in strips} == {"cat", "cow", "bus"}
    assert "A page shows 30 photos of Flickr at most." in text_of(text)
    assert FLICKR_NOTICE in text_of(text)


def test_few_photos_still_show_some_of_each_kind(flickr_plan: Plan) -> None:
    """Five photos a class: kept, rejected and erased are all there."""
    for group in groups(flickr_plan, 0):
        assert group.flickr == 5
        assert {strip.title for strip in group.strips} == {"Kept, the best", "Kept, the last", "Rejected", "Erased"}


def test_a_sheet_of_its_own_keeps_to_thirty(tmp_path: Path) -> None:
    """Kept, rejected and erased together, with the notice."""
    maker = Maker(tmp_path / "store", small_world())
    whole(maker, 60, photos="flickr")
    shown = judged_sheet(judged(maker.plan()))
    ids = [look.one.id for strip in shown.strips for look in strip.looks]
    assert len(set(ids)) + len(shown.tiles) == shown.flickr <= MOST_FLICKR
    text = shown.save(tmp_path / "cat.html").read_text(encoding="utf-8")
    assert FLICKR_NOTICE in text


# the sheet


def test_a_sheet_of_rejected_has_a_strip_a_reason(plan: Plan, tmp_path: Path) -> None:
    """In the order of the counts, with the picture, the label where there is one, words and scores."""
    shown = judged_sheet(judged(plan), labelled=["the step-0 model, seed 0"])
    titles = [strip.title for strip in shown.strips]
    assert titles[0] == "Rejected: unsure"
    assert titles[-1] == "Erased"
    assert (len(shown.strips[0].looks), shown.strips[0].more) == (2, 0)
    looks = {look.one.id[-3:]: look for strip in shown.strips for look in strip.looks}
    assert looks["004"].label is None
    assert looks["008"].label is not None
    text = shown.save(tmp_path / "cat.html").read_text(encoding="utf-8")
    assert "Rejected: near-duplicate" in text
    assert all(one.startswith("data:") for one in Seen(text).attributes("src"))


def test_a_limit_takes_some_of_each_reason(plan: Plan) -> None:
    """The first of each reason come before the second of any."""
    told = judged(plan)
    taken = by_turns(told.rejected, 3)
    assert len({one.reason for one in taken}) == 3
    shown = judged_sheet(told, 3)
    assert sum(len(strip.looks) for strip in shown.strips if not strip.pairs) == 3


def test_a_sheet_without_judgement_is_as_it_was(plan: Plan, tmp_path: Path) -> None:
    """The plain sheet of a judged set brings no strips and no style of theirs."""
    (found,) = replay_sets(plan).values()
    assert "rg-strip" not in sheet(found).save(tmp_path / "plain.html").read_text(encoding="utf-8")


def test_stripes_lie_where_something_was_erased() -> None:
    """Clear where nothing was; black and white, or grey and white, elsewhere."""
    import base64
    import io

    from PIL import Image

    mask = np.zeros((40, 60), np.uint8)
    mask[:10], mask[30:] = 1, 2
    thumb = striped(mask)
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(thumb.uri.split(",")[1]))))
    assert shown.shape == (40, 60, 4)
    assert not shown[10:30, :, 3].any()
    assert {tuple(pixel) for pixel in shown[:10].reshape(-1, 4)} == {(0, 0, 0, 255), (255, 255, 255, 255)}
    assert {tuple(pixel) for pixel in shown[30:].reshape(-1, 4)} == {(120, 120, 120, 255), (255, 255, 255, 255)}
    assert (shown[0, :STRIPES, 0] == 0).all()


def test_a_set_without_its_record_of_images_is_told_as_far_as_it_stands(tmp_path: Path) -> None:
    """A purge may take what a set was made of; nothing breaks."""
    maker = Maker(tmp_path, small_world())
    maker.replay("web", "base/seed0", 1, hashlib.sha256(b"model").hexdigest())
    (found,) = replay_sets(maker.plan()).values()
    assert isinstance(found, ReplaySet)
    told = judge(found)
    assert len(told.kept) == 30
    assert {(one.reason, one.at): one.samples for one in told.reasons} == {
        ("class-absent", "label"): 5, ("unreadable", "source"): 2,
    }  # fmt: skip
