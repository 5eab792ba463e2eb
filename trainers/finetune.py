"""Fine-tuning: the next step's data and nothing else. The lower bound, and the shared training of step 0.

    L = -mean over pixels != ignore of log softmax(z)_y

Old objects in the new images are labelled background, so this is the method that learns that a cow is grass
("FT" in Michieli & Zanuttigh, ICCVW 2019, and in every later table).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from replaygen.learn import Batch, Checkpoint, Prediction, Samples, StepJob, cross_entropy

TRAITS = {"replay": "optional", "inpaint": False, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What fine-tuning can vary.

    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    r_new, r_old: parts of a mini-batch that are current and replay, where there is replay.
    """

    init: Literal["random", "balanced", "copy"] = "random"
    r_new: float = 1.0
    r_old: float = 1.0


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train the previous network, grown by rows for the new classes, on the current samples."""
    options: Options = job.options or Options()
    net = job.network(previous, options.init)

    def loss(said: Prediction, batch: Batch) -> Tensor:
        return cross_entropy(said.logits, batch.masks, weight=job.class_weights(batch.progress))

    return job.finish(net, job.train(net, job.batches(current, buffer, options.r_new, options.r_old), loss))
