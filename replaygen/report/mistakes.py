"""The images behind the largest confusions after the last step, as the evaluate stage keeps them.

A result of an older version keeps none: its matrix is shown, and nothing opens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaygen.report.colors import class_color
from replaygen.report.examples import Example, place_of, read_examples, shows
from replaygen.report.pictures import Thumb, overlay, photo
from replaygen.runs.behind import read_json

if TYPE_CHECKING:
    from markupsafe import Markup

    from replaygen.plan import Plan
    from replaygen.store import Record

TAR, INDEX, CELLS = "confused.tar", "confused.index.json", "confused.json"

PAGE_CELLS = 120
"""Confusions of all methods together whose images a page holds at most."""

LEAST_CELLS = 4
"""Of one method at least, however many methods there are."""

SIDE = 176
"""Longer side of such an image on the page, in pixels."""


@dataclass(frozen=True)
class Shown:
    """One image of a confusion.

    Attributes:
        id: of the image.
        pixels: how many are confused, of the whole image.
        picture: the index of its picture in `Mistakes.pictures`; own: that of the method's prediction in `own`.
    """

    id: str
    pixels: int
    picture: int
    own: int


@dataclass(frozen=True)
class Mistake:
    """One cell of a method's matrix with images behind it.

    Attributes:
        place: a word that is its own on the page, "m0-3-4".
        true, predicted: class names; percent of the true class's pixels.
        images: how many have some of it.
        legend: (class name, #rrggbb) of every class in what is shown.
    """

    place: str
    true: str
    predicted: str
    percent: float
    pixels: int
    images: int
    shown: tuple[Shown, ...]
    legend: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Picture:
    """An image with its truth, shared by all confusions that show it."""

    image: Thumb
    true: Thumb
    classes: str


@dataclass(frozen=True)
class Mistakes:
    """What opens behind the matrices of a page.

    Attributes:
        cells: (method, true channel, predicted channel) -> the confusion.
        of: method -> its confusions, largest share first.
        pictures: images and truths; own: predictions.
    """

    cells: Mapping[tuple[str, int, int], Mistake]
    of: Mapping[str, tuple[Mistake, ...]]
    pictures: tuple[Picture, ...]
    own: tuple[Thumb, ...]

    def named(self, method: str, true: str, predicted: str) -> Mistake | None:
        """A method's confusion of two classes by name; None where none is kept."""
        ones = self.of.get(method, ())
        return next((one for one in ones if (one.true, one.predicted) == (true, predicted)), None)

    def style(self) -> Markup:
        """CSS that holds every picture once: `.rgpN` an image and its truth, `.rgoN` a prediction; no outside text."""
        from markupsafe import Markup

        lines = [f".rgp{i}{{--photo:url({one.image.uri});--truth:url({one.true.uri})}}"
                 for i, one in enumerate(self.pictures)]  # fmt: skip
        return Markup("\n".join([*lines, *(f".rgo{i}{{--own:url({one.uri})}}" for i, one in enumerate(self.own))]))


NONE = Mistakes({}, {}, (), ())


def mistakes(plan: Plan, seed: int) -> Mistakes:
    """Read what was kept of the last step of every method of one seed; empty where nothing was.

    Raises:
        StoreError, DataError: an object is damaged.
    """
    found = _kept(plan, seed)
    if not found:
        return NONE
    return _Gathering(plan.opened.scenario.names, max(LEAST_CELLS, PAGE_CELLS // len(found))).all(found)


def _kept(plan: Plan, seed: int) -> list[tuple[str, list[dict[str, Any]], dict[str, Example], list[int]]]:
    """(method, cells, examples by id, true pixels by channel) of each method's last step."""
    last = len(plan.opened.scenario.steps) - 1
    found = []
    for slot, key in plan.slots.items():
        place = place_of(slot)
        record = plan.store.get(key) if place and place[1:] == (seed, last) and place[0] != "base" else None
        if place is None or record is None or not {TAR, INDEX, CELLS} <= _names(record):
            continue
        told = read_json(plan.store, record, CELLS)["cells"]
        matrix = read_json(plan.store, record, "result.json")["matrix"]
        kept = {one.id: one for one in read_examples(plan.store, record, *place, tar=TAR, index=INDEX)}
        found.append((place[0], told, kept, [sum(row) for row in matrix]))
    return found


def _names(record: Record) -> set[str]:
    return {output.name for output in record.outputs}


class _Gathering:
    """Draws each image, truth and prediction once."""

    def __init__(self, names: Sequence[str], most: int) -> None:
        self._names, self._most = names, most
        self._pictures: dict[str, int] = {}
        self._drawn: list[Picture] = []
        self._own: list[Thumb] = []

    def all(self, found: Sequence[tuple[str, list[dict[str, Any]], dict[str, Example], list[int]]]) -> Mistakes:
        cells: dict[tuple[str, int, int], Mistake] = {}
        of: dict[str, tuple[Mistake, ...]] = {}
        for number, (method, told, kept, totals) in enumerate(found):
            own: dict[str, int] = {}
            made = []
            for cell in told[: self._most]:
                true, predicted = int(cell["true"]), int(cell["predicted"])
                shown = tuple(self._shown(one, kept, own) for one in cell["shown"] if one["id"] in kept)
                one = Mistake(
                    f"m{number}-{true}-{predicted}", self._named(true), self._named(predicted),
                    100.0 * cell["pixels"] / max(1, totals[true]), int(cell["pixels"]), int(cell["images"]), shown,
                    self._legend(kept[one.id] for one in shown),
                )  # fmt: skip
                cells[method, true, predicted] = one
                made.append(one)
            of[method] = tuple(made)
        return Mistakes(cells, of, tuple(self._drawn), tuple(self._own))

    def _shown(self, told: Mapping[str, Any], kept: Mapping[str, Example], own: dict[str, int]) -> Shown:
        name = str(told["id"])
        example = kept[name]
        if name not in self._pictures:
            self._pictures[name] = len(self._drawn)
            classes = ", ".join(self._named(channel) for channel in shows([example.true])) or "background only"
            self._drawn.append(Picture(photo(example.image, SIDE), overlay(example.true, SIDE), classes))
        if name not in own:
            own[name] = len(self._own)
            self._own.append(overlay(example.pred, SIDE))
        return Shown(name, int(told["pixels"]), self._pictures[name], own[name])

    def _legend(self, examples: Iterable[Example]) -> tuple[tuple[str, str], ...]:
        channels = shows([mask for one in examples for mask in (one.true, one.pred)])
        return tuple((self._named(channel), class_color(channel)) for channel in channels)

    def _named(self, channel: int) -> str:
        return self._names[channel] if channel < len(self._names) else f"channel {channel}"
