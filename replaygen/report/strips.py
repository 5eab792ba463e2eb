"""Judged samples as people look at them: strips of the best kept, the last kept, the rejected, and what was erased."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from replaygen.report.attribution import FLICKR_NOTICE
from replaygen.report.colors import class_color
from replaygen.report.examples import shows
from replaygen.report.labels import Judged, Judgement, judge
from replaygen.report.pictures import Thumb, overlay, photo
from replaygen.report.reasons import percent
from replaygen.report.sheets import (
    MOST_FLICKR,
    Credit,
    Sheet,
    Told,
    class_name,
    credit,
    from_flickr,
    labels_in,
    sheet,
    spoken,
    told_once,
)
from replaygen.report.text import number, plain, plural
from replaygen.runs.behind import Slice, is_judged, open_shard
from replaygen.sample import decode_image, decode_mask, encode_png

if TYPE_CHECKING:
    from replaygen.plan import Plan
    from replaygen.sample import Image8, Mask8
    from replaygen.store import Record, Shard

FEW = 6
"""Samples in a strip of the report's page at most."""

PAGE_TILES = 360
"""Samples in all strips of a page, about; many classes show fewer each."""

MOST_REJECTED = 48
"""Rejected samples on a contact sheet, unless another number is asked for; `PAGE_TILES` at most."""

KEPT_BESIDE = 12
"""Samples of the set on such a sheet, for comparison."""

PAGE_FLICKR = MOST_FLICKR // 2
"""Photos of Flickr in the report's strips; its sheets show the others that a page may."""

PICTURES = ("png", "jpg", "webp")
"""How an image may be encoded in a shard."""

STRIPES = 3
"""Width in pixels of the stripes over what was erased."""


@dataclass(frozen=True)
class Look:
    """One judged sample with its pictures.

    Attributes:
        label: over `image`; None where it was refused without a label.
        before: the image before something was erased, None where nothing was; `removed`: what was, as stripes over it.
        head, words, scores: the caption; the head stands in bold.
    """

    one: Judged
    image: Thumb
    label: Thumb | None
    before: Thumb | None
    removed: Thumb | None
    head: str
    words: str
    scores: str
    alt: str
    credit: Credit


@dataclass(frozen=True)
class Strip:
    """Some samples under a title; `more`: how many of the kind are not shown."""

    title: str
    note: str
    looks: tuple[Look, ...]
    more: int = 0
    pairs: bool = False

    @property
    def across(self) -> int:
        """How many tiles wide it is where there is room."""
        return len(self.looks) * (2 if self.pairs else 1)


@dataclass(frozen=True)
class Group:
    """What the page shows of one judged replay set.

    Attributes:
        labelled: who labelled it, in words.
        legend: (class name, #rrggbb) of every class in the labels shown.
        flickr: photos of Flickr in it; fewer: whether some are not shown because a page shows so many at most.
    """

    judgement: Judgement
    labelled: str
    strips: tuple[Strip, ...]
    legend: tuple[tuple[str, str], ...]
    flickr: int
    fewer: bool

    @property
    def notice(self) -> str:
        """What the terms of a source ask to say where its photos are shown; "" where nothing."""
        return FLICKR_NOTICE if self.flickr else ""

    @property
    def unlicensed(self) -> bool:
        """Whether some that are shown have no licence on record."""
        return any(look.credit.unlicensed for strip in self.strips for look in strip.looks)

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """(kind, samples) of the bar: kept, rejected by the label, refused before it had one, left over."""
        told = self.judgement
        return (("kept", len(told.kept)), ("label", told.refused("label", "trust", "erase")),
                ("door", told.refused("source", "door")), ("over", told.refused("set")))  # fmt: skip


# the report's section


