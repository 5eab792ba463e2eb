"""One step of one run, as a method sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from replaygen.errors import ModelError
from replaygen.learn.batches import MixedBatches, derive
from replaygen.learn.checkpoint import Checkpoint, load_network, save_checkpoint
from replaygen.learn.fitting import Batches, FitResult, Log, Loss, fit, pick_device
from replaygen.learn.heads import Init
from replaygen.learn.losses import class_weights
from replaygen.learn.networks import SegNet, build_network
from replaygen.learn.precision import Precision
from replaygen.learn.prototypes import Prototypes
from replaygen.learn.samples import Batch, Samples, collate
from replaygen.learn.specs import FitOptions, NetworkSpec
from replaygen.learn.teacher import Teacher


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
        return self._opened(previous).grow(self.channels, init, seed=derive(self.seed, "grow", self.k))

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

    def teacher(self, previous: Checkpoint | None) -> Teacher | None:
        """The previous step's model, still, as this step sees it; None at step 0."""
        if previous is None:
            return None
        device = pick_device(self.device)
        return Teacher(self._opened(previous), device, Precision.of(self.fit, device))

    def _opened(self, previous: Checkpoint) -> SegNet:
        """The previous step's network, checked, with what is frozen at this step."""
        known = self.names[: 1 + len(self.old)]
        net = load_network(previous.tensors, previous.info, self.spec, names=known, step=self.k - 1)
        return net.at_step(self.k)

    def prototypes(self, net: SegNet, batches: MixedBatches, previous: Checkpoint | None) -> Prototypes:
        """Running means of the features of all seen classes, as the previous step left them; see `Prototypes`."""
        device = pick_device(self.device)
        held = previous.carried() if previous is not None else {}
        if held:
            return Prototypes.from_tensors({name: told.to(device) for name, told in held.items()}).grown(self.channels)
        return Prototypes(self.channels, _feature_width(net, batches[0]), device)

    def every(self, samples: Samples) -> Iterator[Batch]:
        """All samples once, by the same view for every epoch (the whole image), in batches on the fit's device."""
        device = pick_device(self.device)
        for start in range(0, len(samples), self.fit.batch):
            part = range(start, min(start + self.fit.batch, len(samples)))
            items = [samples.items[index] for index in part]
            yield collate(items, [samples.get(index, 0) for index in part], self.channels).to(device)

    def class_weights(self, progress: float = 0.0) -> torch.Tensor | None:
        """float [C] on the device of the fit, at a batch's `progress`; None where all are 1.

        The background's weight moves linearly from `fit.background_weight` to `fit.background_weight_end`; where
        there are old classes, the new ones weigh `fit.new_weight`.
        """
        first, last = self.fit.background_weight, self.fit.background_weight_end
        weight = first if last is None else first + (last - first) * progress
        new = self.fit.new_weight if self.fit.new_weight is not None and self.old else 1.0
        return class_weights(self.channels, weight, pick_device(self.device), new=new, learnt=self.new)

    def train(
        self, net: SegNet, batches: Batches, loss: Loss, state: Mapping[str, torch.Tensor] | None = None
    ) -> FitResult:
        """`fit` with this job's options, seed, folder, log and device."""
        return fit(
            net, batches, loss, self.fit, derive(self.seed, "fit", self.k), self.partial, self.log, self.device,
            where=f"step {self.k}", state=state,
        )  # fmt: skip

    def finish(
        self, net: SegNet, result: FitResult, state: Mapping[str, torch.Tensor] | None = None, **more: Any
    ) -> Checkpoint:
        """The checkpoint of this step; `state` is what the next step gets back, `more` is added to its info (JSON)."""
        tail = result.losses[-50:]
        return save_checkpoint(net, {
            "names": list(self.names), "step": self.k, "new": list(self.new), "old": list(self.old),
            "network": self.spec.identity(), "seed": self.seed, "iterations": len(result.losses),
            "final_loss": sum(tail) / len(tail) if tail else None, **more,
        }, state)  # fmt: skip


@torch.no_grad()
def _feature_width(net: SegNet, batch: Batch) -> int:
    """D of the features F that losses on features read."""
    learning = net.training
    net.eval()
    features = batch.features
    if features is None:
        assert batch.images is not None
        features = net.encode(batch.images[:1])
    width = net.predicted(features, (1, 1)).features.shape[1]
    net.train(learning)
    return width
