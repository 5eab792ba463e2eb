"""replaygen: RECALL's replay and inpainted labels, and what else helps on the data at hand.

    L = CE(z, y) + distil UNKD(z, z') on pixels that are not labelled with a new class + feature MSE(F, F')

By itself it is RECALL with rows of new classes that start balanced; the rest is a choice of the recipe's row and its
replay source. `zoom` of the source: photos are trained on from farther away too, since they show their object larger
than real images do. `ahead` of the row: photos of the classes being learnt as well, labelled by this step's helper.
Soft labels of the previous model, features near the old ones, rectangles exchanged between current and replay samples
(CutMix), merged labels. Which of them is on where, and what each brings: docs/trainers.md and the methods' benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn import (
    Batch,
    Checkpoint,
    CutMixed,
    Prediction,
    Samples,
    StepJob,
    cross_entropy,
    derive,
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
    if options.mix and options.merged:
        raise ModelError(
            "mix and merged do not go together: a rectangle of another picture has other visible classes",
            hint="set mix = 0 or merged = false",
        )
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
    mixed = CutMixed(batches, options.mix, derive(job.seed, "mix", k)) if options.mix else batches
    return job.finish(net, job.train(net, mixed, loss))
