"""Fit a small BigGAN-deep on a step's own images: projection discriminator, hinge loss, averaged weights.

    L_D = E max(0, 1 - D(x, y)) + E max(0, 1 + D(G(z, y), y))        L_G = -E D(G(z, y), y)

(Brock, Donahue, Simonyan 2019.) The generator's architecture is pytorch-pretrained-biggan's own at a smaller size, so
what is fitted here is loaded by the same code as the published weights.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pytorch_pretrained_biggan import BigGAN, BigGANConfig
from pytorch_pretrained_biggan.model import BigGANBatchNorm
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from replaygen.canonical import digest_of
from replaygen.errors import ModelError
from replaygen.generators.critic import Critic, augment
from replaygen.generators.draws import normals
from replaygen.generators.pictures import Fitted, Pictures, points
from replaygen.generators.specs import FitSpec
from replaygen.learn.batches import derive
from replaygen.learn.fitting import Event, Log, deterministic
from replaygen.learn.partial import FitState, PartialFolder, pack, unpack

N_STATS = 11
"""Truncations 0, 0.1, .. 1 for which a fitted generator keeps batch-norm statistics."""
SNAPSHOT = 64
"""Images of a snapshot, or one a class where there are more classes."""
_STATISTICS_BATCH = 64
_LOG_EVERY = 100
_LAYERS = {
    16: [[True, 16, 8], [True, 8, 4], [False, 4, 2], [False, 2, 1]],
    32: [[True, 16, 8], [True, 8, 4], [True, 4, 2], [False, 2, 1]],
    64: [[True, 16, 8], [True, 8, 4], [True, 4, 2], [True, 2, 1]],
    128: [[True, 16, 16], [True, 16, 8], [True, 8, 4], [True, 4, 2], [True, 2, 1]],
}
"""BigGAN-deep's blocks (up?, in, out in units of the width) by size, one a resolution."""


class _TrainingNorm(BigGANBatchNorm):  # type: ignore[misc]
    """The package's conditional batch norm, with the batch's own statistics while training (the package has none)."""

    moments: list[tuple[Tensor, Tensor]] | None = None
    """Means and variances float [C] of each batch that came by, while they are gathered."""

    def forward(self, x: Tensor, truncation: float, condition_vector: Tensor | None = None) -> Tensor:
        if not self.training:
            kept: Tensor = super().forward(x, truncation, condition_vector)
            return kept
        if self.moments is not None:
            variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
            self.moments.append((mean, variance))
        if not self.conditional:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        normal = F.batch_norm(x, None, None, None, None, training=True, eps=self.eps)
        scale, offset = self.scale(condition_vector), self.offset(condition_vector)
        out: Tensor = normal * (1 + scale[..., None, None]) + offset[..., None, None]
        return out


def architecture(spec: FitSpec, classes: int) -> dict[str, Any]:
    """The generator's config.json, as pytorch-pretrained-biggan reads it."""
    return {
        "output_dim": spec.size, "z_dim": spec.latent, "class_embed_dim": spec.latent, "channel_width": spec.width,
        "num_classes": classes, "layers": _LAYERS[spec.size], "attention_layer_position": -1, "eps": 1e-4,
        "n_stats": N_STATS,
    }  # fmt: skip


def build_generator(config: Mapping[str, Any]) -> nn.Module:
    """A BigGAN with orthogonal weights whose batch norm can be trained."""
    net: nn.Module = BigGAN(BigGANConfig.from_dict(dict(config)))
    for module in net.modules():
        if isinstance(module, BigGANBatchNorm):
            module.__class__ = _TrainingNorm
            if not module.conditional:
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.orthogonal_(parameter)
    return net


