"""Heads: from feature maps to logits at the finest map's size. Only `Classifier` layers know the number of classes.

Every head is two parts: `maps` makes its own feature maps, the last of which is what `classified` reads.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replaygen.errors import ModelError

Init = Literal["random", "balanced", "copy"]


class Classifier(nn.Conv2d):
    """A convolution whose output channels are the classes: channel 0 background, then the classes in learning order.

    Attributes:
        held: so many of the first rows get no gradient (and no weight decay, see `make_optimizer`).
    """

    def __init__(self, width: int, channels: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__(width, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self.held = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.held == 0:
            return super().forward(x)
        assert self.bias is not None
        weight, bias = (torch.cat([rows[: self.held].detach(), rows[self.held :]]) for rows in (self.weight, self.bias))
        return F.conv2d(x, weight, bias, 1, self.padding, self.dilation)

    def grow(self, channels: int, init: Init, share: float = 1.0) -> None:
        """Add rows for new classes; the old rows stay, but for the background's bias with "balanced".

        "random" draws new rows. "copy" starts them as the background's: w_new = w_bg, b_new = b_bg. "balanced" is
        MiB's: w_new = w_bg, b_new = b_bg - log(N + 1), and b_bg gets the same value, so the old background probability
        is split evenly over background and the N new classes. `share` is this layer's part of that bias where several
        classifiers are summed.
        """
        new = channels - self.out_channels
        assert self.bias is not None
        with torch.no_grad():
            weight, bias = self.weight.data, self.bias.data
            fresh = nn.Conv2d(self.in_channels, new, self.kernel_size[0])  # on the CPU: the numbers depend on no device
            rows, offsets = fresh.weight.data.to(weight), fresh.bias.data.to(bias)  # type: ignore[union-attr]
            if init != "random":
                rows = weight[:1].expand_as(rows)
                bias = bias.clone()
                if init == "balanced":
                    bias[0] -= share * math.log(new + 1)
                offsets = bias[:1].expand(new)
            self.weight = nn.Parameter(torch.cat([weight, rows]))
            self.bias = nn.Parameter(torch.cat([bias, offsets]))
        self.out_channels = channels


class Head(nn.Module):
    """From an encoder's maps, finest first, to logits at the head's own resolution."""

    def maps(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The head's feature maps, float [B, D_i, h_i, w_i], in order; the last is what `classified` reads."""
        raise NotImplementedError

    def classified(self, features: Tensor) -> Tensor:
        """The last of `maps` -> logits float [B, C, h, w]."""
        raise NotImplementedError

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.classified(self.maps(features)[-1])


