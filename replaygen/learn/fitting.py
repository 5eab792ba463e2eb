"""The fit loop: resumable bit for bit on the CPU, and the same for every method."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.ahead import AHEAD, in_order, loaders_for
from replaygen.learn.ahead import Batches as Batches
from replaygen.learn.batches import derive
from replaygen.learn.diagnose import MEASURED, Seen, gradient_doubt
from replaygen.learn.events import Event as Event
from replaygen.learn.events import Log as Log
from replaygen.learn.networks import Prediction, SegNet
from replaygen.learn.optimise import Average, Stepper
from replaygen.learn.partial import FitState, PartialFolder, pack, unpack
from replaygen.learn.precision import Precision, compiled
from replaygen.learn.samples import Batch
from replaygen.learn.specs import FitOptions

Loss = Callable[[Prediction, Batch], Tensor]
"""What the network says of a batch, and the batch -> scalar. A frozen encoder's features are in the batch."""

_DIAGNOSE_AFTER = 50
_UNREAD = 16
"""Losses left on a device before they are read: reading one makes the loop wait for the device."""


@runtime_checkable
class Watcher(Protocol):
    """A log that also wants to look at the network: whenever progress is told, with the fit's first batch."""

    def __call__(self, event: Event) -> None: ...

    def watch(self, iteration: int, net: SegNet, batch: Batch) -> None:
        """Look; the network is in evaluation mode, batch and network are on the fit's device."""


