"""Early diagnosis: what the first epoch says about a fit that cannot come to anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from replaygen.learn.samples import Batch
from replaygen.sample import IGNORE

STEEP = 1e4
"""Gradient norms above this are told."""

MEASURED = 3
"""Iterations at the beginning whose gradient is measured."""


class Seen:
    """What the batches of the first epoch held.

    Attributes:
        pixels: int64 [C], pixels of each channel in current samples.
        labelled: pixels of all samples that are not ignored.
        replay: replay samples drawn.
        expected: channels that current samples declare visible.
    """

    def __init__(self, channels: int) -> None:
        self.pixels = torch.zeros(channels, dtype=torch.int64)
        self.labelled = 0
        self.replay = 0
        self.expected: set[int] = set()

    def add(self, batch: Batch) -> None:
        """Count a batch, on the CPU."""
        current = ~batch.replay
        count = len(self.pixels)
        # IGNORE lies beyond every channel, so the first `count` bins are the labelled pixels
        bins = torch.bincount(batch.masks[current].flatten(), minlength=count)[:count]
        self.pixels += bins
        self.labelled += int(bins.sum()) + int((batch.masks[batch.replay] != IGNORE).sum())
        self.replay += int(batch.replay.sum())
        self.expected.update(batch.visible[current].any(0).nonzero().flatten().tolist())

    def doubts(self, losses: Sequence[float], *, replay_expected: bool) -> list[str]:
        """Sentences, at the end of the first epoch, whose losses are given."""
        if self.labelled == 0:
            return ["every pixel of the first epoch is ignored (255): there is nothing to learn from"]
        told = [
            f"class {channel} is declared visible in the current data but no pixel of it was seen in the first epoch"
            for channel in sorted(self.expected)
            if int(self.pixels[channel]) == 0
        ]
        if replay_expected and self.replay == 0:
            told.append("there is a replay buffer, but no replay sample was drawn")
        if len(losses) > 1 and len(set(losses)) == 1:
            told.append(
                f"the loss was {losses[0]:.4g} in every iteration of the first epoch: nothing learns; "
                "is a rate 0, or everything frozen?"
            )
        return told

    def state(self) -> dict[str, Any]:
        """All but `pixels`, JSON-able."""
        return {"replay": self.replay, "expected": sorted(self.expected), "labelled": self.labelled}

    def restore(self, pixels: Tensor, state: dict[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self.pixels = pixels.clone()
        self.replay = int(state["replay"])
        self.labelled = int(state["labelled"])
        self.expected = set(state["expected"])


def gradient_doubt(norms: Sequence[float]) -> str | None:
    """A sentence on the gradient norms of the first iterations, where they are odd. Overflow of float16 is not."""
    steep = [norm for norm in norms if math.isfinite(norm) and norm > STEEP]
    if steep:
        return f"the gradient's norm is {steep[0]:.3g} in the first iterations: set clip = 1.0, a warmup or a lower lr"
    if norms and all(norm == 0 for norm in norms):
        return (
            f"the gradient is 0 in the first {len(norms)} iterations: the loss reads nothing that learns, or all "
            "pixels are ignored"
        )
    return None
