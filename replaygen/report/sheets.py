"""Contact sheets: what a replay set looks like, with its labels, counts and sources."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.report.attribution import FLICKR_NOTICE, link
from replaygen.report.choice import Replay, chosen, told_choice
from replaygen.report.colors import class_color
from replaygen.report.examples import shows
from replaygen.report.files import write_text
from replaygen.report.labels import judge
from replaygen.report.pictures import Thumb, overlay, photo
from replaygen.report.text import cut, few, plain
from replaygen.runs.behind import ancestors, identity, is_judged
from replaygen.runs.proof import licence_told
from replaygen.runs.replay import ReplaySample, ReplaySet

if TYPE_CHECKING:
    from replaygen.plan import Plan
    from replaygen.report.strips import Strip
    from replaygen.sample import Mask8

MOST_SAMPLES = 60
"""Samples on a sheet at most: a sheet is for looking, and no gallery of other people's photos."""

SHEET_SAMPLES = 24
"""Samples on a sheet unless another number is asked for, and of a longer one those that are seen at once."""

PAGE_SAMPLES = 480
"""Samples on a whole page at most; many sheets show fewer each."""

MOST_FLICKR = 30
"""Photos of Flickr on a whole page at most: a term of its API."""


SCREENED = "screened"
"""The reason that a labelling gives for what a selection refused."""


@dataclass(frozen=True)
class Credit:
    """Where an image came from, in words and links; "" where a thing is not known or there is no link.

    `file` is what it is called, `origin` its source, licence and owner in one line; `photo`: whether it is a photo of
    other people; `generated`: whether a generator drew it, so that there is no licence to record.
    """

    file: str
    origin: str
    page: str
    source: str
    licence: str
    licence_page: str
    owner: str
    owner_page: str
    photo: bool
    generated: bool = False

    @property
    def unlicensed(self) -> bool:
        """Whether a licence should stand here and does not; of a photo of other people it is told beside it."""
        return not self.licence and not self.generated

    def alt(self, *shown: str) -> str:
        """A text that stands for the image: what it is, by whom, under which licence, and what is shown of it."""
        by = [f"photo by {self.owner}"] if self.owner else []
        return ", ".join([self.file, *([*by, self.licence] if self.photo else []), *shown])


@dataclass(frozen=True)
class Tile:
    """One sample on a sheet: its picture, its label as an overlay, and where it came from.

    `file` is what it is called, `alt` and `origin` say all that is known of it in words; `page`, `owner_page` and
    `licence_page` are links, "" where there is none.
    """

    id: str
    image: Thumb
    label: Thumb
    file: str
    origin: str
    page: str
    labels: str
    alt: str
    source: str
    licence: str
    licence_page: str
    owner: str
    owner_page: str


@dataclass(frozen=True)
class Sheet:
    """A contact sheet of one replay set; shows itself in a notebook, `save` writes a page of its own.

    Attributes:
        wanted, made: samples asked for and there; `shortfall` is what is missing.
        rejected: samples refused or failed, by reason.
        legend: (class name, #rrggbb) of every class in the labels shown.
        labelled: (who labelled the images, ...), the chains that share this set.
        licences: (licence, samples shown); unlicensed: samples shown without one that no generator drew.
        flickr: photos of Flickr that are shown; fewer: whether others are not, because a page shows so many at most.
        strips: rejected samples by reason, and what was erased, where that was asked for.
    """

    name: str
    source: str
    wanted: int
    made: int
    shortfall: int
    rejected: Mapping[str, int]
    tiles: tuple[Tile, ...]
    legend: tuple[tuple[str, str], ...]
    labelled: tuple[str, ...] = ()
    licences: tuple[tuple[str, int], ...] = ()
    flickr: int = 0
    fewer: bool = False
    strips: tuple[Strip, ...] = ()
    unlicensed: int = 0

    @property
    def notice(self) -> str:
        """What the terms of a source ask to say where its photos are shown; "" where nothing."""
        return FLICKR_NOTICE if self.flickr else ""

    @property
    def choice(self) -> str:
        """ "Showing 60 of 2,000, evenly chosen."; "" where all are shown, or none."""
        return told_choice(len(self.tiles), self.made)

    def __repr__(self) -> str:
        return f"<Sheet: {self.name} from {self.source}, {self.made} of {self.wanted}>"

    def save(self, path: str | Path) -> Path:
        """Write the sheet as one HTML file that asks for nothing outside itself; complete or not at all."""
        return save_sheets([self], path)

    def _repr_html_(self) -> str:
        from replaygen.report.page import render

        return render("sheet_notebook.html", sheet=self)


