"""CutMix between current and replay samples, of images or of cached features."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from replaygen.errors import DataError
from replaygen.learn.batches import MixedBatches, derive
from replaygen.learn.samples import Batch, Samples

IMAGE_GRID = 8
"""Cells a side in which images are cut; cached features are cut in the cells of their coarsest map."""


class CutMixed:
    """Batches in which some samples receive a rectangle of another one, labels included (Yun et al., ICCV 2019).

    Where a batch holds both kinds, a current sample receives from replay and replay from current samples: then neither
    the picture's style nor its surroundings tell which classes it can hold. Batch t depends on the seed and t only.

    Args:
        batches: where the samples come from.
        share: of a batch's samples that receive a rectangle, 0..1.
        area: smallest and largest share of the picture that it covers.
        seed: of partners and rectangles.
    """

    def __init__(
        self, batches: MixedBatches, share: float, seed: int, area: tuple[float, float] = (0.15, 0.5)
    ) -> None:  # fmt: skip
        if not 0 <= share <= 1 or not 0 < area[0] <= area[1] <= 1:
            raise DataError(f"share = {share} and area = {area} must be shares, 0..1")
        self.batches = batches
        self.share, self.area, self.seed = share, area, seed

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, t: int) -> Batch:
        batch = self.batches[t]
        dice = torch.Generator().manual_seed(derive(self.seed, "cutmix", t))
        grid = IMAGE_GRID if batch.features is None else min(taps.shape[-1] for taps in batch.features)
        pasted = [
            (row, partner, box)
            for row, partner in enumerate(partners(batch.replay, dice))
            if (box := self._box(grid, dice)) is not None and partner != row
        ]
        if not pasted:
            return batch
        visible = batch.visible.clone()
        for row, partner, _ in pasted:
            visible[row] &= batch.visible[partner]
        return replace(
            batch, visible=visible, masks=_pasted(batch.masks, pasted, grid),
            images=None if batch.images is None else _pasted(batch.images, pasted, grid),
            features=None if batch.features is None else tuple(_pasted(f, pasted, grid) for f in batch.features),
        )  # fmt: skip

    def drawn(self, t: int) -> list[tuple[Samples, int, int]]:
        """(samples, index, view) of every member of batch t; nothing is loaded."""
        return self.batches.drawn(t)

    @property
    def epoch(self) -> int:
        """Iterations until every current sample was drawn once."""
        return self.batches.epoch

    @property
    def buffer(self) -> object:
        """The replay samples, or None."""
        return self.batches.buffer

    def _box(self, grid: int, dice: torch.Generator) -> tuple[int, int, int, int] | None:
        """Top, bottom, left, right in cells, or None where this sample stays as it is."""
        chance, size, shape, down, across = torch.rand(5, generator=dice).tolist()
        if chance >= self.share:
            return None
        low, high = self.area
        covered = low + (high - low) * size
        stretch = 2.0 ** (shape - 0.5)
        height, width = (
            min(max(round(grid * (covered * factor) ** 0.5), 1), grid) for factor in (stretch, 1 / stretch)
        )
        top, left = int(down * (grid - height + 1)), int(across * (grid - width + 1))
        return top, top + height, left, left + width


def partners(replay: Tensor, dice: torch.Generator) -> list[int]:
    """For each sample another one to receive from: one of the other kind where the batch has both."""
    rows = torch.arange(len(replay))
    both = bool((replay != replay[0]).any())
    made = []
    for kind in replay:
        others = rows[replay != kind] if both else rows
        made.append(int(others[int(torch.randint(len(others), (1,), generator=dice))]))
    return made


def _pasted(maps: Tensor, pasted: list[tuple[int, int, tuple[int, int, int, int]]], grid: int) -> Tensor:
    side = maps.shape[-1]
    if side % grid or maps.shape[-2] != side:
        raise DataError(f"maps of {maps.shape[-2]} x {side} cannot be cut in {grid} x {grid} cells", hint="set mix = 0")
    cell = side // grid
    made = maps.clone()
    for row, partner, box in pasted:
        top, bottom, left, right = (edge * cell for edge in box)
        made[row, ..., top:bottom, left:right] = maps[partner, ..., top:bottom, left:right]
    return made
