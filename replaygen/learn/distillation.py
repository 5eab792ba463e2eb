"""What the new network is asked to keep of the old one's answers: distillation losses of LwF, ILT and MiB.

Old outputs are detached here; half precision is computed in float32, float64 stays float64.
Notation: z, z' new and old logits, C and V their channels (background = 0 among both), q' = softmax(z').
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.sample import IGNORE

Where = Literal["all", "old_or_background", "old"]


def soft_cross_entropy(new: Tensor, old: Tensor, *, pixels: Tensor | None = None) -> Tensor:
    """Output distillation as ILT's L'_D: - sum_{c<V} q'_c log softmax(z)_c, the softmax over all C channels.

    Michieli and Zanuttigh, ICCV Workshops 2019. Unlike `lwf_distillation`, it has no 1/V.

    Args:
        new: float [B, C, H, W].
        old: float [B, V, H, W], V <= C.
        pixels: bool [B, H, W], the pixels that count; None = all.

    Returns:
        scalar: the mean over the pixels that count; 0 where there is none.
    """
    new, old = paired_logits(new, old)
    return _mean(_cross(old.softmax(1), new.log_softmax(1)[:, : old.shape[1]]), pixels)


def lwf_distillation(new: Tensor, old: Tensor, *, pixels: Tensor | None = None) -> Tensor:
    """LwF among the old classes: -(1/V) sum_{c<V} q'_c log softmax(z_{<V})_c, without its usual weight of 100.

    Li and Hoiem, ECCV 2016, in the form that MiB compares with.
    Arguments and result are those of `soft_cross_entropy`.
    """
    new, old = paired_logits(new, old)
    channels = old.shape[1]
    return _mean(_cross(old.softmax(1), new[:, :channels].log_softmax(1)), pixels) / channels


def temperature_distillation(new: Tensor, old: Tensor, temperature: float, *, pixels: Tensor | None = None) -> Tensor:
    """Softened output distillation: - sum_{c<V} softmax(z'/T)_c log softmax(z_{<V}/T)_c, neither 1/V nor T^2.

    Michieli and Zanuttigh, CVIU 2021 (cls-T). T > 0; larger values show more of the classes that are not the argmax.
    The other arguments and the result are those of `soft_cross_entropy`.
    """
    if not temperature > 0:
        raise ModelError(f"distillation at temperature {temperature}", hint="give a temperature above 0, such as 2")
    new, old = paired_logits(new, old)
    soft = (new[:, : old.shape[1]] / temperature).log_softmax(1)
    return _mean(_cross((old / temperature).softmax(1), soft), pixels)


def unbiased_distillation(new: Tensor, old: Tensor, *, pixels: Tensor | None = None) -> Tensor:
    """MiB's distillation, for which a new object was background to the old network.

    -(1/V) sum_{c<V} q'_c log p_c with log p_0 = LSE(z_0, z_V, ..., z_{C-1}) - LSE(z); log p_c = z_c - LSE(z).
    Cermelli et al., CVPR 2020, without their factor lambda = 10.
    Arguments and result are those of `soft_cross_entropy`.
    """
    new, old = paired_logits(new, old)
    channels = old.shape[1]
    total = torch.logsumexp(new, 1, keepdim=True)
    background = torch.logsumexp(torch.cat([new[:, :1], new[:, channels:]], 1), 1, keepdim=True)
    log_p = torch.cat([background, new[:, 1:channels]], 1) - total
    return _mean(_cross(old.softmax(1), log_p), pixels) / channels


def feature_distillation(new_map: Tensor, old_map: Tensor) -> Tensor:
    """ILT's L''_D: the mean of (F - F')^2 over all entries of two feature maps, float [B, D, h, w] each."""
    new_map, old_map = paired_maps(new_map, old_map)
    return F.mse_loss(new_map, old_map)


def decoder_distillation(new_maps: Sequence[Tensor], old_maps: Sequence[Tensor]) -> Tensor:
    """`feature_distillation` of each pair of maps, averaged: ILT's variant on the decoder's dilated branches."""
    pairs = paired_stages(new_maps, old_maps)
    return torch.stack([feature_distillation(new, old) for new, old in pairs]).mean()


def similarity_distillation(new_map: Tensor, old_map: Tensor) -> Tensor:
    """SPKD: ||G - G'||_F^2 / B^2, G = A A^T with rows scaled to length 1, A the maps as rows [B, D h w].

    Tung and Mori, ICCV 2019. Compares how alike the images of the batch are to one another.
    The row of an image without active features stays zeros, and no gradient goes through its length.

    Args:
        new_map: float [B, D, h, w], B > 1.
        old_map: float [B, D, h, w].

    Raises:
        ModelError: for a batch of one, which has nothing to be alike to.
    """
    new_map, old_map = paired_maps(new_map, old_map)
    batch = len(new_map)
    if batch < 2:
        raise ModelError(
            "similarity distillation of a batch of one image",
            hint="use a batch of at least 2 and drop a last batch of one, or distil features instead",
        )
    return (_likeness(new_map) - _likeness(old_map)).square().sum() / batch**2


def ilt_pixels(labels: Tensor, old_logits: Tensor, new_channels: Sequence[int], where: Where) -> Tensor:
    """The pixels on which ILT distils outputs; 255 never counts.

    Args:
        labels: int64 [B, H, W], 255 = ignore.
        old_logits: float [B, V, H, W].
        new_channels: the channels learnt in this step.
        where: "all" = every pixel; "old_or_background" = those not labelled with a new class;
            "old" = of these, those that the old network does not take for background.

    Returns:
        bool [B, H, W].
    """
    if where not in get_args(Where):
        raise ModelError(f"distillation on {where!r} pixels", hint=f"one of {', '.join(get_args(Where))}")
    pixels = labels != IGNORE
    if where != "all":
        pixels = pixels & ~among(labels, new_channels)
    if where == "old":
        pixels = pixels & (old_logits.argmax(1) >= 1)
    return pixels


def at_least_float32(values: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 where they are."""
    return values if values.dtype == torch.float64 else values.float()


