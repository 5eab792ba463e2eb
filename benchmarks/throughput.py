"""Images per second of BigGAN-deep at its true size: the loop of the package's README, and ours.

The published weights are not needed: speed does not depend on the numbers, so networks of the published shape get
random ones. Their images are noise, and more sensitive to rounding than those of a trained network.
"""

from __future__ import annotations

import json
import math
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replaygen.generators.biggan import open_biggan
from replaygen.generators.draws import Draw, truncated_normals
from replaygen.generators.specs import BigGanSpec

if TYPE_CHECKING:
    from replaygen.generators.biggan import BigGanGenerator
    from replaygen.generators.draws import Float3

_TO_32 = [[False, 16, 16], [True, 16, 16], [False, 16, 16], [True, 16, 8], [False, 8, 8]]
_TO_128 = [[True, 8, 4], [False, 4, 4], [True, 4, 2], [False, 2, 2], [True, 2, 1]]
_LAYERS = {
    128: [*_TO_32, *_TO_128],
    256: [*_TO_32, [True, 8, 8], [False, 8, 8], *_TO_128],
    512: [*_TO_32, [True, 8, 8], [False, 8, 8], *_TO_128, [False, 1, 1], [True, 1, 1]],
}
PARAMETERS = {128: 50.4e6, 256: 55.9e6, 512: 56.2e6}
"""How many the package's README says the published networks have."""


@dataclass(frozen=True)
class Timed:
    """One way to draw: clock and processor seconds an image of each round, and the first round's images."""

    seconds: list[float]
    cpu_seconds: list[float]
    images: Float3


def published_config(size: int) -> dict[str, Any]:
    """config.json of the published biggan-deep-SIZE: the package's defaults are 128's; 256 and 512 have more blocks."""
    return {
        "output_dim": size,
        "z_dim": 128,
        "class_embed_dim": 128,
        "channel_width": 128,
        "num_classes": 1000,
        "layers": _LAYERS[size],
        "attention_layer_position": 8,
        "eps": 1e-4,
        "n_stats": 51,
    }


def make_biggan_folder(size: int, path: Path, seed: int, *, images: int = 4, **config: Any) -> Path:
    """Write a weights folder of the published shape with random weights and warmed batch-norm statistics.

    Args:
        size: 128, 256 or 512.
        path: the folder to make.
        seed: of the weights; equal seeds give equal files.
        images: of each of the two passes, at truncation 0.4 and 1, that the statistics are gathered from; rows between
            are interpolated, rows below 0.4 are like it.
        config: keys of config.json to change, for a quick run.
    """
    import torch
    from safetensors.torch import save_file

    told = {**published_config(size), **config}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = _package_model(told)
        counted = sum(parameter.numel() for parameter in model.parameters())
        if not config and abs(counted - PARAMETERS[size]) > 5e4:
            raise ValueError(f"{counted} parameters, the published network has {PARAMETERS[size]:.0f}")
        _random_weights(model)
        _warm(model, told, images)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path / "model.safetensors")
    return path


