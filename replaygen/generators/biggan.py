"""Drawing from a BigGAN-deep: DeepMind's published weights, or any of the same family.

A weights folder holds `config.json` (the package's keys; "classes" may name the classes) and `model.safetensors`, or
the published `pytorch_model.bin`. torch is imported only to draw.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.errors import ModelError
from replaygen.generators.draws import Draw, truncated_normals
from replaygen.generators.folder import SAFE, TORCH, biggan_weights_file, check_weights, read_json
from replaygen.generators.specs import BigGanSpec
from replaygen.portions import Portions, memory_of

if TYPE_CHECKING:
    from torch import Tensor

    from replaygen.generators.biggan_net import DrawNet
    from replaygen.generators.draws import Float3

_NUMBERS = ("output_dim", "z_dim", "channel_width", "num_classes", "attention_layer_position", "n_stats")
_NAMED = 5
"""How many tensors an error names."""


@dataclass(frozen=True)
class BigGanConfig:
    """config.json, checked.

    Attributes:
        output_dim: side of an image, pixels.
        z_dim: length of z, and of a class embedding.
        channel_width: channels after the last block.
        num_classes: classes it can draw.
        layers: per block: upsampled, input and output channels in multiples of `channel_width`.
        attention_layer_position: the block before which attention is; no block has it where the number is too high.
        eps: of spectral and batch norm.
        n_stats: rows of batch-norm statistics; row i is for truncation i / (n_stats - 1).
        classes: their names where the file gives them.
    """

    output_dim: int
    z_dim: int
    channel_width: int
    num_classes: int
    layers: tuple[tuple[bool, int, int], ...]
    attention_layer_position: int
    eps: float
    n_stats: int
    classes: tuple[str, ...] | None = None


def class_count(folder: Path) -> int:
    """How many classes the generator in `folder` draws; ModelError where config.json does not say."""
    return read_config(folder).num_classes


def class_names(folder: Path) -> tuple[str, ...] | None:
    """The names of its classes in the order of their labels, where config.json gives them."""
    return read_config(folder).classes


def read_config(folder: Path) -> BigGanConfig:
    """config.json of a weights folder.

    Raises:
        ModelError: missing, not JSON, a key missing or of the wrong type, layers that do not fit together.
    """
    path = folder / "config.json"
    told = read_json(path)
    for key in (*_NUMBERS, "layers", "eps"):
        if key not in told:
            raise ModelError(f"config.json does not say {key!r}", where=str(path), hint="is this a BigGAN's folder?")
    for key in _NUMBERS:
        least = {"n_stats": 2, "attention_layer_position": -1}.get(key, 0)
        if not isinstance(told[key], int) or isinstance(told[key], bool) or told[key] < least:
            raise ModelError(f"{key} is {told[key]!r}", where=str(path), hint="a whole number is needed")
    if not isinstance(told["eps"], (int, float)) or not told["eps"] > 0:
        raise ModelError(f"eps is {told['eps']!r}", where=str(path), hint="the published value is 0.0001")
    if told["attention_layer_position"] < 0:  # no attention
        told = {**told, "attention_layer_position": len(told["layers"])}
    config = BigGanConfig(
        **{key: told[key] for key in _NUMBERS},
        layers=_layers(told["layers"], path),
        eps=float(told["eps"]),
        classes=_classes(told, path),
    )
    _fits(config, path)
    return config


def truncation_row(truncation: float, n_stats: int) -> int:
    """The row of batch-norm statistics for a truncation.

    Between rows the package interpolates with its two weights swapped, and where truncation / step is not whole in
    floating point (0.14, 0.28, ...) it takes the wrong row. So rows are chosen by rounding, and nothing lies between.

    Raises:
        ModelError: no row is for this truncation; the two nearest values are named.
    """
    steps = n_stats - 1
    row = round(truncation * steps)
    if 1 <= row <= steps and abs(truncation * steps - row) < 1e-6:
        return row
    below = min(max(math.floor(truncation * steps), 1), steps - 1) if steps > 1 else 1
    near = " or ".join(f"{number / steps:.6g}" for number in sorted({below, min(below + 1, steps)}))
    raise ModelError(
        f"there are no batch-norm statistics for truncation {truncation:g}",
        where=f"the weights have them for multiples of {1 / steps:.6g} up to 1",
        hint=f"truncation = {near}",
    )


class BigGanGenerator:
    """Draws images of classes; see `open_biggan`.

    Attributes:
        config: what the weights folder says.
    """

    def __init__(self, net: DrawNet, config: BigGanConfig, spec: BigGanSpec, device: str) -> None:
        self.config = config
        self._net = net
        self._truncation = spec.truncation
        # one image at a time fits a CPU's caches: at 256 pixels it is a fifth faster than eight at once
        self._portions = Portions(1 if device.startswith("cpu") else spec.batch, memory_of(device))

    def draw(self, draws: Sequence[Draw]) -> Float3:
        """Images float32 [n, H, W, 3] in 0..1; row i is a function of draws[i] (on a GPU of the batch too) alone.

        Row i is G(truncation * z, class) with z standard normal, truncated to [-2, 2], of the draw's own seed. What the
        network cannot compute (half-precision overflow) is NaN.

        Raises:
            ModelError: a draw without a label, or with one that the weights do not have.
        """
        import numpy as np

        for one in draws:
            self._label(one)
        size, done = self.config.output_dim, 0
        images = np.empty((len(draws), size, size, 3), dtype=np.float32)
        for drawn, used in self._portions.over(draws, self._forward):
            images[done : done + used] = drawn[:used]
            done += used
        return images

    def _forward(self, draws: Sequence[Draw]) -> Float3:
        import numpy as np
        import torch

        z = np.stack([truncated_normals(draw.seed, self.config.z_dim) for draw in draws]) * self._truncation
        with torch.inference_mode():
            drawn = self._net(torch.from_numpy(z), torch.tensor([self._label(draw) for draw in draws]))
            made: Float3 = ((drawn + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return made

    def _label(self, draw: Draw) -> int:
        count, names = self.config.num_classes, self.config.classes
        if draw.label is None:
            raise ModelError("a BigGAN draws classes, and a draw has no label", hint=f"labels are 0..{count - 1}")
        if not 0 <= draw.label < count:
            near = min(max(draw.label, 0), count - 1)
            called = f"; {near} is {names[near]!r}" if names else ""
            raise ModelError(
                f"the generator has no class {draw.label}", hint=f"it has {count}, numbered 0..{count - 1}{called}"
            )
        return draw.label


def open_biggan(folder: Path, spec: BigGanSpec, device: str) -> BigGanGenerator:
    """The generator in a weights folder, ready to draw.

    Args:
        folder: `weights_folder(...)`: config.json and model.safetensors, or pytorch_model.bin.
        spec: truncation, batch and precision.
        device: "cpu", "cuda", ...

    Raises:
        ModelError: weights that are missing, damaged, of another shape, not finite, or whose batch-norm statistics were
            never computed; a truncation they have no statistics for; float16 on a CPU.
    """
    import torch

    from replaygen.generators.biggan_net import DrawNet

    if spec.dtype == "float16" and device.startswith("cpu"):
        raise ModelError("float16 cannot be drawn on a CPU", hint='dtype = "bfloat16", or a GPU')
    check_weights(folder, "biggan")
    config = read_config(folder)
    row = truncation_row(spec.truncation, config.n_stats)
    weights = biggan_weights_file(folder)
    state = _read(weights)
    model = _skeleton(config)
    _compare(state, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, weights)
    _refuse_unwarmed(state, row, spec.truncation, weights)
    model.load_state_dict(state, strict=True, assign=True)
    net = DrawNet(model.eval(), row=row, device=device, dtype=getattr(torch, spec.dtype))
    return BigGanGenerator(net, config, spec, device)


def convert(folder: Path) -> None:
    """Write model.safetensors beside a folder's config.json and pytorch_model.bin, in one step, after comparing them.

    Raises:
        ModelError: as `open_biggan`, but for the truncation.
    """
    from safetensors.torch import save

    weights = folder / TORCH
    state = _read(weights)
    expected = _skeleton(read_config(folder)).state_dict()
    _compare(state, {name: tuple(tensor.shape) for name, tensor in expected.items()}, weights)
    temporary = folder / f".model-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with temporary.open("wb") as file:
            file.write(save({name: tensor.contiguous().clone() for name, tensor in state.items()}))
            os.fsync(file.fileno())
        os.replace(temporary, folder / SAFE)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Tensor]:
    """Name -> float32 tensor on the CPU."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the weights cannot be read: {told[0][:200]}", where=str(path),
            hint="the file is damaged, or holds more than tensors; fetch it again",
        ) from None  # fmt: skip
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelError("the weights are no table of tensors", where=str(path), hint="save model.state_dict()")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise ModelError(f"{name!r} is no tensor of floating-point numbers", where=str(path))
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"tensor {name!r} holds NaN or infinity", where=str(path), hint="take other weights")
    # copied into memory of their own: sums over a mapped file's tensors differ in the last bit with their alignment
    return {name: tensor.to(torch.float32, copy=True) for name, tensor in loaded.items()}


