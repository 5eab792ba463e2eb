"""SDR: sparse and disentangled representations, classes kept apart in feature space, on top of MiB.

    L = UNCE + lambda UNKD + matching L_pm + attraction L_at + repulsion L_re + sparsity L_sp

    L_pm  mean over old classes of ||p^_c - p_c||: the batch's centroid near the prototype, the running mean of the
          class's features over everything that was trained on
    L_at  mean over classes of the mean of ||f_i - p^_c||        L_re  (1/|y|) sum over j != k of 1 / ||p^_j - p^_k||
    L_sp  mean over i of sum_j exp(f_ij) / sum_j f_ij, features divided by their class's largest entry

Features are assigned by y* = y where a class is labelled, else argmax of the previous model. Prototypes travel from
step to step with the checkpoint. Michieli & Zanuttigh, CVPR 2021.
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
    attraction,
    completed_labels,
    merged_cross_entropy,
    nearest_labels,
    prototype_matching,
    repulsion,
    sparsity,
    unbiased_distillation,
)

TRAITS = {"replay": "optional", "inpaint": False, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What SDR can vary.

    distil: lambda of the unbiased distillation.
    matching, attraction, repulsion, sparsity: weights of the four terms.
    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    r_new, r_old: parts of a mini-batch that are current and replay, where there is replay.
    """

    distil: float = 10.0
    matching: float = 0.01
    attraction: float = 0.001
    repulsion: float = 0.001
    sparsity: float = 0.001
    init: Literal["random", "balanced", "copy"] = "balanced"
    r_new: float = 1.0
    r_old: float = 1.0


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train as MiB, and shape the features by the prototypes of all classes seen."""
    options: Options = job.options or Options()
    net, teacher = job.network(previous, options.init), job.teacher(previous)
    batches = job.batches(current, buffer, options.r_new, options.r_old)
    prototypes = job.prototypes(net, batches, previous)

    def loss(said: Prediction, batch: Batch) -> Tensor:
        weight = job.class_weights(batch.progress)
        total = merged_cross_entropy(said.logits, batch.masks, batch.visible, weight=weight)
        labels = batch.masks
        if teacher is not None:
            before = teacher(batch)
            total = total + options.distil * unbiased_distillation(said.logits, before.logits)
            labels = completed_labels(labels, before.logits, range(1, job.channels))
        features = said.features.relu()
        small = nearest_labels(labels, (features.shape[-2], features.shape[-1]))
        if job.old:
            total = total + options.matching * prototype_matching(features, small, prototypes, job.old)
        total = total + options.attraction * attraction(features, small, job.channels)
        total = total + options.repulsion * repulsion(features, small, job.channels)
        total = total + options.sparsity * sparsity(features, small, job.channels)
        prototypes.update(features, small)
        return total

    state = prototypes.tensors()
    return job.finish(net, job.train(net, batches, loss, state), state)
