"""The small network's two halves, the heads, and how classifiers start and grow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from replaygen.errors import ModelError
from replaygen.learn import NetworkSpec, build_network
from replaygen.learn.heads import (
    AsppHead,
    Classifier,
    DeepLabV2Head,
    DeepLabV3Head,
    DeepLabV3PlusHead,
    Head,
    InputNorm,
    LightHead,
    SegFormerHead,
    SmallEncoder,
    TopDownHead,
)
from replaygen.learn.networks import SegNet

CODE = """
import torch.nn as nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, 8, 1), nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, images):
        fine = self.fine(images)
        return fine, self.coarse(fine)
"""


@pytest.fixture
def aspp_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NetworkSpec:
    """A user's encoder of strides 8 and 16 below the head for cached features."""
    (tmp_path / "two_map_encoder.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return NetworkSpec(
        kind="deeplab", encoder="module", factory="two_map_encoder:Two", head="aspp", rates=(1, 3), width=8
    )  # fmt: skip


def aspp(step: int = 0) -> SegNet:
    """A network whose encoder passes on what it gets: maps of 4 and 6 channels."""
    torch.manual_seed(0)
    return SegNet(nn.Identity(), AsppHead((4, 6), 3, width=8, rates=(1, 3), dropout=0.0), 3).at_step(step).train()


def maps(seed: int = 0, batch: int = 4) -> tuple[Tensor, Tensor]:
    """Features far from mean 0 and variance 1."""
    dice = torch.Generator().manual_seed(seed)
    fine, coarse = torch.randn(batch, 4, 8, 8, generator=dice), torch.randn(batch, 6, 4, 4, generator=dice)
    return 5 + 3 * fine, 2 * coarse - 7


def input_norms(net: nn.Module) -> Iterator[InputNorm]:
    """The norms of the head's inputs."""
    return (module for module in net.modules() if isinstance(module, InputNorm))


def test_small_encoder_halves_at_every_scale() -> None:
    """Maps at strides 2, 4, 8, finest first, scale i with i convolutions."""
    encoder = SmallEncoder((8, 12, 16))
    assert [tuple(feature.shape) for feature in encoder(torch.rand(2, 3, 64, 48))] == [
        (2, 8, 32, 24), (2, 12, 16, 12), (2, 16, 8, 6)
    ]  # fmt: skip
    counts = [sum(isinstance(module, nn.Conv2d) for module in scale.modules()) for scale in encoder.scales]
    assert counts == [1, 2, 3]


def test_top_down_head_uses_every_scale() -> None:
    """Logits at stride 2 that depend on every map of the encoder."""
    head = TopDownHead((8, 12, 16), 3).eval()
    features = [torch.rand(1, 8, 16, 16), torch.rand(1, 12, 8, 8), torch.rand(1, 16, 4, 4)]
    for feature in features:
        feature.requires_grad_()
    logits = head(tuple(features))
    assert logits.shape == (1, 3, 16, 16)
    logits.square().sum().backward()
    assert all(feature.grad is not None and float(feature.grad.abs().sum()) > 0 for feature in features)


