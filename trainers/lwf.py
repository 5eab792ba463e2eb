"""LwF: learning without forgetting, the old model's answers as soft labels beside the new ones.

    L = CE(z, y) + lambda L_KD,   L_KD = -(1/V) sum over c < V of q'_c log softmax(z_{<V})_c, mean over pixels

q' = softmax(z') of the previous step's model, V its classes with background, lambda = 100. Li & Hoiem, ECCV 2016, in
the form that Cermelli et al. (CVPR 2020) gave it for segmentation and every later table calls LwF.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from replaygen.learn import Batch, Checkpoint, Prediction, Samples, StepJob, cross_entropy, lwf_distillation

TRAITS = {"replay": "optional", "inpaint": False, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What LwF can vary.

    distil: lambda.
    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    r_new, r_old: parts of a mini-batch that are current and replay, where there is replay.
    """

    distil: float = 100.0
    init: Literal["random", "balanced", "copy"] = "random"
    r_new: float = 1.0
    r_old: float = 1.0


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train the previous network on the current samples, and on what it said of them before."""
    options: Options = job.options or Options()
    net, teacher = job.network(previous, options.init), job.teacher(previous)

    def loss(said: Prediction, batch: Batch) -> Tensor:
        total = cross_entropy(said.logits, batch.masks, weight=job.class_weights(batch.progress))
        if teacher is not None:
            total = total + options.distil * lwf_distillation(said.logits, teacher(batch).logits)
        return total

    return job.finish(net, job.train(net, job.batches(current, buffer, options.r_new, options.r_old), loss))
