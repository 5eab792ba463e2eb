"""What a previous model sees in the background of current images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from replaygen.sample import IGNORE

if TYPE_CHECKING:
    import numpy.typing as npt

    from replaygen.sample import Mask8

    Probabilities = npt.NDArray[np.float32]
    """float32 [C, H, W], sums to 1 over channels."""

Restrict = Literal["query", "step", "seen"]


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
