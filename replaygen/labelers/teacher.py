"""A teacher: somebody's finished segmentation model as labeler, clearly apart from what the learner knows by itself.

A teacher was trained elsewhere, on all of its classes at once, so it has seen classes, and often images, that an
incremental learner must not have at this step. Labels of a teacher therefore answer another question than a learner's
own ("how far would replay get with good labels?"), and its name stands in every key and table that it touches.

Any semantic-segmentation model of `transformers` will do (SegFormer, UperNet, DPT, MobileNetV2, MobileViT, BEiT, ...).
Images are resized and normalised here, from preprocessor_config.json: transformers' own processors give other numbers,
or none, depending on whether torchvision is installed. One step is left out on purpose: a centre crop, for a labeler
must see the whole image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.canonical import digest_of
from replaygen.errors import ModelError
from replaygen.generators.folder import read_json
from replaygen.holding import HELD
from replaygen.labelers.specs import PROCESSOR, TeacherSpec, teacher_files
from replaygen.learn.specs import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from replaygen.labelers.model import Probabilities
    from replaygen.sample import Image8

_READ = {
    "do_resize", "size", "resample", "keep_aspect_ratio", "ensure_multiple_of", "default_to_square", "do_rescale",
    "rescale_factor", "do_normalize", "image_mean", "image_std", "do_flip_channel_order", "image_processor_type",
    "feature_extractor_type",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "do_center_crop", "crop_size", "do_convert_rgb", "do_reduce_labels", "reduce_labels", "processor_class",
    "_processor_class", "_valid_processor_keys", "data_format", "input_data_format", "return_tensors", "device",
    "disable_grouping", "size_divisor", "pad_size", "transformers_version", "backend",
}  # fmt: skip
"""Settings of labels, of batches, of padding that is off, or of the crop that is left out (see above)."""
_BY_SHORTER_EDGE = ("MobileViT", "MobileNetV2")
"""Processors whose `size`, given as one number, is the shorter edge; for the others it is both."""
_LABELS_AT_ONCE = 16
"""Maps that are enlarged at a time: a teacher of 150 labels would else need gigabytes for a large photo."""


@dataclass(frozen=True)
class Processor:
    """How an image becomes a teacher's input, as its preprocessor_config.json says.

    Attributes:
        size: (height, width), or the shorter edge in pixels, or None: as it is.
        longest: with a shorter edge, what the longer one may have at most.
        keep: with (height, width), both sides change by that one of the two scales which is closer to 1.
        multiple: with (height, width), sides are rounded to multiples of this.
        resample: Pillow's number of the filter, 2 bilinear, 3 bicubic.
        factor: pixel values 0..255 are multiplied by this.
        mean, std: then (x - mean) / std, for each channel.
        bgr: the order of channels.
    """

    size: tuple[int, int] | int | None
    longest: int | None = None
    keep: bool = False
    multiple: int = 1
    resample: int = 2
    factor: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    bgr: bool = False

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the input that an image of this size becomes."""
        if self.size is None:
            return height, width
        if isinstance(self.size, int):
            short, long = min(height, width), max(height, width)
            new = self.size, int(self.size * long / short)
            if self.longest is not None and self.size * long / short > self.longest:
                exact = self.longest * short / long
                new = max(1, round(exact)), int(exact * long / short)
            return new if height <= width else (new[1], new[0])
        scales = self.size[0] / height, self.size[1] / width
        if self.keep:
            scales = (min(scales, key=lambda scale: abs(1 - scale)),) * 2
        down, across = (round(s * side / self.multiple) for s, side in zip(scales, (height, width), strict=True))
        return max(1, down) * self.multiple, max(1, across) * self.multiple

    def __call__(self, image: Image8) -> Tensor:
        """uint8 [H, W, 3] -> float32 [1, 3, h, w]."""
        import numpy as np
        import torch
        from PIL import Image

        height, width = self.target(*image.shape[:2])
        seen = image
        if (height, width) != image.shape[:2]:
            seen = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(self.resample)))
        scaled = (seen.astype(np.float64) * self.factor).astype(np.float32)
        scaled -= np.array(self.mean, np.float32)
        scaled /= np.array(self.std, np.float32)
        ordered = np.ascontiguousarray((scaled[:, :, ::-1] if self.bgr else scaled).transpose(2, 0, 1))
        return torch.from_numpy(ordered)[None]