def groups(plan: Plan, seed: int) -> list[Group]:
    """Every judged replay set of a plan and seed: of each class and source the first; none where none was judged.

    All together show `PAGE_FLICKR` photos of Flickr at most, spread evenly.

    Raises:
        StoreError, DataError: an object is missing or damaged.
    """
    found = _judged(plan, seed)
    few = max(2, min(FEW, PAGE_TILES // (4 * max(1, len(found)))))
    waiting, left = sum(from_flickr(one.replay_set) for one in found), PAGE_FLICKR
    drawn = []
    for one in found:
        judgement = judge(one.replay_set, one.chains[0])
        pictures = Pictures(judgement, -(-left // max(1, waiting)))
        strips = tuple(strip for strip in _few(pictures, few) if strip.looks)
        drawn.append(
            Group(judgement, spoken(judgement.labelled), strips, pictures.legend(), pictures.flickr, pictures.fewer)
        )
        left -= pictures.flickr
        waiting -= from_flickr(one.replay_set)
    return drawn


def _judged(plan: Plan, seed: int) -> list[Told]:
    """The first judged set of each class and source, in the order of channels."""
    from replaygen.runs.replay import replay_sets

    first: dict[tuple[str, str], Told] = {}
    for one in told_once(replay_sets(plan), seed):
        if is_judged(one.replay_set):
            first.setdefault((str(one.replay_set.manifest["class"]), one.replay_set.source), one)
    return sorted(first.values(), key=lambda one: int(one.replay_set.manifest["channel"]))


def _few(pictures: Pictures, few: int) -> Iterable[Strip]:
    """The strips of a class on the report's page."""
    told = pictures.judgement
    best, last = told.kept[:few], told.kept[few:][-few:]
    refused = by_turns([one for one in told.rejected if one.at not in ("door", "set")], few)
    erased = told.erased[: max(1, few // 2)]
    # one of each kind before the second of any: a page may show few photos of some sources
    lines = {"best": best, "last": last[::-1], "refused": refused, "erased": erased}
    taken: dict[str, list[Judged]] = {name: [] for name in lines}
    for place in range(few):
        for name, line in lines.items():
            if place < len(line) and pictures.may(line[place]):
                taken[name].append(line[place])
    every = told.refused("label", "trust", "erase")
    score = "by trust" if told.trusted else "by the labeler's confidence"
    yield Strip("Kept, the best", score, pictures.looks(taken["best"]))
    yield Strip("Kept, the last", "the lowest scores that still passed", pictures.looks(taken["last"]))
    yield Strip("Rejected", f"{plural(every, 'sample')}, some of each reason",
                pictures.looks(_in_order(told.rejected, taken["refused"]), mixed=True))  # fmt: skip
    yield Strip("Erased", "before and after; what went is striped", pictures.looks(taken["erased"]),
                pairs=True)  # fmt: skip


def by_turns(found: Sequence[Judged], most: int) -> list[Judged]:
    """At most so many samples, one of each reason in turn, the order within a reason kept."""
    lines: dict[tuple[str, str], list[Judged]] = {}
    for one in found:
        lines.setdefault((one.reason, one.at), []).append(one)
    turns = [(place, i, one) for i, line in enumerate(lines.values()) for place, one in enumerate(line)]
    return [one for _, _, one in sorted(turns, key=lambda turn: turn[:2])[:most]]


def _in_order(order: Sequence[Judged], taken: Sequence[Judged]) -> list[Judged]:
    ids = {one.id for one in taken}
    return [one for one in order if one.id in ids]


# a contact sheet of its own


def judged_sheet(
    judgement: Judgement, limit: int | None = None, *, labelled: Sequence[str] = (), flickr: int = MOST_FLICKR
) -> Sheet:  # fmt: skip
    """A contact sheet with the rejected samples of a set, a strip a reason, best score first, and what was erased.

    Args:
        limit: rejected samples shown, `MOST_REJECTED` unless another number is asked for; some of each reason.
        labelled: who labelled it, to be printed.
        flickr: photos of Flickr that may be shown, two thirds of them in the strips, at most 30 whatever is asked for.
    """
    flickr = max(0, min(flickr, MOST_FLICKR))
    most = max(0, min(MOST_REJECTED if limit is None else limit, PAGE_TILES))
    pictures = Pictures(judgement, -(-flickr * 2 // 3))
    chosen = _in_order(judgement.rejected, [one for one in by_turns(judgement.rejected, most) if pictures.may(one)])
    erased = [one for one in judgement.erased[:FEW] if pictures.may(one)]
    strips = []
    for reason in judgement.reasons:
        looks = pictures.looks([one for one in chosen if (one.reason, one.at) == (reason.reason, reason.at)])
        strips.append(Strip(f"Rejected: {reason.reason}", f"{plural(reason.samples, 'sample')}, {WHERE[reason.at]}",
                            looks, reason.samples - len(looks)))  # fmt: skip
    strips.append(Strip("Erased", "before and after; what went is striped", pictures.looks(erased),
                        len(judgement.erased) - len(erased), pairs=True))  # fmt: skip
    shown = sheet(judgement.replay_set, KEPT_BESIDE, labelled=labelled, flickr=flickr - pictures.flickr)
    return replace(
        shown, strips=tuple(strip for strip in strips if strip.looks),
        flickr=shown.flickr + pictures.flickr, fewer=shown.fewer or pictures.fewer,
        legend=tuple(dict.fromkeys([*shown.legend, *pictures.legend()])),
        unlicensed=shown.unlicensed + sum(look.credit.unlicensed for strip in strips for look in strip.looks),
    )  # fmt: skip


WHERE: Mapping[str, str] = {
    "source": "before there was an image", "door": "at the door", "label": "by the labeler",
    "trust": "by the screens on labels", "erase": "while erasing", "set": "left over",
}  # fmt: skip
"""Where a sample was refused, in words."""


# pictures


class Pictures:
    """Reads the pictures of judged samples, and keeps count of what a page may show."""

    def __init__(self, judgement: Judgement, flickr: int) -> None:
        self.judgement, self.store = judgement, judgement.replay_set.store
        self.names = judgement.replay_set.names
        self.fewer = False
        self._left, self._photos = flickr, set[str]()
        self._shards: dict[tuple[str, str], Shard] = {}
        self._channels: set[int] = set()

    @property
    def flickr(self) -> int:
        """Photos of Flickr that are shown."""
        return len(self._photos)

    def may(self, one: Judged) -> bool:
        """Whether a sample may be shown; a photo of Flickr counts once, however often it is shown."""
        if self._about(one).get("source") != "flickr" or one.id in self._photos:
            return True
        if len(self._photos) >= self._left:
            self.fewer = True
            return False
        self._photos.add(one.id)
        return True

    def legend(self) -> tuple[tuple[str, str], ...]:
        """(class name, #rrggbb) of the classes in the labels read so far."""
        return tuple((class_name(self.names, channel), class_color(channel)) for channel in sorted(self._channels))

    def looks(self, chosen: Iterable[Judged], *, mixed: bool = False) -> tuple[Look, ...]:
        """Pictures and words; `mixed`: of several reasons, so that each is headed by its own, not by a score."""
        return tuple(self._look(one, mixed) for one in chosen)

    def _look(self, one: Judged, mixed: bool) -> Look:
        part = self.judgement.slices[one.slice]
        kept, erased = one.state == "kept", one.erased is not None
        label = self._mask(part.last_labels if kept else part.labels, one.id)
        image = self._image(part.last_images if kept else part.images, one.id)
        before = self._image(part.images, one.id) if erased else None
        self._channels |= set(shows([label])) if label is not None else set()
        shown = [f"labelled {labels_in(label, self.names)}"] if label is not None else ["no label"]
        if not kept:
            shown.append(f"{one.state}, {one.reason}: {one.words}")
        origin = credit(self._about(one), one.id)
        return Look(
            one, photo(image), overlay(label) if label is not None else None,
            photo(before) if before is not None else None,
            striped(self._gone(part, one.id, before, image)) if before is not None else None,
            one.reason if mixed else told_score(one), told_erased(one) if kept else one.words,
            told_scores(one, leading=not mixed), origin.alt(*shown), origin,
        )  # fmt: skip

    def _about(self, one: Judged) -> dict[str, Any]:
        found = self._shard(self.judgement.slices[one.slice].images, "images")
        about: dict[str, Any] = json.loads(found.read(one.id, "json"))
        return about

    def _image(self, record: Record, sample: str) -> Image8:
        found = self._shard(record, "images")
        kind = next(ending for ending in PICTURES if ending in found.extensions(sample))
        return decode_image(found.read(sample, kind), where=sample)

    def _mask(self, record: Record, sample: str) -> Mask8 | None:
        found = self._shard(record, "labels")
        return decode_mask(found.read(sample, "mask.png"), where=sample) if sample in found else None

    def _gone(self, part: Slice, sample: str, before: Image8, after: Image8) -> Mask8:
        """Which pixels changed: 0 none, 2 where the labeler was unsure, 1 for another reason."""
        import numpy as np

        found = self._shard(part.labels, "labels")
        gone: Mask8 = (before != after).any(axis=2).astype(np.uint8)
        if sample in found and "erase.png" in found.extensions(sample):
            marks = decode_mask(found.read(sample, "erase.png"), where=sample)
            if marks.shape == gone.shape:
                gone[(gone > 0) & (marks == 2)] = 2
        return gone

    def _shard(self, record: Record, name: str) -> Shard:
        place = (record.key, name)
        if place not in self._shards:
            self._shards[place] = open_shard(self.store, record, name)
        return self._shards[place]


def striped(mask: Mask8, side: int = 128) -> Thumb:
    """What was erased, as stripes: black and white, grey and white where the labeler was unsure.

    Args:
        mask: uint8 [H, W]; 0 kept, 1 erased, 2 erased where the labeler was unsure.
        side: the longer side at most, in pixels; never enlarged.
    """
    import numpy as np
    from markupsafe import Markup
    from PIL import Image

    small = Image.fromarray(mask)
    small.thumbnail((side, side), Image.Resampling.NEAREST)
    marked = np.array(small)
    down, across = np.indices(marked.shape)
    dark = (down + across) // STRIPES % 2 == 0
    painted = np.full((*marked.shape, 4), 255, np.uint8)
    painted[dark & (marked == 1), :3] = 0
    painted[dark & (marked == 2), :3] = 120
    painted[marked == 0] = 0
    address = "data:image/png;base64," + base64.b64encode(encode_png(painted)).decode()
    return Thumb(Markup(address), marked.shape[1], marked.shape[0])


def told_score(one: Judged) -> str:
    """ "trust 0.93"; the labeler's confidence where nobody judged further; "" where neither is known."""
    name = "trust" if "trust" in one.scores else "confidence"
    return f"{name} {number(one.score, 2)}" if one.score is not None else ""


def told_erased(one: Judged) -> str:
    """What was erased, and why; "" where nothing was."""
    if one.erased is None:
        return ""
    why = [f"{plain(name)} {percent(share)}" for name, share in one.erased.why.items() if share > 0]
    return f"{percent(one.erased.share)} erased" + (f": {', '.join(why)}" if why else "")


def told_scores(one: Judged, *, leading: bool) -> str:
    """The scores in words, the area first; `leading`: the first of `told_score` stands elsewhere."""
    names = sorted(one.scores, key=lambda name: (name != "share", name not in ("trust", "confidence", "agreement")))
    told = "trust" if "trust" in one.scores else "confidence"
    return " · ".join(_told(name, one.scores[name]) for name in names if not (leading and name == told))


def _told(name: str, value: float) -> str:
    if name in _SHARES:
        return f"{_SHARES[name]} {percent(value)}"
    return f"{plain(name)} {number(value, 2)}"


_SHARES = {"share": "covers", "knowledge": "filled later", "other": "other class"}
"""Scores that are shares of the picture or of the label, in words."""
