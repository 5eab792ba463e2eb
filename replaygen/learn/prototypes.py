"""Class prototypes and the losses that shape features around them: SDR (Michieli and Zanuttigh, CVPR 2021).

Features are float [B, D, h, w] after ReLU; labels are int64 [B, h, w] at the features' size (`nearest_labels`).
255, and any label that is no channel, counts nowhere. p_c: running mean of class c over the stream, without gradient;
p^_c: the mean of class c over the batch, with gradient. Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.distillation import among, at_least_float32
from replaygen.sample import IGNORE

CLOSEST = 1e-3
"""Centroids nearer than this repel each other no more: 1/d stays at most 1e3 and its gradient at most 1e6."""
FAINT = 1e-6
"""A pixel whose normalised features sum to no more than this is taken for one without active features."""


def nearest_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels at the features' size: row i of h reads row floor(i H / h), and columns likewise.

    Strided convolutions centre their outputs there, and torch's "nearest" reads the same pixels.

    Args:
        labels: int64 [B, H, W].
        size: (h, w).
    """
    height, width = labels.shape[-2:]
    rows = torch.arange(size[0], device=labels.device) * height // size[0]
    columns = torch.arange(size[1], device=labels.device) * width // size[1]
    return labels[:, rows[:, None], columns]


def completed_labels(labels: Tensor, old_logits: Tensor, new_channels: Sequence[int]) -> Tensor:
    """y*: the label where it is a new class or 255, else what the old network sees.

    Args:
        labels: int64 [B, H, W], 255 = ignore; old classes are not labelled in it.
        old_logits: float [B, V, H, W].
        new_channels: the channels learnt in this step.

    Returns:
        int64 [B, H, W].
    """
    if old_logits.shape[:1] + old_logits.shape[2:] != labels.shape:
        raise ModelError(
            f"old logits of shape {tuple(old_logits.shape)} do not fit labels of shape {tuple(labels.shape)}",
            hint="bring both to one size first",
        )
    return torch.where(among(labels, new_channels) | (labels == IGNORE), labels, old_logits.argmax(1))


