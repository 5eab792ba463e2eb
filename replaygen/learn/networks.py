"""A segmentation network in two parts, encoder and head, that can learn more classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from replaygen.errors import ModelError
from replaygen.learn.heads import (
    AsppHead,
    Classifier,
    DeepLabV2Head,
    DeepLabV3Head,
    DeepLabV3PlusHead,
    Head,
    Init,
    InputNorm,
    LightHead,
    SegFormerHead,
    SmallEncoder,
    TopDownHead,
    resize,
)
from replaygen.learn.oplist import OpListNet
from replaygen.learn.specs import NetworkSpec, When

Hold = Literal["none", "first", "encoder", "body"]
"""What a method keeps still beyond the recipe's freezing: nothing, the first third of the encoder's convolutions
(ILT's E_LF), the encoder (E_F), or everything but the classifier's new rows."""


@dataclass(frozen=True)
class Prediction:
    """What a network says of a batch.

    Attributes:
        logits: float32 [B, C, M, M], at the masks' size.
        encoded: the encoder's maps, finest first, float [B, D_i, h_i, w_i]; none where the encoder is frozen. One that
            only `SegNet.hold` keeps still gives them, as its teacher does.
        decoded: the head's own maps, likewise, in order; none where its classifiers read the encoder's.
    """

    logits: Tensor
    encoded: tuple[Tensor, ...] = ()
    decoded: tuple[Tensor, ...] = ()

    @property
    def stages(self) -> tuple[Tensor, ...]:
        """Every map: the encoder's, then the head's."""
        return (*self.encoded, *self.decoded)

    @property
    def features(self) -> Tensor:
        """F of the papers, float [B, D, h, w]: the encoder's deepest map, or where it is frozen the head's last.

        Raises:
            ModelError: nothing learns below the classifier.
        """
        if not self.stages:
            raise ModelError(
                "nothing learns below the classifier, so features cannot be kept near the old ones",
                hint='a head with layers of its own, or network.freeze = "never"',
            )
        return (self.encoded or self.decoded)[-1]


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
        self._still: list[nn.Module] = []
        self._held: list[nn.Parameter] = []
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
        for parameter in self._held:
            parameter.requires_grad_(False)
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
        if mode:
            for module in self._still:
                module.eval()
        return self

    def hold(self, what: Hold, rows: int = 0) -> SegNet:
        """Keep parts still from now on, and only these: no gradient, no statistics, no dropout. Returns the network.

        Args:
            what: see `Hold`.
            rows: with "body", how many of the classifiers' first rows stand still with it.

        Raises:
            ModelError: an unknown `what`, or "first" of an encoder without convolutions.
        """
        if what not in get_args(Hold):
            raise ModelError(f"a network cannot hold {what!r}", hint=f"one of {get_args(Hold)}")
        for parameter in self._held:
            parameter.requires_grad_(True)
        classifiers = [module for module in self.head.modules() if isinstance(module, Classifier)]
        for classifier in classifiers:
            classifier.held = rows if what == "body" else 0
        self._still, self._held = [], []
        if what == "first":
            self._still, self._held = _first_third(self.encoder)
        elif what == "encoder":
            self._still, self._held = [self.encoder], list(self.encoder.parameters())
        elif what == "body":
            learning = {id(parameter) for classifier in classifiers for parameter in classifier.parameters()}
            body = [module for module in self.head.modules() if not list(module.children())]
            self._still = [self.encoder, *(module for module in body if not isinstance(module, Classifier))]
            self._held = [parameter for parameter in self.parameters() if id(parameter) not in learning]
        return self.at_step(self.step)

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
        logits: Tensor = self.head(self._as_head_wants(features)).float()
        return logits

    def predicted(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Prediction:
        """As `decode`, with the maps on the way."""
        if not isinstance(self.head, Head):
            return Prediction(self.decode(features, size), () if self.frozen_encoder else features)
        maps = self.head.maps(self._as_head_wants(features))
        logits = resize(self.head.classified(maps[-1]).float(), size[0], size[1])
        own = () if isinstance(self.head, DeepLabV2Head) else maps
        return Prediction(logits, () if self.frozen_encoder else features, own)

    def _as_head_wants(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        wanted = next(self.head.parameters()).dtype
        return features if torch.is_autocast_enabled() else tuple(feature.to(wanted) for feature in features)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in 0..1 -> logits float32 [B, C, H, W]."""
        return self.decode(self.encode(images), (images.shape[-2], images.shape[-1]))

    def grow(self, channels: int, init: Init = "random", seed: int = 0) -> SegNet:
        """Add classifier rows up to `channels` classes; "random" depends on `seed` only. Returns the network itself.

        Raises:
            ModelError: fewer channels than now, or an unknown `init`.
        """
        if init not in get_args(Init):
            raise ModelError(f"new classifier rows cannot start as {init!r}", hint=f"one of {get_args(Init)}")
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
    if spec.head == "deeplabv3":
        return DeepLabV3Head(widths, channels, width=spec.width, rates=spec.rates, dropout=spec.dropout)
    if spec.head == "deeplabv3plus":
        if len(widths) != 2:
            raise ModelError(f"head 'deeplabv3plus' needs two taps, got {len(widths)}", hint='taps = ["4", "16"]')
        return DeepLabV3PlusHead(widths, channels, width=spec.width, rates=spec.rates, dropout=spec.dropout)
    if spec.head == "segformer":
        return SegFormerHead(widths, channels, width=spec.width, dropout=spec.dropout)
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


def _first_third(encoder: nn.Module) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """The first third of an encoder's convolutions, one at least, with the layers between: modules and parameters."""
    graph = next((module for module in encoder.modules() if isinstance(module, OpListNet)), None)
    if graph is not None:  # its norms are folded into its convolutions, and it has no modules
        keys = list(graph.weight)[: max(1, len(graph.weight) // 3)]
        return [], [parameters[key] for key in keys for parameters in (graph.weight, graph.bias)]
    leaves = [module for module in encoder.modules() if not list(module.children())]
    convolutions = [index for index, leaf in enumerate(leaves) if isinstance(leaf, nn.Conv2d)]
    if not convolutions:
        raise ModelError("the encoder has no convolutions, so it has no first third of them", hint='hold "encoder"')
    count = max(1, len(convolutions) // 3)
    held = leaves[: convolutions[count] if count < len(convolutions) else len(leaves)]
    return held, [parameter for module in held for parameter in module.parameters()]
