"""Labels of photos that were asked for by class, from one labeler or from several that vote.

An opinion is what one network says of a photo. Each is restricted to the classes that may compete and renormalised, and
the label is the argmax of their mean: with q_m(c) = p_m(c) / sum_{d in K} p_m(d), K = {bg} + S,

    label = argmax_{c in K} (1 / M) sum_m q_m(c).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from replaygen.errors import ModelError
from replaygen.sample import IGNORE

if TYPE_CHECKING:
    import numpy.typing as npt

    from replaygen.labelers.model import Probabilities, Restrict
    from replaygen.sample import Image8, Mask8

Refine = Literal["none", "grabcut"]
OTHER, UNSURE = 1, 2
"""Values of the marks: another known class stands there; the labelers are not sure."""

_SURE = 0.9
_ROUNDS = 2
_FEWEST = 20


@dataclass(frozen=True)
class Opinion:
    """What one network says of a photo.

    Attributes:
        probabilities: float32 [C, H, W], sums to 1 over channels; row 0 is background.
        channels: the scenario's channel of each row, 0 first.
        glance: the same from a single look (the whole picture, not mirrored), where the first is a mean of several.
    """

    probabilities: Probabilities
    channels: tuple[int, ...]
    glance: Probabilities | None = None

    def of(self, chosen: Sequence[int]) -> Probabilities:
        """The rows of `chosen`, renormalised to sum 1: float32 [len(chosen), H, W].

        Raises:
            ModelError: the network does not know one of them.
        """
        strange = sorted(set(chosen) - set(self.channels))
        if strange:
            raise ModelError(
                f"a labeler knows the channels {self.channels}, and was asked for {strange}",
                hint="a helper knows the classes of its own step only",
            )
        return self._renormalised(self.probabilities, chosen)

    def glanced(self, chosen: Sequence[int]) -> Probabilities:
        """The same of the single look."""
        return self._renormalised(self.probabilities if self.glance is None else self.glance, chosen)

    def _renormalised(self, probabilities: Probabilities, chosen: Sequence[int]) -> Probabilities:
        rows = probabilities[[self.channels.index(channel) for channel in chosen]]
        made: Probabilities = rows / np.maximum(rows.sum(axis=0), 1e-12)
        return made


@dataclass(frozen=True)
class PhotoOpinion:
    """The label of a photo and what it is worth.

    Attributes:
        mask: uint8 [H, W]; 0 background, the queried channel, 255 where the winner is below `unsure`.
        marks: uint8 [H, W]; OTHER where another known class is seen outside the label, UNSURE where nobody is sure.
        weight: float32 [H, W], the class's mean probability, for pooling features over the labelled region.
        share: share of the pixels that got the class.
        confidence: mean probability of the class over them, by the mean of all opinions (0 where there are none).
        agreement: mean IoU between the label and what each opinion alone says at a single look.
        other: share of the label where the opinion that knows most classes prefers another class than the queried one.
    """

    mask: Mask8
    marks: Mask8
    weight: npt.NDArray[np.float32]
    share: float
    confidence: float
    agreement: float
    other: float


def label_by_all(
    opinions: Sequence[Opinion],
    channel: int,
    *,
    restrict: Restrict,
    step_channels: tuple[int, ...],
    unsure: float = 0.0,
    doubtful: float = 0.6,
    image: Image8 | None = None,
) -> PhotoOpinion:
    """Label a photo of one queried class.

    Args:
        opinions: one or more; "seen" needs every one of them to know every class that the first one knows.
        channel: the queried class.
        restrict: which classes compete with background: the queried one ("query"), those of the step that learnt it
            ("step", RECALL's rule), or all that are known ("seen"); a class other than the queried one is background.
        step_channels: the channels of the step that learnt the class.
        unsure: pixels whose winner is less probable than this become 255.
        doubtful: pixels whose winner is less probable than this are marked UNSURE.
        image: uint8 [H, W, 3]; given: the label's outline is drawn anew along the picture's edges (`refine_outline`).

    Raises:
        ModelError: no opinion, or one that does not know a competing class.
    """
    if not opinions:
        raise ModelError("a photo cannot be labelled without an opinion")
    compete = {"query": (channel,), "step": step_channels, "seen": opinions[0].channels[1:]}[restrict]
    chosen = (0, *compete)
    place = chosen.index(channel)
    singles = [opinion.of(chosen) for opinion in opinions]
    joint: Probabilities = singles[0] if len(singles) == 1 else np.stack(singles).mean(axis=0)
    winner = joint.argmax(axis=0)
    is_class = winner == place
    if image is not None:
        is_class = refine_outline(image, joint[place])
    mask = np.where(is_class, channel, 0).astype(np.uint8)
    surest = joint.max(axis=0)
    if unsure > 0:
        mask[surest < unsure] = IGNORE
        is_class = mask == channel
    widest = max(opinions, key=lambda opinion: len(opinion.channels))
    seen = np.array(widest.channels)[widest.probabilities.argmax(axis=0)]
    strange = (seen != 0) & (seen != channel)
    marks = np.where(surest < doubtful, UNSURE, 0).astype(np.uint8)
    marks[strange & ~is_class] = OTHER
    alone = [_iou(opinion.glanced(chosen).argmax(axis=0) == place, is_class) for opinion in opinions]
    found = bool(is_class.any())
    return PhotoOpinion(
        mask, marks, joint[place], share=float(is_class.mean()),
        confidence=float(joint[place][is_class].mean()) if found else 0.0,
        agreement=float(np.mean(alone)),
        other=float(strange[is_class].mean()) if found else 0.0,
    )  # fmt: skip


def refine_outline(image: Image8, probability: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """The region of p > 1/2, with its outline moved to where the colours change (GrabCut, Rother et al. 2004).

    Pixels of p > 0.9 stay inside and those of p < 0.1 outside; between them the cut of two colour mixtures decides.
    Where either of the two is all but empty, the region stays p > 1/2.

    Args:
        image: uint8 [H, W, 3].
        probability: float32 [H, W].
    """
    cv2 = _opencv()
    inside = probability > 0.5
    state = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    state[probability > _SURE] = cv2.GC_FGD
    state[probability < 1 - _SURE] = cv2.GC_BGD
    if min(int((state == cv2.GC_FGD).sum()), int((state == cv2.GC_BGD).sum())) < _FEWEST:
        return inside
    ground, figure = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(np.ascontiguousarray(image), state, None, ground, figure, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    cut: npt.NDArray[np.bool_] = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    return cut


def _opencv() -> Any:
    """OpenCV, whose own type hints know neither uint8 nor operators."""
    import cv2

    return cv2


def _iou(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0
