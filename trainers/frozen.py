"""Frozen: backbone, head and old classifier rows stand still, and only the rows of the new classes learn.

    L = merged CE(z, y; S), theta = {w_c, b_c : c in C_k}

With S = C_k the background of the current images is background or any old class, whose rows cannot move. The baseline
that rivals many methods of the field, because it cannot forget but by giving a pixel to a new class; it is called
frozen backbone and old heads there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from replaygen.learn import Batch, Checkpoint, Prediction, Samples, StepJob, merged_cross_entropy

TRAITS = {"replay": "optional", "inpaint": False, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What the baseline can vary.

    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    r_new, r_old: parts of a mini-batch that are current and replay, where there is replay.
    """

    init: Literal["random", "balanced", "copy"] = "random"
    r_new: float = 1.0
    r_old: float = 1.0


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train the rows of the new classes; at step 0 everything."""
    options: Options = job.options or Options()
    net = job.network(previous, options.init)
    if previous is not None:
        net.hold("body", rows=1 + len(job.old))

    def loss(said: Prediction, batch: Batch) -> Tensor:
        weight = job.class_weights(batch.progress)
        return merged_cross_entropy(said.logits, batch.masks, batch.visible, weight=weight)

    return job.finish(net, job.train(net, job.batches(current, buffer, options.r_new, options.r_old), loss))
