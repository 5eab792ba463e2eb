"""Encoders: from images in 0..1 to feature maps, finest first. Op lists, transformers, a user's own module."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from replaygen.errors import ModelError
from replaygen.learn.oplist import OpList, OpListNet, read_oplist, read_tensors, tap, with_output_stride
from replaygen.learn.specs import NetworkSpec, file_sha256

_PROBE = 128
_SCALING = {"mobilenet_v1": "symmetric", "mobilenet_v2": "symmetric"}  # of transformers' models; others: ImageNet's
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0..1


class Encoder(nn.Module):
    """A body behind the scaling of its input.

    forward: float [B, 3, H, W] in 0..1 -> tuple of float [B, D_i, h_i, w_i], finest first.

    Attributes:
        widths: the D_i.
    """

    def __init__(self, body: nn.Module, preprocess: str, picked: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.body = body
        mean, std = {
            "unit": ((0.0,) * 3, (1.0,) * 3), "symmetric": ((0.5,) * 3, (0.5,) * 3), "imagenet": (_MEAN, _STD)
        }[preprocess]  # fmt: skip
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.picked = picked
        self.widths: tuple[int, ...] = ()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = _as_maps(self.body((images - self.mean) / self.std))
        return maps if self.picked is None else tuple(maps[index] for index in self.picked)

    def probe(self) -> tuple[Tensor, ...]:
        """The maps of one black image, to learn their sizes."""
        was = self.training
        self.eval()
        with torch.no_grad():
            maps = self(torch.zeros(1, 3, _PROBE, _PROBE))
        self.train(was)
        return tuple(maps)


def build_encoder(spec: NetworkSpec) -> Encoder:
    """The encoder of a `deeplab` network, its files checked against the pins of `spec`.

    Raises:
        ModelError: a file is missing, differs from its pin, or does not make an encoder.
    """
    files = spec.files()
    for role, path in files.items():
        pin = spec.sha256.get(role)
        if pin is not None and file_sha256(path) != pin:
            raise ModelError(
                f"the network's {role} file is not the one that was asked for",
                where=str(path), hint="put the old file back, or plan again with the new one",
            )  # fmt: skip
    encoder = {"oplist": _from_oplist, "transformers": _from_transformers, "module": _from_module}[spec.encoder](spec)
    maps = encoder.probe()
    if not maps or any(feature.ndim != 4 for feature in maps):
        raise ModelError("the encoder gives no feature maps [B, D, h, w]", hint="choose other network.taps")
    encoder.widths = tuple(feature.shape[1] for feature in maps)
    return encoder


def _from_oplist(spec: NetworkSpec) -> Encoder:
    graph, tensors = read_oplist(Path(spec.weights or ""))
    graph = with_output_stride(graph, spec.output_stride)
    outputs = [tap(graph, name) for name in spec.used_taps]
    body: nn.Module = OpListNet(graph, tensors, outputs)
    if spec.project:
        body = Projected(body, classifier_directions(graph, tensors, spec.project))
    return Encoder(body, "symmetric" if spec.preprocess == "auto" else spec.preprocess)


class Projected(nn.Module):
    """A body whose last map keeps only some directions: 1x1 with fixed weights [n, D]."""

    def __init__(self, body: nn.Module, directions: Tensor) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("directions", directions[:, :, None, None].contiguous())
        self.directions: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        *maps, last = _as_maps(self.body(images))
        if last.shape[1] != self.directions.shape[1]:
            raise ModelError(
                f"the last tap has {last.shape[1]} channels, the classifier reads {self.directions.shape[1]}",
                hint="make the map before the classifier's pooling the last of network.taps, or set project = 0",
            )
        return (*maps, nn.functional.conv2d(last, self.directions))


def classifier_directions(graph: OpList, tensors: dict[str, Tensor], count: int) -> Tensor:
    """The directions of feature space that an op list's own classifier tells its classes apart by.

    With W [K, D] the weights of the last convolution, rows centred: the first right singular vectors of W, float32
    [count, D], each with its largest entry positive.

    Raises:
        ModelError: the list ends in no 1x1 convolution, or it has fewer directions.
    """
    last = next((op for op in reversed(graph.ops) if op.kind in ("conv", "dwconv")), None)
    # centred rows of K classes span at most K - 1 directions
    if last is None or last.kind != "conv" or last.shape[2:] != (1, 1) or count > min(last.shape[0] - 1, last.shape[1]):
        raise ModelError(f"the op list's classifier has no {count} directions", hint="set network.project to 0")
    weight = tensors[f"{last.key}.weight"].flatten(1).double()
    directions = torch.linalg.svd(weight - weight.mean(0), full_matrices=False)[2][:count]
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    made: Tensor = (directions * signs).float()
    return made


def _from_module(spec: NetworkSpec) -> Encoder:
    module, _, function = (spec.factory or "").partition(":")
    try:
        body = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ModelError(f"cannot make the encoder: {error}", where=str(spec.factory)) from None
    if not isinstance(body, nn.Module):
        raise ModelError(f"the factory returned a {type(body).__name__}, no torch module", where=str(spec.factory))
    if spec.weights is not None:
        _load_exactly(body, read_tensors(Path(spec.weights)), spec.weights)
    return _picked_by_stride(Encoder(body, "unit" if spec.preprocess == "auto" else spec.preprocess), spec)


def _from_transformers(spec: NetworkSpec) -> Encoder:
    model = _transformers_model(spec)
    kind = getattr(model.config, "model_type", "")
    encoder = Encoder(_Maps(model), _SCALING.get(kind, "imagenet") if spec.preprocess == "auto" else spec.preprocess)
    dilate(encoder, spec.output_stride)
    return _picked_by_stride(encoder, spec)


def _transformers_model(spec: NetworkSpec) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoBackbone, AutoConfig, AutoModel

    source: Any = spec.weights if spec.weights is not None else spec.hub
    local = spec.weights is not None or os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false")
    where: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    if spec.hub is not None:
        where["revision"] = spec.revision
    try:
        config = AutoConfig.from_pretrained(source, **where)
        stages = getattr(config, "stage_names", None)
        kind: Any = AutoModel
        if stages is not None:
            config.out_indices = list(range(len(stages)))
            kind = AutoBackbone
        model = kind.from_config(config)
        if not spec.pretrained:
            return _trimmed(model)
        # by the class itself: AutoBackbone.from_pretrained asks the hub whether a local folder exists there
        with quiet_transformers():
            model, told = type(model).from_pretrained(
                source, config=config, use_safetensors=True, output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told, and refused below
                **where,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise ModelError(
            f"transformers cannot make this backbone: {str(error).splitlines()[0]}", where=str(source),
            hint="a folder with config.json and model.safetensors, or a hub name with its revision",
        ) from None  # fmt: skip
    if told["mismatched_keys"]:
        name, found, wanted = sorted(told["mismatched_keys"])[0]
        raise ModelError(
            f"the weights' {name!r} is {tuple(found)}, but config.json makes it {tuple(wanted)}", where=str(source),
            hint="config.json and model.safetensors must belong together",
        )  # fmt: skip
    # backbones add norms of their own, which start as the identity: those alone may be missing
    missing = sorted(name for name in told["missing_keys"] if not name.startswith("hidden_states_norms."))
    if missing:
        raise ModelError(f"the weights lack {missing[0]!r}", where=str(source))
    return _trimmed(model)


def _trimmed(model: Any) -> Any:
    """MobileNetV2 without the layers of its classifier, and batch norm that learns as TensorFlow's does."""
    if model.config.model_type != "mobilenet_v2":
        return model
    model.conv_1x1, model.pooler = nn.Identity(), None
    for module in model.modules():
        # 0.997 is the share of the old statistics in TensorFlow; torch's momentum is the share of the new ones
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None and module.momentum > 0.5:
            module.momentum = 1 - module.momentum
    return model


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no loading report: what matters of it becomes a ModelError."""
    from transformers.utils import logging

    told: Any = logging
    bars, level = told.is_progress_bar_enabled(), told.get_verbosity()
    told.disable_progress_bar()
    told.set_verbosity_error()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


class _Maps(nn.Module):
    """A transformers model that returns its feature maps (or its 4-d hidden states)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        told: Any = self.model(images, output_hidden_states=True)
        maps = getattr(told, "feature_maps", None)
        maps = told.hidden_states if maps is None else maps
        return tuple(feature for feature in maps if feature.ndim == 4)