def fit_gan(
    pictures: Pictures, spec: FitSpec, *, seed: int, partial: Path | None = None,
    start: tuple[bytes, Mapping[str, Any], bytes | None] | None = None, device: str = "cpu", log: Log | None = None,
    checkpoint_seconds: float = 30.0,
) -> Fitted:  # fmt: skip
    """Fit a class-conditional GAN on `pictures`.

    Args:
        partial: a folder for checkpoints; a killed fit called again goes on and ends with the same bytes on the CPU.
        start: (tensors, config, critic) of the generator of the step before. Classes of the same name keep their
            embedding, others begin at the mean of all.
        log: gets progress, checkpoints and resumption.

    Raises:
        ModelError: a loss became NaN or infinite, or `start` has another architecture.
        StoreError: checkpoints cannot be written.
    """
    with deterministic(torch.device(device)), torch.random.fork_rng(devices=[0] if device == "cuda" else []):
        made = _Gan(pictures, spec, seed, start, torch.device(device), log or (lambda event: None))
        return made.run(partial, checkpoint_seconds)


@dataclass
class _Nets:
    generator: nn.Module
    averaged: nn.Module
    critic: Critic


class _Gan:
    def __init__(
        self, pictures: Pictures, spec: FitSpec, seed: int,
        start: tuple[bytes, Mapping[str, Any], bytes | None] | None, device: torch.device, log: Callable[[Event], None],
    ) -> None:  # fmt: skip
        self.pictures = pictures
        self.spec = spec
        self.seed = seed
        self.start = start
        self.device = device
        self.log = log
        self.classes = len(pictures.classes)
        self.total = spec.length(warm=start is not None)
        self.config = {**architecture(spec, self.classes), "kind": "gan", "classes": list(pictures.classes)}
        torch.manual_seed(derive(seed, "start"))
        generator, critic = build_generator(self.config), Critic(spec.size, spec.critic_width, self.classes)
        if start is not None:
            _go_on(generator, critic, start, self.config)
        layout = torch.channels_last
        generator = generator.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        critic = critic.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        self.nets = _Nets(generator, copy.deepcopy(generator), critic)
        adam: dict[str, Any] = {"betas": (0.0, 0.99), "eps": 1e-6, "fused": True}
        self.for_generator = torch.optim.Adam(generator.parameters(), lr=spec.lr, **adam)
        self.for_critic = torch.optim.Adam(critic.parameters(), lr=spec.critic_lr, **adam)
        self.losses: list[list[float]] = []
        self.snapshots: list[tuple[int, npt.NDArray[np.uint8]]] = []
        self.due = points(self.total, spec.snapshots)

    def run(self, partial: Path | None, checkpoint_seconds: float) -> Fitted:
        folder = None if partial is None else PartialFolder(partial, self._identity(), self._warn)
        first = 0 if folder is None else self._resume(folder)
        saved = time.monotonic()
        for t in range(first, self.total):
            torch.manual_seed(derive(self.seed, "iteration", t))
            self._step(t)
            if t + 1 in self.due:
                self.snapshots.append((t + 1, self._snapshot()))
            if (t + 1) % _LOG_EVERY == 0 or t + 1 == self.total:
                self._tell("progress", t + 1, loss=self.losses[-1][1], lr=self.spec.lr)
            if folder is not None and (time.monotonic() - saved >= checkpoint_seconds or t + 1 == self.total):
                folder.save(self._state(t + 1))
                saved = time.monotonic()
                self._tell("checkpoint", t + 1)
        self._statistics()
        told = tuple({"iteration": i, "critic": d, "generator": g} for i, d, g in self.losses)
        return Fitted(
            _pack(self.nets.averaged), self.config, told, tuple(self.snapshots), _pack(self.nets.critic)
        )  # fmt: skip

    def _step(self, t: int) -> None:
        spec, nets, device = self.spec, self.nets, self.device
        real, labels = self.pictures.batch(np.random.default_rng(derive(self.seed, "batch", t)), spec.batch)
        real, labels = real.to(device), labels.to(device)
        fake = self._generate(nets.generator, labels)
        scores = self._score(torch.cat([real, fake.detach()]), torch.cat([labels, labels]))
        critic_loss = F.relu(1 - scores[: spec.batch]).mean() + F.relu(1 + scores[spec.batch :]).mean()
        self.for_critic.zero_grad(set_to_none=True)
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self.for_critic.step()
        nets.critic.requires_grad_(False)
        generator_loss = -self._score(fake, labels).mean()
        self.for_generator.zero_grad(set_to_none=True)
        generator_loss.backward()  # type: ignore[no-untyped-call]
        self.for_generator.step()
        nets.critic.requires_grad_(True)
        values = float(critic_loss.detach()), float(generator_loss.detach())
        if not all(math.isfinite(value) for value in values):
            raise ModelError(
                f"the generator's losses became {values[0]} and {values[1]} at iteration {t + 1} of {self.total}",
                hint="lower fit.lr and fit.critic_lr, or set fit.bf16 = false",
            )
        if (t + 1) % _LOG_EVERY == 0 or t + 1 == self.total:
            self.losses.append([float(t + 1), *values])
        decay = min(spec.average, (1 + t) / (10 + t))
        with torch.no_grad():
            for mean, now in zip(nets.averaged.parameters(), nets.generator.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.bf16)

    def _generate(self, net: nn.Module, labels: Tensor) -> Tensor:
        z = torch.randn(len(labels), self.spec.latent).to(self.device)
        with self._autocast():
            made: Tensor = net(z, F.one_hot(labels, self.classes).float(), 1.0)
        return made.float()

    def _score(self, images: Tensor, labels: Tensor) -> Tensor:
        images = augment(images, self.spec.shift, self.spec.light).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            scores: Tensor = self.nets.critic(images, labels)
        return scores.float()

    def _follow(self) -> None:
        # the averaged weights' singular vectors are close to the live ones'
        live = dict(self.nets.generator.named_buffers())
        for name, buffer in self.nets.averaged.named_buffers():
            if name.endswith(("weight_u", "weight_v")):
                buffer.copy_(live[name])

    def _snapshot(self) -> npt.NDArray[np.uint8]:
        net = self.nets.averaged
        count = max(SNAPSHOT, self.classes)
        labels = torch.arange(count, device=self.device) % self.classes
        z = np.stack([normals(derive("snapshot", n), self.spec.latent) for n in range(count)])
        with torch.no_grad():
            self._follow()
            made = net(torch.from_numpy(z).to(self.device), F.one_hot(labels, self.classes).float(), 1.0)
        values = made.float().cpu().permute(0, 2, 3, 1).add(1).mul(127.5).round().clamp(0, 255)
        return np.ascontiguousarray(values.byte().numpy())

    def _statistics(self) -> None:
        """Batch-norm statistics of the averaged weights for every truncation, over batches of all classes."""
        net = self.nets.averaged
        batches = max(4, math.ceil(self.classes / _STATISTICS_BATCH))
        norms = [module for module in net.modules() if isinstance(module, _TrainingNorm)]
        with torch.no_grad():
            self._follow()
            for point in range(N_STATS):
                for norm in norms:
                    norm.moments = []
                for n in range(batches):
                    torch.manual_seed(derive(self.seed, "statistics", point, n))
                    z = torch.nn.init.trunc_normal_(torch.empty(_STATISTICS_BATCH, self.spec.latent), a=-2.0, b=2.0)
                    first = n * _STATISTICS_BATCH if self.classes > _STATISTICS_BATCH else 0
                    labels = (first + torch.arange(_STATISTICS_BATCH)) % self.classes
                    truncation = point / (N_STATS - 1)
                    given = F.one_hot(labels, self.classes).float().to(self.device)
                    net((truncation * z).to(self.device), given, max(truncation, 1e-6))
                for norm in norms:
                    assert norm.moments is not None
                    means, variances = (torch.stack(part) for part in zip(*norm.moments, strict=True))
                    norm.running_means[point] = means.mean(0)
                    norm.running_vars[point] = variances.mean(0) + means.var(0, correction=0)
                    norm.moments = None

    def _parts(self) -> Iterator[tuple[str, Mapping[str, Tensor], torch.optim.Optimizer, dict[str, Tensor]]]:
        nets = self.nets
        yield "generator/", nets.generator.state_dict(), self.for_generator, nets.averaged.state_dict()
        yield "critic/", nets.critic.state_dict(), self.for_critic, {}

    def _state(self, iteration: int) -> FitState:
        tensors: dict[str, Tensor] = {}
        for part, net, optimizer, averaged in self._parts():
            tensors |= {f"{part}{name}": tensor for name, tensor in pack(net, optimizer, averaged).items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64).reshape(-1, 3)
        tensors |= {f"snapshot/{i}": torch.from_numpy(images) for i, images in self.snapshots}
        return FitState(iteration, tensors, {})

    def _resume(self, folder: PartialFolder) -> int:
        state = folder.newest()
        if state is None:
            return 0
        for part, net, optimizer, averaged in self._parts():
            own = {name.removeprefix(part): t for name, t in state.tensors.items() if name.startswith(part)}
            unpack(own, net, optimizer, averaged)
        self.losses = state.tensors["losses"].tolist()
        self.snapshots = sorted(
            (int(name.removeprefix("snapshot/")), tensor.numpy())
            for name, tensor in state.tensors.items() if name.startswith("snapshot/")
        )  # fmt: skip
        self._tell("resumed", state.iteration)
        return state.iteration

    def _identity(self) -> str:
        start = None if self.start is None else [hashlib.sha256(part or b"").hexdigest() for part in self.start[::2]]
        return digest_of([self.config, self.spec.model_dump(mode="json"), self.seed, self.pictures.digest, start])

    def _warn(self, sentence: str) -> None:
        self.log(Event(event="warning", message=sentence))

    def _tell(self, kind: str, iteration: int, **more: Any) -> None:
        self.log(Event(event=kind, iteration=iteration, of=self.total, **more))


