"""Distillation losses and the merged cross-entropy's special cases: by hand, by definition, by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn import merged_cross_entropy
from replaygen.learn.distillation import (
    decoder_distillation,
    feature_distillation,
    ilt_pixels,
    lwf_distillation,
    similarity_distillation,
    soft_cross_entropy,
    temperature_distillation,
    unbiased_distillation,
)

Loss = Callable[..., Tensor]
at_two: Loss = partial(temperature_distillation, temperature=2.0)
OUTPUT_LOSSES: list[Loss] = [soft_cross_entropy, lwf_distillation, at_two, unbiased_distillation]


def one_pixel(*odds: float) -> Tensor:
    """Logits of one pixel whose softmax is proportional to `odds`."""
    return torch.tensor(odds, dtype=torch.float64).log().view(1, -1, 1, 1)


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum()


def pixel_by_definition(loss: Loss, z: np.ndarray, old: np.ndarray) -> float:
    """One pixel's loss, as METHODS writes it, in numpy's float64."""
    v = len(old)
    if loss is soft_cross_entropy:
        return -sum(softmax(old)[c] * math.log(softmax(z)[c]) for c in range(v))
    if loss is lwf_distillation:
        return -sum(softmax(old)[c] * math.log(softmax(z[:v])[c]) for c in range(v)) / v
    if loss is at_two:
        return -sum(softmax(old / 2)[c] * math.log(softmax(z[:v] / 2)[c]) for c in range(v))
    p = softmax(z)
    merged = [p[0] + sum(p[v:]), *p[1:v]]
    return -sum(softmax(old)[c] * math.log(merged[c]) for c in range(v)) / v


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Random logits of three images, five new and three old channels, and the pixels that count."""
    dice = torch.Generator().manual_seed(5)
    new = torch.randn(3, 5, 2, 4, generator=dice, dtype=torch.float64) * 3
    old = torch.randn(3, 3, 2, 4, generator=dice, dtype=torch.float64) * 3
    return new, old, torch.rand(3, 2, 4, generator=dice) < 0.6


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    """Random feature maps of three images."""
    dice = torch.Generator().manual_seed(6)
    return tuple(torch.randn(3, 4, 2, 3, generator=dice, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("loss", "new", "old", "expected"),
    [
        # q' = (3, 1)/4 and softmax(z) = (1, 2, 5)/8: 3/4 log 8 + 1/4 log 4
        (soft_cross_entropy, (1, 2, 5), (3, 1), 11 / 4 * math.log(2)),
        # q' = (3, 1)/4 and softmax(z_0, z_1) = (1, 2)/3, V = 2: (3/4 log 3 + 1/4 log 3/2) / 2
        (lwf_distillation, (1, 2, 5), (3, 1), (math.log(3) - math.log(2) / 4) / 2),
        # at T = 2 odds turn into their roots: q' = (3, 1)/4, softmax = (1, 2)/3: 3/4 log 3 + 1/4 log 3/2
        (at_two, (1, 4, 25), (9, 1), math.log(3) - math.log(2) / 4),
        # p(bg) = (1 + 5)/8 = 3/4, p(1) = 2/8 = 1/4, V = 2: (3/4 log 4/3 + 1/4 log 4) / 2
        (unbiased_distillation, (1, 2, 5), (3, 1), (2 * math.log(2) - 3 / 4 * math.log(3)) / 2),
    ],
)
def test_hand_computed_pixel(loss: Loss, new: tuple[float, ...], old: tuple[float, ...], expected: float) -> None:
    """One pixel with three new and two old channels gives the number worked out beside it."""
    assert loss(one_pixel(*new), one_pixel(*old)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("loss", OUTPUT_LOSSES)
@pytest.mark.parametrize("counting", ["all", "some", "one"])
def test_outputs_equal_their_definition(loss: Loss, counting: str, logits: tuple[Tensor, Tensor, Tensor]) -> None:
    """The mean of the formula over the pixels that count, pixel by pixel."""
    new, old, counts = logits
    if counting == "one":
        counts = torch.zeros(3, 2, 4, dtype=torch.bool)
        counts[1, 0, 2] = True
    each = [
        pixel_by_definition(loss, new[b, :, i, j].numpy(), old[b, :, i, j].numpy())
        for b, i, j in np.ndindex(3, 2, 4)
        if counting == "all" or counts[b, i, j]
    ]
    pixels = None if counting == "all" else counts
    assert loss(new, old, pixels=pixels).item() == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.parametrize("loss", [*OUTPUT_LOSSES, feature_distillation])
def test_a_batch_is_the_mean_of_its_images(loss: Loss, logits: tuple[Tensor, Tensor, Tensor]) -> None:
    """Holds where every image counts as many pixels; not for masks of unequal size nor for pairs of images (SPKD)."""
    new, old, _ = logits
    if loss is feature_distillation:
        new = new[:, :3]
    singles = torch.stack([loss(new[i : i + 1], old[i : i + 1]) for i in range(3)])
    assert torch.allclose(loss(new, old), singles.mean(), atol=1e-12)


@pytest.mark.parametrize("loss", OUTPUT_LOSSES)
def test_gradients_of_outputs(loss: Loss, logits: tuple[Tensor, Tensor, Tensor]) -> None:
    """They agree with finite differences; pixels that do not count and the old network get none."""
    new, old, counts = logits
    new, old = new.requires_grad_(), old.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, old.detach(), pixels=counts), (new,))
    found, from_old = torch.autograd.grad(loss(new, old, pixels=counts), (new, old), allow_unused=True)
    assert from_old is None
    assert found.abs().sum(1)[~counts].eq(0).all()
    assert found.abs().sum(1)[counts].gt(0).all()