def read_processor(told: Mapping[str, Any], *, size: int | None = None, where: str = "") -> Processor:
    """What a preprocessor_config.json asks for.

    Args:
        told: its content.
        size: replaces the side, or the shorter edge, in pixels.
        where: the file, for errors.

    Raises:
        ModelError: a setting that is not known here, or is missing, or makes no sense.
    """
    unknown = sorted(name for name, value in told.items() if value and name not in _READ | _WITHOUT_EFFECT)
    if unknown:
        raise ModelError(
            f"the teacher's processor has a setting that is not known here: {unknown[0]} = {told[unknown[0]]!r}",
            where=where, hint="if the model does without, take it out of a copy of the folder",
        )  # fmt: skip
    made: dict[str, Any] = {"size": None, "bgr": bool(told.get("do_flip_channel_order"))}
    if told.get("do_resize", True) or size is not None:
        made.update(_sized(told, size, where))
        made["resample"] = _integer(told, "resample", 2 if "size" not in told else None, where)
        if not 0 <= made["resample"] <= 5:
            raise ModelError(f"resample = {made['resample']} is no filter of Pillow", where=where, hint="0 to 5")
    factor = told.get("rescale_factor") or 1 / 255
    if not isinstance(factor, (int, float)):
        raise ModelError(f"rescale_factor = {factor!r} is no number", where=where, hint="usually 1/255")
    made["factor"] = float(factor) if told.get("do_rescale", True) in (True, None) else 1.0
    if told.get("do_normalize", "image_mean" in told and not made["bgr"]):
        if made["bgr"]:
            raise ModelError("do_normalize and do_flip_channel_order together have no known order", where=where)
        made["mean"], made["std"] = _channels(told, "image_mean", where), _channels(told, "image_std", where)
        if 0.0 in made["std"]:
            raise ModelError("image_std holds 0", where=where)
    return Processor(**made)


def _sized(told: Mapping[str, Any], size: int | None, where: str) -> dict[str, Any]:
    asked = told.get("size", size)
    kind = str(told.get("image_processor_type") or told.get("feature_extractor_type") or "")
    if isinstance(asked, int) and not isinstance(asked, bool):
        shorter = told.get("default_to_square", not kind.startswith(_BY_SHORTER_EDGE)) is False
        asked = {"shortest_edge": asked} if shorter else {"height": asked, "width": asked}
    asked = {name: value for name, value in asked.items() if value is not None} if isinstance(asked, dict) else asked
    if not isinstance(asked, dict) or not all(type(side) is int and side > 0 for side in asked.values()):
        raise ModelError(f"the processor's size {asked!r} is not known", where=where, hint="or set teacher.size")
    keep, multiple = bool(told.get("keep_aspect_ratio")), _integer(told, "ensure_multiple_of", 1, where)
    if set(asked) == {"height", "width"}:
        sides = (asked["height"], asked["width"]) if size is None else (size, size)
        return {"size": sides, "keep": keep, "multiple": max(1, multiple)}
    if "shortest_edge" in asked and set(asked) <= {"shortest_edge", "longest_edge"} and not keep and multiple <= 1:
        longest = asked.get("longest_edge") if size is None else None
        return {"size": size or asked["shortest_edge"], "longest": longest}
    raise ModelError(
        f"the processor's size {asked!r} is not known", where=where,
        hint="height and width, or shortest_edge with or without longest_edge",
    )  # fmt: skip


