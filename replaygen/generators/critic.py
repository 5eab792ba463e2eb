"""BigGAN-deep's discriminator at small sizes: residual bottleneck blocks, spectral norm, class projection."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

_NARROWEST = 8


class _Block(nn.Module):
    def __init__(self, wide_in: int, wide_out: int, down: bool) -> None:
        super().__init__()
        middle = max(wide_out // 4, _NARROWEST)
        self.down = down
        self.conv_0 = spectral_norm(nn.Conv2d(wide_in, middle, 1))
        self.conv_1 = spectral_norm(nn.Conv2d(middle, middle, 3, padding=1))
        self.conv_2 = spectral_norm(nn.Conv2d(middle, middle, 3, padding=1))
        self.conv_3 = spectral_norm(nn.Conv2d(middle, wide_out, 1))
        self.more = spectral_norm(nn.Conv2d(wide_in, wide_out - wide_in, 1)) if wide_out > wide_in else None

    def forward(self, x: Tensor) -> Tensor:
        """float [B, in, H, W] -> [B, out, H or H/2, ...]; the skip keeps its channels and gains the missing ones."""
        h = self.conv_0(F.relu(x))
        h = self.conv_1(F.relu(h))
        h = F.relu(self.conv_2(F.relu(h)))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self.more is not None:
            x = torch.cat([x, self.more(x)], 1)
        out: Tensor = self.conv_3(h) + x
        return out


class Critic(nn.Module):
    """D(x, y) = w·φ(x) + e_y·φ(x), φ the sum over pixels of the last block (Miyato & Koyama 2018).

    Args:
        size: side of the images, a power of two from 16.
        width: channels before the first block; they double at each halving down to 4 pixels.
        classes: number of labels.
    """

    def __init__(self, size: int, width: int, classes: int) -> None:
        super().__init__()
        widths = [width]
        while size // 2 ** (len(widths) - 1) > 4:
            widths.append(min(widths[-1] * 2, width * 8))
        self.stem = spectral_norm(nn.Conv2d(3, width, 3, padding=1))
        blocks = [_Block(a, b, True) for a, b in itertools.pairwise(widths)]
        self.blocks = nn.Sequential(*blocks, _Block(widths[-1], widths[-1], False))
        self.linear = spectral_norm(nn.Linear(widths[-1], 1))
        self.embedding = spectral_norm(nn.Embedding(classes, widths[-1]))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """float [B, 3, S, S] in -1..1 and int64 [B] -> one score each, float [B]."""
        features = F.relu(self.blocks(self.stem(images))).sum((2, 3))
        scores: Tensor = self.linear(features)[:, 0] + (self.embedding(labels) * features).sum(1)
        return scores


def augment(images: Tensor, shift: float, light: float) -> Tensor:
    """What the critic sees of real and generated images alike (Zhao et al. 2020): brightness, contrast, translation.

    Args:
        images: float [B, 3, S, S] in -1..1; gradients pass.
        shift: largest translation, as a share of the side; edges are repeated.
        light: largest change of brightness; contrast changes by up to one and a half times as much.
    """
    count, _, _, side = images.shape
    if light:
        images = images + (torch.rand(count, 1, 1, 1, device=images.device) - 0.5) * (2 * light)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * (1 + (torch.rand(count, 1, 1, 1, device=images.device) - 0.5) * (3 * light)) + mean
    most = round(shift * side)
    if most:
        padded = F.pad(images, (most,) * 4, mode="replicate")
        down, across = torch.randint(0, 2 * most + 1, (2, count, 1), device=images.device)
        steps = torch.arange(side, device=images.device)
        rows, columns = (down + steps)[:, :, None], (across + steps)[:, None, :]
        images = padded.permute(0, 2, 3, 1)[torch.arange(count, device=images.device)[:, None, None], rows, columns]
        images = images.permute(0, 3, 1, 2)
    return images
