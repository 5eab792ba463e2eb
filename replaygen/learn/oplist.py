"""A network given as a flat list of operations (JSON) and its tensors: TensorFlow-style, batch norm folded in.

Each operation is {"op", "inp": [value numbers], "out": value number} and, for convolutions, "key", "shape" (OIHW),
"stride", "dilation", "pad" ("same" or "valid"), "act" (None, "relu", "relu6"). The JSON is data: nothing is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replaygen.errors import ModelError

CONVOLUTIONS = ("conv", "dwconv")
KINDS = (*CONVOLUTIONS, "add", "avgpool", "mean_hw", "resize", "concat", "softmax", "argmax")
MAX_STRIDE = 4
MAX_SIDE = 4096


@dataclass(frozen=True)
class Op:
    """One operation of the list; fields that its kind does not have keep their defaults."""

    kind: str
    inputs: tuple[int, ...]
    out: int
    key: str = ""
    shape: tuple[int, ...] = ()
    stride: int = 1
    dilation: int = 1
    same: bool = True
    act: str | None = None
    size: tuple[int, ...] = ()
    align_corners: bool = False
    half_pixel: bool = True


@dataclass(frozen=True)
class OpList:
    """A checked op list: the value number of the input and of the output, and the operations in order."""

    input: int
    output: int
    ops: tuple[Op, ...]
    input_hw: tuple[int, int]


def read_oplist(path: Path) -> tuple[OpList, dict[str, Tensor]]:
    """Read an op list and the tensors beside it.

    Args:
        path: the JSON file; the tensors are in the file of the same name ending in .safetensors or .pt.

    Returns:
        the op list, and float32 tensors named `<key>.weight` (OIHW) and `<key>.bias`.

    Raises:
        ModelError: missing, malformed, an unknown operation, tensors that do not fit or are not finite.
    """
    try:
        graph = _parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ModelError(f"cannot read the op list: {error.strerror}", where=str(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"not a valid op list: {error}", where=str(path)) from None
    beside = [path.with_suffix(ending) for ending in (".safetensors", ".pt")]
    tensors = read_tensors(next((file for file in beside if file.is_file()), beside[1]))
    for op in graph.ops:
        if op.kind in CONVOLUTIONS:
            weight, bias = tensors.get(f"{op.key}.weight"), tensors.get(f"{op.key}.bias")
            if weight is None or bias is None or weight.shape != op.shape or bias.shape != op.shape[:1]:
                raise ModelError(f"tensors of operation {op.key!r} are missing or have another shape", where=str(path))
    return graph, tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named float32 tensors of a .safetensors or .pt file; a .pt is read with weights_only, so no code runs.

    Raises:
        ModelError: unreadable, not a dict of tensors, or values that are not finite.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds on damaged bytes; each means the same to us
        raise ModelError(f"cannot read tensors ({type(error).__name__})", where=str(path)) from None
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise ModelError("the file holds no plain dict of tensors", where=str(path), hint="save a state dict")
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in loaded.items()}
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"tensor {name!r} holds NaN or infinity", where=str(path))
    return tensors


class OpListNet(nn.Module):
    """Runs an op list from its input to the values in `outputs`, and computes nothing that they do not need.

    forward: float [B, 3, H, W] in the range the weights were trained with (often -1..1) -> a tensor for each output.
    """

    def __init__(self, graph: OpList, tensors: Mapping[str, Tensor], outputs: Sequence[int] | None = None) -> None:
        super().__init__()
        self.outputs = tuple(outputs) if outputs is not None else (graph.output,)
        self.input = graph.input
        self.ops = needed(graph, self.outputs)
        self.weight = nn.ParameterDict()
        self.bias = nn.ParameterDict()
        for op in self.ops:
            if op.kind in CONVOLUTIONS:
                self.weight[op.key] = nn.Parameter(tensors[f"{op.key}.weight"].clone())
                self.bias[op.key] = nn.Parameter(tensors[f"{op.key}.bias"].clone())
        last_use = {number: index for index, op in enumerate(self.ops) for number in op.inputs}
        self._drop = [
            tuple(number for number in set(op.inputs) if last_use[number] == index and number not in self.outputs)
            for index, op in enumerate(self.ops)
        ]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        values = {self.input: images}
        for op, drop in zip(self.ops, self._drop, strict=True):
            inputs = [values[number] for number in op.inputs]
            for number in drop:
                del values[number]
            if op.kind in CONVOLUTIONS:
                values[op.out] = self._convolve(op, inputs[0])
            else:
                values[op.out] = _plain(op, inputs)
        return tuple(values[number] for number in self.outputs)

    def _convolve(self, op: Op, x: Tensor) -> Tensor:
        weight, bias = self.weight[op.key], self.bias[op.key]
        if x.ndim == 2:
            x = x[:, :, None, None]
        groups = x.shape[1] if op.kind == "dwconv" else 1
        pad: tuple[int, int] = (0, 0)
        if op.same:
            height = same_padding(x.shape[2], op.shape[2], op.stride, op.dilation)
            width = same_padding(x.shape[3], op.shape[3], op.stride, op.dilation)
            if height[0] == height[1] and width[0] == width[1]:
                pad = (height[0], width[0])
            else:
                x = F.pad(x, (*width, *height))
        return _activate(F.conv2d(x, weight, bias, op.stride, pad, op.dilation, groups), op.act)


def same_padding(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's SAME padding (before, after) of one axis: the odd pixel goes after."""
    total = max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
    return total // 2, total - total // 2


