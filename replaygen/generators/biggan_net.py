"""A BigGAN-deep generator made ready to draw from: the package's forward pass in fewer operations.

What is done once, instead of at every image:

- spectral norm: each weight is divided by its largest singular value (as the stored vectors u, v estimate it);
- conditional batch norm: (x - m) / sqrt(v + eps) * (1 + S c) + O c = g x + t with m, v of one truncation, and the g, t
  of all layers come from one product with the condition c = [z, embedding];
- nearest upsampling and the 3x3 convolution after it are one 4x4 transposed convolution of stride 2, which needs
  16 products where the two need 36;
- the last convolution computes the three channels that are looked at, not all `channel_width`;
- the attention's gate gamma is in its last convolution;
- tensors lie in memory with the channels last, in the precision asked for. g and t are computed in float32, and so is
  the final tanh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class _Cast:
    """Where weights go: a device and a precision."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, tensor: Tensor) -> Tensor:
        moved = tensor.detach().to(self.device, self.dtype)
        return moved.contiguous(memory_format=torch.channels_last) if moved.dim() == 4 else moved.contiguous()


class DrawNet:
    """Draws from a BigGAN at one truncation.

    Args:
        model: the package's network with its weights; it is taken apart and of no use afterwards.
        row: which row of the batch-norm statistics is used.
        device: where it runs.
        dtype: precision of weights and activations.
    """

    def __init__(self, model: Any, *, row: int, device: str, dtype: torch.dtype) -> None:
        with torch.no_grad():
            remove_spectral_norms(model)
            cast = _Cast(torch.device(device), dtype)
            keep = _Cast(cast.device, torch.float32)
            generator = model.generator
            self._cast = cast
            self._embeddings = keep(model.embeddings.weight.T)
            self._first = cast(generator.gen_z.weight), cast(generator.gen_z.bias)
            self._layers = [
                _Block(layer, cast) if hasattr(layer, "conv_0") else _Attention(layer, cast)
                for layer in generator.layers
            ]
            norms = [
                getattr(layer, f"bn_{number}")
                for layer in generator.layers
                if hasattr(layer, "conv_0")
                for number in range(4)
            ]
            self._sizes = [norm.num_features for norm in norms]
            self._condition = keep(torch.cat([n.scale.weight for n in norms] + [n.offset.weight for n in norms]))
            self._mean = keep(torch.cat([norm.running_means[row] for norm in norms]))
            self._scale = keep(torch.cat([(norm.running_vars[row] + norm.eps).rsqrt() for norm in norms]))
            last = generator.bn
            gain = last.weight * (last.running_vars[row] + last.eps).rsqrt()
            self._last_norm = keep(gain), keep(last.bias - last.running_means[row] * gain)
            self._last = cast(generator.conv_to_rgb.weight[:3]), cast(generator.conv_to_rgb.bias[:3])

    def __call__(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images float32 [n, 3, H, W] in -1..1 of z float32 [n, z_dim] (times the truncation) and labels int64 [n]."""
        condition = torch.cat((z.to(self._cast.device), self._embeddings[labels.to(self._cast.device)]), dim=1)
        modulation = self._modulation(condition)
        x = F.linear(condition.to(self._cast.dtype), *self._first)
        x = x.view(len(x), 4, 4, -1).permute(0, 3, 1, 2)
        for layer in self._layers:
            if isinstance(layer, _Block):
                x = layer(x, [next(modulation) for _ in range(4)])
            else:
                x = layer(x)
        x = _modulated(x, (self._last_norm[0][None], self._last_norm[1][None]))
        return F.conv2d(x, *self._last, padding=1).float().tanh()

    def _modulation(self, condition: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Gain and shift [n, C] of every conditional batch norm, in the order of use."""
        scale, offset = F.linear(condition, self._condition).chunk(2, dim=1)
        gain = (1 + scale) * self._scale
        shift = offset - self._mean * gain
        return zip(torch.split(gain, self._sizes, dim=1), torch.split(shift, self._sizes, dim=1), strict=True)


class _Block:
    """A residual block: four modulated convolutions beside an identity that drops channels and is upsampled."""

    def __init__(self, block: Any, cast: _Cast) -> None:
        self._up = bool(block.up_sample)
        self._out = int(block.conv_3.out_channels)
        convolutions = [getattr(block, f"conv_{number}") for number in range(4)]
        weights = [convolution.weight for convolution in convolutions]
        if self._up:
            weights[1] = upsampling_kernel(weights[1])
        self._weights = [cast(weight) for weight in weights]
        self._biases = [cast(convolution.bias) for convolution in convolutions]

    def __call__(self, x: Tensor, modulation: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        y = F.conv2d(_modulated(x, modulation[0]), self._weights[0], self._biases[0])
        y = _modulated(y, modulation[1])
        if self._up:
            y = F.conv_transpose2d(y, self._weights[1], self._biases[1], stride=2, padding=1)
        else:
            y = F.conv2d(y, self._weights[1], self._biases[1], padding=1)
        y = F.conv2d(_modulated(y, modulation[2]), self._weights[2], self._biases[2], padding=1)
        y = F.conv2d(_modulated(y, modulation[3]), self._weights[3], self._biases[3])
        x = x[:, : self._out]
        return y.add_(F.interpolate(x, scale_factor=2.0, mode="nearest") if self._up else x)


class _Attention:
    """x + gamma W_o (softmax(theta(x)^T phi(x)) g(x)), with phi and g at half the resolution."""

    def __init__(self, layer: Any, cast: _Cast) -> None:
        self._theta = cast(layer.snconv1x1_theta.weight)
        self._phi = cast(layer.snconv1x1_phi.weight)
        self._g = cast(layer.snconv1x1_g.weight)
        self._out = cast((layer.snconv1x1_o_conv.weight * layer.gamma)[:, :, 0, 0])

    def __call__(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        query = _rows(F.conv2d(x, self._theta))
        key = _rows(F.max_pool2d(F.conv2d(x, self._phi), 2))
        value = _rows(F.max_pool2d(F.conv2d(x, self._g), 2))
        seen = torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
        return x + F.linear(seen, self._out).view(n, height, width, channels).permute(0, 3, 1, 2)


def upsampling_kernel(weight: Tensor) -> Tensor:
    """The transposed convolution (stride 2, padding 1) that equals nearest upsampling by 2 and then a convolution.

    Args:
        weight: [out, in, 3, 3] of a convolution with padding 1.

    Returns:
        [in, out, 4, 4]: the flipped kernel, summed over the 2 x 2 copies of a pixel.
    """
    flipped = weight.flip(2, 3)
    kernel = weight.new_zeros(*weight.shape[:2], 4, 4)
    for row in (0, 1):
        for column in (0, 1):
            kernel[:, :, row : row + 3, column : column + 3] += flipped
    return kernel.transpose(0, 1)


def remove_spectral_norms(model: nn.Module) -> None:
    """Put W / (u^T W v) in place of each spectrally normalised weight W, with the vectors as they are stored."""
    for module in model.modules():
        if hasattr(module, "weight_orig"):
            nn.utils.remove_spectral_norm(module)


def _modulated(x: Tensor, modulation: tuple[Tensor, Tensor]) -> Tensor:
    """relu(g x + t) of x [n, C, H, W] and g, t [n, C]."""
    gain, shift = (part.to(x.dtype)[:, :, None, None] for part in modulation)
    return torch.addcmul(shift, x, gain).relu_()


def _rows(x: Tensor) -> Tensor:
    """[n, C, H, W] -> [n, H W, C], without copying where the channels lie last."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])
