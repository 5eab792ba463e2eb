"""Fits the small network of the tests of fit, slowly, so that it can be killed: argv = partial folder, result file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from replaygen.learn import (
    Batch,
    FitOptions,
    MixedBatches,
    NetworkSpec,
    Prediction,
    Samples,
    ViewSpec,
    build_network,
    cross_entropy,
    fit,
    image_item,
)
from replaygen.learn import fitting as fitting
from replaygen.learn.fitting import Event, FitResult
from replaygen.learn.precision import Precision

Everything = tuple[dict[str, torch.Tensor], list[int]]

OPTIONS = FitOptions(
    iterations=24, batch=3, lr=0.01, optimizer="adamw", average=0.9, clip=1.0, warmup=3, checkpoint_every=3,
    checkpoint_seconds=0,
)  # fmt: skip


def samples() -> Samples:
    """Six images of noise with a bright square of class 1 or 2."""
    views = ViewSpec(size=16, count=3)

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        image = np.random.default_rng(i).integers(0, 90, (20, 20, 3)).astype(np.uint8)
        mask = np.zeros((20, 20), np.uint8)
        image[4:12, 4:14], mask[4:12, 4:14] = 255 if i % 2 else 150, 1 + i % 2
        return image, mask

    return Samples([image_item(f"s{i}", (1, 2), False, lambda i=i: read(i), views) for i in range(6)])  # type: ignore[misc]


class Scaled(Precision):
    """float32 with the loss scale of fp16, which doubles often enough for a short fit to see it."""

    made: list[Scaled] = []  # noqa: RUF012

    @classmethod
    def of(cls, options: FitOptions, device: torch.device) -> Scaled:
        cls.made.append(cls(device, scale=True))
        cls.made[-1].scaler.set_growth_interval(4)
        return cls.made[-1]


def run(
    partial: Path | None, options: FitOptions = OPTIONS, pause: float = 0.0,
    tell: Callable[[Event], None] | None = None, state: dict[str, torch.Tensor] | None = None,
) -> tuple[FitResult, list[Event]]:  # fmt: skip
    """The fit, and its events. `state`: filled with the moving mean logits of the classes, which the loss reads."""
    events: list[Event] = []

    def log(event: Event) -> None:
        events.append(event)
        if tell is not None:
            tell(event)

    torch.set_num_threads(1)
    net = build_network(NetworkSpec(widths=(6, 8)), 3, seed=0)
    batches = MixedBatches(
        samples(), None, batch=options.batch, seed=1, iterations=options.iterations, channels=3
    )  # fmt: skip
    state = {} if state is None else state
    state["means"] = torch.zeros(3)

    def loss(said: Prediction, batch: Batch) -> torch.Tensor:
        time.sleep(pause)
        means = said.logits.mean((0, 2, 3))
        state["means"].lerp_(means.detach(), 0.3)
        return cross_entropy(said.logits, batch.masks) + 0.1 * (means - state["means"]).square().sum()

    return fit(net, batches, loss, options, 5, partial, log, "cpu", "a test", state), events


def everything(partial: Path | None, pause: float = 0.0, tell: Callable[[Event], None] | None = None) -> Everything:
    """Every tensor that a killed fit must give back, and where it was resumed: with a loss scale."""
    state: dict[str, torch.Tensor] = {}
    with mock.patch.object(fitting, "Precision", Scaled):
        result, told = run(partial, pause=pause, tell=tell, state=state)
    tensors = {f"net/{name}": tensor.contiguous() for name, tensor in result.net.state_dict().items()}
    tensors |= {f"state/{name}": tensor for name, tensor in state.items()}
    scaler = Scaled.made[-1].state()
    tensors["scaler"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
    tensors["losses"] = torch.tensor(result.losses, dtype=torch.float64)
    return tensors, [event["iteration"] for event in told if event["event"] == "resumed"]


if __name__ == "__main__":
    from safetensors.torch import save_file

    print("begins", flush=True)
    found, resumed = everything(Path(sys.argv[1]), pause=0.03, tell=lambda event: print(event["event"], flush=True))
    save_file(found, sys.argv[2])
    print("resumed at", resumed, flush=True)