class DeepLabV2Head(Head):
    """The sum of four 3x3 atrous convolutions of the deepest map (Chen et al. 2018, arXiv 1606.00915)."""

    def __init__(self, widths: tuple[int, ...], channels: int, rates: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.branches = nn.ModuleList(Classifier(widths[-1], channels, 3, rate) for rate in rates)

    def maps(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return features[-1:]

    def classified(self, features: Tensor) -> Tensor:
        deepest = self.dropout(features)
        total: Tensor = self.branches[0](deepest)
        for branch in self.branches[1:]:
            total = total + branch(deepest)
        return total


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017, arXiv 1706.05587): float [B, D, h, w] -> [B, width, h, w].

    A 1x1 convolution, 3x3 convolutions of the given rates and the map's mean behind a 1x1, `width` channels each;
    joined, and 1x1 back to `width`. All with batch norm and ReLU.
    """

    def __init__(self, source: int, width: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_bn_relu(source, width, 1), *(conv_bn_relu(source, width, 3, dilation=rate) for rate in rates)]
        )
        self.pooled = conv_bn_relu(source, width, 1)
        self.project = conv_bn_relu(width * (len(rates) + 2), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1 and self.pooled[1].training:
            raise ModelError(
                "the batch norm of the image pooling cannot learn from a batch of one image",
                hint='make every part of a batch two images or more, or set network.freeze_bn = "always"',
            )
        mean = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, x.shape[2], x.shape[3])
        made: Tensor = self.project(torch.cat([*(branch(x) for branch in self.branches), mean], 1))
        return made


class DeepLabV3Head(Head):
    """DeepLab-v3: the pyramid `Aspp` on the deepest map, a linear classifier (Chen et al. 2017, arXiv 1706.05587).

    The paper's rates are 6, 12, 18 at output stride 16 and twice that at output stride 8.
    """

    def __init__(
        self, widths: tuple[int, ...], channels: int, *, width: int, rates: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.aspp = Aspp(widths[-1], width, rates)
        self.dropout = nn.Dropout(dropout)
        self.classify = Classifier(width, channels)

    def maps(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.aspp(features[-1]),)

    def classified(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.dropout(features))
        return logits


class DeepLabV3PlusHead(DeepLabV3Head):
    """DeepLab-v3+: `Aspp`, up to the fine map, joined with 48 channels of it, two 3x3 (Chen et al. 2018, 1802.02611).

    widths: of the fine map (stride 4 in the paper) and of the deepest.
    """

    FINE = 48

    def __init__(
        self, widths: tuple[int, ...], channels: int, *, width: int, rates: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__(widths, channels, width=width, rates=rates, dropout=dropout)
        self.fine = conv_bn_relu(widths[0], self.FINE, 1)
        self.decode = nn.ModuleList([conv_bn_relu(width + self.FINE, width, 3), conv_bn_relu(width, width, 3)])

    def maps(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        deep = self.aspp(features[-1])
        fine = self.fine(features[0])
        made = [deep]
        x = torch.cat([resize(deep, fine.shape[-2], fine.shape[-1]), fine], 1)
        for conv in self.decode:
            x = conv(x)
            made.append(x)
        return tuple(made)


class SegFormerHead(Head):
    """SegFormer's all-MLP decoder (Xie et al. 2021, arXiv 2105.15203).

    Every stage goes to `width` channels by a linear layer and up to the finest stage's size; joined, 1x1 with batch
    norm and ReLU, a linear classifier.
    """

    def __init__(self, widths: tuple[int, ...], channels: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Conv2d(tap, width, 1) for tap in widths)
        self.fuse = conv_bn_relu(width * len(widths), width, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = Classifier(width, channels)

    def maps(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        height, width = features[0].shape[-2:]
        made = [resize(linear(stage), height, width) for linear, stage in zip(self.linear, features, strict=True)]
        return (self.fuse(torch.cat(made, 1)),)

    def classified(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.dropout(features))
        return logits


class LightHead(Head):
    """DeepLab v3+-like: every tap to `width` channels by 1x1, up to the finest tap, joined, convolved, classified."""

    def __init__(
        self, widths: tuple[int, ...], channels: int, *, width: int, convs: int, separable: bool,
        image_pooling: bool, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.reduce = nn.ModuleList(conv_bn_relu(tap, width, 1) for tap in widths)
        self.pooled = nn.Conv2d(widths[-1], width, 1) if image_pooling else None
        joined = width * (len(widths) + int(image_pooling))
        self.convs = nn.Sequential(
            *(conv_bn_relu(joined if index == 0 else width, width, 3, separable=separable) for index in range(convs))
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = Classifier(width, channels)

    def maps(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        size = max((feature.shape[-2:] for feature in features), key=lambda shape: shape[0] * shape[1])
        maps = [
            resize(reduce(feature), size[0], size[1])
            for reduce, feature in zip(self.reduce, features, strict=True)
        ]  # fmt: skip
        if self.pooled is not None:
            mean = F.relu(self.pooled(features[-1].mean((2, 3), keepdim=True)))
            maps.append(mean.expand(-1, -1, size[0], size[1]))
        joined = torch.cat(maps, 1)
        made = []
        for conv in self.convs:
            joined = conv(joined)
            made.append(joined)
        return tuple(made) or (joined,)

    def classified(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.dropout(features))
        return logits


class InputNorm(nn.BatchNorm2d):
    """Normalises a tap by its own statistics, which are learnt at step 0 and fixed from then on.

    Later steps mix current and replay images; statistics that followed each mixture would not fit the images that
    the model is asked about.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False)


