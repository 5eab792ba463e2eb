"""The fit loop: resumable bit for bit on the CPU, and the same for every method."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.batches import derive
from replaygen.learn.heads import Classifier
from replaygen.learn.networks import Prediction, SegNet
from replaygen.learn.partial import FitState, PartialFolder, pack, unpack
from replaygen.learn.samples import Batch
from replaygen.learn.specs import FitOptions
from replaygen.sample import IGNORE


class Event(dict[str, Any]):
    """What a fit tells: {"event": "progress" | "warning" | "resumed" | "checkpoint", ...}; str() gives a line."""

    def __str__(self) -> str:
        if self["event"] == "warning":
            return f"warning: {self['message']}"
        at = f"iteration {self['iteration']} of {self['of']}"
        if self["event"] == "progress":
            return f"{at}: loss {self['loss']:.4f}, lr {self['lr']:.2e}"
        return f"{self['event']} at {at}"


Log = Callable[[Event], None]
"""Gets every event of a fit; `print` and a logger's `info` will do."""
Loss = Callable[[Prediction, Batch], Tensor]
"""What the network says of a batch, and the batch -> scalar. A frozen encoder's features are in the batch."""

_DIAGNOSE_AFTER = 50


class Batches(Protocol):
    """Anything with a length whose item t is batch t, whenever it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, t: int, /) -> Batch: ...


@dataclass(frozen=True)
class FitResult:
    """A finished fit: the network (in evaluation mode), every iteration's loss, and the seconds of this process."""

    net: SegNet
    losses: tuple[float, ...]
    seconds: float


def fit(
    net: SegNet,
    batches: Batches,
    loss: Loss,
    options: FitOptions,
    seed: int,
    partial: Path | None = None,
    log: Log | None = None,
    device: str | torch.device | None = None,
    where: str = "",
    state: Mapping[str, Tensor] | None = None,
) -> FitResult:
    """Fit `net` on `batches[0] .. batches[len - 1]`.

    With `partial`, checkpoints are kept there; a killed fit that is called again with the same arguments goes on from
    the newest sound one and ends, on the CPU, with the bytes an uninterrupted fit ends with.

    Args:
        net: changed in place.
        batches: see `MixedBatches`.
        loss: from a prediction and its batch to a scalar.
        seed: of dropout and the like; iteration t is seeded by (seed, t).
        partial: a folder of this fit alone, or None.
        log: gets progress, warnings and checkpoints as mappings.
        device: "cpu", "cuda", ..., or None/"auto" = CUDA where there is one.
        where: names the fit in errors.
        state: tensors that `loss` changes in place (prototypes, statistics); they are saved and put back with the rest.

    Raises:
        ModelError: the loss became NaN or infinite.
        StoreError: checkpoints cannot be written.
    """
    made = _Fit(net, batches, loss, options, seed, log or (lambda event: None), pick_device(device), where, state or {})
    return made.run(partial)


def pick_device(device: str | torch.device | None) -> torch.device:
    """`device`, or CUDA where there is one for None and "auto"."""
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


