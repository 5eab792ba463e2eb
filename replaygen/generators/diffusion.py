"""Draw from a diffusers pipeline: DiT by class index; Stable Diffusion, SDXL, SD3, PixArt, Flux, LCM... by prompt.

The pipeline is loaded from a local folder, safetensors only, without network. An image's noise comes from a CPU
generator seeded with the image's own seed, for the first latents and for every noisy step, so a row depends on its draw
and on the batch size alone. (torch's CPU generator takes the low 32 bits of a seed: among 500 images of one prompt two
are equal with probability 3e-5, among 10,000 with 1 %.)
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from replaygen.errors import ModelError, RecipeError
from replaygen.generators.draws import Draw
from replaygen.generators.pipelines_check import (
    Component,
    check_folder,
    check_lora,
    check_prompt,
    class_count,
    class_names,
    pipeline_kind,
)
from replaygen.portions import Portions, memory_of

if TYPE_CHECKING:
    import torch

    from replaygen.generators.draws import Float3
    from replaygen.generators.specs import DiffusionSpec

__all__ = ["DiffusionGenerator", "class_count", "class_names", "open_diffusion", "pipeline_kind", "prompts_of"]

_SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
}
_ROWS_APART = (
    "DiTPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "FluxPipeline",
    "LatentConsistencyModelPipeline",
)
"""Pipelines that pad every prompt to one fixed length. Others may pad to the batch's longest: an image would depend on
its neighbours, so they are drawn from one by one."""
_NULL_CLASS = 1000
"""DiTPipeline asks for this class where it guides, whatever the number of classes."""
_ADAPTER = "replay"


def prompts_of(spec: DiffusionSpec, class_name: str, count: int) -> list[str]:
    """`count` prompts of a class: the templates in turn, {class} being `spec.words`' word or the name without "_"."""
    word = spec.words.get(class_name, class_name.replace("_", " "))
    return [spec.prompts[number % len(spec.prompts)].replace("{class}", word) for number in range(count)]


def open_diffusion(folder: Path, spec: DiffusionSpec, device: str) -> DiffusionGenerator:
    """Load a pipeline from a local folder for drawing.

    Args:
        folder: a diffusers folder, with model_index.json; see `pipelines_check`.
        spec: how it is drawn from; `lora` must be a path that can be opened from here.
        device: "cpu", "cuda", ...

    Raises:
        ModelError: the folder or the LoRA weights are missing, damaged, pickled, incomplete, or not of this pipeline.
        RecipeError: a setting that this pipeline does not have or cannot do.
    """
    import torch

    components = check_folder(folder)
    kind = pipeline_kind(folder)
    with _quiet():
        pipeline = _loaded(folder, components, kind, getattr(torch, spec.dtype))
        _schedule(pipeline, spec, kind)
        settings = _Settings.of(pipeline, spec, kind, folder)
        if spec.lora is not None:
            _apply_lora(pipeline, Path(spec.lora), spec.lora_scale)
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        if hasattr(pipeline, "watermark"):
            pipeline.watermark = None
        if spec.dtype == "float16":
            _decode_in_float32(getattr(pipeline, "vae", None))
    classes = class_count(folder) if kind == "class" else None
    return DiffusionGenerator(pipeline, settings, Portions(spec.batch, memory_of(device)), device, classes)


@dataclass(frozen=True)
class DiffusionGenerator:
    """A loaded pipeline; `classes` is None where it is asked with prompts."""

    pipeline: Any
    settings: _Settings
    portions: Portions
    device: str
    classes: int | None

    def draw(self, draws: Sequence[Draw]) -> Float3:
        """float32 [n, H, W, 3] in 0..1, row i a function of draws[i] and the batch size (see `portions`) alone.

        A row is NaN where the decoder's output was not finite, and zero where the pipeline's safety checker objected.

        Raises:
            ModelError: a draw without a class or prompt, of a class that is not there, or with too long a prompt; or a
                pipeline that took noise from elsewhere than the images' seeds.
        """
        import numpy as np

        if not draws:
            return np.empty((0, 0, 0, 3), np.float32)
        for one in draws:
            self._check(one)
        return np.concatenate([made[:count] for made, count in self.portions.over(draws, self._forward)])

    def _check(self, draw: Draw) -> None:
        if self.classes is not None:
            if draw.label is None or not 0 <= draw.label < self.classes:
                raise ModelError(f"class index {draw.label} was asked of a pipeline of {self.classes} classes")
        elif draw.prompt is None:
            raise ModelError("a text-to-image pipeline was asked without a prompt")
        else:
            check_prompt(self.pipeline, draw.prompt)

    def _forward(self, draws: Sequence[Draw]) -> Float3:
        import numpy as np
        import torch

        generators = [torch.Generator().manual_seed(one.seed) for one in draws]
        if self.classes is not None:
            asked: dict[str, Any] = {"class_labels": [one.label for one in draws]}
        else:
            asked = {"prompt": [one.prompt for one in draws]}
            if self.settings.negative_prompt is not None:
                asked["negative_prompt"] = [self.settings.negative_prompt] * len(draws)
        noise_before = self._global_noise()
        step_noise = generators if self.classes is not None else None
        with _quiet(), _steps_from(self.pipeline, step_noise), _decoded_rows(self.pipeline) as finite:
            try:
                made = self.pipeline(**asked, **self.settings.call, generator=generators, output_type="np")
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise ModelError(f"the pipeline cannot draw: {type(error).__name__}: {error}") from error
        if any(not torch.equal(a, b) for a, b in zip(noise_before, self._global_noise(), strict=True)):
            raise ModelError(
                f"{_named(self.pipeline)} with {_named(self.pipeline.scheduler)} takes noise from elsewhere than the "
                "images' seeds",
                hint='draw with scheduler = "ddim" or "dpm"',
            )
        images: Float3 = np.array(made.images, dtype=np.float32)
        if finite:
            images[~torch.cat(finite).numpy()] = np.nan
        size = self.settings.size
        if size is not None and images.shape[1:3] != (size, size):
            raise ModelError(
                f"asked for {size} x {size} pixels, the pipeline made {images.shape[1]} x {images.shape[2]}",
                hint="take a size that this pipeline can make",
            )
        return images

    def _global_noise(self) -> list[torch.Tensor]:
        import torch

        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.startswith("cuda") else states