@dataclass(frozen=True)
class FitResult:
    """A finished fit.

    Attributes:
        net: in evaluation mode.
        losses: of every iteration.
        seconds: of this process.
        wait_seconds: of these, waiting for a batch to be made.
    """

    net: SegNet
    losses: tuple[float, ...]
    seconds: float
    wait_seconds: float = 0.0


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
        batches: see `MixedBatches`. With `accumulate` = n each is cut into n equal parts (samples i, i + n, ...), and
            the gradient is the mean of theirs; `loss` and batch-norm statistics see a part at a time.
        loss: from a prediction and its batch to a scalar.
        seed: of dropout and the like; iteration t is seeded by (seed, t).
        partial: a folder of this fit alone, or None.
        log: gets progress, warnings and checkpoints as mappings; see also `Watcher`.
        device: "cpu", "cuda", ..., or None/"auto" = CUDA where there is one.
        where: names the fit in errors.
        state: tensors that `loss` changes in place (prototypes, statistics); they are saved and put back with the rest.

    Raises:
        ModelError: the loss became NaN or infinite, or the network cannot be compiled.
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
        self.precision = Precision.of(options, device)
        self.stepper = Stepper(net, options, self.precision)
        self.average = Average(net, options.average)
        self.losses: list[float] = []
        self.unread: list[tuple[Tensor, tuple[str, ...]]] = []
        self.norms: list[Tensor] = []
        self.seen = Seen(net.channels)
        self.looked_at: Batch | None = None
        self.images = 0
        self.wait_seconds = 0.0

    def run(self, partial: Path | None) -> FitResult:
        started = time.monotonic()
        folder = None if partial is None else PartialFolder(partial, self._identity(), self._warn)
        first = 0 if folder is None else self._resume(folder)
        with (
            deterministic(self.device), torch.random.fork_rng(devices=_cuda(self.device)),
            compiled(self.net, wanted=self.options.compile),
        ):  # fmt: skip
            self._iterate(first, folder)
        self.average.into_net()
        seconds = time.monotonic() - started
        if self.images:
            self._tell(
                "finished", iteration=len(self.batches), seconds=seconds, images_per_second=self.images / seconds,
                wait_share=self.wait_seconds / seconds,
            )  # fmt: skip
        return FitResult(self.net.eval(), tuple(self.losses), seconds, self.wait_seconds)

    def _iterate(self, first: int, folder: PartialFolder | None) -> None:
        total, options = len(self.batches), self.options
        epoch = min(total, max(_DIAGNOSE_AFTER, int(getattr(self.batches, "epoch", 0))))
        begun = saved_at = time.monotonic()
        self.net.train()
        for t, batch in self._arriving(first):
            _seed_all(derive(self.seed, "iteration", t), self.device)
            if t < epoch:
                self.seen.add(batch)
            self._step(batch.to(self.device), t, total)
            self.images += len(batch.ids)
            logs = (t + 1) % options.log_every == 0 or t + 1 == total
            saves = folder is not None and (self._due(t + 1, time.monotonic() - saved_at) or t + 1 == total)
            if logs or saves or t + 1 in (MEASURED, epoch):
                self._read_losses()
            self._diagnose(t + 1, epoch)
            if logs:
                self._progress(t + 1, first, time.monotonic() - begun)
            if saves:
                assert folder is not None
                folder.save(self._state(t + 1))
                saved_at = time.monotonic()
                self._tell("checkpoint", iteration=t + 1)

    def _arriving(self, first: int) -> Iterator[tuple[int, Batch]]:
        loaders = loaders_for(self.options.loaders, self.device)
        coming = in_order(self.batches, first, ahead=AHEAD, loaders=loaders, pinned=self.device.type == "cuda")
        with contextlib.closing(coming):
            while True:
                asked = time.perf_counter()
                found = next(coming, None)
                self.wait_seconds += time.perf_counter() - asked
                if found is None:
                    return
                yield found

    def _due(self, iteration: int, seconds: float) -> bool:
        every, after = self.options.checkpoint_every, self.options.checkpoint_seconds
        return bool(every and iteration % every == 0) or bool(after and seconds >= after)

    def _step(self, batch: Batch, t: int, total: int) -> None:
        parts = self.options.accumulate
        self.stepper.begin(t, total)
        batch = shifted(batch, self.options.shift)
        read: Tensor | None = None
        for i in range(parts):
            loss = self._loss(batch) if parts == 1 else self._loss(batch.part(i, parts)) / parts
            read = loss.detach() if read is None else read + loss.detach()
            if i + 1 == parts:
                self.unread.append((read, batch.ids))
                if self.device.type == "cpu" or len(self.unread) >= _UNREAD:
                    self._read_losses()
            self.stepper.backward(loss)
        norm = self.stepper.end(measure=t < MEASURED)
        if norm is not None and t < MEASURED:
            self.norms.append(norm)
        self.average.move(t)

    def _loss(self, batch: Batch) -> Tensor:
        with self.precision.autocast():
            features = batch.features
            if features is None:
                assert batch.images is not None
                features = self.net.encode(batch.images.contiguous(memory_format=torch.channels_last))
                if self.net.frozen_encoder:
                    batch = replace(batch, features=features)
            prediction = self.net.predicted(features, (batch.masks.shape[1], batch.masks.shape[2]))
        return self.loss(prediction, batch)

    def _read_losses(self) -> None:
        unread, self.unread = self.unread, []
        values = torch.stack([loss for loss, _ in unread]).tolist() if unread else []
        for value, (_, ids) in zip(values, unread, strict=True):
            if not math.isfinite(value):
                raise ModelError(
                    f"the loss became {value} at iteration {len(self.losses) + 1} of {len(self.batches)}",
                    where=self.where, hint="lower lr (or head_lr), set clip = 1.0 or a warmup; samples of the batch: "
                    + ", ".join(ids),
                )  # fmt: skip
            self.losses.append(value)

    def _diagnose(self, iteration: int, epoch: int) -> None:
        if iteration == min(MEASURED, len(self.batches)) and self.norms:
            doubt = gradient_doubt([float(norm) for norm in self.norms])
            if doubt is not None:
                self._warn(doubt)
        if iteration == epoch:
            replay_expected = getattr(self.batches, "buffer", None) is not None
            for sentence in self.seen.doubts(self.losses[:epoch], replay_expected=replay_expected):
                self._warn(sentence)

    def _progress(self, iteration: int, first: int, seconds: float) -> None:
        last = self.losses[-self.options.log_every :]
        self._tell(
            "progress", iteration=iteration, loss=sum(last) / len(last), lr=self.stepper.rate,
            images_per_second=self.images / max(seconds, 1e-9),
            seconds_left=seconds / (iteration - first) * (len(self.batches) - iteration),
        )  # fmt: skip
        if isinstance(self.log, Watcher):
            if self.looked_at is None:
                self.looked_at = self.batches[0].to(self.device)
            with torch.random.fork_rng(devices=_cuda(self.device)):
                self.log.watch(iteration, self.net.eval(), self.looked_at)
            self.net.train()

    def _state(self, iteration: int) -> FitState:
        tensors = pack(self.net.saved_tensors(), self.stepper.optimizer, self.average.tensors)
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["seen"] = self.seen.pixels
        tensors |= {f"state/{name}": tensor for name, tensor in self.state.items()}
        told = {"seen": self.seen.state(), "scaler": self.precision.state(), "torch": torch.__version__}
        return FitState(iteration, tensors, told)

    def _resume(self, folder: PartialFolder) -> int:
        state = folder.newest()
        if state is None:
            return 0
        unpack(state.tensors, self.net.saved_tensors(), self.stepper.optimizer, self.average.tensors)
        with torch.no_grad():
            for name, tensor in self.state.items():
                tensor.copy_(state.tensors[f"state/{name}"])
        self.losses = state.tensors["losses"].tolist()
        self.seen.restore(state.tensors["seen"], state.told["seen"])
        self.precision.restore(state.told["scaler"])
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


def _seed_all(seed: int, device: torch.device) -> None:
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also writes a stack trace for a later CUDA
    else:
        torch.manual_seed(seed)


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