def strides(graph: OpList) -> dict[int, int]:
    """Value number -> stride of its map relative to the input; values without a map (pooled, resized) are left out."""
    found = {graph.input: 1}
    for op in graph.ops:
        if op.kind in (*CONVOLUTIONS, "add", "concat") and all(number in found for number in op.inputs):
            found[op.out] = max(found[number] for number in op.inputs) * op.stride
    return found


def with_output_stride(graph: OpList, output_stride: int) -> OpList:
    """The same list with maps no coarser than `output_stride`: later strides become dilation of what follows them.

    Raises:
        ModelError: the list never gets that coarse.
    """
    if output_stride > max(strides(graph).values()):
        raise ModelError(
            f"the op list's coarsest map has stride {max(strides(graph).values())}, not {output_stride}",
            hint="set network.output_stride to that or less",
        )
    state = {graph.input: (1, 1)}  # value -> stride, and the dilation that its removed strides ask for
    ops = []
    for op in graph.ops:
        if all(number in state for number in op.inputs):
            stride, rate = max(state[number] for number in op.inputs)
            if op.kind in CONVOLUTIONS:
                op = replace(op, dilation=op.dilation * rate)
                if stride * op.stride > output_stride:
                    rate, op = rate * op.stride, replace(op, stride=1)
                stride *= op.stride
            if op.kind in (*CONVOLUTIONS, "add", "concat"):
                state[op.out] = (stride, rate)
        ops.append(op)
    return replace(graph, ops=tuple(ops))


def tap(graph: OpList, name: str) -> int:
    """The value number of a tap: an operation's key, a value ("@130"), or a stride (its last map without activation).

    Raises:
        ModelError: no such key or stride.
    """
    by_key = {op.key: op.out for op in graph.ops if op.key}
    if name in by_key:
        return by_key[name]
    if name[:1] == "@" and name[1:].isdigit() and int(name[1:]) in {op.out for op in graph.ops}:
        return int(name[1:])
    of = strides(graph)
    at = [op for op in graph.ops if name.isdigit() and of.get(op.out) == int(name)]
    linear = [op for op in at if op.act is None]
    if not at:
        known = ", ".join(str(stride) for stride in sorted(set(of.values()) - {1}))
        raise ModelError(f"the op list has no tap {name!r}", hint=f"a key of the list, or a stride of {known}")
    return (linear or at)[-1].out