class Prototypes:
    """Running mean of each class's features over the stream of batches.

    Attributes:
        mean: float32 [C, D], zeros for a class not met yet.
        count: float64 [C], pixels met so far.
    """

    def __init__(self, channels: int, width: int, device: torch.device | str | None = None) -> None:
        self.mean = torch.zeros(channels, width, dtype=torch.float32, device=device)
        self.count = torch.zeros(channels, dtype=torch.float64, device=device)

    @property
    def known(self) -> Tensor:
        """bool [C]: classes met at least once."""
        return self.count > 0

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch: features float [B, D, h, w], labels int64 [B, h, w]. A pixel weighs as any other."""
        if features.shape[1] != self.mean.shape[1]:
            raise ModelError(
                f"features of width {features.shape[1]} do not fit prototypes of width {self.mean.shape[1]}",
                hint="take them from the layer that the prototypes were begun with",
            )
        rows, member = _pixels(features, labels, len(self.count))
        met = member.sum(0)
        self.count += met
        share = (met / self.count.clamp_min(1)).to(self.mean.dtype)
        self.mean += (_class_means(rows, member).to(self.mean.dtype) - self.mean) * share[:, None]

    def tensors(self) -> dict[str, Tensor]:
        """The live tensors, "mean" and "count": `update` writes them in place, and so may a restored checkpoint."""
        return {"mean": self.mean, "count": self.count}

    def grown(self, channels: int) -> Prototypes:
        """A copy with more channels, the added ones not met yet."""
        held, width = self.mean.shape
        if channels < held:
            raise ModelError(f"{held} prototypes cannot become {channels}", hint="a network only gains channels")
        more = Prototypes(channels, width, self.mean.device)
        more.mean[:held] = self.mean
        more.count[:held] = self.count
        return more

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Prototypes:
        """A copy of what `tensors` gave."""
        mean, count = tensors.get("mean"), tensors.get("count")
        if mean is None or count is None or mean.dim() != 2 or count.shape != mean.shape[:1]:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items()))
            raise ModelError(
                f"no prototypes in these tensors: {shapes or 'none'}", hint="give mean [C, D] and count [C]"
            )
        made = cls(mean.shape[0], mean.shape[1], mean.device)
        made.mean.copy_(mean)
        made.count.copy_(count)
        return made


def centroids(features: Tensor, labels: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """p^_c, the mean feature of each class over the batch.

    Args:
        features: float [B, D, h, w].
        labels: int64 [B, h, w].
        channels: C.

    Returns:
        float [C, D] with gradient, zeros for a class without pixels; bool [C], the classes that have some.
    """
    rows, member = _pixels(features, labels, channels)
    return _class_means(rows, member), member.any(0)


def prototype_matching(features: Tensor, labels: Tensor, prototypes: Prototypes, old_channels: Sequence[int]) -> Tensor:
    """L_pm = mean_c ||p^_c - p_c||_2 over the old classes that are in the batch and known; 0 where there is none.

    Args:
        features: float [B, D, h, w].
        labels: int64 [B, h, w], old classes included (`completed_labels`).
        prototypes: the running means p_c, on the features' device.
        old_channels: the channels learnt in earlier steps, with or without background 0.
    """
    channels = len(prototypes.count)
    found, present = centroids(features, labels, channels)
    counted = present & prototypes.known & among(torch.arange(channels, device=features.device), old_channels)
    away: Tensor = torch.linalg.vector_norm(found - prototypes.mean.to(found.dtype), dim=1)
    return away.masked_fill(~counted, 0.0).sum() / counted.sum().clamp_min(1)


def attraction(features: Tensor, labels: Tensor, channels: int) -> Tensor:
    """Mean over the classes in the batch of the mean over i with y*_i = c of ||f_i - p^_c||_2; 0 where there is none.

    Args:
        features: float [B, D, h, w].
        labels: int64 [B, h, w].
        channels: C.
    """
    rows, member = _pixels(features, labels, channels)
    means = _class_means(rows, member)
    kept, label = member.any(1), member.int().argmax(1)
    away: Tensor = torch.linalg.vector_norm(rows - means[label], dim=1)
    weight = (member.sum(0).clamp_min(1) * member.any(0).sum().clamp_min(1)).to(away.dtype).reciprocal()
    return (away * weight[label]).masked_fill(~kept, 0.0).sum()


def repulsion(features: Tensor, labels: Tensor, channels: int) -> Tensor:
    """(1/|y|) sum_{j != k} 1 / ||p^_j - p^_k||_2 over ordered pairs of the |y| classes in the batch; 0 below two.

    A distance below `CLOSEST` counts as that and gives no gradient: equal centroids have no direction to part in.

    Args:
        features: float [B, D, h, w].
        labels: int64 [B, h, w].
        channels: C.
    """
    found, present = centroids(features, labels, channels)
    found = found[present]
    away: Tensor = torch.linalg.vector_norm(found[:, None] - found[None], dim=2).clamp_min(CLOSEST)
    itself = torch.eye(len(found), dtype=torch.bool, device=found.device)
    return away.reciprocal().masked_fill(itself, 0.0).sum() / max(len(found), 1)


def sparsity(features: Tensor, labels: Tensor, channels: int) -> Tensor:
    """mean_i sum_j exp(f-_ij) / sum_j f-_ij, f-_i = f_i / (m_c + 1e-8), m_c the largest entry of class c = y*_i.

    m_c is taken over all pixels of c in the batch and all D entries, without gradient. Pixels without an active
    feature (`FAINT`) are left out; 0 where none remains.

    Args:
        features: float [B, D, h, w], not negative.
        labels: int64 [B, h, w].
        channels: C.
    """
    rows, member = _pixels(features, labels, channels)
    largest = torch.where(member, rows.detach().amax(1)[:, None], 0.0).amax(0)
    scale = torch.where(member, largest, 0.0).sum(1) + 1e-8
    # exp of what is left out could overflow, and 0 x inf in its gradient is NaN: blank it before
    scaled = torch.where(member.any(1, keepdim=True), rows / scale[:, None], 0.0)
    active = scaled.detach().sum(1) > FAINT
    scaled = torch.where(active[:, None], scaled, 0.0)
    ratio = scaled.exp().sum(1) / torch.where(active, scaled.sum(1), 1.0)
    return ratio.masked_fill(~active, 0.0).sum() / active.sum().clamp_min(1)


def _pixels(features: Tensor, labels: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Pixels as rows: features [n, D] in float32 or float64, and whether a pixel is of a class, bool [n, C]."""
    if features.shape[:1] + features.shape[2:] != labels.shape:
        raise ModelError(
            f"labels of shape {tuple(labels.shape)} do not fit features of shape {tuple(features.shape)}",
            hint="bring labels to the features' size with nearest_labels",
        )
    rows = at_least_float32(features).permute(0, 2, 3, 1).flatten(0, 2)
    # a label of 255 must not become class 255, were there as many
    label = labels.masked_fill(labels == IGNORE, -1).flatten()
    return rows, label[:, None] == torch.arange(channels, device=labels.device)


def _class_means(rows: Tensor, member: Tensor) -> Tensor:
    """float [C, D]: the mean row of each class, zeros where it has none."""
    # a product with 0 and 1 adds up in a fixed order on every device; autocast would do it in half precision
    with torch.autocast(rows.device.type, enabled=False):
        sums = member.to(rows.dtype).T @ rows
    return sums / member.sum(0).clamp_min(1)[:, None]
