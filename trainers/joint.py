"""Joint training: all classes and all images at once, from scratch: the upper bound of incremental methods.

L = -mean over pixels != ignore of log softmax(z)_y, with every class labelled in every image
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from replaygen.learn import Batch, Checkpoint, Prediction, Samples, StepJob, cross_entropy

TRAITS = {"replay": False, "inpaint": False, "data": "all"}


@dataclass(frozen=True)
class Options:
    """What joint training can vary.

    balance: classes take turns, each image standing for the rarest class in it.
    """

    balance: bool = False


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train a new network for all seen classes; `current` holds the data of every step up to k, fully labelled."""
    options: Options = job.options or Options()
    net = job.fresh_network()

    def loss(said: Prediction, batch: Batch) -> Tensor:
        return cross_entropy(said.logits, batch.masks, weight=job.class_weights(batch.progress))

    return job.finish(net, job.train(net, job.batches(current, balance=options.balance), loss))