def sheet(
    replay_set: Replay, limit: int = SHEET_SAMPLES, *, labelled: Sequence[str] = (), flickr: int = MOST_FLICKR
) -> Sheet:  # fmt: skip
    """A contact sheet of some samples of a replay set, evenly chosen.

    Args:
        limit: samples shown, at most 60 whatever is asked for.
        labelled: who labelled it, to be printed.
        flickr: photos of Flickr that may be shown, at most 30 whatever is asked for.
    """
    manifest = replay_set.manifest
    most = max(0, min(limit, MOST_SAMPLES))
    samples, of_flickr = _shown(replay_set, most, min(flickr, MOST_FLICKR))
    names = replay_set.names
    channels = shows([sample.mask for sample in samples])
    told = [credit(sample.about, sample.id) for sample in samples]
    licences = Counter(one.licence for one in told if one.licence)
    return Sheet(
        name=str(manifest["class"]), source=str(manifest["source"]), wanted=int(manifest["wanted"]),
        made=len(replay_set), shortfall=int(manifest["shortfall"]), rejected=refusals(replay_set),
        tiles=tuple(_tile(sample, names) for sample in samples),
        legend=tuple((class_name(names, channel), class_color(channel)) for channel in channels),
        labelled=tuple(labelled), licences=tuple(licences.most_common()), flickr=of_flickr,
        fewer=len(samples) < min(most, len(replay_set)), unlicensed=sum(one.unlicensed for one in told),
    )  # fmt: skip


def save_sheets(sheets: Sequence[Sheet], path: str | Path) -> Path:
    """Write sheets below each other as one HTML file that asks for nothing outside itself; complete or not at all."""
    from replaygen.report.page import render

    title = f"{few(one.name for one in sheets)}: replay from {few(one.source for one in sheets)}"
    return write_text(Path(path), render("sheet_page.html", sheets=sheets, title=title))


def _shown(replay_set: Replay, most: int, flickr: int) -> tuple[list[ReplaySample], int]:
    """Samples evenly chosen, and how many of them are photos of Flickr; none is read that may not be shown."""
    samples: list[ReplaySample] = []
    of_flickr = 0
    for sample in chosen(replay_set, min(most, max(0, flickr)) if from_flickr(replay_set) else most):
        if sample.about.get("source") == "flickr":
            if of_flickr == flickr:
                break
            of_flickr += 1
        samples.append(sample)
    return samples, of_flickr


def _tile(sample: ReplaySample, names: tuple[str, ...]) -> Tile:
    told = credit(sample.about, sample.id)
    in_mask = labels_in(sample.mask, names)
    return Tile(
        sample.id, photo(sample.image), overlay(sample.mask), file=told.file, origin=told.origin, page=told.page,
        labels=in_mask, alt=told.alt(f"labelled {in_mask}"), source=told.source, licence=told.licence,
        licence_page=told.licence_page, owner=told.owner, owner_page=told.owner_page,
    )  # fmt: skip


def labels_in(mask: Mask8, names: tuple[str, ...]) -> str:
    """The classes in a mask, uint8 [H, W], in words."""
    return ", ".join(plain(class_name(names, channel)) for channel in shows([mask])) or "background only"


