"""What a generator drew while it was fitted: one strip a snapshot, from noise to the last."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaygen.report.pictures import Thumb, photo
from replaygen.sample import decode_image
from replaygen.store import Shard

if TYPE_CHECKING:
    from replaygen.plan import Plan

SHOWN = 12
"""Images of a snapshot that are shown."""

WIDEST = 1152
"""Pixels of a strip at most."""


@dataclass(frozen=True)
class FitSamples:
    """A fit's snapshots: source and place ("step 0"), its classes, and for each iteration a strip of images."""

    source: str
    place: str
    classes: tuple[str, ...]
    strips: tuple[tuple[int, Thumb], ...]


def fit_samples(plan: Plan) -> list[FitSamples]:
    """The snapshots of every fitted generator of a plan, in plan order; what was not made yet is left out.

    Raises:
        StoreError, DataError: an object is damaged.
    """
    found = []
    for slot, key in plan.slots.items():
        record = plan.store.get(key) if slot.startswith("generator/") else None
        if record is None:
            continue
        tar, index = (plan.store.read(record.output(f"snapshots.{end}").digest) for end in ("tar", "index.json"))
        strips = []
        for start, group in itertools.groupby(Shard(tar, index), key=lambda item: item[0].partition("-")[0]):
            members = [members for _, members in itertools.islice(group, SHOWN)]
            strips.append((int(start.removeprefix("i")), _strip([one["png"] for one in members], slot)))
        _, source, *place = slot.split("/")
        told = place[0].replace("step", "step ") if place else "photos"
        found.append(FitSamples(source, told, tuple(record.params["classes"]), tuple(strips)))
    return found


def _strip(images: list[bytes], where: str) -> Thumb:
    import numpy as np

    return photo(np.concatenate([decode_image(data, where=where) for data in images], axis=1), WIDEST)
