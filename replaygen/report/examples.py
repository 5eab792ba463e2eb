"""Predictions of validation images after every step, as the evaluate stage keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaygen.sample import decode_image, decode_mask
from replaygen.store import Record, Shard, Store

if TYPE_CHECKING:
    from replaygen.plan import Plan
    from replaygen.sample import Image8, Mask8

TAR, INDEX = "examples.tar", "examples.index.json"


@dataclass(frozen=True)
class Example:
    """One validation image as a model saw it after a step.

    Attributes:
        method: the recipe's row, "base" for the shared step 0.
        image: uint8 [H, W, 3].
        true, pred: uint8 [H, W], channels, 255 = ignore; the truth knows only the classes seen at this step.
    """

    method: str
    seed: int
    step: int
    id: str
    image: Image8
    true: Mask8
    pred: Mask8


def examples(plan: Plan, seed: int | None = None) -> list[Example]:
    """Every kept prediction of a plan, in plan order; what was not made yet is left out.

    Args:
        seed: only this seed's.

    Raises:
        StoreError, DataError: an object is damaged.
    """
    found = []
    for slot, key in plan.slots.items():
        place = place_of(slot)
        if place is None or (seed is not None and place[1] != seed):
            continue
        record = plan.store.get(key)
        if record is not None and {TAR, INDEX} <= {output.name for output in record.outputs}:
            found += read_examples(plan.store, record, *place)
    return found


def place_of(slot: str) -> tuple[str, int, int] | None:
    """(method, seed, step) of a slot "evaluate/<method>/seed<k>/step<k>"; None for another slot."""
    head, _, rest = slot.partition("/")
    parts = rest.rsplit("/", 2)
    if head != "evaluate" or len(parts) != 3:
        return None
    seed, step = parts[1].removeprefix("seed"), parts[2].removeprefix("step")
    return (parts[0], int(seed), int(step)) if seed.isdecimal() and step.isdecimal() else None


def read_examples(
    store: Store, record: Record, method: str, seed: int, step: int, *, tar: str = TAR, index: str = INDEX
) -> list[Example]:
    """The predictions in one shard of an evaluation; StoreError, DataError where it is damaged."""
    shard = Shard(store.read(record.output(tar).digest), store.read(record.output(index).digest))
    found = []
    for sample in shard.ids:
        extension = "png" if "png" in shard.extensions(sample) else "jpg"
        found.append(
            Example(
                method, seed, step, sample,
                decode_image(shard.read(sample, extension), where=sample),
                decode_mask(shard.read(sample, "true.png"), where=sample),
                decode_mask(shard.read(sample, "pred.png"), where=sample),
            )
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class Scene:
    """One validation image with all its predictions of one seed.

    Attributes:
        image: uint8 [H, W, 3].
        true: uint8 [H, W], the truth after the last step that is there.
        predictions: (method, step) -> uint8 [H, W].
    """

    id: str
    image: Image8
    true: Mask8
    predictions: Mapping[tuple[str, int], Mask8]


def scenes(found: Sequence[Example]) -> list[Scene]:
    """Examples of one seed gathered by image, in the order of first appearance."""
    by_id: dict[str, list[Example]] = {}
    for example in found:
        by_id.setdefault(example.id, []).append(example)
    gathered = []
    for sample, group in by_id.items():
        last = max(group, key=lambda example: example.step)
        predictions = {(example.method, example.step): example.pred for example in group}
        gathered.append(Scene(sample, last.image, last.true, predictions))
    return gathered


def shows(found: Sequence[Mask8]) -> list[int]:
    """The channels from 1 that are in any of the masks, in order."""
    import numpy as np

    seen: set[int] = set()
    for mask in found:
        seen.update(np.unique(mask).tolist())
    return sorted(seen - {0, 255})