@dataclass(frozen=True)
class _Settings:
    """`call`: what the pipeline is called with beside the draws; `size` in pixels, None: the pipeline's own."""

    call: dict[str, Any]
    negative_prompt: str | None
    size: int | None

    @classmethod
    def of(cls, pipeline: Any, spec: DiffusionSpec, kind: Literal["class", "text"], folder: Path) -> _Settings:
        known = inspect.signature(type(pipeline).__call__).parameters
        named = _named(pipeline)
        call: dict[str, Any] = {"num_inference_steps": spec.steps}
        if spec.guidance is not None:
            _refuse_unless("guidance_scale" in known, f"{named} has no guidance", "leave `guidance` out")
            call["guidance_scale"] = spec.guidance
        if spec.negative_prompt is not None:
            _refuse_unless("negative_prompt" in known, f"{named} has no negative prompt", "leave `negative_prompt` out")
        if spec.size is not None:
            _refuse_unless("height" in known, f"{named} makes one size only", "leave `size` out")
            multiple = int(getattr(pipeline, "vae_scale_factor", 1))
            _refuse_unless(spec.size % multiple == 0, f"{named} makes multiples of {multiple} pixels, not {spec.size}",
                           f"size = {max(1, round(spec.size / multiple)) * multiple}")  # fmt: skip
            call |= {"height": spec.size, "width": spec.size}
        _refuse_unless(spec.batch == 1 or named in _ROWS_APART, f"{named} may let a prompt's length change the images "
                       "beside it", "batch = 1")  # fmt: skip
        if kind == "class":
            guidance = call.get("guidance_scale", known["guidance_scale"].default)
            count = class_count(folder)
            _refuse_unless(
                count == _NULL_CLASS or guidance <= 1,
                f"diffusers guides DiT by class {_NULL_CLASS}, which is no null class where there are {count} classes",
                "guidance = 1",
            )
        return cls(call, spec.negative_prompt, spec.size)


def _refuse_unless(possible: bool, what: str, hint: str) -> None:
    if not possible:
        raise RecipeError(what, where="[replay.NAME.diffusion]", hint=hint)


def _loaded(folder: Path, components: Sequence[Component], kind: Literal["class", "text"], dtype: torch.dtype) -> Any:
    import diffusers

    for one in components:
        if one.library not in ("diffusers", "transformers") and not hasattr(diffusers.pipelines, one.library):
            raise ModelError(f"{one.name} is a class of {one.library!r}, which is not loaded from", where=str(folder))
    opened: Any = diffusers.DiTPipeline if kind == "class" else diffusers.AutoPipelineForText2Image
    try:
        pipeline = opened.from_pretrained(
            str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True,
            variant=next((one.variant for one in components if one.variant is not None), None),
            **_text_models(folder, components, dtype),
        )  # fmt: skip
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the pipeline cannot be loaded: {type(error).__name__}: {error}", where=str(folder),
            hint="the folder may be damaged, or made for another version of diffusers or transformers",
        ) from error  # fmt: skip
    for name, part in _networks(pipeline):
        _refuse_incomplete(folder / name, [key for key, tensor in part.named_parameters() if tensor.is_meta])
    return pipeline


def _text_models(folder: Path, components: Sequence[Component], dtype: torch.dtype) -> dict[str, Any]:
    """The components of transformers, which would fill what a file lacks with random numbers and only log it."""
    import diffusers
    import transformers

    loaded: dict[str, Any] = {}
    for one in components:
        home = transformers if one.library == "transformers" else getattr(diffusers.pipelines, one.library, None)
        network: Any = getattr(home, one.class_name, None)
        is_network = isinstance(network, type) and issubclass(network, transformers.PreTrainedModel)
        if is_network:
            loaded[one.name], about = network.from_pretrained(
                str(folder / one.name), dtype=dtype, use_safetensors=True, local_files_only=True, variant=one.variant,
                output_loading_info=True,
            )  # fmt: skip
            _refuse_incomplete(folder / one.name, sorted(about["missing_keys"]))
    return loaded


