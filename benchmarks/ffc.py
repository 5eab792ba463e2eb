"""A network of big-lama's shape with random weights, as TorchScript: to time the real size without the real weights.

Fast Fourier convolutions (Chi et al., NeurIPS 2020) in a residual generator, as LaMa (Suvorov et al., WACV 2022) tells
its sizes: 64 channels, three halvings, 18 blocks, three quarters of the channels global; 51 million parameters. What it
fills is noise.

    python benchmarks/ffc.py TARGET.pt
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn


def _norm(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inside, outside, 3, stride, 1, bias=False, padding_mode="reflect")


class Fourier(nn.Module):
    """1 x 1 convolution of the spectrum, float [B, C, H, W] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(2 * channels, 2 * channels, 1, bias=False), _norm(2 * channels))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        waves = torch.fft.rfft2(x, norm="ortho")
        real, imaginary = self.mix(torch.cat([waves.real, waves.imag], 1)).chunk(2, 1)
        return torch.fft.irfft2(torch.complex(real, imaginary), s=[height, width], norm="ortho")


class Spectral(nn.Module):
    """Global to global: narrowed to a half, convolved in space of frequencies, added, widened."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.narrow = nn.Sequential(nn.Conv2d(channels, half, 1, bias=False), _norm(half))
        self.fourier = Fourier(half)
        self.widen = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        return self.widen(x + self.fourier(x))


class Mixed(nn.Module):
    """Local and global channels -> the same numbers of them."""

    def __init__(self, near: int, far: int) -> None:
        super().__init__()
        self.near_near, self.near_far, self.far_near = _conv(near, near), _conv(near, far), _conv(far, near)
        self.far_far = Spectral(far)
        self.near_norm, self.far_norm = _norm(near), _norm(far)

    def forward(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        local = self.near_norm(self.near_near(near) + self.far_near(far))
        return local, self.far_norm(self.near_far(near) + self.far_far(far))


class Block(nn.Module):
    """Two of them, and what came in."""

    def __init__(self, near: int, far: int) -> None:
        super().__init__()
        self.one, self.two = Mixed(near, far), Mixed(near, far)

    def forward(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        local, wide = self.one(near, far)
        local, wide = self.two(local, wide)
        return near + local, far + wide


class BigLamaShaped(nn.Module):
    """image float [1, 3, H, W] in 0..1 and mask int64 [1, 1, H, W], 1 where to fill -> image, whole and composited."""

    def __init__(self, blocks: int = 18) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(4, 64, 7, bias=False), _norm(64))
        self.down = nn.Sequential(_conv(64, 128, 2), _norm(128), _conv(128, 256, 2), _norm(256))
        self.near, self.far = _conv(256, 128, 2), _conv(256, 384, 2)
        self.near_norm, self.far_norm = _norm(128), _norm(384)
        self.blocks = nn.ModuleList([Block(128, 384) for _ in range(blocks)])
        up: list[nn.Module] = []
        for inside in (512, 256, 128):
            up += [nn.ConvTranspose2d(inside, inside // 2, 3, 2, 1, 1), _norm(inside // 2)]
        self.up = nn.Sequential(*up, nn.ReflectionPad2d(3), nn.Conv2d(64, 3, 7), nn.BatchNorm2d(3, affine=False))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        hole = mask.to(image.dtype)
        x = self.down(self.enter(torch.cat([image * (1 - hole), hole], 1)))
        near, far = self.near_norm(self.near(x)), self.far_norm(self.far(x))
        for block in self.blocks:
            near, far = block(near, far)
        filled = torch.sigmoid(0.5 * self.up(torch.cat([near, far], 1)))
        return hole * filled + (1 - hole) * image


def main(target: str) -> None:
    """Make and save it; prints the number of its parameters."""
    torch.manual_seed(0)
    network = BigLamaShaped()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # plain averages
        for _ in range(4):  # batch norms learn sizes, so that numbers stay in range
            coarse = nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=(256, 256), mode="bilinear")
            hole = torch.zeros(1, 1, 256, 256, dtype=torch.int64)
            hole[:, :, 60:160, 80:170] = 1
            network(coarse, hole)
    torch.jit.script(network.eval()).save(target)
    print(sum(one.numel() for one in network.parameters()))


if __name__ == "__main__":
    main(sys.argv[1])