def credit(about: Mapping[str, Any], sample: str) -> Credit:
    """Where an image came from, as its side-car says."""
    source = str(about.get("source") or "source not recorded")
    licence, licence_page = _licence(about)
    owner = cut(str(about.get("owner") or about.get("author") or ""))
    return Credit(
        str(about.get("file") or "") or cut(str(about.get("title") or "")) or sample,
        " · ".join([source, *([licence] if licence else []), *([f"by {owner}"] if owner else [])]),
        _link(about, "page") or (_link(about, "url") if about.get("photo") else ""),
        source, licence, licence_page, owner, _link(about, "owner_page"), bool(about.get("photo")),
        bool(about.get("generator")),
    )  # fmt: skip


def _link(about: Mapping[str, Any], name: str) -> str:
    return link(str(about.get(name) or ""))


def _licence(about: Mapping[str, Any]) -> tuple[str, str]:
    """A licence's name, and a link or ""; where none is recorded both "", of a photo of other people in words."""
    nothing = "licence not recorded" if about.get("photo") else ""
    name, address = licence_told(str(about.get("licence") or nothing), str(about.get("licence_url") or ""))
    return name, link(address)


def class_name(names: tuple[str, ...], channel: int) -> str:
    """A channel's class; its number where it has none."""
    return names[channel] if channel < len(names) else f"channel {channel}"


def refusals(replay_set: Replay) -> dict[str, int]:
    """Samples that did not become replay, by reason, over the tasks that made the set; most frequent first."""
    if not isinstance(replay_set, ReplaySet):
        return {}
    counted = Counter[str]()
    if is_judged(replay_set):
        for reason in judge(replay_set).reasons:
            counted[reason.reason] += reason.samples if reason.at != "set" else 0
        return {reason: count for reason, count in counted.most_common() if count}
    store = replay_set.store
    selections: dict[str, None] = {}
    for record in ancestors(store, replay_set.record):
        counted.update(record.counts.rejected)
        counted.update(record.counts.failed)
        selections |= {key: None for role, key in record.inputs if role == "selection"}
    chosen = [record for record in map(store.get, selections) if record is not None]
    if chosen:  # what a labelling left out because a selection did, that selection gives a reason for
        del counted[SCREENED]
    for record in chosen:
        counted.update(record.counts.rejected)
    return dict(counted.most_common())


def from_flickr(replay_set: Replay) -> bool:
    """Whether a replay set was made from photos of Flickr, as the records of its images say."""
    if not isinstance(replay_set, ReplaySet):
        return False
    behind = ancestors(replay_set.store, replay_set.record)
    fetched = [record for record in behind if record.stage == "fetch"]
    return any(photo.startswith("flickr-") for record in fetched for photo in record.provenance.get("photos", {}))


def sheets(plan: Plan, seed: int | None = None, *, flickr: int = MOST_FLICKR) -> list[Sheet]:
    """A sheet of every replay set of a plan that was made: by class, source and labelling method.

    Chains that share a set (what the first step's model labelled) share its sheet, and of sets that differ only in the
    classes that later steps added, the last is shown. All sheets together show `flickr` photos of Flickr at most,
    spread evenly.

    Args:
        seed: leave out the sets labelled by models of other seeds.
        flickr: photos of Flickr that may be shown, at most 30 whatever is asked for.
    """
    from replaygen.runs.replay import replay_sets

    found = in_order(told_once(replay_sets(plan), seed))
    limit = whole_pages(fair(PAGE_SAMPLES, len(found), MOST_SAMPLES))
    return sheets_of(found, limit, flickr=flickr)


def sheets_of(found: Sequence[Told], limit: int = SHEET_SAMPLES, *, flickr: int = MOST_FLICKR) -> list[Sheet]:
    """A sheet of each set with so many samples; of Flickr's photos on all of them together as many as a page may."""
    return below_each_other(found, lambda one, share: _sheet_of(one, limit, share), flickr)


