"""In which numbers a network is fitted on CUDA, and whether its parts are compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.heads import Head
from replaygen.learn.networks import SegNet
from replaygen.learn.specs import FitOptions


class Precision:
    """Forward passes in `dtype` where that is given, with a loss scale for float16 gradients.

    Args:
        device: of the fit.
        dtype: torch.bfloat16, torch.float16, or None for float32 throughout.
        scale: multiply the loss so that small gradients are not lost; a step whose gradients overflow is left out,
            and the scale halved.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None, *, scale: bool = False) -> None:
        self.device = device
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(device.type, enabled=scale)
        self._unscaled = False

    @classmethod
    def of(cls, options: FitOptions, device: torch.device) -> Precision:
        """What `options.precision` means on a device: on the CPU always float32, so that its bytes stay the same."""
        if device.type != "cuda" or options.precision == "float32":
            return cls(device)
        if options.precision == "bf16":
            return cls(device, torch.bfloat16)
        return cls(device, torch.float16, scale=True)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass; weights and losses stay float32."""
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def scaled(self, loss: Tensor) -> Tensor:
        """What `backward` is called on."""
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradients true ones, to measure or clip them before `step`."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, left out where gradients overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """The scale and its counters, JSON-able; empty without a scale."""
        return dict(self.scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with the scale of a checkpoint."""
        if state:
            self.scaler.load_state_dict(state)


@contextlib.contextmanager
def compiled(net: SegNet, *, wanted: bool) -> Iterator[None]:
    """Where `wanted`, encoder and head run through torch.compile; afterwards the network is as it was.

    Raises:
        ModelError: they cannot be compiled here. Nothing goes on uncompiled in silence: the numbers would differ.
    """
    if not wanted:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    # a head is asked by the methods `maps` and `classified`, which `Module.compile` would pass by
    head: Any = net.head
    methods = ("maps", "classified") if isinstance(head, Head) else ("forward",)
    parts: list[tuple[Any, str]] = [(net.encoder, "forward"), *((head, name) for name in methods)]
    try:
        for part, name in parts:
            part.__dict__[name] = torch.compile(getattr(part, name))
        yield
    except TorchDynamoException as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"the network cannot be compiled here: {first}",
            hint="set compile = false, or install a C++ compiler (and for CUDA, Triton)",
        ) from None
    finally:
        for part, name in parts:
            part.__dict__.pop(name, None)