def _skeleton(config: BigGanConfig) -> Any:
    """The package's network without numbers: only names and shapes."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_pretrained_biggan import BigGAN, BigGANConfig

        with torch.device("meta"):
            return BigGAN(
                BigGANConfig(
                    **{key: getattr(config, key) for key in (*_NUMBERS, "eps")},
                    class_embed_dim=config.z_dim,
                    layers=list(config.layers),
                )
            )


def _compare(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    odd = [f"{name} is missing" for name in sorted(expected.keys() - state.keys())]
    odd += [f"{name} is unknown" for name in sorted(state.keys() - expected.keys())]
    odd += [
        f"{name} is {list(state[name].shape)}, expected {list(expected[name])}"
        for name in sorted(state.keys() & expected.keys())
        if tuple(state[name].shape) != expected[name]
    ]
    if odd:
        more = f", and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
        raise ModelError(
            f"the weights do not fit config.json: {'; '.join(odd[:_NAMED])}{more}", where=str(path),
            hint="config.json and weights must be of the same generator",
        )  # fmt: skip


def _refuse_unwarmed(state: Mapping[str, Tensor], row: int, truncation: float, path: Path) -> None:
    for name in sorted(state):
        if name.endswith(".running_means"):
            norm = name.removesuffix(".running_means")
            if not state[name][row].any() and bool((state[f"{norm}.running_vars"][row] == 1).all()):
                raise ModelError(
                    f"the batch-norm statistics of {norm} for truncation {truncation:g} were never computed",
                    where=str(path),
                    hint="run some batches through the generator and store each layer's means and variances",
                )


def _layers(told: object, path: Path) -> tuple[tuple[bool, int, int], ...]:
    rows = told if isinstance(told, list) else []
    for row in rows:
        if not isinstance(row, list) or [type(part) for part in row] != [bool, int, int]:
            raise ModelError(f"layer {row!r}", where=str(path), hint="[upsampled?, input channels, output channels]")
    if not rows:
        raise ModelError("config.json has no layers", where=str(path), hint="[[false, 16, 16], [true, 16, 8], ...]")
    return tuple((up, inputs, outputs) for up, inputs, outputs in rows)


def _classes(told: Mapping[str, Any], path: Path) -> tuple[str, ...] | None:
    names = told.get("classes")
    if names is None:
        return None
    count = told["num_classes"]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ModelError('"classes" is no list of names', where=str(path), hint=json.dumps(["cat", "dog"]))
    if len(names) != count or len(set(names)) != count:
        raise ModelError(
            f'"classes" has {len(set(names))} different names, num_classes is {count}', where=str(path),
            hint="one name for each class",
        )  # fmt: skip
    return tuple(names)


def _fits(config: BigGanConfig, path: Path) -> None:
    width, size, channels = config.channel_width, 4, 16
    for number, (up, inputs, outputs) in enumerate(config.layers):
        if inputs != channels or outputs < 1 or inputs not in (outputs, 2 * outputs):
            raise ModelError(
                f"layer {number} goes from {inputs} to {outputs} after {channels} channels", where=str(path),
                hint="the first takes 16, the next what the one before gives; channels stay or halve; the last gives 1",
            )  # fmt: skip
        channels, size = outputs, size * 2 if up else size
    if channels != 1 or size != config.output_dim:
        raise ModelError(
            f"the layers end at {channels} channels and {size} pixels, expected 1 and {config.output_dim}",
            where=str(path),
        )
    attention = config.attention_layer_position
    if min(config.z_dim, config.num_classes) < 1 or width < 4:
        raise ModelError(f"{config.num_classes} classes, z of {config.z_dim}, width {width}", where=str(path))
    if attention < len(config.layers) and width * config.layers[attention][1] % 8:
        raise ModelError(
            f"attention at {width * config.layers[attention][1]} channels", where=str(path), hint="a multiple of 8"
        )
