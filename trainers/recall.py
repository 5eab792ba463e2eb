"""RECALL: replay images of the old classes, labelled by the model that learnt them, next to the new images.

    L = CE(new images, labels with inpainted background) + CE(replay images, their pseudo-labels)

Both kinds share every mini-batch, r_new : r_old = 1 : 1. Background inpainting, Y_bi = Y where Y is a new class, else
argmax over background and old classes of M_{k-1}(X), is done before, by the relabel stage. No distillation.
Maracani, Michieli, Toldo, Zanuttigh: RECALL: Replay-based Continual Learning in Semantic Segmentation, ICCV 2021.

What differs from the reference code: it alternates batches of new images with batches of replay, so half of its
iterations see no new data; here each batch holds both. The paper freezes the encoder after step 0: set
`freeze = "after_base"` in the recipe's [network].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from replaygen.errors import DataError
from replaygen.learn import Batch, Checkpoint, Prediction, Samples, StepJob, cross_entropy, merged_cross_entropy

TRAITS = {"replay": True, "inpaint": True, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What RECALL can vary.

    r_new, r_old: parts of a mini-batch that are current and replay.
    merged: an ablation: replay's background may hide any class that its label was not made for (merged cross-entropy).
    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    """

    r_new: float = 1.0
    r_old: float = 1.0
    merged: bool = False
    init: Literal["random", "balanced", "copy"] = "random"


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train the previous network on current and replay samples, mixed in every batch."""
    options: Options = job.options or Options()
    if buffer is None:
        raise DataError(
            f"step {k} has no replay, and without it RECALL would be fine-tuning", hint="see the run's counts"
        )
    net = job.network(previous, options.init)

    def loss(said: Prediction, batch: Batch) -> Tensor:
        weight = job.class_weights(batch.progress)
        if not options.merged:
            return cross_entropy(said.logits, batch.masks, weight=weight)
        # inpainted current labels show every class, so only replay's background is merged
        visible = torch.where(batch.replay[:, None], batch.visible, True)
        return merged_cross_entropy(said.logits, batch.masks, visible, weight=weight)

    batches = job.batches(current, buffer, options.r_new, options.r_old)
    return job.finish(net, job.train(net, batches, loss))
