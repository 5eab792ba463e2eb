"""RECALL+: RECALL on web photos that an adversary and an adaptive threshold have chosen, replay labelled anew.

    L = CE(new images, inpainted labels) + CE(replay images, their pseudo-labels with the classes now being learnt)

Three parts, and all are the recipe's. (1) Adversarial selection: a discriminator on latent features tells the step's
real images from photos, and photos that it takes for real are kept. (2) Adaptive threshold: a photo is kept where the
share of its class lies within what the real images of that class had. Both are `[replay.NAME.trust]`. (3) Knowledge
inpainting: replay labels receive the classes of step k where a helper of that step finds them; `knowledge`, on for
this trainer. Maracani et al., arXiv 2309.10479; no code is public, see docs/labels.md for what was designed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from replaygen.errors import DataError
from replaygen.learn import Batch, Checkpoint, Prediction, Samples, StepJob, cross_entropy

TRAITS = {"replay": True, "inpaint": True, "knowledge": True, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What RECALL+ can vary.

    r_new, r_old: parts of a mini-batch that are current and replay.
    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    """

    r_new: float = 1.0
    r_old: float = 1.0
    init: Literal["random", "balanced", "copy"] = "random"


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train the previous network on current and chosen replay samples, mixed in every batch."""
    options: Options = job.options or Options()
    if buffer is None:
        raise DataError(f"step {k} has no replay, which RECALL+ is about", hint="see the run's counts")
    net = job.network(previous, options.init)

    def loss(said: Prediction, batch: Batch) -> Tensor:
        return cross_entropy(said.logits, batch.masks, weight=job.class_weights(batch.progress))

    return job.finish(net, job.train(net, job.batches(current, buffer, options.r_new, options.r_old), loss))