class AsppHead(Head):
    """A head for cached features: an atrous pyramid on the coarse maps, one step up to the finest, a linear classifier.

    Every tap is normalised by its own statistics first. At the coarse taps' stride: 1x1 to `width`, two 3x3 atrous
    convolutions and the map's mean (`width` / 2 channels each), 1x1 back to `width`; at the finest tap's stride: the
    sum of both sides at `width` / 2 channels, 3x3, classifier.
    """

    def __init__(self, widths: tuple[int, ...], channels: int, *, width: int, rates: tuple[int, ...], dropout: float):
        super().__init__()
        half = width // 2
        self.normalise = nn.ModuleList(InputNorm(tap) for tap in widths)
        self.join = conv_bn_relu(sum(widths[1:]), width, 1)
        self.atrous = nn.ModuleList(conv_bn_relu(width, half, 3, dilation=rate) for rate in rates)
        self.mean = nn.Linear(width, half)
        self.fuse = conv_bn_relu(width + half * (len(rates) + 1), width, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.coarse = nn.Conv2d(width, half, 1)
        self.fine = nn.Conv2d(widths[0], half, 1)
        self.smooth = conv_bn_relu(half, half, 3)
        self.classify = Classifier(half, channels)

    def maps(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        fine, *coarse = (norm(feature) for norm, feature in zip(self.normalise, features, strict=True))
        height, width = coarse[0].shape[-2:]
        x = self.join(torch.cat([resize(tap, height, width) for tap in coarse], 1))
        mean = F.relu(self.mean(x.mean((2, 3))))[:, :, None, None].expand(-1, -1, height, width)
        fused = self.fuse(torch.cat([x, *(branch(x) for branch in self.atrous), mean], 1))
        x = resize(self.coarse(self.dropout(fused)), fine.shape[-2], fine.shape[-1]) + self.fine(fine)
        return fused, self.smooth(F.relu(x))

    def classified(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(features)
        return logits


class TopDownHead(Head):
    """The small network's decoder: 1x1, up one scale, added to the encoder's map, 3x3; classified at stride 2."""

    def __init__(self, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        pairs = list(zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True))
        self.down = nn.ModuleList(conv_bn_relu(coarse, fine, 1) for fine, coarse in pairs)
        self.out = nn.ModuleList(conv_bn_relu(fine, fine, 3) for fine, _ in pairs)
        self.classify = Classifier(widths[0], channels)

    def maps(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        made = [features[-1]]
        for down, out, skip in zip(self.down, self.out, reversed(features[:-1]), strict=True):
            made.append(out(skip + F.interpolate(down(made[-1]), skip.shape[-2:], mode="nearest")))
        return tuple(made[1:])

    def classified(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(features)
        return logits


class SmallEncoder(nn.Module):
    """Maps at strides 2, 4, 8, ... of `widths` channels; scale i has i 3x3 convolutions, the first of stride 2."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        before = (3, *widths[:-1])
        self.scales = nn.ModuleList(
            nn.Sequential(
                conv_bn_relu(source, width, 3, stride=2), *(conv_bn_relu(width, width, 3) for _ in range(scale))
            )
            for scale, (source, width) in enumerate(zip(before, widths, strict=True))
        )
        self.widths = widths

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = []
        x = (images * 255 - 110) / 70
        for scale in self.scales:
            x = scale(x)
            maps.append(x)
        return tuple(maps)


def conv_bn_relu(
    source: int, width: int, kernel: int, *, stride: int = 1, dilation: int = 1, separable: bool = False
) -> nn.Sequential:
    """Convolution (depthwise then 1x1 where `separable`), batch norm, ReLU; He-initialised."""
    pad = dilation * (kernel // 2)
    if separable:
        layers: list[nn.Module] = [
            nn.Conv2d(source, source, kernel, stride, pad, dilation, groups=source, bias=False),
            nn.Conv2d(source, width, 1, bias=False),
        ]
    else:
        layers = [nn.Conv2d(source, width, kernel, stride, pad, dilation, bias=False)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")  # type: ignore[arg-type]
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU())


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, corners not aligned; the same tensor where nothing changes."""
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