@pytest.mark.parametrize("kernel", [1, 3])
def test_classifier_rows_start_alike(kernel: int) -> None:
    """First and grown rows are uniform within 1 / sqrt(inputs of a row), as torch starts a convolution."""
    torch.manual_seed(0)
    classifier = Classifier(64, 40, kernel, dilation=kernel)
    classifier.grow(80, "random")
    bound = 1 / math.sqrt(64 * kernel**2)
    for rows in (classifier.weight.detach()[:40], classifier.weight.detach()[40:]):
        assert float(rows.abs().max()) <= bound
        assert float(rows.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert classifier.bias is not None
    assert len(classifier.bias) == 80
    assert float(classifier.bias.detach()[40:].abs().max()) > 0


def test_aspp_gives_logits_at_the_finest_tap(aspp_spec: NetworkSpec) -> None:
    """Maps at strides 8 and 16 give logits at stride 8; the network resizes them to the image."""
    net = build_network(aspp_spec, 3, 0).eval()
    images = torch.rand(2, 3, 64, 96)
    assert net.head_logits(net.encode(images)).shape == (2, 3, 8, 12)
    assert net(images).shape == (2, 3, 64, 96)


def test_aspp_needs_two_taps(aspp_spec: NetworkSpec) -> None:
    """With one tap there is nothing to go up to: refused with the way out."""
    with pytest.raises(ModelError, match="needs two taps") as caught:
        build_network(aspp_spec.model_copy(update={"taps": ("16",)}), 3, 0)
    assert "network.taps" in caught.value.hint


def test_aspp_ignores_the_scale_of_a_tap() -> None:
    """Each tap is normalised by its own statistics: a tap in other units trains alike."""
    one, two = aspp(), aspp()
    fine, coarse = maps()
    assert torch.allclose(one.head_logits((fine, coarse)), two.head_logits((fine * 50 - 9, coarse / 4)), atol=1e-2)


def test_aspp_balanced_growth_splits_the_background() -> None:
    """MiB's initialisation holds for this head too: the background's probability is shared evenly, others stay."""
    net = aspp().eval()
    before = net.head_logits(maps()).softmax(1)
    after = net.grow(5, "balanced").head_logits(maps()).softmax(1)
    assert torch.allclose(after[:, 1:3], before[:, 1:3], atol=1e-6)
    assert all(torch.allclose(after[:, channel], before[:, 0] / 3, atol=1e-6) for channel in (0, 3, 4))


def test_input_statistics_are_learnt_at_step_zero() -> None:
    """At step 0 the running means follow the taps."""
    net, features = aspp(), maps()
    for _ in range(60):
        net.head_logits(features)
    for norm, feature in zip(input_norms(net), features, strict=True):
        assert norm.running_mean is not None
        assert torch.allclose(norm.running_mean, feature.mean((0, 2, 3)), atol=0.1)


def test_input_statistics_stay_after_step_zero() -> None:
    """From step 1 on the input statistics stand still while the head's other batch norms still move."""
    net = aspp(step=1)
    fixed = {id(buffer) for norm in input_norms(net) for buffer in norm.buffers()}
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.head_logits(maps())
    moved = {id(buffer) for name, buffer in net.named_buffers() if not torch.equal(buffer, before[name])}
    assert len(fixed) == 6
    assert not moved & fixed
    assert moved == {id(buffer) for buffer in net.buffers()} - fixed


def test_later_steps_normalise_by_the_statistics_of_step_zero() -> None:
    """From step 1 on an image's normalised taps do not depend on what else is in its batch."""
    net = aspp(step=2)
    norm = next(input_norms(net))
    fine = maps(batch=4)[0]
    assert torch.equal(norm(fine)[:1], norm(fine[:1]))
    moving = next(input_norms(net.at_step(0)))
    assert not torch.allclose(moving(fine)[:1], moving(fine[:1]))


HEADS = {
    "deeplabv2": lambda: DeepLabV2Head((4, 6), 3, (1, 2, 3, 4)),
    "deeplabv3": lambda: DeepLabV3Head((4, 6), 3, width=8, rates=(1, 2), dropout=0.1),
    "deeplabv3plus": lambda: DeepLabV3PlusHead((4, 6), 3, width=8, rates=(1, 2), dropout=0.1),
    "segformer": lambda: SegFormerHead((4, 6), 3, width=8, dropout=0.1),
    "light": lambda: LightHead(
        (4, 6), 3, width=8, convs=2, separable=True, image_pooling=True, dropout=0.1
    ),
    "aspp": lambda: AsppHead((4, 6), 3, width=8, rates=(1, 3), dropout=0.1),
    "topdown": lambda: TopDownHead((4, 6), 3),
}  # fmt: skip
SIDES = {"deeplabv2": 4, "deeplabv3": 4}  # of the logits for maps of 8 x 8 and 4 x 4; others: 8


def with_head(name: str) -> SegNet:
    """A network of one head above an encoder that passes on what it gets, its weights and norms not at their start."""
    torch.manual_seed(0)
    net = SegNet(nn.Identity(), HEADS[name](), 3)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            norm.running_mean.uniform_(-0.3, 0.3)
    return net.eval()


def classifiers(net: SegNet) -> list[Classifier]:
    """The layers that know the number of classes."""
    return [module for module in net.head.modules() if isinstance(module, Classifier)]


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_its_maps_and_a_classifier(name: str) -> None:
    """`classified` of the last of `maps` are the logits; maps have a batch and a size, and there is one at least."""
    head: Head = with_head(name).head  # type: ignore[assignment]
    made = head.maps(maps())
    assert len(made) >= 1
    assert all(feature.ndim == 4 and len(feature) == 4 for feature in made)
    logits = head.classified(made[-1])
    assert logits.shape == (4, 3, SIDES.get(name, 8), SIDES.get(name, 8))
    assert torch.equal(logits, head(maps()))


@pytest.mark.parametrize("name", HEADS)
def test_balanced_growth_splits_the_background_of_every_head(name: str) -> None:
    """p'(bg) + sum of p'(new) = p(bg), each of them p(bg) / (N + 1), old classes as before; summed classifiers too."""
    net = with_head(name)
    before = net.head_logits(maps()).double().softmax(1)
    after = net.grow(7, "balanced").head_logits(maps()).double().softmax(1)
    assert torch.allclose(after[:, [0, 3, 4, 5, 6]].sum(1), before[:, 0], atol=1e-6)
    assert torch.allclose(after[:, [0, 3, 4, 5, 6]], before[:, :1].expand(-1, 5, -1, -1) / 5, atol=1e-6)
    assert torch.allclose(after[:, 1:3], before[:, 1:3], atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_copied_growth_repeats_the_background(name: str) -> None:
    """ "copy": new logits equal the background's, old logits are as before bit for bit, rows are rows of their own."""
    net = with_head(name)
    before = net.head_logits(maps())
    after = net.grow(5, "copy").head_logits(maps())
    assert torch.allclose(after[:, :3], before, atol=1e-5)
    assert torch.allclose(after[:, 3:], before[:, :1].expand(-1, 2, -1, -1), atol=1e-5)
    for classifier in classifiers(net):
        assert classifier.bias is not None
        assert torch.equal(classifier.weight[3:], classifier.weight[:1].expand_as(classifier.weight[3:]))
        assert torch.equal(classifier.bias[3:], classifier.bias[:1].expand(2))
        classifier.weight.data[3] += 1
        assert not torch.equal(classifier.weight[3], classifier.weight[0])


def test_copy_asks_no_dice() -> None:
    """ "copy" and "balanced" do not depend on the seed; "random" does, and its rows differ from each other."""
    grown = {
        (init, seed): classifiers(with_head("deeplabv3").grow(5, init, seed))[0].weight  # type: ignore[arg-type]
        for init in ("copy", "balanced", "random")
        for seed in (1, 2)
    }
    assert torch.equal(grown["copy", 1], grown["copy", 2])
    assert torch.equal(grown["balanced", 1], grown["copy", 1])
    assert not torch.equal(grown["random", 1], grown["random", 2])
    assert not torch.equal(grown["random", 1][3], grown["random", 1][4])


def test_held_rows_get_no_gradient() -> None:
    """`held` rows have a gradient of exactly 0, the others that of a plain convolution, and logits do not change."""
    torch.manual_seed(0)
    classifier = Classifier(4, 5, 3, dilation=2)
    x = torch.randn(2, 4, 9, 9)
    plain = classifier(x)
    plain.square().mean().backward()
    wanted = [parameter.grad.clone() for parameter in classifier.parameters() if parameter.grad is not None]
    classifier.zero_grad()
    classifier.held = 3
    held = classifier(x)
    held.square().mean().backward()
    assert torch.equal(held, plain)
    for parameter, grad in zip(classifier.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert int(parameter.grad[:3].count_nonzero()) == 0
        assert torch.allclose(parameter.grad[3:], grad[3:])


def test_deeplabv3_reads_its_rates() -> None:
    """Without image pooling, a pixel moves the logits at itself and at the atrous offsets, and nowhere else."""
    torch.manual_seed(0)
    head = DeepLabV3Head((2,), 3, width=8, rates=(2, 5), dropout=0.0).eval()
    for layer in head.aspp.pooled:
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
    x = torch.zeros(1, 2, 13, 13)
    before = head((x,))
    x[0, :, 6, 6] = 10.0
    moved = (head((x,)) - before).abs().amax((0, 1)) > 1e-6
    reach = {0, 2, 5}
    places = {(down, across) for down in range(13) for across in range(13) if moved[down, across]}
    allowed = {(6 + a * r, 6 + b * r) for r in reach for a in (-1, 0, 1) for b in (-1, 0, 1)}
    assert places <= allowed
    assert {(6 + 2, 6), (6, 6 - 5), (6, 6)} <= places


def test_image_pooling_reaches_every_pixel() -> None:
    """DeepLab-v3's mean of the map: a pixel in one corner moves the logits in the other, beyond every rate."""
    torch.manual_seed(0)
    head = DeepLabV3Head((2,), 3, width=8, rates=(1,), dropout=0.0).eval()
    x = torch.rand(1, 2, 9, 9)
    before = head((x,))
    x[0, :, 0, 0] += 50.0
    assert not torch.allclose(head((x,))[0, :, 8, 8], before[0, :, 8, 8], atol=1e-4)


def test_one_image_cannot_feed_the_image_pooling() -> None:
    """A training batch of one image is refused with the way out; evaluation and frozen statistics take it."""
    head = DeepLabV3Head((6,), 3, width=8, rates=(1,), dropout=0.0)
    one = (torch.rand(1, 6, 4, 4),)
    with pytest.raises(ModelError, match="one image") as caught:
        head.train()(one)
    assert "freeze_bn" in caught.value.hint
    assert head.eval()(one).shape == (1, 3, 4, 4)
    torch.manual_seed(0)
    frozen = SegNet(nn.Identity(), head, 3, freeze_bn="always").train()
    assert frozen.head_logits(one).shape == (1, 3, 4, 4)


def test_deeplabv3plus_reduces_the_fine_map_to_48_channels() -> None:
    """48 channels of the fine map join the pyramid; its maps are the pyramid's and those of two 3x3 convolutions."""
    head = DeepLabV3PlusHead((4, 6), 3, width=8, rates=(1, 2), dropout=0.0).eval()
    assert [tuple(made.shape[1:]) for made in head.maps(maps())] == [(8, 4, 4), (8, 8, 8), (8, 8, 8)]
    assert head.fine[0].weight.shape == (48, 4, 1, 1)
    assert [layer[0].weight.shape for layer in head.decode] == [(8, 56, 3, 3), (8, 8, 3, 3)]  # type: ignore[index]


def test_deeplabv3plus_needs_two_taps(aspp_spec: NetworkSpec) -> None:
    """A fine and a deep map, no more and no less: refused with the way out."""
    spec = aspp_spec.model_copy(update={"head": "deeplabv3plus", "taps": ("16",)})
    with pytest.raises(ModelError, match="needs two taps") as caught:
        build_network(spec, 3, 0)
    assert "taps" in caught.value.hint