def readme_model(folder: Path, *, device: str = "cpu") -> Any:
    """The package's network as its `from_pretrained` returns it: float32, in training mode."""
    from safetensors.torch import load_file

    model = _package_model(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.to(device)


def readme_loop(
    model: Any, draws: Sequence[Draw], *, truncation: float = 0.4, batch: int = 3, careful: bool = True
) -> Float3:
    """What the README's example does, batch after batch: float32 [n, H, W, 3] in 0..1.

    Args:
        model: of `readme_model`.
        draws: seeds and labels.
        truncation: of z and of the statistics.
        batch: images of one forward pass.
        careful: evaluation mode and no gradients, which the README's example leaves out.
    """
    import torch

    model.train(not careful)
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(draws), batch):
        part = draws[start : start + batch]
        z = torch.from_numpy(np.stack([truncated_normals(draw.seed, model.config.z_dim) for draw in part]) * truncation)
        classes = torch.eye(model.config.num_classes)[[draw.label or 0 for draw in part]]
        with torch.set_grad_enabled(not careful):
            drawn = model(z.to(device), classes.to(device), truncation)
        parts.append(((drawn.detach() + 1) / 2).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


def ours(folder: Path, spec: BigGanSpec, *, device: str = "cpu") -> BigGanGenerator:
    """Our generator on the same weights; `.draw(draws)` is what is timed."""
    return open_biggan(folder, spec, device)


def compare(
    folder: Path, *, count: int = 6, rounds: int = 3, truncation: float = 0.4, device: str = "cpu", literal: bool = True
) -> dict[str, Any]:
    """Draw the same images in every way, in turn, in this process with one thread, after one image each to warm up.

    Args:
        folder: of `make_biggan_folder`.
        count: images of a round.
        rounds: how often each way is timed.
        truncation: a multiple of 0.02.
        device: "cpu" or "cuda".
        literal: time the README's example as it stands too, in training mode and with gradients.

    Returns:
        For each way the images per second (of the median round), its processor seconds per image, how many times the
        careful README loop's speed it has (median of the rounds' own ratios, by processor time on a CPU and by the
        clock on a GPU), and the PSNR (dB, worst and mean image) against the careful README loop's images, None for that
        loop itself; and the process's peak resident memory in 10^9 bytes after ours alone and after all, with all that
        the process did before. As it stands the README's loop draws other images: training mode goes on estimating the
        weights' largest singular values.
    """
    import torch

    torch.set_num_threads(1)
    draws = [Draw(seed=1000 + number, label=number % 1000) for number in range(count)]
    generators = {
        f"ours {dtype}": ours(folder, BigGanSpec(truncation=truncation, dtype=dtype), device=device)
        for dtype in ("float32", "bfloat16")
    }
    ways: dict[str, Callable[[Sequence[Draw]], Float3]] = {name: made.draw for name, made in generators.items()}
    for draw in ways.values():
        draw(draws[:1])
    alone = _peak_gb()
    careful = readme_model(folder, device=device)
    ways["readme"] = lambda part: readme_loop(careful, part, truncation=truncation)
    if literal:
        as_it_stands = readme_model(folder, device=device)
        ways["readme as it stands"] = lambda part: readme_loop(
            as_it_stands, part, truncation=truncation, careful=False
        )  # fmt: skip
    timed = _in_turn(ways, draws, rounds)
    return {
        "device": device,
        "size": int(timed["readme"].images.shape[1]),
        "images_a_round": count,
        "rounds": rounds,
        "ways": {name: _figures(told, timed["readme"], by_clock=device != "cpu") for name, told in timed.items()},
        "peak_gb_of_ours": round(alone, 2),
        "peak_gb_of_all": round(_peak_gb(), 2),
    }


def psnr(one: Float3, other: Float3) -> list[float]:
    """Per image, dB, of images in 0..1; infinity where they are equal."""
    errors = ((one.astype(np.float64) - other) ** 2).mean(axis=(1, 2, 3))
    return [math.inf if error == 0 else -10 * math.log10(error) for error in errors]


def _in_turn(
    ways: dict[str, Callable[[Sequence[Draw]], Float3]], draws: Sequence[Draw], rounds: int
) -> dict[str, Timed]:
    timed: dict[str, Timed] = {}
    for name, draw in ways.items():
        draw(draws[:1])
        timed[name] = Timed([], [], np.empty(0, np.float32))
    for number in range(rounds):
        for name, draw in ways.items():
            clock, cpu = time.perf_counter(), time.process_time()
            images = draw(draws)
            timed[name].cpu_seconds.append((time.process_time() - cpu) / len(draws))
            timed[name].seconds.append((time.perf_counter() - clock) / len(draws))
            if number == 0:
                timed[name] = Timed(timed[name].seconds, timed[name].cpu_seconds, images)
    return timed


def _figures(told: Timed, base: Timed, *, by_clock: bool) -> dict[str, float | None]:
    mine, its = (told.seconds, base.seconds) if by_clock else (told.cpu_seconds, base.cpu_seconds)
    decibels = None if told is base else psnr(told.images, base.images)
    return {
        "images_per_s": round(1 / float(np.median(told.seconds)), 3),
        "cpu_s_per_image": round(float(np.median(told.cpu_seconds)), 4),
        "times_readme": round(float(np.median([b / a for a, b in zip(mine, its, strict=True)])), 2),
        "psnr_worst": round(min(decibels), 1) if decibels else None,
        "psnr_mean": round(float(np.mean(decibels)), 1) if decibels else None,
    }


def _package_model(config: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_pretrained_biggan import BigGAN, BigGANConfig

        return BigGAN(BigGANConfig(**config))


def _random_weights(model: Any) -> None:
    """Normal weights (spectral norm sets their size), small biases, classes that differ, an attention that is felt."""
    import torch

    for name, parameter in model.named_parameters():
        if name.endswith("weight_orig"):
            parameter.normal_()
        elif name == "embeddings.weight":
            parameter.normal_(std=0.1)
        elif name.endswith("bn.weight"):
            parameter.fill_(1.0)
        elif name.endswith("gamma"):
            parameter.fill_(0.1)
        else:
            torch.nn.init.normal_(parameter, std=0.02)


def _warm(model: Any, config: dict[str, Any], images: int) -> None:
    """Store batch-norm statistics: each layer's own of the pass, gathered in order, so that each fits those before."""
    import torch

    norms = [module for module in model.modules() if hasattr(module, "running_means")]
    rows, low = config["n_stats"] - 1, 0.4

    def gather(module: Any, inputs: tuple[Any, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        module.running_means[:], module.running_vars[:] = mean, variance

    hooks = [norm.register_forward_pre_hook(gather) for norm in norms]
    found = []
    for truncation in (low, 1.0):
        z = torch.randn(images, config["z_dim"]).clamp(-2, 2) * truncation
        model.train()(z, torch.eye(config["num_classes"])[:images], 1.0)
        found.append([(norm.running_means[0].clone(), norm.running_vars[0].clone()) for norm in norms])
    for hook in hooks:
        hook.remove()
    share = ((torch.arange(rows + 1) / rows - low) / (1 - low)).clamp(0, 1)[:, None]
    for norm, (mean_low, var_low), (mean_high, var_high) in zip(norms, *found, strict=True):
        norm.running_means.copy_(torch.lerp(mean_low, mean_high, share))
        norm.running_vars.copy_(torch.lerp(var_low, var_high, share))


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
