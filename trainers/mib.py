"""MiB: modelling the background, which at each step means something else.

    L = UNCE + lambda UNKD,   lambda = 10
    UNCE  merged cross-entropy with S = C_k: log p(bg) = LSE(z_bg, z_old) - LSE(z), log p(c) = z_c - LSE(z)
    UNKD  -(1/V) sum over c < V of q'_c log q^_c, with log q^_0 = LSE(z_0, z_new) - LSE(z), log q^_c = z_c - LSE(z)

New rows start as the background's share of itself ("balanced"): w = w_bg, b = b_bg - log(N + 1). With replay the same
merged cross-entropy reads each sample's visible classes, which is MiB-AugM's loss. Cermelli et al., CVPR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from replaygen.learn import (
    Batch,
    Checkpoint,
    Prediction,
    Samples,
    StepJob,
    merged_cross_entropy,
    unbiased_distillation,
)

TRAITS = {"replay": "optional", "inpaint": False, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What MiB can vary.

    distil: lambda.
    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    r_new, r_old: parts of a mini-batch that are current and replay, where there is replay.
    """

    distil: float = 10.0
    init: Literal["random", "balanced", "copy"] = "balanced"
    r_new: float = 1.0
    r_old: float = 1.0


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train the previous network on labels and old answers, both read with the background's meaning of the time."""
    options: Options = job.options or Options()
    net, teacher = job.network(previous, options.init), job.teacher(previous)

    def loss(said: Prediction, batch: Batch) -> Tensor:
        weight = job.class_weights(batch.progress)
        total = merged_cross_entropy(said.logits, batch.masks, batch.visible, weight=weight)
        if teacher is not None:
            total = total + options.distil * unbiased_distillation(said.logits, teacher(batch).logits)
        return total

    return job.finish(net, job.train(net, job.batches(current, buffer, options.r_new, options.r_old), loss))
