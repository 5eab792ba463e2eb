"""The small network's two halves, the head for cached features, and how classifiers start."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from replaygen.errors import ModelError
from replaygen.learn import NetworkSpec, build_network
from replaygen.learn.heads import AsppHead, Classifier, InputNorm, SmallEncoder, TopDownHead
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
