"""What is in the replay sets, by class: images that show it, and its share of the labelled pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaygen.report.choice import chosen_labels
from replaygen.report.sheets import Told, class_name, told_once
from replaygen.sample import decode_mask

if TYPE_CHECKING:
    from replaygen.plan import Plan
    from replaygen.runs.replay import ReplaySet
    from replaygen.sample import Mask8

MOST_MASKS = 4000
"""Labels that are counted for a page at most, evenly chosen."""


@dataclass(frozen=True)
class Bar:
    """One class in a source's replay.

    Attributes:
        samples: made to stand for the class.
        images: of those read, that have any of it; pixels: it has in them.
        image_share, pixel_share: 0..1, of the largest of the source, for drawing; percent: of all labelled pixels.
    """

    name: str
    color: str
    samples: int
    images: int
    pixels: int
    image_share: float
    pixel_share: float
    percent: float


@dataclass(frozen=True)
class Contents:
    """One source: a bar a class in channel order; `read` of `samples` labels were counted."""

    source: str
    bars: tuple[Bar, ...]
    read: int
    samples: int


def contents(plan: Plan, seed: int) -> list[Contents]:
    """Count the labels of every source's replay sets, of each class the first; empty where nothing was made.

    Raises:
        StoreError, DataError: an object is missing or damaged.
    """
    from replaygen.runs.replay import replay_sets

    by_source: dict[str, dict[str, ReplaySet]] = {}
    for one in told_once(replay_sets(plan), seed):
        by_source.setdefault(one.replay_set.source, {}).setdefault(_class_of(one), one.replay_set)
    total = sum(len(one) for sets in by_source.values() for one in sets.values())
    share = min(1.0, MOST_MASKS / max(1, total))
    return [_of_source(source, list(sets.values()), share) for source, sets in by_source.items()]


def _class_of(one: Told) -> str:
    return str(one.replay_set.manifest["class"])


def _of_source(source: str, sets: Sequence[ReplaySet], share: float) -> Contents:
    import numpy as np

    from replaygen.report.colors import class_color

    images, pixels, made = Counter[int](), Counter[int](), Counter[int]()
    read = 0
    for one in sets:
        made[int(one.manifest["channel"])] += len(one)
        most = len(one) if share == 1.0 else max(1, round(share * len(one)))
        for mask in masks(one, most):
            read += 1
            counts = np.bincount(mask.ravel(), minlength=256)
            for channel in np.flatnonzero(counts[:255]).tolist():
                images[channel] += 1
                pixels[channel] += int(counts[channel])
    channels = sorted({*made, *pixels} - {0})
    labelled = sum(pixels[channel] for channel in channels)
    most_images, most_pixels = (max((of[one] for one in channels), default=0) or 1 for of in (images, pixels))
    bars = tuple(
        Bar(class_name(sets[0].names, one), class_color(one), made[one], images[one], pixels[one],
            images[one] / most_images, pixels[one] / most_pixels, 100.0 * pixels[one] / max(1, labelled))
        for one in channels
    )  # fmt: skip
    return Contents(source, bars, read, made.total())


def masks(replay_set: ReplaySet, most: int) -> Iterator[Mask8]:
    """The labels of at most so many samples, uint8 [H, W] each, evenly chosen."""
    for labels, sample in chosen_labels(replay_set, most):
        yield decode_mask(labels.read(sample, "mask.png"), where=sample)
