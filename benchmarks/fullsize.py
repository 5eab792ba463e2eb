"""Pipelines of the published models' true size with random weights, and one timed image of each.

No weights can be fetched where the benchmarks run; what loading, memory and a step cost does not depend on their
values. The architectures are those of facebook/DiT-XL-2-256 (Peebles, Xie 2023) and Stable Diffusion 1.5 (Rombach et
al. 2022), the latter without its safety checker and with a stand-in vocabulary: letters instead of CLIP's 49,408 word
pieces, in a text encoder that has room for them all.
"""

from __future__ import annotations

import resource
import string
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replaygen.generators.specs import DiffusionSpec

_START, _END = 49406, 49407


def make_dit(path: Path, seed: int, *, scale: float = 1.0) -> None:
    """Save DiT-XL/2-256 with random bfloat16 weights, 1.7 GB; `scale` < 1 shrinks depth, width and picture."""
    import diffusers

    with _random_bfloat16(seed):
        pipeline = diffusers.DiTPipeline(dit(scale), vae(scale), diffusers.DDIMScheduler(clip_sample=False))
    _save(pipeline, path)


def make_stable_diffusion(path: Path, seed: int, *, scale: float = 1.0) -> None:
    """Save Stable Diffusion 1.5 with random bfloat16 weights, 2.1 GB; `scale` < 1 shrinks depth, width and picture."""
    import diffusers
    import transformers

    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = {letter: number for number, letter in enumerate(letters)}
    words |= {"<|startoftext|>": _START, "<|endoftext|>": _END}
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    with _random_bfloat16(seed):
        pipeline = diffusers.StableDiffusionPipeline(
            vae(scale), text_encoder(scale), transformers.CLIPTokenizer(vocab=words, merges=[], model_max_length=77),
            unet(scale), scheduler, None, None, requires_safety_checker=False,
        )  # fmt: skip
    _save(pipeline, path)


def try_fullsize(folder: Path, spec: DiffusionSpec) -> dict[str, Any]:
    """Load a pipeline through `open_diffusion` and draw one image in two steps on the CPU.

    Returns:
        load_s: wall seconds of loading; step_s: of one call of the denoiser (guided: of a batch of two), mean;
        rest_s: of the text encoder, scheduler and decoder together; peak_rss_gb: the most memory that this process had
        up to now, in 1e9 bytes; finite: is the image free of NaN; side: of the image in pixels.
    """
    import numpy as np
    from diffusers import AutoPipelineForText2Image, DiTPipeline  # noqa: F401 - imported before the clock starts

    from replaygen.generators.diffusion import open_diffusion
    from replaygen.generators.draws import Draw

    began = time.perf_counter()
    generator = open_diffusion(folder, spec.model_copy(update={"steps": 2, "batch": 1}), "cpu")
    loaded = time.perf_counter()
    steps: list[float] = []
    denoiser = getattr(generator.pipeline, "transformer", None) or generator.pipeline.unet
    denoiser.register_forward_pre_hook(lambda *_: steps.append(-time.perf_counter()))
    denoiser.register_forward_hook(lambda *_: steps.append(steps.pop() + time.perf_counter()))
    image = generator.draw([Draw(seed=0, label=1, prompt="a photo of a cow")])[0]
    drawn = time.perf_counter()
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "load_s": loaded - began,
        "step_s": sum(steps) / len(steps),
        "rest_s": drawn - loaded - sum(steps),
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9,
        "finite": bool(np.isfinite(image).all()),
        "side": int(image.shape[0]),
    }


def dit(scale: float) -> Any:
    """DiT-XL/2 for 256 pixels, 675 million parameters at scale 1.

    diffusers keeps the embedding of step and class once in each of the 28 blocks, which makes 750 million to load.
    """
    import diffusers

    return diffusers.DiTTransformer2DModel(
        num_layers=_scaled(28, scale), num_attention_heads=_scaled(16, scale), attention_head_dim=72,
        sample_size=_scaled(32, scale, 8), patch_size=2, in_channels=4, out_channels=8, norm_type="ada_norm_zero",
        num_embeds_ada_norm=1000, activation_fn="gelu-approximate", attention_bias=True, norm_elementwise_affine=False,
    )  # fmt: skip


def unet(scale: float) -> Any:
    """Stable Diffusion 1.5's denoiser: 860 million parameters at scale 1."""
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=_scaled(64, scale, 8), block_out_channels=_widths((320, 640, 1280, 1280), scale),
        cross_attention_dim=64 * _scaled(12, scale), attention_head_dim=8, layers_per_block=2 if scale == 1 else 1,
    )  # fmt: skip


def text_encoder(scale: float) -> Any:
    """The text half of CLIP ViT-L/14: 123 million parameters at scale 1."""
    import transformers

    heads = _scaled(12, scale)
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=49408, hidden_size=64 * heads, intermediate_size=256 * heads, num_attention_heads=heads,
            num_hidden_layers=_scaled(12, scale), projection_dim=64 * heads, hidden_act="quick_gelu",
            bos_token_id=_START, eos_token_id=_END, pad_token_id=_END,
        )
    )  # fmt: skip


def vae(scale: float) -> Any:
    """The autoencoder of both: 84 million parameters at scale 1, a factor of 8 in each direction."""
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=_widths((128, 256, 512, 512), scale), latent_channels=4,
        layers_per_block=2 if scale == 1 else 1, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215, sample_size=256,
    )  # fmt: skip


def _scaled(number: int, scale: float, multiple: int = 1) -> int:
    return number if scale == 1 else max(1, round(number * scale / multiple)) * multiple


def _widths(channels: tuple[int, ...], scale: float) -> tuple[int, ...]:
    return tuple(_scaled(one, scale, 32) for one in channels)


@contextmanager
def _random_bfloat16(seed: int) -> Iterator[None]:
    """Networks made here have bfloat16 weights, as their constructors draw them from a seed."""
    import torch

    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(usual)


def _save(pipeline: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.save_pretrained(path, safe_serialization=True)
