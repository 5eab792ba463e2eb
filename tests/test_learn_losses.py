"""The merged cross-entropy against hand-computed numbers and its definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from replaygen.learn import class_weights, cross_entropy, merged_cross_entropy


def by_definition(logits: Tensor, target: Tensor, visible: Tensor) -> float:
    """The formula, pixel by pixel, in Python's floats."""
    losses = []
    batch, channels, height, width = logits.shape
    for b in range(batch):
        hidden = [c for c in range(channels) if c == 0 or not visible[b, c]]
        for i in range(height):
            for j in range(width):
                y = int(target[b, i, j])
                if y == 255:
                    continue
                e = [math.exp(float(z)) for z in logits[b, :, i, j]]
                p = sum(e[c] for c in hidden) / sum(e) if y in hidden else e[y] / sum(e)
                losses.append(-math.log(p))
    return sum(losses) / len(losses)


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Random logits of two images and five channels, labels with ignored pixels, two visible sets."""
    dice = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 5, 3, 4, generator=dice, dtype=torch.float64) * 3
    target = torch.randint(0, 5, (2, 3, 4), generator=dice)
    target[0, 0, 0] = target[1, 2, 3] = 255
    visible = torch.tensor([[False, True, False, True, False], [False, False, False, False, True]])
    return logits, target, visible


def test_hand_computed_pixel() -> None:
    """With z = log(1, 2, 3, 4) and S = {3}: p(3) = 4/10, p(bg) = (1 + 2 + 3)/10, and label 1 counts as background."""
    logits = torch.log(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)).view(1, 4, 1, 1)
    visible = torch.tensor([[False, False, False, True]])
    for label, probability in ((3, 0.4), (0, 0.6), (1, 0.6), (2, 0.6)):
        loss = merged_cross_entropy(logits, torch.tensor([[[label]]]), visible)
        assert loss.item() == pytest.approx(-math.log(probability), abs=1e-12)


def test_equals_its_definition(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """Different visible sets in one batch, ignored pixels and hidden labels: the same number as pixel by pixel."""
    assert merged_cross_entropy(*case).item() == pytest.approx(by_definition(*case), abs=1e-12)


def test_all_visible_is_plain_cross_entropy(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """S = all seen classes gives cross-entropy, whatever column 0 says."""
    logits, target, _ = case
    for background in (False, True):
        visible = torch.ones(2, 5, dtype=torch.bool)
        visible[:, 0] = background
        expected = torch.nn.functional.cross_entropy(logits, target, ignore_index=255)
        assert torch.allclose(merged_cross_entropy(logits, target, visible), expected, atol=1e-12)


def test_new_visible_is_the_unbiased_cross_entropy(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """S = the new classes 3, 4 gives MiB's loss: old classes 1, 2 are summed into the background."""
    logits, target, _ = case
    target = torch.where((target == 1) | (target == 2), 0, target)
    log_p = logits.log_softmax(1)
    merged = torch.cat([log_p[:, :3].logsumexp(1, keepdim=True), log_p[:, 1:]], 1)
    expected = torch.nn.functional.nll_loss(merged, target, ignore_index=255)
    visible = torch.tensor([[False, False, False, True, True]]).expand(2, 5)
    assert torch.allclose(merged_cross_entropy(logits, target, visible), expected, atol=1e-12)


def test_gradient_is_the_finite_difference(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """The gradient agrees with finite differences, and ignored pixels get none."""
    logits, target, visible = case
    logits = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: merged_cross_entropy(z, target, visible), (logits,))
    merged_cross_entropy(logits, target, visible).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0, :, 0, 0].abs().sum() == 0
    assert logits.grad[0, :, 1, 1].abs().sum() > 0


@pytest.mark.parametrize("merged", [True, False])
def test_only_ignored_pixels_give_zero(merged: bool) -> None:
    """A batch without labelled pixels has loss 0 and gradient 0, not NaN."""
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    target = torch.full((1, 2, 2), 255)
    visible = torch.tensor([[False, True, False]])
    loss = merged_cross_entropy(logits, target, visible) if merged else cross_entropy(logits, target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_background_weight_is_torchs_class_weight(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """Plain and merged (S = all) weigh background pixels as torch's `weight` does; weight 1 needs no tensor."""
    logits, target, _ = case
    weight = class_weights(5, 0.25)
    assert weight is not None
    assert class_weights(5, 1.0) is None
    expected = torch.nn.functional.cross_entropy(logits, target, weight.double(), ignore_index=255)
    visible = torch.ones(2, 5, dtype=torch.bool)
    assert torch.allclose(cross_entropy(logits, target, weight=weight), expected, atol=1e-12)
    assert torch.allclose(merged_cross_entropy(logits, target, visible, weight=weight), expected, atol=1e-12)


def test_weights_of_new_classes_are_torchs_class_weights(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """The learnt channels weigh `new`, background its own; no tensor where nothing is learnt or all weigh 1."""
    logits, target, _ = case
    weight = class_weights(5, 0.5, new=4.0, learnt=(3, 4))
    assert weight is not None
    assert weight.tolist() == [0.5, 1.0, 1.0, 4.0, 4.0]
    assert class_weights(5, 1.0, new=4.0) is None
    assert class_weights(5, 1.0, new=1.0, learnt=(3,)) is None
    expected = torch.nn.functional.cross_entropy(logits, target, weight.double(), ignore_index=255)
    assert torch.allclose(cross_entropy(logits, target, weight=weight), expected, atol=1e-12)


def test_large_logits_stay_finite() -> None:
    """Logits of +-1e4 give finite loss and gradient."""
    logits = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1).requires_grad_()
    loss = merged_cross_entropy(logits, torch.tensor([[[1]]]), torch.tensor([[False, True, False]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