def needed(graph: OpList, outputs: Sequence[int]) -> tuple[Op, ...]:
    """The operations that `outputs` depend on, in order."""
    wanted = set(outputs)
    kept = []
    for op in reversed(graph.ops):
        if op.out in wanted:
            kept.append(op)
            wanted.update(op.inputs)
    missing = wanted - {op.out for op in kept} - {graph.input}
    if missing:
        raise ModelError(f"the op list never makes value {min(missing)}")
    return tuple(reversed(kept))


def _plain(op: Op, inputs: list[Tensor]) -> Tensor:
    first = inputs[0]
    if op.kind == "add":
        return _activate(inputs[0] + inputs[1], op.act)
    if op.kind == "concat":
        return torch.cat(inputs, 1)
    if op.kind == "mean_hw":
        return first.mean((2, 3), keepdim=True)
    if op.kind == "avgpool":
        return F.avg_pool2d(first, (min(op.size[0], first.shape[2]), min(op.size[1], first.shape[3])))
    if op.kind == "softmax":
        return first.flatten(1).softmax(1)
    if op.kind == "argmax":
        return first.argmax(1)
    if first.shape[2:] == op.size:
        return first
    return F.interpolate(first, op.size, mode="bilinear", align_corners=op.align_corners)


def _activate(x: Tensor, act: str | None) -> Tensor:
    if act == "relu6":
        return F.relu6(x)
    return F.relu(x) if act == "relu" else x


def _parse(raw: Any) -> OpList:
    made = {int(raw["input"])}
    ops = []
    for entry in raw["ops"]:
        op = _parse_op(entry)
        if op.out in made or not set(op.inputs) <= made or not op.inputs:
            raise ValueError(f"operation {op.key or op.out} reads or writes the wrong values")
        made.add(op.out)
        ops.append(op)
    if int(raw["output"]) not in made:
        raise ValueError("the output is never made")
    height, width = raw.get("input_hw", (224, 224))
    return OpList(int(raw["input"]), int(raw["output"]), tuple(ops), (int(height), int(width)))


def _parse_op(entry: Mapping[str, Any]) -> Op:
    kind, act = entry["op"], entry.get("act")
    if kind not in KINDS or act not in (None, "relu", "relu6"):
        raise ValueError(f"unknown operation {kind!r} or activation {act!r}")
    op = Op(kind, tuple(int(number) for number in entry["inp"]), int(entry["out"]), act=act)
    if kind == "add" and len(op.inputs) != 2:
        raise ValueError("add takes two values")
    if kind in CONVOLUTIONS:
        op = replace(
            op, key=str(entry["key"]), shape=tuple(int(side) for side in entry["shape"]), stride=int(entry["stride"]),
            dilation=int(entry["dilation"]), same=entry["pad"] == "same",
        )  # fmt: skip
        if not op.key.isidentifier() or len(op.shape) != 4 or entry["pad"] not in ("same", "valid"):
            raise ValueError(f"operation {op.key!r} is malformed")
        if not (1 <= op.stride <= MAX_STRIDE and 1 <= op.dilation <= 64):
            raise ValueError(f"operation {op.key!r} has stride {op.stride} and dilation {op.dilation}")
    if kind in ("resize", "avgpool"):
        op = replace(op, size=tuple(int(side) for side in entry["size" if kind == "resize" else "k"]))
        if len(op.size) != 2 or not all(1 <= side <= MAX_SIDE for side in op.size):
            raise ValueError(f"{kind} has size {op.size}")
    if kind == "resize":
        op = replace(op, align_corners=bool(entry["align_corners"]), half_pixel=bool(entry["half_pixel"]))
        if not (op.align_corners or op.half_pixel):
            raise ValueError("resize without align_corners or half_pixel is not supported")
    return op
