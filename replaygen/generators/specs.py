"""What a recipe says about generators. No torch here: a plan reads these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

LEAST = 2
"""Images of a class that a generator needs at least to be fitted on."""

Precision = Literal["float32", "bfloat16", "float16"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BigGanSpec(_Table):
    """`[replay.NAME.biggan]`: how a BigGAN is drawn from. `batch` is in the key, for it changes the last bits."""

    truncation: float = Field(default=1.0, gt=0.0, le=1.0, description="a multiple of 0.02 for the published weights")
    batch: int = Field(
        default=8, ge=1, le=256, description="images of one forward pass on a GPU; on a CPU one is fastest"
    )
    dtype: Precision = Field(default="float32", description="of weights and passes; float16 on a GPU only")


class DiffusionSpec(_Table):
    """`[replay.NAME.diffusion]`: how a diffusion pipeline is drawn from."""

    prompts: tuple[str, ...] = Field(
        default=("a photo of a {class}",), min_length=1, description="used in turn; {class} is the class's name"
    )
    words: dict[str, str] = Field(default_factory=dict, description="class name -> what to call it in a prompt")
    negative_prompt: str | None = Field(default=None, description="default: the pipeline's own")
    steps: int = Field(default=50, ge=1, le=1000, description="denoising steps of an image")
    guidance: float | None = Field(default=None, ge=0.0, description="default: the pipeline's own")
    size: int | None = Field(default=None, ge=8, description="side in pixels; default: the pipeline's own")
    scheduler: Literal["own", "ddim", "dpm", "euler", "lcm"] = Field(
        default="own", description="lcm with an LCM model or LoRA needs 1-8 steps"
    )
    lora: str | None = Field(default=None, description="a .safetensors file of LoRA weights")
    lora_scale: float = Field(default=1.0, description="factor of the LoRA weights")
    batch: int = Field(
        default=1, ge=1, le=64, description="images of one forward pass; more only where the pipeline pads every "
        "prompt to one length",
    )  # fmt: skip
    dtype: Precision = Field(default="float32", description="of weights and passes; float16 on a GPU only")

    @field_validator("prompts")
    @classmethod
    def _name_the_class(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in value:
            if "{class}" not in prompt:
                raise ValueError(f"prompt {prompt!r} does not say {{class}}")
        return value


class MapSpec(_Table):
    """`[replay.NAME.map]`: which of a generator's classes stands for which of ours, by a classifier (RECALL's rule)."""

    classifier: str | None = Field(default=None, description="a folder of transformers, or an op list (.json)")
    minimum: float = Field(default=0.1, ge=0.0, le=1.0, description="mean confidence below which there is no match")
    images: int = Field(default=100, ge=1, description="images of the class that are looked at")


class FitSpec(_Table):
    """`[replay.NAME.fit]`: a generator fitted on the step's own images, or on another replay source's photos."""

    kind: Literal["gan", "diffusion"] = Field(
        default="gan", description="a small BigGAN-deep, or a class-conditional U-Net"
    )
    on: str = Field(default="step", description='"step": the images of the step that learns the class; else a replay')
    size: Literal[16, 32, 64, 128] = Field(default=32, description="side in pixels")
    width: int = Field(default=16, ge=4, description="channels of the generator's last block")
    critic_width: int = Field(default=24, ge=4, description="gan: channels of the discriminator's first block")
    latent: int = Field(default=32, ge=4, description="gan: dimensions of z and of the class embedding")
    iterations: int = Field(default=4000, ge=1, description="of a fit")
    warm_iterations: int | None = Field(default=None, ge=1, description="of a fit that starts from the step before")
    batch: int = Field(default=32, ge=2, description="images of an iteration of a fit")
    lr: float = Field(default=5e-4, gt=0.0, description="learning rate of the generator")
    critic_lr: float = Field(default=5e-4, gt=0.0, description="gan: of the discriminator")
    average: float = Field(default=0.999, ge=0.0, lt=1.0, description="decay of the averaged weights")
    shift: float = Field(default=0.125, ge=0.0, le=0.5, description="augmentation of what the critic sees: translation")
    light: float = Field(default=0.2, ge=0.0, le=1.0, description="... brightness and contrast")
    flip: bool = Field(default=False, description="mirror the real images at random")
    focus: float = Field(
        default=0.0, ge=0.0, le=1.0, description="share of real images cropped around an object of the class"
    )
    context: float = Field(default=2.0, ge=1.0, description="focus: side of the crop over the object's longer side")
    warm: bool = Field(default=True, description="start from the generator of the step before")
    bf16: bool = Field(default=True, description="fit in bfloat16")
    snapshots: int = Field(default=4, ge=1, le=50, description="points of the quality curve")
    steps: int = Field(default=50, ge=1, le=1000, description="diffusion: DDIM steps of a draw")
    truncation: float = Field(default=1.0, gt=0.0, le=1.0, description="gan: of a draw")
    draw_batch: int = Field(default=16, ge=1, le=256, description="images of one forward pass of a draw")

    @field_validator("truncation")
    @classmethod
    def _has_statistics(cls, value: float) -> float:
        if abs(value * 10 - round(value * 10)) > 1e-9:
            raise ValueError(f"{value} has no statistics: a fitted GAN has those of 0.1, 0.2, ... 1")
        return value

    def length(self, *, warm: bool) -> int:
        """Iterations of a fit; one that goes on from the step before may take fewer."""
        return self.warm_iterations or self.iterations if warm else self.iterations

    def fitted_by(self, *, warm: bool) -> dict[str, Any]:
        """What decides a fit, plain: not how it is drawn from, nor what the other kind or a cold start never reads."""
        without = {"truncation", "steps", "draw_batch"} | (_GAN_ONLY if self.kind == "diffusion" else set())
        told = {key: value for key, value in self.model_dump(mode="json").items() if key not in without}
        told["on"] = "step" if self.on == "step" else "photos"
        if not warm:
            del told["warm"], told["warm_iterations"]
        return told

    def drawn_by(self) -> dict[str, Any]:
        """What decides a draw beside the weights, plain."""
        name = "steps" if self.kind == "diffusion" else "truncation"
        return {name: getattr(self, name), "draw_batch": self.draw_batch}


_GAN_ONLY = {"critic_width", "critic_lr", "latent", "shift", "light"}