@pytest.mark.parametrize("loss", [feature_distillation, similarity_distillation])
def test_gradients_of_maps(loss: Loss, maps: tuple[Tensor, Tensor]) -> None:
    """They agree with finite differences, and the old map gets none."""
    new, old = maps[0].requires_grad_(), maps[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, old.detach()), (new,))
    assert torch.autograd.grad(loss(new, old), (old,), allow_unused=True) == (None,)


def test_without_new_classes_unbiased_is_lwf(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    """With C = V nothing merges: UNKD = LwF = L'_D / V, and a network distilled on itself has its entropy / V."""
    old = logits[1]
    new = old.flip(0) + 1.5
    assert torch.allclose(unbiased_distillation(new, old), lwf_distillation(new, old), atol=1e-12)
    assert torch.allclose(unbiased_distillation(new, old), soft_cross_entropy(new, old) / 3, atol=1e-12)
    entropy = -(old.softmax(1) * old.log_softmax(1)).sum(1).mean()
    assert torch.allclose(unbiased_distillation(old, old), entropy / 3, atol=1e-12)


@pytest.mark.parametrize("loss", OUTPUT_LOSSES)
def test_no_pixel_gives_zero(loss: Loss) -> None:
    """Where no pixel counts, loss and gradient are 0, not NaN."""
    new = torch.randn(2, 4, 3, 3, requires_grad=True)
    value = loss(new, torch.randn(2, 3, 3, 3), pixels=torch.zeros(2, 3, 3, dtype=torch.bool))
    assert value.item() == 0
    assert torch.autograd.grad(value, new)[0].eq(0).all()


@pytest.mark.parametrize("loss", OUTPUT_LOSSES)
def test_large_logits_and_half_precision(loss: Loss) -> None:
    """Logits of +-3e4 in half precision give a finite float32 loss with finite gradient; float64 stays float64."""
    new = torch.tensor([3e4, -3e4, 0.0, 2e4], dtype=torch.float16).view(1, 4, 1, 1).requires_grad_()
    old = torch.tensor([-3e4, 3e4], dtype=torch.float16).view(1, 2, 1, 1)
    value = loss(new, old)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert torch.autograd.grad(value, new)[0].isfinite().all()
    assert loss(new.double(), old.double()).dtype == torch.float64


def test_one_old_channel_teaches_nothing() -> None:
    """V = 1: q' = 1, so the losses over old channels alone are 0, and so is MiB's, where all new is background."""
    new, old = torch.randn(1, 3, 2, 2), torch.randn(1, 1, 2, 2)
    for loss in (lwf_distillation, at_two, unbiased_distillation):
        assert loss(new, old).item() == pytest.approx(0, abs=1e-6)


def test_feature_losses_by_hand() -> None:
    """Differences (1, -2, 0, 3): (1 + 4 + 0 + 9)/4 = 3.5; beside a branch of difference 1 everywhere: (3.5 + 1)/2."""
    first = torch.tensor([1.0, -2.0, 0.0, 3.0]).view(1, 1, 2, 2)
    assert feature_distillation(first, torch.zeros(1, 1, 2, 2)).item() == 3.5
    second = torch.ones(1, 3, 1, 2)
    assert decoder_distillation([first, second], [torch.zeros_like(first), 2 * second]).item() == 2.25


def test_similarity_by_hand() -> None:
    """A = [[1, 0], [1, 1]] has G = [[1, 1]/sqrt 2, [1, 2]/sqrt 5], A' = I has G' = I, B = 2: (4 - sqrt 2 - 4/sqrt 5)/4.

    Row 1: (1/sqrt 2 - 1)^2 + 1/2 = 2 - sqrt 2. Row 2: 1/5 + (2/sqrt 5 - 1)^2 = 2 - 4/sqrt 5.
    """
    new = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64).view(2, 2, 1, 1)
    old = torch.eye(2, dtype=torch.float64).view(2, 1, 1, 2).transpose(1, 3)
    expected = (4 - math.sqrt(2) - 4 / math.sqrt(5)) / 4
    assert similarity_distillation(new, old).item() == pytest.approx(expected, abs=1e-12)