def _integer(told: Mapping[str, Any], name: str, default: int | None, where: str) -> int:
    value = told.get(name) if told.get(name) is not None else default
    if type(value) is not int:
        raise ModelError(f"the processor does not say {name}, or not as a number: {value!r}", where=where)
    return value


def _channels(told: Mapping[str, Any], name: str, where: str) -> tuple[float, ...]:
    values = told.get(name)
    values = [values] * 3 if isinstance(values, (int, float)) else values
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(one, (int, float)) for one in values):
        raise ModelError(f"{name} must be three numbers, not {values!r}", where=where)
    return tuple(float(one) for one in values)


@dataclass(frozen=True)
class Teacher:
    """An opened teacher.

    Attributes:
        names: our classes, the channels 1.. of its probabilities.
        indices: for each the teacher's label.
        labels: the teacher's labels in order.
    """

    names: tuple[str, ...]
    indices: tuple[int, ...]
    labels: tuple[str, ...]
    processor: Processor
    model: Any
    device: str

    def probabilities(self, image: Image8, *, flip: bool = False) -> Probabilities:
        """What the teacher sees in an image, at the image's own size.

        Args:
            image: uint8 [H, W, 3].
            flip: the mean with what it sees in the mirror image.

        Returns:
            float32 [1 + len(names), H, W], sums to 1 over channels; channel 0 is the sum of all other labels.

        Raises:
            ModelError: an input size that the model cannot take, or scores that are not finite.
        """
        seen = self._look(image)
        if flip:
            seen += self._look(image[:, ::-1])[:, :, ::-1]
            seen /= 2
        return seen

    def _look(self, image: Image8) -> Probabilities:
        import torch

        batch = self.processor(image)
        with torch.inference_mode():
            try:
                logits: Tensor = self.model(pixel_values=batch.to(self.device)).logits.float()
            except (ValueError, RuntimeError) as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                shape = f"{batch.shape[2]} x {batch.shape[3]}"
                raise ModelError(
                    f"the teacher cannot look at an image of {shape}: {(str(error).splitlines() or [''])[0]}",
                    hint="set teacher.size to the side that the model was made for",
                ) from None
            if logits.ndim != 4 or logits.shape[1] != len(self.labels):
                raise ModelError(f"scores {tuple(logits.shape)} of a teacher with {len(self.labels)} labels")
            if not bool(torch.isfinite(logits).all()):
                raise ModelError("the teacher's scores are not finite", hint="its weights do not fit its configuration")
            seen: Probabilities = _grouped(logits, self.indices, *image.shape[:2])[0].cpu().numpy()
        return seen


def _grouped(logits: Tensor, indices: Sequence[int], height: int, width: int) -> Tensor:
    """Softmax over [the others' log-sum-exp, the chosen]: [1, K, h, w] -> [1, 1 + n, H, W]."""
    import torch

    from replaygen.learn.heads import resize

    chosen = resize(logits[:, list(indices)], height, width)
    others = [index for index in range(logits.shape[1]) if index not in indices]
    total = torch.full_like(chosen[:, :1], -math.inf)
    for start in range(0, len(others), _LABELS_AT_ONCE):
        part = resize(logits[:, others[start : start + _LABELS_AT_ONCE]], height, width)
        total = torch.logaddexp(total, part.logsumexp(1, keepdim=True))
    return torch.cat([total, chosen], 1).softmax(1)


