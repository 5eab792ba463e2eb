"""EWF: endpoints weight fusion, the step's network averaged with the one before it.

    theta <- (1 - alpha) theta_{t-1} + alpha theta_t,   alpha = sqrt(N / C)

N new of C classes. The network of step t is trained as MiB trains it (UNCE + lambda UNKD) and then fused, old rows of
the classifier with old rows; the rows of new classes stay as they were learnt. Xiao et al., CVPR 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn import (
    Batch,
    Checkpoint,
    Prediction,
    Samples,
    StepJob,
    fused,
    merged_cross_entropy,
    unbiased_distillation,
)

TRAITS = {"replay": "optional", "inpaint": False, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What EWF can vary.

    alpha: the new network's part; 0 stands for sqrt(N / C).
    distil: lambda of the unbiased distillation.
    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    r_new, r_old: parts of a mini-batch that are current and replay, where there is replay.
    """

    alpha: float = 0.0
    distil: float = 10.0
    init: Literal["random", "balanced", "copy"] = "balanced"
    r_new: float = 1.0
    r_old: float = 1.0


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train as MiB, then fuse with the previous network."""
    options: Options = job.options or Options()
    if not 0 <= options.alpha <= 1:
        raise ModelError(f"alpha = {options.alpha} is no share", hint="between 0 and 1; 0 stands for sqrt(N / C)")
    net, teacher = job.network(previous, options.init), job.teacher(previous)

    def loss(said: Prediction, batch: Batch) -> Tensor:
        weight = job.class_weights(batch.progress)
        total = merged_cross_entropy(said.logits, batch.masks, batch.visible, weight=weight)
        if teacher is not None:
            total = total + options.distil * unbiased_distillation(said.logits, teacher(batch).logits)
        return total

    result = job.train(net, job.batches(current, buffer, options.r_new, options.r_old), loss)
    if teacher is not None:
        alpha = options.alpha or math.sqrt(len(job.new) / job.channels)
        fused(net, teacher.net.saved_tensors(), alpha)
    return job.finish(net, result)