def among(labels: Tensor, channels: Sequence[int]) -> Tensor:
    """bool, shaped like `labels`: whether the label is one of `channels`."""
    return torch.isin(labels, torch.tensor(list(channels), dtype=labels.dtype, device=labels.device))


def paired_maps(new_map: Tensor, old_map: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps in float32 or float64, the old one detached; ModelError where their shapes differ."""
    if new_map.shape != old_map.shape:
        raise ModelError(
            f"feature maps of shapes {tuple(new_map.shape)} and {tuple(old_map.shape)} cannot be compared",
            hint="take both from the same layer of the same network, on the same views",
        )
    return at_least_float32(new_map), at_least_float32(old_map.detach())


def paired_stages(new_maps: Sequence[Tensor], old_maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Stage by stage; ModelError where there is none or the counts differ."""
    if not new_maps or len(new_maps) != len(old_maps):
        raise ModelError(
            f"{len(new_maps)} new and {len(old_maps)} old feature maps cannot be compared",
            hint="give the same layers of both networks, at least one",
        )
    return list(zip(new_maps, old_maps, strict=True))


def paired_logits(new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or float64, the old ones detached; ModelError unless [B, C, H, W] and [B, V, H, W], V <= C."""
    fits = new.dim() == old.dim() == 4 and new.shape[0] == old.shape[0] and new.shape[2:] == old.shape[2:]
    if not (fits and 1 <= old.shape[1] <= new.shape[1]):
        raise ModelError(
            f"new logits of shape {tuple(new.shape)} cannot be compared with old ones of shape {tuple(old.shape)}",
            hint="the old network saw the same views and has no channel that the new one lacks",
        )
    return at_least_float32(new), at_least_float32(old.detach())


def _cross(probability: Tensor, log_probability: Tensor) -> Tensor:
    return -(probability * log_probability).sum(1)


def _mean(loss: Tensor, pixels: Tensor | None) -> Tensor:
    if pixels is None:
        return loss.mean()
    return loss.masked_fill(~pixels, 0.0).sum() / pixels.sum().clamp_min(1)


def _likeness(maps: Tensor) -> Tensor:
    rows = maps.flatten(1)
    # autocast would multiply in half precision, where long sums of squares overflow
    with torch.autocast(maps.device.type, enabled=False):
        products = rows @ rows.T
    length: Tensor = torch.linalg.vector_norm(products, dim=1, keepdim=True)
    empty = length == 0
    return (products / length.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)