def open_teacher(spec: TeacherSpec, names: Sequence[str], where: Mapping[str, Any]) -> Teacher:
    """Open a teacher for some of our classes, from its folder (nothing is fetched) or from the hub.

    Args:
        spec: with the path that this machine knows.
        names: our classes in the order of the channels wanted, background aside.
        where: a task's `where`; "device" of it is read ("auto": CUDA where there is one).

    Raises:
        ModelError: missing, damaged, changed or pickled files, weights that do not fit or are not finite, no
            segmentation model, a processor with settings that are not known here.
        RecipeError: a class that no label of the teacher stands for.
    """
    import torch

    folder = Path(spec.model) if spec.revision is None else _fetched(spec.model, spec.revision)
    files = teacher_files(folder)
    for name, pin in spec.sha256.items():
        if name not in files or file_sha256(files[name]) != pin:
            raise ModelError(
                f"the teacher's {name} is not the one that was asked for", where=str(folder),
                hint="put the old file back, or plan again with the new one",
            )  # fmt: skip
    processor = read_processor(read_json(files[PROCESSOR]), size=spec.size, where=str(files[PROCESSOR]))
    model = _loaded(folder)
    labels = tuple(str(model.config.id2label.get(index, index)) for index in range(model.config.num_labels))
    indices = spec.indices(names, labels)
    device = str(where.get("device", "auto"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Teacher(tuple(names), indices, labels, processor, model.to(device).eval(), device)


def teacher_of(identity: Mapping[str, Any], where: Mapping[str, Any]) -> Teacher:
    """The teacher that a task was planned with; one is held per process.

    Args:
        identity: its `TeacherSpec.identity()` when the plan was made.
        where: the task's; where["teacher"] is {"spec": a plain `TeacherSpec`, "names": our classes in order}.

    Raises:
        ModelError: it is no longer the same, or as in `open_teacher`.
    """
    spec, names = TeacherSpec.model_validate(where["teacher"]["spec"]), where["teacher"]["names"]
    if spec.identity() != dict(identity):
        raise ModelError(
            "the teacher's files changed after the plan was made", where=spec.model, hint="run the recipe again"
        )
    key = digest_of([spec.model_dump(mode="json"), list(names), where.get("device", "auto")])
    return HELD.hold("teacher", key, lambda: open_teacher(spec, names, where))


def _loaded(folder: Path) -> Any:
    import torch

    try:
        import transformers

        from replaygen.learn.encoders import quiet_transformers
    except ModuleNotFoundError as error:
        raise ModelError(
            f"a teacher needs the package {error.name}", hint="pip install 'replaygen[backbones]'"
        ) from None
    library: Any = transformers
    try:
        with quiet_transformers():
            model, told = library.AutoModelForSemanticSegmentation.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # transformers, safetensors and json raise many kinds; each means the same to us
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ModelError(
            f"transformers cannot open this teacher: {first}", where=str(folder),
            hint="it must be a semantic-segmentation model, saved with its safetensors",
        ) from None  # fmt: skip
    if told["missing_keys"]:
        raise ModelError(f"the teacher's weights lack {min(told['missing_keys'])!r}", where=str(folder))
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"the teacher's {name!r} holds NaN or infinity", where=str(folder))
    return model


def _fetched(name: str, revision: str) -> Path:
    """The hub's files of one commit, configuration and safetensors only: from its cache where all are there."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ModelError("a hub's teacher needs huggingface_hub", hint="pip install 'replaygen[backbones]'") from None
    wanted: dict[str, Any] = {
        "revision": revision, "allow_patterns": ["*.json", "*.safetensors"], "ignore_patterns": ["*/*"]
    }  # fmt: skip
    try:
        found = Path(snapshot_download(name, local_files_only=True, **wanted))
        teacher_files(found)
        return found
    except Exception as error:  # the hub's own, or ours: not there, or not all of it
        why = f"it is not here, or not all of it ({type(error).__name__})"
    if not any(os.environ.get(flag, "0").lower() not in ("", "0", "false") for flag in _OFFLINE):
        try:
            return Path(snapshot_download(name, **wanted))
        except Exception as error:  # the hub's client raises many kinds; each means the same to us
            why = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
    raise ModelError(
        f"the teacher cannot be had from the hub: {why}", where=f"{name}@{revision}",
        hint="check name, revision and network, or give a folder",
    )  # fmt: skip


_OFFLINE = ("HF_HUB_OFFLINE", "REPLAYGEN_OFFLINE")