def in_order(found: Iterable[Told]) -> list[Told]:
    """Sets in the order in which their classes are learnt."""
    return sorted(found, key=lambda one: int(one.replay_set.manifest["channel"]))


def below_each_other(
    found: Sequence[Told], draw: Callable[[Told, int], Sheet], flickr: int = MOST_FLICKR
) -> list[Sheet]:  # fmt: skip
    """Sheets of one page, by `draw` of a set and the photos of Flickr that it may show, at most 30 over all of them."""
    waiting, left = sum(from_flickr(one.replay_set) for one in found), min(flickr, MOST_FLICKR)
    made = []
    for one in found:
        share = -(-left // waiting) if waiting and from_flickr(one.replay_set) else left
        made.append(draw(one, share))
        left -= made[-1].flickr
        waiting -= from_flickr(one.replay_set)
    return made


def _sheet_of(one: Told, limit: int, flickr: int) -> Sheet:
    return sheet(one.replay_set, limit, labelled=one.labelled(), flickr=flickr)


def fair(page: int, sets: int, most: int) -> int:
    """Samples of each of so many sets, `most` where a page of so many samples has room for them, 6 at least."""
    return max(6, min(most, page // max(1, sets)))


def whole_pages(samples: int) -> int:
    """At most so many samples, in whole pages of `SHEET_SAMPLES` where they fill one."""
    return samples // SHEET_SAMPLES * SHEET_SAMPLES or samples


@dataclass(frozen=True)
class Told:
    """A replay set that is told once: its slot, and the chains that labelled it; "" for the data set's own labels."""

    slot: str
    replay_set: ReplaySet
    chains: tuple[str, ...]

    def labelled(self) -> list[str]:
        """Who labelled it, in words."""
        return [spoken(chain) or "the data set's own labels" for chain in self.chains]


def told_once(sets: Mapping[str, ReplaySet], seed: int | None = None) -> list[Told]:
    """Sets by slot, those that several chains share once; of those that differ in what later steps added, the last.

    Args:
        seed: leave out the sets labelled by models of other seeds.
    """
    found: dict[tuple[str, ...], Told] = {}
    for slot, replay_set in sets.items():
        chain, same = labelled_by(slot, replay_set.manifest), identity(replay_set)
        if not of_seed(chain, seed):
            continue
        chains = found[same].chains if same in found else ()
        if chains and (chain in chains or _LATER.search(_chain(slot, replay_set.manifest))):
            found[same] = Told(slot, replay_set, chains)
        else:
            found[same] = Told(slot, replay_set, (*chains, chain))
    return list(found.values())


_LATER = re.compile(r"/step\d+$")


def _chain(slot: str, manifest: Mapping[str, Any]) -> str:
    rest = slot.removeprefix(f"replay/{manifest['source']}/").removesuffix(str(manifest["class"]))
    return rest.strip("/")


def labelled_by(slot: str, manifest: Mapping[str, Any]) -> str:
    """The chain in a slot "replay/<source>/<chain>/<class>", such as "recall/seed0"; "" where none labelled it.

    A step behind the chain, "recall/seed0/step3", is that of a later step that added to the labels, and is not told.
    """
    return _LATER.sub("", _chain(slot, manifest))


def of_seed(labelled: str, seed: int | None) -> bool:
    """Whether a chain is of a seed; what no chain labelled is of every seed, and None asks for every seed."""
    return seed is None or not labelled or labelled.endswith(f"/seed{seed}")


def spoken(chain: str) -> str:
    """A chain in words."""
    method, _, seed = chain.rpartition("/seed")
    if not method:
        return chain
    return f"{_SPOKEN.get(method, method)}, seed {seed}"


_SPOKEN = {
    "base": "the step-0 model", "helpers": "the helper of its step", "teachers": "the teacher",
    "given": "the masks given with the images",
}  # fmt: skip
"""Chains that are no method of the recipe."""