class _Fit:
    def __init__(
        self, net: SegNet, batches: Batches, loss: Loss, options: FitOptions, seed: int, log: Log,
        device: torch.device, where: str, state: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batches = batches
        self.loss = loss
        self.options = options
        self.seed = seed
        self.log = log
        self.device = device
        self.where = where
        self.state = state
        self.optimizer = make_optimizer(net, options)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.average = {n: t.detach().clone() for n, t in net.saved_tensors().items()} if options.average else {}
        self.losses: list[float] = []
        self.seen = _Seen(net.channels)

    def run(self, partial: Path | None) -> FitResult:
        started = time.monotonic()
        folder = None if partial is None else PartialFolder(partial, self._identity(), self._warn)
        first = 0 if folder is None else self._resume(folder)
        with deterministic(self.device), torch.random.fork_rng(devices=_cuda(self.device)):
            self._iterate(first, folder)
        if self.average:
            with torch.no_grad():
                for name, tensor in self.net.saved_tensors().items():
                    tensor.copy_(self.average[name])
        return FitResult(self.net.eval(), tuple(self.losses), time.monotonic() - started)

    def _iterate(self, first: int, folder: PartialFolder | None) -> None:
        total, options = len(self.batches), self.options
        diagnose_at = min(total, max(_DIAGNOSE_AFTER, int(getattr(self.batches, "epoch", 0)))) - 1
        saved_at = time.monotonic()
        self.net.train()
        for t, batch in in_order(self.batches, first, ahead=self.device.type == "cuda"):
            torch.manual_seed(derive(self.seed, "iteration", t))
            self.seen.add(batch)
            self.losses.append(self._step(batch.to(self.device), t, total))
            if t == diagnose_at:
                for sentence in self.seen.doubts(replay_expected=getattr(self.batches, "buffer", None) is not None):
                    self._warn(sentence)
            if (t + 1) % options.log_every == 0 or t + 1 == total:
                last = self.losses[-options.log_every :]
                rate = self.optimizer.param_groups[0]["lr"]
                self._tell("progress", iteration=t + 1, loss=sum(last) / len(last), lr=rate)
            if folder is not None and (self._due(t + 1, time.monotonic() - saved_at) or t + 1 == total):
                folder.save(self._state(t + 1))
                saved_at = time.monotonic()
                self._tell("checkpoint", iteration=t + 1)

    def _due(self, iteration: int, seconds: float) -> bool:
        every, after = self.options.checkpoint_every, self.options.checkpoint_seconds
        return bool(every and iteration % every == 0) or bool(after and seconds >= after)

    def _step(self, batch: Batch, t: int, total: int) -> float:
        factor = schedule(self.options, t, total)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16 and self.device.type == "cuda"):
            features = batch.features
            if features is None:
                assert batch.images is not None
                batch = shifted(batch, self.options.shift)
                assert batch.images is not None
                features = self.net.encode(batch.images.contiguous(memory_format=torch.channels_last))
                if self.net.frozen_encoder:
                    batch = replace(batch, features=features)
            prediction = self.net.predicted(features, (batch.masks.shape[1], batch.masks.shape[2]))
        loss = self.loss(prediction, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(
                f"the loss became {value} at iteration {t + 1} of {total}", where=self.where,
                hint="lower lr (or head_lr), set clip = 1.0 or a warmup; samples of the batch: " + ", ".join(batch.ids),
            )  # fmt: skip
        loss.backward()  # type: ignore[no-untyped-call]
        if self.options.clip:
            torch.nn.utils.clip_grad_norm_([p for p in self.net.parameters() if p.requires_grad], self.options.clip)
        self.optimizer.step()
        self._move_average(t)
        return value

    def _move_average(self, t: int) -> None:
        if not self.average:
            return
        decay = min(self.options.average, (1 + t) / (10 + t))
        with torch.no_grad():
            for name, tensor in self.net.saved_tensors().items():
                if tensor.is_floating_point():
                    self.average[name].lerp_(tensor, 1 - decay)
                else:
                    self.average[name].copy_(tensor)

    def _state(self, iteration: int) -> FitState:
        tensors = pack(self.net.saved_tensors(), self.optimizer, self.average)
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["seen"] = self.seen.pixels
        tensors |= {f"state/{name}": tensor for name, tensor in self.state.items()}
        told = {"replay": self.seen.replay, "expected": sorted(self.seen.expected), "torch": torch.__version__}
        return FitState(iteration, tensors, told)

    def _resume(self, folder: PartialFolder) -> int:
        state = folder.newest()
        if state is None:
            return 0
        unpack(state.tensors, self.net.saved_tensors(), self.optimizer, self.average)
        with torch.no_grad():
            for name, tensor in self.state.items():
                tensor.copy_(state.tensors[f"state/{name}"])
        self.losses = state.tensors["losses"].tolist()
        self.seen.pixels = state.tensors["seen"].clone()
        self.seen.replay = int(state.told["replay"])
        self.seen.expected = set(state.told["expected"])
        self._tell("resumed", iteration=state.iteration)
        return state.iteration

    def _identity(self) -> str:
        # a checkpoint is continued by the very same fit only: its options, seed, length and starting weights
        weights = hashlib.sha256()
        begun = {**self.net.saved_tensors(), **{f"state/{name}": tensor for name, tensor in self.state.items()}}
        for name, tensor in sorted(begun.items()):
            weights.update(f"{name}{tuple(tensor.shape)}".encode())
            weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        told = [self.options.identity(), self.seed, len(self.batches), weights.hexdigest()]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _warn(self, sentence: str) -> None:
        self.log(Event(event="warning", message=f"{self.where}: {sentence}" if self.where else sentence))

    def _tell(self, kind: str, **more: Any) -> None:
        self.log(Event(event=kind, of=len(self.batches), **more))


class _Seen:
    """What the batches held so far, to say early what cannot be learnt from them."""

    def __init__(self, channels: int) -> None:
        self.pixels = torch.zeros(channels, dtype=torch.int64)
        self.replay = 0
        self.expected: set[int] = set()

    def add(self, batch: Batch) -> None:
        current = batch.masks[~batch.replay]
        self.pixels += torch.bincount(current[current != IGNORE], minlength=len(self.pixels))[: len(self.pixels)]
        self.replay += int(batch.replay.sum())
        self.expected.update(batch.visible[~batch.replay].any(0).nonzero().flatten().tolist())

    def doubts(self, *, replay_expected: bool) -> list[str]:
        told = [
            f"class {channel} is declared visible in the current data but no pixel of it was seen in the first epoch"
            for channel in sorted(self.expected)
            if int(self.pixels[channel]) == 0
        ]
        if replay_expected and self.replay == 0:
            told.append("there is a replay buffer, but no replay sample was drawn")
        return told


def in_order(batches: Batches, first: int, *, ahead: bool) -> Iterator[tuple[int, Batch]]:
    """(t, batch t) from `first` on; with `ahead`, a thread makes the next batch while this one is used."""
    total = len(batches)
    if not ahead:
        for t in range(first, total):
            yield t, batches[t]
        return
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(batches.__getitem__, first) if first < total else None
        for t in range(first, total):
            assert coming is not None
            batch = coming.result()
            coming = pool.submit(batches.__getitem__, t + 1) if t + 1 < total else None
            yield t, batch


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


def shifted(batch: Batch, most: int) -> Batch:
    """The whole batch rolled by one random offset of at most `most` pixels each way; features stay as they are.

    Raises:
        ModelError: the masks are not of the images' size.
    """
    if most == 0 or batch.images is None:
        return batch
    if batch.masks.shape[1:] != batch.images.shape[2:]:
        raise ModelError(
            f"masks of side {batch.masks.shape[-1]} cannot be shifted with images of side {batch.images.shape[-1]}",
            hint="set shift = 0, or leave out views.label_size",
        )
    down, across = (int(torch.randint(-most, most + 1, ())) for _ in range(2))
    return replace(
        batch, images=batch.images.roll((down, across), (2, 3)), masks=batch.masks.roll((down, across), (1, 2))
    )


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


def _cuda(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Deterministic algorithms for a fit on the CPU; the setting before is put back."""
    if device.type != "cpu":  # some CUDA kernels have no deterministic form; equal bytes are promised on the CPU only
        yield
        return
    fills: Any = torch.utils.deterministic
    before, filled = torch.are_deterministic_algorithms_enabled(), fills.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    fills.fill_uninitialized_memory = False  # it costs time, and nothing here reads what it never wrote
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        fills.fill_uninitialized_memory = filled
