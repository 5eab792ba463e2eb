"""One step of one run, as a method sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from replaygen.errors import ModelError
from replaygen.learn.batches import MixedBatches, derive
from replaygen.learn.checkpoint import Checkpoint, load_network, save_checkpoint
from replaygen.learn.fitting import FitResult, Log, Loss, fit, pick_device
from replaygen.learn.heads import Init
from replaygen.learn.losses import class_weights
from replaygen.learn.networks import SegNet, build_network
from replaygen.learn.samples import Samples
from replaygen.learn.specs import FitOptions, NetworkSpec


@dataclass(frozen=True)
class StepJob:
    """What a trainer's `step` needs beside data.

    Attributes:
        k: the step.
        names: the names of the seen channels, background first.
        new, old: the channels learnt at this step, and before it (background in neither).
        spec: the network.
        fit: how to fit.
        options: the method's own `Options`.
        seed: of the run.
        device: "cpu", "cuda" or "auto".
        partial: where checkpoints of the running fit are kept, or None.
        log: see `fit`.
    """

    k: int
    names: tuple[str, ...]
    new: tuple[int, ...]
    old: tuple[int, ...]
    spec: NetworkSpec
    fit: FitOptions
    options: Any = None
    seed: int = 0
    device: str = "auto"
    partial: Path | None = None
    log: Log | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if sorted((0, *self.old, *self.new)) != list(range(len(self.names))):
            raise ModelError(
                f"step {self.k}: old {self.old} and new {self.new} are not the {len(self.names) - 1} seen classes",
                hint="channels count from 1 in learning order; names start with the background",
            )

    @property
    def channels(self) -> int:
        """Seen classes with background."""
        return len(self.names)

    def network(self, previous: Checkpoint | None, init: Init = "random") -> SegNet:
        """The network to train: a new one at step 0, else the previous step's, checked and grown to the seen classes.

        Raises:
            ModelError: no previous model after step 0, or one of other classes, another network or another step.
        """
        if previous is None:
            if self.k > 0:
                raise ModelError(f"step {self.k} needs the model of step {self.k - 1}")
            return self.fresh_network()
        known = self.names[: 1 + len(self.old)]
        net = load_network(previous.tensors, previous.info, self.spec, names=known, step=self.k - 1)
        net.at_step(self.k)
        return net.grow(self.channels, init, seed=derive(self.seed, "grow", self.k))

    def fresh_network(self) -> SegNet:
        """A new network for all seen classes."""
        return build_network(self.spec, self.channels, self.seed).at_step(0)

    def batches(
        self,
        current: Samples,
        buffer: Samples | None = None,
        r_new: float = 1.0,
        r_old: float = 1.0,
        balance: bool = False,
    ) -> MixedBatches:
        """The step's mini-batches, see `MixedBatches`."""
        return MixedBatches(
            current, buffer, batch=self.fit.batch, seed=derive(self.seed, "batches", self.k),
            iterations=self.fit.iterations, channels=self.channels, r_new=r_new, r_old=r_old, balance=balance,
        )  # fmt: skip

    def class_weights(self, progress: float = 0.0) -> torch.Tensor | None:
        """float [C] on the device of the fit, at a batch's `progress`; None where all are 1.

        The background's weight moves linearly from `fit.background_weight` to `fit.background_weight_end`.
        """
        first, last = self.fit.background_weight, self.fit.background_weight_end
        weight = first if last is None else first + (last - first) * progress
        return class_weights(self.channels, weight, pick_device(self.device))

    def train(self, net: SegNet, batches: MixedBatches, loss: Loss) -> FitResult:
        """`fit` with this job's options, seed, folder, log and device."""
        return fit(
            net, batches, loss, self.fit, derive(self.seed, "fit", self.k), self.partial, self.log, self.device,
            where=f"step {self.k}",
        )  # fmt: skip

    def finish(self, net: SegNet, result: FitResult, **more: Any) -> Checkpoint:
        """The checkpoint of this step; `more` is added to its info (JSON-able)."""
        tail = result.losses[-50:]
        return save_checkpoint(net, {
            "names": list(self.names), "step": self.k, "new": list(self.new), "old": list(self.old),
            "network": self.spec.identity(), "seed": self.seed, "iterations": len(result.losses),
            "final_loss": sum(tail) / len(tail) if tail else None, **more,
        })  # fmt: skip
