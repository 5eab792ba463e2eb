"""A small class-conditional diffusion model: fitted, resumed and drawn from.

Forward process (Ho et al. 2020) with the cosine schedule of Nichol and Dhariwal (2021), T = 1000:
x_t = a_t x_0 + s_t e, with a_t^2 + s_t^2 = 1 and e standard normal.
A U-Net f predicts x_0 from x_t, t and the class y; with r_t = a_t^2 / s_t^2 the loss is

    E (1 + min(r_t, 4)) (f(x_t, t, y) - x_0)^2

which is the loss of the velocity a_t e - s_t x_0 (Salimans and Ho 2022), its weight capped as in min-SNR (Hang et al.
2023). The network sees patches of 2 x 2 pixels as channels (Hoogeboom et al. 2023), which more than halves its time.
With few iterations a network that predicts x_0 gives soft images where one that predicts e or v gives noise.
Images are drawn by DDIM (Song et al. 2021) without noise of its own, so an image is a function of its first noise.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from replaygen.canonical import digest_of
from replaygen.errors import ModelError
from replaygen.generators.draws import Draw, Generator, normals, seeds_of, to_uint8
from replaygen.generators.pictures import Fitted, Pictures, points
from replaygen.generators.specs import FitSpec
from replaygen.learn.batches import derive
from replaygen.learn.fitting import Event, Log, deterministic, pick_device
from replaygen.learn.partial import FitState, PartialFolder, pack, unpack
from replaygen.portions import Portions, memory_of

if TYPE_CHECKING:
    from replaygen.generators.draws import Float3

FORMAT = 1
NOISE_LEVELS = 1000
SNAPSHOT_IMAGES = 64
"""Images of a snapshot; where there are more classes, one of each."""

_EMBEDDING = "class_embedding.weight"
_SNR_MOST = 4.0
_CLIP = 1.0
_LOGGED = 20
_WHERE = "weights of a fitted diffusion model"
_DAMAGED = "the file is damaged; fit again"


def fit_ddpm(
    pictures: Pictures, spec: FitSpec, *, seed: int, partial: Path | None = None,
    start: tuple[bytes, dict[str, Any]] | None = None, device: str = "cpu", log: Log | None = None,
    checkpoint_seconds: float = 30.0,
) -> Fitted:  # fmt: skip
    """Fit a diffusion model on `pictures`.

    Iteration t draws its pictures, noise and noise levels from (seed, t) alone. With `partial`, checkpoints are kept
    there; a killed fit that is called again with the same arguments goes on from the newest sound one and ends, on the
    CPU, with the bytes an uninterrupted fit ends with.

    Args:
        pictures: float32 [n, 3, S, S] in -1..1 by batches, S = `spec.size`.
        spec: reads size, width, iterations, warm_iterations, batch, lr, average, bf16, snapshots, steps and draw_batch.
        seed: of the first weights and of every iteration.
        partial: a folder of this fit alone, or None.
        start: tensors and config of the generator to start from. Classes of the same name keep their embeddings, new
            ones begin at the mean of all.
        device: "cpu", "cuda" or "auto".
        log: gets progress, warnings, resumption and checkpoints.
        checkpoint_seconds: least time between two checkpoints; the last iteration always writes one.

    Raises:
        ModelError: the loss or a drawn image became NaN or infinite, or `start` is of another architecture or damaged.
        StoreError: checkpoints cannot be written.
    """
    one = _Fit(pictures, spec, seed, start, pick_device(device), log or (lambda event: None))
    return one.run(partial, checkpoint_seconds)


def open_ddpm(tensors: bytes, config: Mapping[str, Any], spec: FitSpec, device: str = "cpu") -> Generator:
    """The generator that `fit_ddpm` made, drawn from with `spec.steps` DDIM steps in batches of `spec.draw_batch`.

    Raises:
        ModelError: another architecture than the spec's, missing or unknown tensors, other shapes, NaN or infinity, or
            more steps than noise levels.
    """
    classes = _classes(config)
    net = _filled(tensors, config, architecture(spec, classes))
    return _Ddpm(net.to(pick_device(device)).eval(), len(classes), spec)


def architecture(spec: FitSpec, classes: Sequence[str]) -> dict[str, Any]:
    """JSON-able: all that decides names, shapes and meaning of the tensors."""
    return {
        "kind": "diffusion", "format": FORMAT, "classes": list(classes), "size": spec.size, "patch": 2,
        "widths": [2 * spec.width, 4 * spec.width, 4 * spec.width], "layers": 1, "groups": math.gcd(8, 2 * spec.width),
        "heads": 2, "schedule": "squaredcos_cap_v2", "predicts": "sample",
    }  # fmt: skip


class _Ddpm:
    """Draws from a network in evaluation mode; see `Generator`."""

    def __init__(self, net: nn.Module, classes: int, spec: FitSpec) -> None:
        if spec.steps > NOISE_LEVELS:
            raise ModelError(
                f"steps = {spec.steps}, but there are {NOISE_LEVELS} noise levels", hint="30 to 100 steps are plenty"
            )
        self.net = net
        self.classes = classes
        self.spec = spec
        self.device = next(net.parameters()).device
        self.portions = Portions(spec.draw_batch, memory_of(str(self.device)))

    def draw(self, draws: Sequence[Draw]) -> Float3:
        """float32 [n, S, S, 3] in 0..1, row i a function of draws[i] and `spec.draw_batch` (see `portions`) alone.

        Raises:
            ModelError: a draw without a class, or of a class that the generator does not have.
        """
        side = self.spec.size
        made = np.empty((len(draws), side, side, 3), np.float32)
        for one in draws:
            if one.label is None or not 0 <= one.label < self.classes:
                raise ModelError(
                    f"class index {one.label} was asked of a generator of {self.classes} classes",
                    where=_WHERE, hint="labels index the classes that the generator was fitted on",
                )  # fmt: skip
        done = 0
        for images, count in self.portions.over(draws, self._batch):
            made[done : done + count] = images[:count]
            done += count
        return made

    @torch.no_grad()
    def _batch(self, draws: Sequence[Draw]) -> Float3:
        side = self.spec.size
        noise = np.stack([normals(one.seed, 3 * side * side) for one in draws]).reshape(-1, 3, side, side)
        images = torch.from_numpy(noise).to(self.device)
        labels = torch.tensor([one.label for one in draws], device=self.device)
        scheduler = _scheduler()
        scheduler.set_timesteps(self.spec.steps)
        for level in scheduler.timesteps.tolist():
            levels = torch.full((len(draws),), level, device=self.device)
            images = scheduler.step(_predict(self.net, images, levels, labels), level, images, eta=0.0).prev_sample
        made: Float3 = ((images + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return made


class _Fit:
    def __init__(
        self, pictures: Pictures, spec: FitSpec, seed: int, start: tuple[bytes, dict[str, Any]] | None,
        device: torch.device, log: Log,
    ) -> None:  # fmt: skip
        self.pictures = pictures
        self.spec = spec
        self.seed = seed
        self.start = start
        self.device = device
        self.log = log
        self.total = spec.length(warm=start is not None)
        self.config = architecture(spec, pictures.classes)
        net = _network(self.config, derive(seed, "weights"))
        if start is not None:
            _fill(net, _continued(*start, self.config))
        self.net = net.to(device)
        self.averaged = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.drawn = _Ddpm(self.averaged, len(pictures.classes), spec)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=spec.lr)
        self.scheduler = _scheduler()
        self.losses: list[float] = []
        self.snapshots: dict[int, npt.NDArray[np.uint8]] = {}

    def run(self, partial: Path | None, checkpoint_seconds: float) -> Fitted:
        folder = None if partial is None else PartialFolder(partial, self._identity(), self._warn)
        first = 0 if folder is None else self._resume(folder)
        with deterministic(self.device):
            self._iterate(first, folder, checkpoint_seconds)
        return Fitted(
            tensors=_written(self.averaged), config=self.config, losses=self._told_losses(),
            snapshots=tuple(sorted(self.snapshots.items())),
        )  # fmt: skip

    def _iterate(self, first: int, folder: PartialFolder | None, checkpoint_seconds: float) -> None:
        total, told, shown = self.total, points(self.total, _LOGGED), points(self.total, self.spec.snapshots)
        saved_at = time.monotonic()
        self.net.train()
        for t in range(first, total):
            self.losses.append(self._step(t))
            if t + 1 in shown:
                self.snapshots[t + 1] = self._snapshot()
            if t + 1 in told:
                loss, lr = self._told_losses()[-1]["loss"], self.spec.lr * self._factor(t)
                self._tell("progress", iteration=t + 1, loss=loss, lr=lr)
            if folder is not None and (t + 1 == total or time.monotonic() - saved_at >= checkpoint_seconds):
                folder.save(self._state(t + 1))
                saved_at = time.monotonic()
                self._tell("checkpoint", iteration=t + 1)

    def _step(self, t: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.lr * self._factor(t)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(t)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._blown_up(f"the loss became {value} at iteration {t + 1} of {self.total}")
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), _CLIP)
        self.optimizer.step()
        decay = min(self.spec.average, (1 + t) / (10 + t))
        with torch.no_grad():
            for mean, now in zip(self.averaged.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        return value

    def _loss(self, t: int) -> Tensor:
        random = np.random.Generator(np.random.Philox(derive(self.seed, "pictures", t)))
        images, labels = self.pictures.batch(random, self.spec.batch)
        dice = torch.Generator().manual_seed(derive(self.seed, "iteration", t))
        rows = len(images)
        levels = ((torch.arange(rows) + torch.rand(rows, generator=dice)) * (NOISE_LEVELS / rows)).long()
        levels = levels.clamp(max=NOISE_LEVELS - 1)
        noise = torch.randn(images.shape, generator=dice)
        noisy = self.scheduler.add_noise(images, noise, levels)
        kept = self.scheduler.alphas_cumprod[levels]
        ratio = kept / (1 - kept)
        weight = 1 + ratio.clamp(max=_SNR_MOST)
        noisy, images, weight, levels, labels = (
            tensor.to(self.device) for tensor in (noisy, images, weight, levels, labels)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.bf16):
            clean = _predict(self.net, noisy, levels, labels)
        return ((clean.float() - images).square().mean((1, 2, 3)) * weight).mean()

    def _factor(self, t: int) -> float:
        return min(1.0, (t + 1) / max(1, min(100, self.total // 10)))

    def _snapshot(self) -> npt.NDArray[np.uint8]:
        classes = self.pictures.classes
        count = max(SNAPSHOT_IMAGES, len(classes))
        seeds = [seeds_of(name, count=-(-count // len(classes)), seed=0) for name in classes]
        draws = [Draw(seeds[i % len(classes)][i // len(classes)], i % len(classes)) for i in range(count)]
        images = self.drawn.draw(draws)
        if not np.isfinite(images).all():
            raise self._blown_up(f"images drawn after {len(self.losses)} of {self.total} iterations hold NaN")
        return np.stack([to_uint8(image) for image in images])

    def _blown_up(self, what: str) -> ModelError:
        return ModelError(what, where="fit of a diffusion model", hint="lower fit.lr, or set fit.bf16 = false")

    def _told_losses(self) -> tuple[dict[str, float], ...]:
        """The mean loss since the point before, for every point that was reached."""
        ends = [end for end in points(self.total, _LOGGED) if end <= len(self.losses)]
        return tuple(
            {"iteration": end, "loss": sum(self.losses[first:end]) / (end - first)}
            for first, end in zip([0, *ends], ends, strict=False)
        )

    def _state(self, iteration: int) -> FitState:
        tensors = pack(self.net.state_dict(), self.optimizer, self.averaged.state_dict())
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors |= {f"snapshot/{at}": torch.from_numpy(images) for at, images in self.snapshots.items()}
        return FitState(iteration, tensors, {"torch": torch.__version__})

    def _resume(self, folder: PartialFolder) -> int:
        state = folder.newest()
        if state is None:
            return 0
        unpack(state.tensors, self.net.state_dict(), self.optimizer, self.averaged.state_dict())
        self.losses = state.tensors["losses"].tolist()
        shown = [name for name in state.tensors if name.startswith("snapshot/")]
        self.snapshots = {int(name.removeprefix("snapshot/")): state.tensors[name].numpy() for name in shown}
        self._tell("resumed", iteration=state.iteration)
        return state.iteration

    def _identity(self) -> str:
        start = None if self.start is None else [hashlib.sha256(self.start[0]).hexdigest(), self.start[1]]
        return digest_of([self.config, self.spec.model_dump(mode="json"), self.seed, self.pictures.digest, start])

    def _warn(self, sentence: str) -> None:
        self.log(Event(event="warning", message=sentence))

    def _tell(self, kind: str, **more: Any) -> None:
        self.log(Event(event=kind, of=self.total, **more))


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    make: Any = DDIMScheduler
    return make(
        num_train_timesteps=NOISE_LEVELS, beta_schedule="squaredcos_cap_v2", prediction_type="sample",
        timestep_spacing="trailing", clip_sample=True,
    )  # fmt: skip


def _network(config: Mapping[str, Any], seed: int = 0) -> nn.Module:
    from diffusers import UNet2DModel

    widths, patch = config["widths"], config["patch"]
    options = {
        "sample_size": config["size"] // patch, "in_channels": 3 * patch**2, "out_channels": 3 * patch**2,
        "block_out_channels": tuple(widths), "layers_per_block": config["layers"],
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "norm_num_groups": config["groups"], "attn_norm_num_groups": config["groups"],
        "attention_head_dim": widths[-1] // config["heads"], "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": len(config["classes"]),
    }  # fmt: skip
    make: Any = UNet2DModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = make(**options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith("conv_out.") or ".conv2." in name:
                parameter.zero_()  # every block starts as the identity
    return net


def _predict(net: nn.Module, images: Tensor, levels: Tensor, labels: Tensor) -> Tensor:
    made: Tensor = net(functional.pixel_unshuffle(images, 2), levels, labels).sample
    return functional.pixel_shuffle(made, 2)


def _continued(tensors: bytes, before: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the generator before, its class embeddings in the new order: kept by name, else their mean."""
    known = _classes(before)
    held = dict(_filled(tensors, before, {**config, "classes": known}).state_dict())
    rows = held[_EMBEDDING]
    mean = rows.mean(0)
    held[_EMBEDDING] = torch.stack([rows[known.index(name)] if name in known else mean for name in config["classes"]])
    return held