def _picked_by_stride(encoder: Encoder, spec: NetworkSpec) -> Encoder:
    # the last map at each stride that was asked for
    sides = [_PROBE // max(feature.shape[-1], 1) for feature in encoder.probe()]
    picked = []
    for name in spec.used_taps:
        at = [index for index, stride in enumerate(sides) if str(stride) == name]
        if not at:
            raise ModelError(
                f"the encoder has no map at stride {name}",
                where=f"network.encoder = {spec.encoder!r}", hint=f"its strides are {sorted(set(sides))}",
            )  # fmt: skip
        picked.append(at[-1])
    encoder.picked = tuple(picked)
    return encoder


def dilate(encoder: Encoder, output_stride: int) -> None:
    """Turn strides of 2-d convolutions beyond `output_stride` into dilation of the convolutions that follow them.

    Strides are measured with one image of 128 x 128; a convolution that loses its stride keeps the dilation of its
    input, as DeepLab does.

    Raises:
        ModelError: a stride to remove belongs to an even kernel.
    """
    order: list[tuple[nn.Conv2d, int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d) and output.shape[-1] > 0:
            # by the output, for an input may have been padded by hand before
            stride_in = max(1, _PROBE // output.shape[-1] // module.stride[0])
            order.append((module, stride_in, module.stride[0]))

    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(note) for module in convolutions]
    try:
        encoder.probe()
    finally:
        for hook in hooks:
            hook.remove()
    for module, stride_in, stride in order:
        rate = max(1, stride_in // output_stride)
        if stride > 1 and stride_in * stride > output_stride:
            if module.kernel_size[0] % 2 == 0:
                raise ModelError(
                    "this encoder shrinks its maps by convolutions with even kernels, which cannot be dilated",
                    hint=f"set network.output_stride above {output_stride}",
                )
            module.stride = (1, 1)
        if rate > 1 and module.kernel_size[0] > 1:
            module.dilation = (module.dilation[0] * rate, module.dilation[1] * rate)
            if isinstance(module.padding, tuple):
                module.padding = (module.padding[0] * rate, module.padding[1] * rate)


def _as_maps(told: Any) -> tuple[Tensor, ...]:
    if isinstance(told, Tensor):
        return (told,)
    if isinstance(told, dict):
        return tuple(told.values())
    return tuple(told)


def _load_exactly(body: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    wanted = set(body.state_dict())
    if wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))[0]
        raise ModelError(f"the weights do not fit the module: {odd!r} is missing or extra", where=where)
    try:
        body.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(
            f"the weights do not fit the module: {str(error).splitlines()[-1].strip()}", where=where
        ) from None
