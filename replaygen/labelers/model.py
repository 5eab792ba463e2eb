"""Labels from a segmentation model: replay photos, and the background of current images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from replaygen.sample import IGNORE

if TYPE_CHECKING:
    import numpy.typing as npt

    from replaygen.sample import Mask8

    Probabilities = npt.NDArray[np.float32]
    """float32 [C, H, W], sums to 1 over channels."""

Restrict = Literal["query", "step", "seen"]


@dataclass(frozen=True)
class PhotoLabel:
    """A pseudo-label of a photo of one queried class.

    Attributes:
        mask: uint8 [H, W]; 0 background, `channel` the queried class, 255 where the labeler was not sure.
        share: share of the pixels that got the class.
        confidence: mean probability of the class over those pixels (0 where there is none).
    """

    mask: Mask8
    share: float
    confidence: float


def label_photo(
    probabilities: Probabilities,
    channel: int,
    *,
    restrict: Restrict,
    step_channels: tuple[int, ...],
    unsure: float = 0.0,
) -> PhotoLabel:
    """Label a photo that was asked for by class: only the queried class and background are trusted.

    The argmax runs over background and S, where S is the queried class ("query"), the classes of the step that learnt
    it ("step", RECALL's rule), or all seen classes ("seen"); a class other than the queried one becomes background.

    Args:
        probabilities: float32 [C, H, W] of the model, channel 0 = background.
        channel: the queried class.
        restrict: which classes compete, see above.
        step_channels: the channels of the step that learnt the class.
        unsure: pixels whose probability of the winner, renormalised over background and S, is below this become 255.
    """
    compete = {"query": (channel,), "step": step_channels, "seen": tuple(range(1, probabilities.shape[0]))}[restrict]
    chosen = (0, *compete)
    scores = probabilities[list(chosen)]
    winner = scores.argmax(axis=0)
    is_class = winner == chosen.index(channel)
    mask = np.where(is_class, channel, 0).astype(np.uint8)
    if unsure > 0:
        sure = scores.max(axis=0) / np.maximum(scores.sum(axis=0), 1e-12)
        mask[sure < unsure] = IGNORE
    confidence = float(probabilities[channel][is_class].mean()) if is_class.any() else 0.0
    return PhotoLabel(mask, float(is_class.mean()), confidence)


def inpaint_background(
    probabilities: Probabilities, current: Mask8, *, old: tuple[int, ...], unsure: float = 0.0
) -> Mask8:
    """RECALL's background inpainting: Y where Y is a class of the step, else what the previous model sees there.

    Y_bi = Y where Y in C_k, else argmax_{c in {bg} + C_0:k-1} M_{k-1}(X)_c. Void (255) stays void.

    Args:
        probabilities: float32 [C, H, W] of the previous-step model.
        current: uint8 [H, W], the step's own labels (C_k, 0, 255).
        old: the channels of C_0:k-1.
        unsure: background pixels whose winning probability is below this become 255 instead.

    Returns:
        uint8 [H, W].
    """
    chosen = np.array((0, *old), dtype=np.uint8)
    scores = probabilities[chosen]
    filled = chosen[scores.argmax(axis=0)]
    if unsure > 0:
        filled = np.where(scores.max(axis=0) < unsure, IGNORE, filled)
    return np.where(current == 0, filled, current).astype(np.uint8)