def _refuse_incomplete(folder: Path, missing: Sequence[str]) -> None:
    if missing:
        raise ModelError(f"{folder.name}'s weights lack {len(missing)} tensors, the first {missing[0]}",
                         where=str(folder), hint="weights of another model?")  # fmt: skip


def _schedule(pipeline: Any, spec: DiffusionSpec, kind: Literal["class", "text"]) -> None:
    import diffusers

    own = _named(pipeline.scheduler)
    _refuse_unless(own != "DPMSolverSDEScheduler" or spec.scheduler != "own",
                   f"{own} draws one noise for the whole batch", 'scheduler = "dpm"')  # fmt: skip
    if spec.scheduler != "own":
        _refuse_unless("FlowMatch" not in own, f"{_named(pipeline)} predicts a flow, not noise", 'scheduler = "own"')
        _refuse_unless(own != "LCMScheduler", f"{_named(pipeline)} is made for LCM's steps", 'scheduler = "own"')
        pipeline.scheduler = getattr(diffusers, _SCHEDULERS[spec.scheduler]).from_config(pipeline.scheduler.config)
    if spec.scheduler != "own" or kind == "class":
        try:
            pipeline.scheduler.set_timesteps(spec.steps)
        except ValueError as error:
            _refuse_unless(False, f"{spec.steps} steps: {error}", "fewer steps, or another scheduler")
    if kind == "class":
        _refuse_unless(float(pipeline.scheduler.init_noise_sigma) == 1.0,
                       f"DiTPipeline starts from unit noise, {_named(pipeline.scheduler)} does not",
                       'scheduler = "ddim" or "dpm"')  # fmt: skip


def _apply_lora(pipeline: Any, file: Path, scale: float) -> None:
    named = _named(pipeline)
    _refuse_unless(hasattr(pipeline, "load_lora_weights"), f"{named} takes no LoRA weights", "leave `lora` out")
    wanted = check_lora(file)
    hint = "LoRA weights must be made for this very kind of pipeline"
    try:
        pipeline.load_lora_weights(
            str(file.parent), weight_name=file.name, adapter_name=_ADAPTER, use_safetensors=True, local_files_only=True
        )
    except Exception as error:
        raise ModelError(f"the LoRA weights do not fit {named}: {error}", where=str(file), hint=hint) from error
    taken = sum(
        ".lora_" in key and f".{_ADAPTER}." in key
        for _, part in _networks(pipeline)
        for key, _ in part.named_parameters()
    )
    if not wanted or taken < len(wanted):
        raise ModelError(f"{taken} of {len(wanted)} LoRA tensors fit {named}", where=str(file), hint=hint)
    pipeline.set_adapters([_ADAPTER], adapter_weights=[scale])


def _named(part: Any) -> str:
    return type(part).__name__


def _networks(pipeline: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    import torch

    yield from ((name, part) for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module))


def _decode_in_float32(vae: Any) -> None:
    """Keep a decoder that says of itself that it overflows in half precision in float32."""
    import torch

    if vae is None or not getattr(vae.config, "force_upcast", False):
        return
    decode = vae.to(torch.float32).decode
    vae.decode = lambda latents, *args, **kwargs: decode(latents.to(torch.float32), *args, **kwargs)


@contextmanager
def _decoded_rows(pipeline: Any) -> Iterator[list[torch.Tensor]]:
    """Bool [rows] on the CPU for each call of the decoder: was all that it put out finite?

    It is looked at there, for what follows can hide it: clipping makes infinity white, a safety checker NaN black.
    """
    import torch

    finite: list[torch.Tensor] = []
    decoder = getattr(getattr(pipeline, "vae", None), "decoder", None)
    if decoder is None:
        yield finite
        return
    hook = decoder.register_forward_hook(
        lambda _module, _inputs, out: finite.append(torch.isfinite(out).flatten(1).all(1).cpu())
    )
    try:
        yield finite
    finally:
        hook.remove()


@contextmanager
def _steps_from(pipeline: Any, generators: list[torch.Generator] | None) -> Iterator[None]:
    """Give DiT's noisy steps the images' own generators; its pipeline has them draw from the global one."""
    scheduler = pipeline.scheduler
    if generators is None or "generator" not in inspect.signature(scheduler.step).parameters:
        yield
        return
    scheduler.step = partial(scheduler.step, generator=generators * 2)
    try:
        yield
    finally:
        del scheduler.step


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, notes or warnings of diffusers and transformers; what matters in them is checked here."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    kept = []
    for one in (diffusers_logging, transformers_logging):
        kept.append((one, one.get_verbosity(), one.is_progress_bar_enabled()))
        one.set_verbosity(one.CRITICAL)
        one.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, verbosity, bars in kept:
            one.set_verbosity(verbosity)
            if bars:
                one.enable_progress_bar()