def _filled(tensors: bytes, told: Mapping[str, Any], wanted: Mapping[str, Any]) -> nn.Module:
    """The network of `tensors`, whose description `told` must say what `wanted` says."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    odd = sorted(key for key in wanted if told.get(key) != wanted[key])
    if odd:
        raise ModelError(
            f"the generator has another architecture; these differ: {', '.join(odd)}", where=_WHERE,
            hint="keep kind, size and width of the recipe's fit, or set fit.warm = false to start anew",
        )  # fmt: skip
    try:
        held = load(tensors)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"not a safetensors file ({error})", where=_WHERE, hint=_DAMAGED) from None
    net = _network(wanted)
    _fill(net, held)
    return net


def _classes(config: Mapping[str, Any]) -> list[str]:
    classes = config.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ModelError("its description does not name its classes", where=_WHERE, hint=_DAMAGED)
    return classes


def _fill(net: nn.Module, held: Mapping[str, Tensor]) -> None:
    wanted = net.state_dict()
    odd = sorted(set(wanted) ^ set(held))
    if odd:
        word = "missing" if odd[0] in wanted else "unknown"
        raise ModelError(f"{len(odd)} tensors do not fit; {odd[0]!r} is {word}", where=_WHERE, hint=_DAMAGED)
    for name, tensor in held.items():
        own = wanted[name]
        if tensor.shape != own.shape or tensor.dtype != own.dtype:
            raise ModelError(
                f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, expected {own.dtype} {tuple(own.shape)}",
                where=_WHERE, hint=_DAMAGED,
            )  # fmt: skip
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"tensor {name!r} holds NaN or infinity", where=_WHERE, hint=_DAMAGED)
    for name, tensor in held.items():
        wanted[name].copy_(tensor)


def _written(net: nn.Module) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    return bytes(save(tensors))
