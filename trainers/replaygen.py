"""replaygen: replay of old and new classes, one merged cross-entropy, and the old model's soft answers.

    L = merged CE(z, y; S) + distil UNKD(z, z') + feature MSE(F, F')

Three things meet. Replay: photos or generated images of the old classes, and with `ahead` in the recipe's row also of
the classes being learnt, labelled by this step's helper, so that "looks like a replay photo" says nothing of the class.
Inpainted current labels (RECALL). And the previous model's soft labels on all of it, read with the background's meaning
of the time (MiB's UNKD). Which of them brings what is in `benchmarks/results/methods-ablation.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from replaygen.learn import (
    Batch,
    Checkpoint,
    CutMixed,
    Prediction,
    Samples,
    StepJob,
    cross_entropy,
    feature_distillation,
    ilt_pixels,
    merged_cross_entropy,
    unbiased_distillation,
)

TRAITS = {"replay": "optional", "inpaint": True, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What it can vary.

    merged: background may be any class that a label was not made for; false: labels are taken as complete.
    distil: weight of the soft labels, on pixels that are not labelled with a new class; feature: weight of the
        features' mean squared error.
    mix: share of samples that receive a rectangle of a sample of the other kind (CutMix).
    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    r_new, r_old: parts of a mini-batch that are current and replay.
    """

    merged: bool = False
    distil: float = 0.0
    feature: float = 0.0
    mix: float = 0.0
    init: Literal["random", "balanced", "copy"] = "balanced"
    r_new: float = 1.0
    r_old: float = 1.0


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train the previous network on current and replay samples, on labels and on its old answers."""
    options: Options = job.options or Options()
    net, teacher = job.network(previous, options.init), job.teacher(previous)

    def loss(said: Prediction, batch: Batch) -> Tensor:
        weight = job.class_weights(batch.progress)
        if options.merged:
            total = merged_cross_entropy(said.logits, batch.masks, batch.visible, weight=weight)
        else:
            total = cross_entropy(said.logits, batch.masks, weight=weight)
        if teacher is None or not (options.distil or options.feature):
            return total
        before = teacher(batch)
        if options.distil:
            pixels = ilt_pixels(batch.masks, before.logits, job.new, "old_or_background")
            total = total + options.distil * unbiased_distillation(said.logits, before.logits, pixels=pixels)
        if options.feature:
            total = total + options.feature * feature_distillation(said.features, before.features)
        return total

    batches = job.batches(current, buffer, options.r_new, options.r_old)
    return job.finish(net, job.train(net, CutMixed(batches, options.mix, job.seed), loss))
