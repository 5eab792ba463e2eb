"""PLOP (Douillard et al., CVPR 2021): local pooled outputs distillation and pseudo-labels for background pixels.

Old outputs are detached here; half precision is computed in float32, float64 stays float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.distillation import at_least_float32, paired_logits, paired_maps, paired_stages
from replaygen.sample import IGNORE

BINS = 10_000
"""Bins of the entropy histogram: a median is off by at most 1 / BINS."""


def local_pod(new_map: Tensor, old_map: Tensor, scales: Sequence[int] = (1, 2, 4), *, square: bool = True) -> Tensor:
    """Local POD of one stage: the batch mean of ||v(x) - v(x')||_2, not squared.

    For each scale s the map, squared entry by entry, is cut into s x s regions at floor(i h / s) and floor(j w / s).
    v holds each region's means over its width (D x its height) and over its height (D x its width), all scales.
    A map smaller than s has empty regions, which add nothing. Equal maps give 0 with gradient 0.

    Args:
        new_map: float [B, D, h, w].
        old_map: float [B, D, h, w].
        scales: regions along a side.
        square: False compares the maps as they are.
    """
    new_map, old_map = paired_maps(new_map, old_map)
    if not scales or min(scales) < 1:
        raise ModelError(f"local POD at scales {tuple(scales)}", hint="give whole numbers from 1 on, such as (1, 2, 4)")
    # means are linear, so the difference is pooled once instead of both maps
    difference = new_map.square() - old_map.square() if square else new_map - old_map
    pooled = []
    for scale in scales:
        # the regions of one column share their mean over the width, those of one row their mean over the height
        pooled += [difference[..., a:b].mean(3).flatten(1) for a, b in _cuts(difference.shape[3], scale)]
        pooled += [difference[:, :, a:b].mean(2).flatten(1) for a, b in _cuts(difference.shape[2], scale)]
    length: Tensor = torch.linalg.vector_norm(torch.cat(pooled, 1), dim=1)
    return length.mean()


def pod_distillation(
    new_maps: Sequence[Tensor], old_maps: Sequence[Tensor], scales: Sequence[int] = (1, 2, 4)
) -> Tensor:
    """The mean of `local_pod` over the stages of an encoder, without PLOP's weights (0.01, `pod_factor`)."""
    pairs = paired_stages(new_maps, old_maps)
    return torch.stack([local_pod(new, old, scales) for new, old in pairs]).mean()


def pod_logits(new: Tensor, old: Tensor, scales: Sequence[int] = (1, 2, 4)) -> Tensor:
    """`local_pod` of final logits, squared, once the new classes' logits are added to background's.

    Args:
        new: float [B, C, H, W].
        old: float [B, V, H, W], V <= C.
        scales: as in `local_pod`.

    Returns:
        scalar, without PLOP's weights (0.0005, `pod_factor`).
    """
    new, old = paired_logits(new, old)
    channels = old.shape[1]
    background = new[:, :1] + new[:, channels:].sum(1, keepdim=True)
    return local_pod(torch.cat([background, new[:, 1:channels]], 1), old, scales)


def pseudo_entropy(old_logits: Tensor) -> Tensor:
    """u = H(softmax(z')) / log V, float [B, H, W] in 0..1: how unsure the old network is; 0 for V = 1.

    Args:
        old_logits: float [B, V, H, W].
    """
    log_q = at_least_float32(old_logits.detach()).log_softmax(1)
    entropy = -(log_q.exp() * log_q).sum(1)
    return (entropy / math.log(max(log_q.shape[1], 2))).clamp(0.0, 1.0)


@torch.no_grad()
def entropy_thresholds(pairs: Iterable[tuple[Tensor, Tensor]], channels: int, floor: float = 1e-3) -> Tensor:
    """tau_c = max(median of u over background pixels that the old network takes for c, floor V).

    Medians come from a histogram of 10,000 bins, so memory does not grow with the data: tau is the upper edge of the
    bin in which the lower median lies, at most 1e-4 above it, and no fewer than half of the pixels lie below it.
    A class that is never predicted gets floor V: nothing is known of it, so only near-certain pixels pass.

    Args:
        pairs: (old logits float [B, V, H, W], labels int64 [B, H, W]) of the step's data; label 0 = background.
        channels: V.
        floor: the smallest threshold per class of the old network; PLOP's entropy is a mean over channels.

    Returns:
        float32 [V], on the logits' device.
    """
    counts = torch.zeros(channels * BINS, dtype=torch.int64)
    for logits, labels in pairs:
        if logits.shape[1] != channels:
            raise ModelError(
                f"logits of {logits.shape[1]} channels where {channels} were announced",
                hint="give the logits of the old network and its number of channels",
            )
        background = labels == 0
        bins = (pseudo_entropy(logits)[background] * BINS).long().clamp_max(BINS - 1)
        place = logits.argmax(1)[background] * BINS + bins
        counts = counts.to(logits.device) + torch.bincount(place, minlength=channels * BINS)
    below = counts.view(channels, BINS).cumsum(1)
    median = (2 * below < below[:, -1:]).sum(1) + 1
    lowest = floor * channels
    tau = (median.double() / BINS).clamp_min(lowest)
    return tau.masked_fill(below[:, -1] == 0, lowest).float()


@torch.no_grad()
def pseudo_labels(labels: Tensor, old_logits: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Background pixels get the old network's class where it is sure (u < tau_c), and 255 where it is not.

    Args:
        labels: int64 [B, H, W], 0 = background, 255 = ignore.
        old_logits: float [B, V, H, W].
        thresholds: float [V], tau_c.

    Returns:
        int64 [B, H, W]; float32 [B], nu = accepted / background pixels, by which PLOP scales an image's
        cross-entropy, 1 for an image without background.
    """
    if old_logits.shape[:1] + old_logits.shape[2:] != labels.shape or thresholds.shape != old_logits.shape[1:2]:
        raise ModelError(
            f"old logits of shape {tuple(old_logits.shape)} do not fit labels of shape {tuple(labels.shape)} "
            f"or thresholds of shape {tuple(thresholds.shape)}",
            hint="bring logits to the labels' size, and give one threshold for each of their channels",
        )
    guess = old_logits.argmax(1)
    background = labels == 0
    accepted = background & (pseudo_entropy(old_logits) < thresholds.to(old_logits.device)[guess])
    completed = torch.where(accepted, guess, labels.masked_fill(background, IGNORE))
    total = background.sum((1, 2))
    share = accepted.sum((1, 2)) / total.clamp_min(1)
    return completed, share.masked_fill(total == 0, 1.0)


def pod_factor(channels: int, new: int) -> float:
    """sqrt(C / N): PLOP's distillation weighs more the fewer of the network's C classes are new (N)."""
    if not 1 <= new <= channels:
        raise ModelError(f"{new} new of {channels} classes", hint="a step learns at least one class")
    return math.sqrt(channels / new)


def _cuts(length: int, parts: int) -> list[tuple[int, int]]:
    edges = [i * length // parts for i in range(parts + 1)]
    return [(a, b) for a, b in itertools.pairwise(edges) if a < b]
