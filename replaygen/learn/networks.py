"""A segmentation network in two parts, encoder and head, that can learn more classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from replaygen.errors import ModelError
from replaygen.learn.heads import (
    AsppHead,
    Classifier,
    DeepLabV2Head,
    Init,
    InputNorm,
    LightHead,
    SmallEncoder,
    TopDownHead,
    resize,
)
from replaygen.learn.specs import NetworkSpec, When


class SegNet(nn.Module):
    """Encoder, head, and what of them is frozen at which step.

    Attributes:
        channels: classes with background (channel 0).
        frozen_encoder: the encoder is in evaluation mode and gets no gradient.
        fixed_encoder: its tensors never change, so checkpoints leave them out (the spec's file digests stand for them).
    """

    def __init__(
        self, encoder: nn.Module, head: nn.Module, channels: int, *, freeze: When = "never", freeze_bn: When = "never",
        make_head: Callable[[int], nn.Module] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.channels = channels
        self.freeze: When = freeze
        self.freeze_bn: When = freeze_bn
        self._make_head = make_head
        self.step = 0
        self.at_step(0)

    @property
    def frozen_encoder(self) -> bool:
        return _now(self.freeze, self.step)

    @property
    def fixed_encoder(self) -> bool:
        return self.freeze == "always"

    def at_step(self, k: int) -> SegNet:
        """Freeze what is frozen at step k; returns the network itself."""
        self.step = k
        self.encoder.requires_grad_(not self.frozen_encoder)
        return self.train(self.training)

    def train(self, mode: bool = True) -> SegNet:
        super().train(mode)
        if mode and self.frozen_encoder:
            self.encoder.eval()
        if mode and self.step > 0:
            for module in self.modules():
                if isinstance(module, InputNorm):
                    module.eval()
        if mode and _now(self.freeze_bn, self.step):
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps, finest first: float [B, 3, H, W] in 0..1 -> tuple of float [B, D_i, h_i, w_i]."""
        if self.frozen_encoder:
            with torch.no_grad():
                return tuple(self.encoder(images))
        return tuple(self.encoder(images))

    def decode(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Logits of the head, resized: maps of `encode` (any float type) -> float32 [B, C, *size]."""
        return resize(self.head_logits(features), size[0], size[1])

    def head_logits(self, features: tuple[Tensor, ...]) -> Tensor:
        """Logits at the head's own resolution: maps of `encode` (any float type) -> float32 [B, C, h, w]."""
        wanted = next(self.head.parameters()).dtype
        maps = tuple(feature.to(wanted) for feature in features) if not torch.is_autocast_enabled() else features
        logits: Tensor = self.head(maps).float()
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in 0..1 -> logits float32 [B, C, H, W]."""
        return self.decode(self.encode(images), (images.shape[-2], images.shape[-1]))

    def grow(self, channels: int, init: Init = "random", seed: int = 0) -> SegNet:
        """Add classifier rows up to `channels` classes; "random" depends on `seed` only. Returns the network itself.

        Raises:
            ModelError: fewer channels than now, or an unknown `init`.
        """
        if init not in ("random", "balanced"):
            raise ModelError(f"new classifier rows cannot start as {init!r}", hint='"random" or "balanced"')
        if channels < self.channels:
            raise ModelError(f"a network of {self.channels} channels cannot grow to {channels}")
        if channels == self.channels:
            return self
        classifiers = [module for module in self.head.modules() if isinstance(module, Classifier)]
        if not classifiers:
            raise ModelError("the network's head has no Classifier layer, so it cannot grow")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for classifier in classifiers:
                classifier.grow(channels, init, 1.0 / len(classifiers))
        self.channels = channels
        return self

    def renewed(self, channels: int, seed: int = 0, *, keep: bool = False) -> SegNet:
        """Give the network a new head for `channels` classes, which depends on `seed` only; returns the network itself.

        Normalisation of the taps (`InputNorm`) belongs to the encoder, and stays. With `keep` all layers stay but the
        classifiers, which are new.

        Raises:
            ModelError: the network was not built by `build_network`, so nobody knows what its head is made of.
        """
        if self._make_head is None:
            raise ModelError("this network cannot make another head", hint="build it with `build_network`")
        before = dict(self.head.named_modules())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = self._make_head(channels)
        for name, module in self.head.named_modules():
            leaf = not isinstance(module, Classifier) and not list(module.children())
            if isinstance(module, InputNorm) or (keep and leaf):
                module.load_state_dict(before[name].state_dict())
        self.channels = channels
        return self.at_step(self.step)

    def saved_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor of all that a checkpoint must hold: everything, but for an encoder that is always frozen."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not (self.fixed_encoder and name.startswith("encoder."))
        }


def build_network(spec: NetworkSpec, channels: int, seed: int) -> SegNet:
    """A network for step 0 with `channels` classes (background included); equal arguments give equal weights.

    Raises:
        ModelError: weights that are missing, changed, or do not fit.
    """
    if channels < 2:
        raise ModelError(f"a network needs background and one class, got {channels} channels")
    with torch.random.fork_rng(devices=[]):
        # an encoder that is never saved must come out the same for every seed, random parts included
        torch.manual_seed(0 if spec.freeze == "always" else seed)
        if spec.kind == "small":
            encoder: nn.Module = SmallEncoder(spec.widths)

            def make_head(channels: int) -> nn.Module:
                return TopDownHead(spec.widths, channels)
        else:
            from replaygen.learn.encoders import build_encoder

            taps = build_encoder(spec)
            encoder = taps
            if spec.freeze == "always":
                torch.manual_seed(seed)

            def make_head(channels: int) -> nn.Module:
                return _head(spec, taps.widths, channels)

        head = make_head(channels)
    return SegNet(encoder, head, channels, freeze=spec.freeze, freeze_bn=spec.freeze_bn, make_head=make_head)


def _head(spec: NetworkSpec, widths: tuple[int, ...], channels: int) -> nn.Module:
    if spec.head == "deeplabv2":
        return DeepLabV2Head(widths, channels, spec.rates, spec.dropout)
    if spec.head == "aspp":
        if len(widths) < 2:
            raise ModelError("head 'aspp' needs two taps or more", hint='network.taps = ["8", "16"]')
        return AsppHead(widths, channels, width=spec.width, rates=spec.rates, dropout=spec.dropout)
    return LightHead(
        widths, channels, width=spec.width, convs=spec.convs, separable=spec.separable,
        image_pooling=spec.image_pooling, dropout=spec.dropout,
    )  # fmt: skip


def _now(when: When, step: int) -> bool:
    return when == "always" or (when == "after_base" and step > 0)
