"""Knowledge inpainting (RECALL+): replay labels receive the classes that are being learnt now.

A photo fetched for a class of step j shows other things too. Its label calls them background, and once a step k > j
learns one of them, that background is wrong. While the data of step k is there, a helper decoder fitted on it tells
bg from C_k, and fills what it sees of C_k into the background of every older replay label. Labelled classes are never
overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replaygen.sample import IGNORE

if TYPE_CHECKING:
    from replaygen.labelers.model import Probabilities
    from replaygen.sample import Mask8


@dataclass(frozen=True)
class Filled:
    """A label that received newer classes.

    Attributes:
        mask: uint8 [H, W].
        share: share of all pixels that got one of them.
        unsure: share of all pixels that became 255.
    """

    mask: Mask8
    share: float
    unsure: float


def fill_background(
    mask: Mask8, probabilities: Probabilities, *, channels: Sequence[int], unsure: float = 0.0
) -> Filled:
    """Fill the background of a label with what a helper sees of its classes.

    Where the label is 0 and the helper's argmax is a class, the pixel gets that class if its probability is at least
    `unsure`, and 255 otherwise. Every other pixel stays as it is.

    Args:
        mask: uint8 [H, W], the label; 0 background, 255 ignore.
        probabilities: float32 [1 + len(channels), H, W] of the helper, over bg and its classes; sums to 1.
        channels: the scenario's channels of its outputs 1..
        unsure: see above; 0: every such pixel gets its class.

    Raises:
        ValueError: probabilities of another shape.
    """
    if probabilities.shape != (1 + len(channels), *mask.shape):
        raise ValueError(f"probabilities {probabilities.shape} for {len(channels)} channels of a mask {mask.shape}")
    winner = probabilities.argmax(axis=0)
    seen = (mask == 0) & (winner > 0)
    sure = seen & (probabilities.max(axis=0) >= np.float32(unsure))
    told = np.array((0, *channels), dtype=np.uint8)
    filled = np.where(sure, told[winner], np.where(seen, IGNORE, mask)).astype(np.uint8)
    return Filled(filled, float(sure.mean()), float((seen & ~sure).mean()))
