"""Contact sheets: what a replay set looks like, with its labels, counts and sources."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from replaygen.report.colors import class_color
from replaygen.report.examples import shows
from replaygen.report.files import write_text
from replaygen.report.pictures import Thumb, overlay, photo
from replaygen.report.text import plain
from replaygen.runs.replay import ReplaySample, ReplaySet
from replaygen.store import Record, Store

if TYPE_CHECKING:
    from replaygen.plan import Plan

MOST_SAMPLES = 24
"""Samples on a sheet at most: a sheet is for looking, and no gallery of other people's photos."""

PAGE_SAMPLES = 480
"""Samples on a whole page at most; many sheets show fewer each."""


class Replay(Protocol):
    """What a sheet needs of a replay set; `replaygen.runs.replay.ReplaySet` is one."""

    @property
    def manifest(self) -> dict[str, Any]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[ReplaySample]: ...


@dataclass(frozen=True)
class Tile:
    """One sample on a sheet: its picture, its label as an overlay, and where it came from."""

    id: str
    image: Thumb
    label: Thumb
    file: str
    origin: str
    page: str
    labels: str


@dataclass(frozen=True)
class Sheet:
    """A contact sheet of one replay set; shows itself in a notebook, `save` writes a page of its own.

    Attributes:
        wanted, made: samples asked for and there; `shortfall` is what is missing.
        rejected: samples refused or failed, by reason.
        legend: (class name, #rrggbb) of every class in the labels shown.
        labelled: (who labelled the images, ...), the chains that share this set.
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

    def save(self, path: str | Path) -> Path:
        """Write the sheet as one HTML file that asks for nothing outside itself; complete or not at all."""
        from replaygen.report.page import render

        return write_text(Path(path), render("sheet_page.html", sheet=self))

    def _repr_html_(self) -> str:
        from replaygen.report.page import render

        return render("sheet_notebook.html", sheet=self)


def sheet(replay_set: Replay, limit: int = MOST_SAMPLES, *, labelled: Sequence[str] = ()) -> Sheet:
    """A contact sheet of the first samples of a replay set.

    Args:
        limit: samples shown, at most 24 whatever is asked for.
        labelled: who labelled it, to be printed.
    """
    manifest = replay_set.manifest
    samples = list(itertools.islice(replay_set, max(0, min(limit, MOST_SAMPLES))))
    names = replay_set.names
    channels = shows([sample.mask for sample in samples])
    licences = Counter(_licence(sample.about) for sample in samples)
    return Sheet(
        name=str(manifest["class"]), source=str(manifest["source"]), wanted=int(manifest["wanted"]),
        made=len(replay_set), shortfall=int(manifest["shortfall"]), rejected=refusals(replay_set),
        tiles=tuple(_tile(sample, names) for sample in samples),
        legend=tuple((_name(names, channel), class_color(channel)) for channel in channels),
        labelled=tuple(labelled), licences=tuple(licences.most_common()),
    )  # fmt: skip


def _tile(sample: ReplaySample, names: tuple[str, ...]) -> Tile:
    about = sample.about
    origin = [str(about.get("source") or "source not recorded"), _licence(about)]
    if about.get("author"):
        origin.append(f"by {about['author']}")
    page = str(about.get("page") or "")
    in_mask = ", ".join(plain(_name(names, channel)) for channel in shows([sample.mask]))
    return Tile(
        sample.id, photo(sample.image), overlay(sample.mask), str(about.get("file") or sample.id), " · ".join(origin),
        page if page.startswith(("https://", "http://")) else "", in_mask or "background only",
    )  # fmt: skip


def _licence(about: Mapping[str, Any]) -> str:
    return str(about.get("licence") or "licence not recorded")


def _name(names: tuple[str, ...], channel: int) -> str:
    return names[channel] if channel < len(names) else f"channel {channel}"


def refusals(replay_set: Replay) -> dict[str, int]:
    """Samples that did not become replay, by reason, over the tasks that made the set; most frequent first."""
    if not isinstance(replay_set, ReplaySet):
        return {}
    counted: Counter[str] = Counter()
    for record in made_from(replay_set.store, replay_set.record):
        counted.update(record.counts.rejected)
        counted.update(record.counts.failed)
    return dict(counted.most_common())


def made_from(store: Store, record: Record) -> Iterator[Record]:
    """The records of the images and labels that a replay set joins, each once."""
    for key in dict.fromkeys(key for role, key in record.inputs if role in ("images", "labels")):
        found = store.get(key)
        if found is not None:
            yield found


def sheets(plan: Plan, seed: int | None = None) -> list[Sheet]:
    """A sheet of every replay set of a plan that was made: by class, source and labelling method.

    Chains that share a set (what the first step's model labelled) share its sheet.

    Args:
        seed: leave out the sets labelled by models of other seeds.
    """
    from replaygen.runs.replay import replay_sets

    slots: dict[str, list[str]] = {}
    found: dict[str, ReplaySet] = {}
    for slot, replay_set in replay_sets(plan).items():
        labelled = labelled_by(slot, replay_set.manifest)
        if seed is not None and labelled and not labelled.endswith(f"/seed{seed}"):
            continue
        key = replay_set.record.key
        found.setdefault(key, replay_set)
        slots.setdefault(key, []).append(labelled or "the data set's own labels")
    limit = max(6, min(MOST_SAMPLES, PAGE_SAMPLES // max(1, len(found))))
    order = sorted(found, key=lambda key: int(found[key].manifest["channel"]))
    return [sheet(found[key], limit, labelled=[_spoken(chain) for chain in slots[key]]) for key in order]


def labelled_by(slot: str, manifest: Mapping[str, Any]) -> str:
    """The chain in a slot "replay/<source>/<chain>/<class>", such as "recall/seed0"; "" where none labelled it."""
    rest = slot.removeprefix(f"replay/{manifest['source']}/").removesuffix(str(manifest["class"]))
    return rest.strip("/")


def _spoken(chain: str) -> str:
    method, _, seed = chain.rpartition("/seed")
    if not method:
        return chain
    return f"the step-0 model, seed {seed}" if method == "base" else f"{method}, seed {seed}"
