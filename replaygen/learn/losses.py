"""The one cross-entropy, and its plain special case."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from replaygen.sample import IGNORE


def merged_cross_entropy(logits: Tensor, target: Tensor, visible: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy in which background stands for itself and for every class that is not visible.

    With S the visible classes of a sample and H = {0} + {c : c not in S}:
    log p(bg) = LSE(z_H) - LSE(z); log p(c) = z_c - LSE(z) for c in S; a label not in S counts as background.
    S = all classes: plain cross-entropy. S = new classes: the unbiased CE of MiB (Cermelli et al., CVPR 2020).
    S = old classes: MiB-AugM's loss for replay that may hold new objects.

    Args:
        logits: float [B, C, H, W].
        target: integer [B, H, W], 0..C-1 or 255 = ignore.
        visible: bool [B, C]; column 0 is not read, background is never visible.
        weight: float [C], weight of a pixel by its (merged) label.

    Returns:
        scalar: the weighted mean over pixels that are not ignored; 0 where there is none.
    """
    hidden = ~visible.bool()
    hidden[:, 0] = True
    total = torch.logsumexp(logits, 1)
    background = torch.logsumexp(logits.masked_fill(~hidden[:, :, None, None], -torch.inf), 1)
    kept = target != IGNORE
    label = torch.where(kept, target, 0).long()
    is_hidden = hidden[:, :, None, None].expand_as(logits).gather(1, label.unsqueeze(1)).squeeze(1)
    label = label.masked_fill(is_hidden, 0)
    chosen = torch.where(label == 0, background, logits.gather(1, label.unsqueeze(1)).squeeze(1))
    return _mean((total - chosen), label, kept, weight)


def cross_entropy(
    logits: Tensor, target: Tensor, *, weight: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """Plain cross-entropy: the weighted mean over pixels that are not 255; 0 where there is none.

    Args:
        logits: float [B, C, H, W].
        target: integer [B, H, W], 0..C-1 or 255 = ignore.
        weight: float [C], weight of a pixel by its label.
        scale: float [B], a factor on the loss of each image (PLOP's nu); it is in no divisor.
    """
    kept = target != IGNORE
    label = torch.where(kept, target, 0).long()
    loss = F.cross_entropy(logits, label, reduction="none")
    return _mean(loss if scale is None else loss * scale.to(loss)[:, None, None], label, kept, weight)


def class_weights(
    channels: int,
    background: float,
    device: torch.device | None = None,
    *,
    new: float = 1.0,
    learnt: Sequence[int] = (),
) -> Tensor | None:
    """float [C]: `background` for channel 0, `new` for those of `learnt`, 1 for the others; None where all are 1."""
    if background == 1.0 and (new == 1.0 or not learnt):
        return None
    weights = torch.ones(channels, device=device)
    weights[list(learnt)] = new
    weights[0] = background
    return weights


def _mean(loss: Tensor, label: Tensor, kept: Tensor, weight: Tensor | None) -> Tensor:
    share = kept.to(loss.dtype)
    if weight is not None:
        share = share * weight.to(loss.dtype)[label]
    # ignored pixels are removed before the product: an infinite loss there must not become NaN
    return (loss.masked_fill(~kept, 0.0) * share).sum() / share.sum().clamp_min(torch.finfo(loss.dtype).tiny)
