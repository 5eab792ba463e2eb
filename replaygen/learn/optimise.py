"""One optimizer step: parameter groups, learning-rate schedule, gradient clipping, averaged weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.heads import Classifier
from replaygen.learn.networks import SegNet
from replaygen.learn.precision import Precision
from replaygen.learn.specs import FitOptions


def make_optimizer(net: SegNet, options: FitOptions) -> torch.optim.Optimizer:
    """SGD or AdamW over what learns, the head with its own rate; biases, norms and held classifiers do not decay.

    Raises:
        ModelError: nothing learns.
    """
    head = {id(parameter) for parameter in net.head.parameters()}
    held = {id(m.weight) for m in net.head.modules() if isinstance(m, Classifier) and m.held}
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not learning:
        raise ModelError("no parameter of the network learns", hint="freeze less")
    groups: list[dict[str, Any]] = [
        {"params": chosen, "lr": options.lr * rate, "weight_decay": options.weight_decay * decays}
        for rate, part in ((1.0, [p for p in learning if id(p) not in head]),
                           (options.head_lr, [p for p in learning if id(p) in head]))
        for decays, chosen in ((1.0, [p for p in part if p.ndim > 1 and id(p) not in held]),
                               (0.0, [p for p in part if p.ndim <= 1 or id(p) in held]))
        if chosen
    ]  # fmt: skip
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov)
    return torch.optim.AdamW(groups, lr=options.lr)


def schedule(options: FitOptions, t: int, total: int) -> float:
    """The factor on every learning rate at iteration t: poly is end + (1 - end) (1 - t/T)^power, end = lr_end / lr."""
    end = options.lr_end / options.lr
    if options.schedule == "constant":
        factor = 1.0
    elif options.schedule == "poly":
        factor = end + (1 - end) * (1 - t / total) ** options.power
    else:
        factor = end + (1 - end) * (1 + math.cos(math.pi * t / total)) / 2
    return factor * min(1.0, (t + 1) / options.warmup) if options.warmup else factor


class Stepper:
    """The optimizer with its schedule, precision and clipping: `begin`, any number of `backward`, `end`."""

    def __init__(self, net: SegNet, options: FitOptions, precision: Precision) -> None:
        self.options = options
        self.precision = precision
        self.optimizer = make_optimizer(net, options)
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._learning = [parameter for parameter in net.parameters() if parameter.requires_grad]

    @property
    def rate(self) -> float:
        """The learning rate of the first group, as the schedule has it now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def begin(self, t: int, total: int) -> None:
        """Set every group's rate for iteration t of `total`, and forget the gradients."""
        factor = schedule(self.options, t, total)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar."""
        self.precision.scaled(loss).backward()  # type: ignore[no-untyped-call]

    def end(self, *, measure: bool = False) -> Tensor | None:
        """Clip and step. Returns the gradient's norm before clipping, where it is clipped or asked for."""
        norm: Tensor | None = None
        if self.options.clip or measure:
            self.precision.unscale(self.optimizer)
        if self.options.clip:
            norm = torch.nn.utils.clip_grad_norm_(self._learning, self.options.clip)
        elif measure:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._learning if p.grad is not None])
        self.precision.step(self.optimizer)
        return norm


class Average:
    """Averaged weights: a <- d a + (1 - d) w after every iteration, d = min(decay, (1 + t) / (10 + t)); t from 0.

    Tensors that are no floats (counters) are copied. Without a decay nothing is held.
    """

    def __init__(self, net: SegNet, decay: float) -> None:
        self.decay = decay
        # tensors of a network are changed in place only, so their names are looked up once
        live = net.saved_tensors() if decay else {}
        self.tensors = {name: tensor.detach().clone() for name, tensor in live.items()}
        self._floats = [name for name, tensor in live.items() if tensor.is_floating_point()]
        self._live = live

    @torch.no_grad()
    def move(self, t: int) -> None:
        """After iteration t."""
        if not self.tensors:
            return
        decay = min(self.decay, (1 + t) / (10 + t))
        torch._foreach_lerp_(
            [self.tensors[name] for name in self._floats], [self._live[name] for name in self._floats], 1 - decay
        )
        for name in self.tensors.keys() - set(self._floats):
            self.tensors[name].copy_(self._live[name])

    @torch.no_grad()
    def into_net(self) -> None:
        """Put the averaged weights into the network."""
        for name, tensor in self.tensors.items():
            self._live[name].copy_(tensor)
