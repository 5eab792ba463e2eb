"""PLOP: pseudo-labels where the old model is sure, and features kept near the old ones at several scales.

    L = nu CE(z, y~) + sqrt(C / N) (pod L_pod(stages) + pod_logits L_pod(logits))

    y~  y where it is a new class; on background argmax z' where u = H(q') / log V < tau_c, else ignored;
        tau_c = max(median of u over the pixels of class c, floor), over the step's images, before it begins
    nu  accepted / background pixels of an image, 1 where there is no background
    L_pod  mean over stages of the batch mean of ||Phi(h) - Phi(h')||_2, Phi: means over width and over height of the
           squared map's regions at scales 1, 1/2, 1/4

pod = 0.01, pod_logits = 0.0005, rows of new classes as in MiB. Douillard et al., CVPR 2021.
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
    cross_entropy,
    entropy_thresholds,
    pod_distillation,
    pod_factor,
    pod_logits,
    pseudo_labels,
)

TRAITS = {"replay": "optional", "inpaint": False, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What PLOP can vary.

    pod: weight of the maps' distillation; pod_logits: of the logits'.
    floor: the least threshold, times V.
    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    r_new, r_old: parts of a mini-batch that are current and replay, where there is replay.
    """

    pod: float = 0.01
    pod_logits: float = 0.0005
    floor: float = 0.001
    init: Literal["random", "balanced", "copy"] = "balanced"
    r_new: float = 1.0
    r_old: float = 1.0


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train the previous network on labels that it completes where it is sure, held to its old maps."""
    options: Options = job.options or Options()
    net, teacher = job.network(previous, options.init), job.teacher(previous)
    thresholds = None
    if teacher is not None:
        pairs = ((teacher(batch).logits, batch.masks) for batch in job.every(current))
        thresholds = entropy_thresholds(pairs, 1 + len(job.old), options.floor)

    def loss(said: Prediction, batch: Batch) -> Tensor:
        weight = job.class_weights(batch.progress)
        if teacher is None or thresholds is None:
            return cross_entropy(said.logits, batch.masks, weight=weight)
        before = teacher(batch)
        labels, accepted = pseudo_labels(batch.masks, before.logits, thresholds)
        pod = options.pod * pod_distillation(said.stages, before.stages)
        pod = pod + options.pod_logits * pod_logits(said.logits, before.logits)
        classified = cross_entropy(said.logits, labels, weight=weight, scale=accepted)
        return classified + pod_factor(job.channels, len(job.new)) * pod

    return job.finish(net, job.train(net, job.batches(current, buffer, options.r_new, options.r_old), loss))