def test_similarity_equals_its_definition(maps: tuple[Tensor, Tensor]) -> None:
    """The formula in numpy."""
    likeness = []
    for one in maps:
        rows = one.numpy().reshape(3, -1)
        products = np.array([[sum(a * b) for b in rows] for a in rows])
        likeness.append([row / math.sqrt(sum(row**2)) for row in products])
    expected = sum((np.array(likeness[0]) - np.array(likeness[1])).ravel() ** 2) / 9
    assert similarity_distillation(*maps).item() == pytest.approx(expected, abs=1e-12)


def test_similarity_of_an_image_without_features(maps: tuple[Tensor, Tensor]) -> None:
    """Its row of G stays zeros, all gradients are finite and none is huge; a batch of one is refused."""
    new = maps[0].clone()
    new[1] = 0
    value = similarity_distillation(new.requires_grad_(), maps[1])
    found = torch.autograd.grad(value, new)[0]
    assert value.isfinite()
    assert found.isfinite().all()
    assert found.abs().max() < 10
    assert similarity_distillation(0 * new, maps[1]).item() == pytest.approx(1 / 3, abs=1e-12)  # G' has 3 unit rows
    with pytest.raises(ModelError, match="batch of one"):
        similarity_distillation(new[:1], maps[1][:1])


def test_autocast_does_not_touch_the_products(maps: tuple[Tensor, Tensor]) -> None:
    """Inside a bfloat16 region the similarity loss of float32 maps is the same number."""
    new, old = maps[0].float(), maps[1].float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = similarity_distillation(new, old)
    assert torch.equal(inside, similarity_distillation(new, old))


def test_ilt_pixels() -> None:
    """Labels bg, old 1, new 2, ignore: the old network sees background first, then a class everywhere."""
    labels = torch.tensor([[[0, 0, 1, 2, 255]]])
    seen = torch.tensor([0, 1, 1, 1, 1])
    old = torch.nn.functional.one_hot(seen, 2).T.reshape(1, 2, 1, 5).float()
    picked = {
        where: ilt_pixels(labels, old, [2, 3], where).flatten().tolist()
        for where in ("all", "old_or_background", "old")
    }  # type: ignore[arg-type]
    assert picked["all"] == [True, True, True, True, False]
    assert picked["old_or_background"] == [True, True, True, False, False]
    assert picked["old"] == [False, True, True, False, False]


def test_what_cannot_be_compared_is_refused(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    """More old channels than new, other sizes, no maps, unequal counts of maps, no temperature, an unknown mask."""
    new, old, _ = logits
    for wrong in (torch.zeros(3, 6, 2, 4), torch.zeros(3, 3, 2, 5), torch.zeros(1, 3, 2, 4)):
        with pytest.raises(ModelError, match="cannot be compared"):
            unbiased_distillation(new, wrong)
    for pair in (([], []), ([old], [old, old]), ([old], [new])):
        with pytest.raises(ModelError, match="cannot be compared"):
            decoder_distillation(*pair)
    with pytest.raises(ModelError, match="temperature 0"):
        temperature_distillation(new, old, 0.0)
    with pytest.raises(ModelError, match="old_or_background"):
        ilt_pixels(torch.zeros(1, 1, 1, dtype=torch.long), old[:1], [3], "new")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("visible", "merged"),
    [
        ((1, 2, 3, 4), ()),  # plain cross-entropy
        ((3, 4), (1, 2)),  # MiB's unbiased one: what was learnt before may stand as background
        ((1, 2), (3, 4)),  # MiB-AugM's for replay: what is learnt now may stand as background
    ],
)
def test_merged_cross_entropy_reduces(visible: tuple[int, ...], merged: tuple[int, ...]) -> None:
    """S = all, new, old: -log p(y) with p(bg) = p_0 + the probabilities of the hidden classes, image by image too."""
    dice = torch.Generator().manual_seed(7)
    logits = torch.randn(2, 5, 3, 3, generator=dice, dtype=torch.float64) * 3
    target = torch.tensor([0, *visible])[torch.randint(0, len(visible) + 1, (2, 3, 3), generator=dice)]
    is_visible = torch.tensor([c in visible for c in range(5)]).expand(2, 5)
    each = []
    for b, i, j in np.ndindex(2, 3, 3):
        p, y = softmax(logits[b, :, i, j].numpy()), int(target[b, i, j])
        each.append(-math.log(p[y] if y else p[0] + sum(p[c] for c in merged)))
    assert merged_cross_entropy(logits, target, is_visible).item() == pytest.approx(np.mean(each), abs=1e-12)
    singles = [merged_cross_entropy(logits[b : b + 1], target[b : b + 1], is_visible[:1]).item() for b in range(2)]
    assert np.mean(singles) == pytest.approx(np.mean(each), abs=1e-12)