def _go_on(
    generator: nn.Module, critic: Critic, start: tuple[bytes, Mapping[str, Any], bytes | None],
    config: Mapping[str, Any],
) -> None:  # fmt: skip
    tensors, before, judged = start
    odd = [key for key in config if key not in ("num_classes", "classes") and before.get(key) != config[key]]
    if odd:
        raise ModelError(
            f"the generator of the step before has another architecture: {', '.join(odd)}",
            hint="keep size, width and latent, or set fit.warm = false",
        )
    for net, data, table in ((generator, tensors, "embeddings.weight"), (critic, judged, "embedding.")):
        if data is None:
            continue
        held, own = load(data), net.state_dict()
        kept = [name for name in own if not name.startswith(table)]
        if set(held) != set(own) or any(held[name].shape != own[name].shape for name in kept):
            raise ModelError(
                "the weights of the generator of the step before are not those of its architecture",
                hint="run the recipe again, or set fit.warm = false",
            )
        for name in kept:
            own[name].copy_(held[name])
        _classes(own, held, table, before["classes"], config["classes"])
        net.load_state_dict(own)


def _classes(own: dict[str, Tensor], held: Mapping[str, Tensor], table: str, before: list[str], now: list[str]) -> None:
    """Class embeddings: those of the same name are kept, others begin at the mean of all."""
    name = next(key for key in own if key.startswith(table) and own[key].ndim == 2)
    rows, known = own[name], held[name]
    across = table == "embeddings.weight"  # the generator's table is [z, classes], the critic's [classes, D]
    for index, wanted in enumerate(now):
        at = before.index(wanted) if wanted in before else None
        if across:
            rows[:, index] = known[:, at] if at is not None else known.mean(1)
        else:
            rows[index] = known[at] if at is not None else known.mean(0)


def _pack(net: nn.Module) -> bytes:
    tensors = net.state_dict()
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
