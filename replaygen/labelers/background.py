"""What the previous model puts into the background of current labels, and where it is too unsure to.

Three variants of Y_bi, all with Y where Y is a class of the step, and void where Y is void. Elsewhere, with q the
previous model's probabilities over bg + C_0:k-1, V of them, renormalised, and c = argmax q:

- argmax (RECALL): c, always.
- confidence: c where q_c >= `unsure`, else 255.
- entropy (PLOP): c where u < tau_c, else 255; u = H(q) / log V in 0..1; tau_c = max(median of u over all pixels of the
  step's current images whose argmax is c and whose own label is background, floor).

PLOP's reference measures the mean over channels of -q log q, so its floor of 0.001 is V * 0.001 on this scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from replaygen.sample import IGNORE

if TYPE_CHECKING:
    import numpy.typing as npt

    from replaygen.labelers.model import Probabilities
    from replaygen.sample import Mask8

    Counts = npt.NDArray[np.uint64]
    """uint64 [V, BINS]: for each predicted channel, pixels by their uncertainty."""

InpaintMode = Literal["argmax", "confidence", "entropy"]

BINS = 512
"""Bins of a histogram of u. They are equally wide in sqrt(u), for a trained model is nearly sure nearly everywhere."""


def restricted(probabilities: Probabilities, old: Sequence[int]) -> Probabilities:
    """q: the probabilities of background and the old classes, renormalised.

    Args:
        probabilities: float32 [C, H, W], channel 0 = background.
        old: the channels of C_0:k-1.

    Returns:
        float32 [1 + len(old), H, W], sums to 1 over channels (uniform where all of them are 0).
    """
    scores = probabilities[[0, *old]]
    total = scores.sum(axis=0)
    uniform = np.float32(1 / len(scores))
    return np.where(total > 0, scores / np.where(total > 0, total, 1), uniform).astype(np.float32)


def uncertainty(q: Probabilities) -> npt.NDArray[np.float32]:
    """u = H(q) / log V, with 0 log 0 = 0: float32 [V, H, W] -> float32 [H, W] in 0..1."""
    logs = np.log(np.where(q > 0, q, 1))
    u: npt.NDArray[np.float32] = -(q * logs).sum(axis=0, dtype=np.float32) / np.float32(math.log(max(2, len(q))))
    return np.clip(u, 0, 1)


def count_uncertainty(probabilities: Probabilities, current: Mask8, *, old: Sequence[int]) -> Counts:
    """One image's share of what the medians need: pixels whose own label is background, by argmax and by u.

    Args:
        probabilities: float32 [C, H, W] of the previous-step model.
        current: uint8 [H, W], the step's own labels (C_k, 0, 255).
        old: the channels of C_0:k-1.

    Returns:
        uint64 [1 + len(old), BINS]; row i is for the i-th of background and `old`; bin b holds
        (b / BINS)^2 <= u < ((b + 1) / BINS)^2, and the last one also u = 1.
    """
    q = restricted(probabilities, old)
    hidden = current == 0
    bins = np.minimum((np.sqrt(uncertainty(q)[hidden]) * BINS).astype(np.int64), BINS - 1)
    flat = q.argmax(axis=0)[hidden] * BINS + bins
    return np.bincount(flat, minlength=len(q) * BINS).reshape(len(q), BINS).astype(np.uint64)


def entropy_limits(counts: Counts, floor: float) -> npt.NDArray[np.float64]:
    """tau_c = max(median, floor) for each channel, the median read from the merged histograms.

    Inside its bin the median is interpolated linearly in sqrt(u).

    Args:
        counts: uint64 [V, BINS], summed over all images of the step.
        floor: the least tau, on the scale of u.

    Returns:
        float64 [V]; `floor` for a channel that was predicted nowhere.
    """
    limits = np.full(len(counts), floor, dtype=np.float64)
    for row, held in enumerate(counts):
        half = int(held.sum()) / 2
        if half == 0:
            continue
        upto = held.cumsum()
        at = int(np.searchsorted(upto, half))
        before = int(upto[at]) - int(held[at])
        root = (at + (half - before) / int(held[at])) / BINS
        limits[row] = max(root**2, floor)
    return limits


def inpaint_sure(
    probabilities: Probabilities, current: Mask8, *, old: Sequence[int], limits: npt.NDArray[np.float64]
) -> Mask8:
    """PLOP's pseudo-labels: Y where Y is a class of the step or void, else argmax where u < tau, else 255.

    Args:
        probabilities: float32 [C, H, W] of the previous-step model.
        current: uint8 [H, W], the step's own labels (C_k, 0, 255).
        old: the channels of C_0:k-1.
        limits: float64 [1 + len(old)], tau of background and of each of `old`.

    Returns:
        uint8 [H, W].
    """
    q = restricted(probabilities, old)
    winner = q.argmax(axis=0)
    chosen = np.array((0, *old), dtype=np.uint8)
    filled = np.where(uncertainty(q) < limits[winner], chosen[winner], IGNORE)
    return np.where(current == 0, filled, current).astype(np.uint8)


def accepted_share(mask: Mask8, current: Mask8) -> float:
    """PLOP's nu: the share of background pixels that got a label rather than 255; 1 where there is no background."""
    hidden = current == 0
    return float((mask[hidden] != IGNORE).mean()) if hidden.any() else 1.0
