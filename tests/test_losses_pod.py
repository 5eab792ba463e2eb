"""PLOP's local POD and pseudo-labels: by hand, by definition region by region, and where there is nothing to see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.pod import (
    BINS,
    entropy_thresholds,
    local_pod,
    pod_distillation,
    pod_factor,
    pod_logits,
    pseudo_entropy,
    pseudo_labels,
)


def region_by_region(image: np.ndarray, scales: tuple[int, ...], square: bool) -> np.ndarray:
    """The vector of one image [D, h, w]: every region's means over width and height, all scales."""
    image = image**2 if square else image
    _, h, w = image.shape
    parts = []
    for s in scales:
        for i in range(s):
            for j in range(s):
                region = image[:, i * h // s : (i + 1) * h // s, j * w // s : (j + 1) * w // s]
                if region.size:
                    parts += [region.mean(2).ravel(), region.mean(1).ravel()]
    return np.concatenate(parts)


def two_class(*probabilities: float) -> Tensor:
    """Logits float64 [1, 2, 1, n] whose softmax gives class 1 these probabilities."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([(1 - p).log(), p.log()])[None, :, None]


def entropy2(p: float) -> float:
    """Entropy of (p, 1 - p) in bits: over log 2, u for V = 2."""
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    """Random maps of three images, 5 rows and 7 columns: sides that no scale divides."""
    dice = torch.Generator().manual_seed(11)
    new, old = (torch.randn(3, 2, 5, 7, generator=dice, dtype=torch.float64) for _ in range(2))
    return new, old


def test_local_pod_by_hand() -> None:
    """[[1, 2], [3, 4]] squared is [[1, 4], [9, 16]]; against zeros at scale 1 and at scales 1 and 2.

    Scale 1: row means 2.5, 12.5 and column means 5, 10: 6.25 + 156.25 + 25 + 100 = 287.5.
    Scale 2: four regions of one pixel, each its own mean twice: 2 (1 + 16 + 81 + 256) = 708.
    """
    new = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64).view(1, 1, 2, 2)
    zeros = torch.zeros_like(new)
    assert local_pod(new, zeros, (1,)).item() == pytest.approx(math.sqrt(287.5), abs=1e-12)
    assert local_pod(new, zeros, (1, 2)).item() == pytest.approx(math.sqrt(287.5 + 708), abs=1e-12)


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("scales", [(1,), (1, 2, 4), (3, 6)])
def test_local_pod_equals_its_definition(square: bool, scales: tuple[int, ...], maps: tuple[Tensor, Tensor]) -> None:
    """The mean over images of the length of the difference, scale 6 with rows that hold no region."""
    vectors = [[region_by_region(image.numpy(), scales, square) for image in one] for one in maps]
    expected = np.mean([math.dist(a, b) for a, b in zip(*vectors, strict=True)])
    assert local_pod(*maps, scales, square=square).item() == pytest.approx(expected, abs=1e-12)


def test_batch_is_the_mean_of_singles(maps: tuple[Tensor, Tensor]) -> None:
    """Lengths are averaged over the batch, so images do not touch one another."""
    new, old = maps
    singles = torch.stack([local_pod(new[i : i + 1], old[i : i + 1]) for i in range(3)])
    assert torch.allclose(local_pod(new, old), singles.mean(), atol=1e-12)


def test_stages_are_averaged(maps: tuple[Tensor, Tensor]) -> None:
    """Stages of different sizes count alike; unequal numbers of stages are refused."""
    new, old = maps
    smaller = new[..., :2, :2], old[..., :2, :2]
    expected = (local_pod(new, old) + local_pod(*smaller)) / 2
    assert torch.allclose(pod_distillation([new, smaller[0]], [old, smaller[1]]), expected, atol=1e-12)
    with pytest.raises(ModelError, match="cannot be compared"):
        pod_distillation([new], [])


def test_logits_sum_new_into_background() -> None:
    """New channels (bg 1, class 2, new 3 and 4) become (8, 2); against (0, 1), one pixel at scale 1, each mean twice.

    Squares 64 and 4 against 0 and 1: sqrt(2 (64^2 + 3^2)) = sqrt(8210).
    """
    new = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(1, 4, 1, 1)
    old = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 2, 1, 1)
    assert pod_logits(new, old, (1,)).item() == pytest.approx(math.sqrt(8210), abs=1e-12)
    assert torch.equal(pod_logits(new[:, :2], old), local_pod(new[:, :2], old))
    with pytest.raises(ModelError, match="cannot be compared"):
        pod_logits(old, new)


def test_gradients(maps: tuple[Tensor, Tensor]) -> None:
    """They agree with finite differences, through the sum into background too; the old side gets none."""
    new, old = maps[0].requires_grad_(), maps[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: local_pod(x, old.detach()), (new,))
    assert torch.autograd.gradcheck(lambda x: local_pod(x, old.detach(), square=False), (new,))
    assert torch.autograd.gradcheck(lambda x: pod_logits(x, old.detach()[:, :1]), (new,))
    assert torch.autograd.grad(local_pod(new, old), (old,), allow_unused=True) == (None,)


def test_equal_maps_give_zero_and_no_gradient(maps: tuple[Tensor, Tensor]) -> None:
    """At a difference of 0, where the root has no slope, the gradient is 0, not NaN."""
    new = maps[0].requires_grad_()
    value = local_pod(new, new.detach())
    assert value.item() == 0
    assert torch.autograd.grad(value, new)[0].eq(0).all()


def test_half_precision_does_not_overflow() -> None:
    """Float16 entries of 1e3, whose squares float16 cannot hold, give a finite float32 loss."""
    new = torch.full((1, 1, 4, 4), 1e3, dtype=torch.float16)
    value = local_pod(new, torch.zeros_like(new), (1,))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1e6 * math.sqrt(8))


@pytest.mark.parametrize("scales", [(), (0, 1)])
def test_impossible_scales_are_refused(scales: tuple[int, ...], maps: tuple[Tensor, Tensor]) -> None:
    """No scale, or a scale of no regions."""
    with pytest.raises(ModelError, match="scales"):
        local_pod(*maps, scales)


def test_entropy_by_hand() -> None:
    """Uniform over four is 1; (1/2, 1/2, 0, 0) is log 2 / log 4 = 1/2; certainty is 0; one class is always 0."""
    odds = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    logits = (odds + 1e-300).log().T.reshape(1, 4, 1, 3)
    assert pseudo_entropy(logits).flatten().tolist() == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert pseudo_entropy(torch.randn(1, 1, 2, 2)).eq(0).all()


def test_entropy_equals_its_definition() -> None:
    """- sum q log q / log V pixel by pixel, always within 0..1."""
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 4
    u = pseudo_entropy(logits)
    for b, i, j in np.ndindex(2, 3, 4):
        q = np.exp(logits[b, :, i, j].numpy())
        q = q / q.sum()
        assert u[b, i, j].item() == pytest.approx(-sum(q * np.log(q)) / math.log(5), abs=1e-12)
    extreme = pseudo_entropy(torch.tensor([[0.0, 1e4], [0.0, -1e4]]).view(1, 2, 1, 2))
    assert ((extreme >= 0) & (extreme <= 1)).all()


def test_thresholds_by_hand() -> None:
    """Medians over background pixels of two batches, by predicted class, pixels of other labels left out.

    Class 1 is predicted with 0.6, 0.7, 0.9: the median is u(0.7). Class 0 with 1 - 1e-5 only: its u of 2e-4 is
    below the floor of 2 x 1e-3. The pixel of 0.99 is labelled 3 and those of 255 are ignored, so they do not count.
    """
    pairs = [
        (two_class(0.6, 0.9, 1e-5, 0.99), torch.tensor([[[0, 0, 0, 3]]])),
        (two_class(0.7, 0.99, 0.99), torch.tensor([[[0, 255, 255]]])),
    ]
    tau = entropy_thresholds(iter(pairs), 2)
    assert tau[0].item() == pytest.approx(2e-3)
    assert 0 <= tau[1].item() - entropy2(0.7) <= 1 / BINS + 1e-7
    assert entropy_thresholds(pairs, 2, floor=0.48).tolist() == pytest.approx([0.96, 0.96])


def test_thresholds_are_medians_of_many_pixels() -> None:
    """Against the exact lower median per class: at most a bin above it, for an even and an odd number of pixels."""
    dice = torch.Generator().manual_seed(12)
    logits = torch.randn(2, 4, 20, 21, generator=dice) * 2
    labels = torch.randint(0, 2, (2, 20, 21), generator=dice)
    tau = entropy_thresholds([(logits[i : i + 1], labels[i : i + 1]) for i in range(2)], 4)
    u, guess = pseudo_entropy(logits), logits.argmax(1)
    for c in range(4):
        exact = u[(labels == 0) & (guess == c)].median().item()
        assert -1e-6 <= tau[c].item() - exact <= 1 / BINS + 1e-6


def test_thresholds_of_classes_never_predicted() -> None:
    """Such a class, and every class where there is no data or no background, gets floor x V."""
    assert entropy_thresholds([], 3).tolist() == pytest.approx([3e-3] * 3)
    nothing = [(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255))]
    assert entropy_thresholds(nothing, 3).tolist() == pytest.approx([3e-3] * 3)
    with pytest.raises(ModelError, match="announced"):
        entropy_thresholds(nothing, 4)


def test_pseudo_labels_by_hand() -> None:
    """Sure background pixels take the old class, unsure ones 255, labels stay; nu is 2 accepted of 3, then 1 of 1.

    tau = (0.5, 0.6): class 1 at 0.9 has u = 0.47 and passes, at 0.7 u = 0.88 and does not; class 0 at 0.99 passes.
    The second image has one background pixel, the third none.
    """
    logits = torch.cat([two_class(0.9, 0.7, 0.01, 0.9), *[two_class(0.9, 0.9, 0.9, 0.9)] * 2])
    labels = torch.tensor([[[0, 0, 0, 3]], [[0, 3, 255, 3]], [[3, 3, 255, 255]]])
    found, nu = pseudo_labels(labels, logits, torch.tensor([0.5, 0.6]))
    assert found.tolist() == [[[1, 255, 0, 3]], [[1, 3, 255, 3]], [[3, 3, 255, 255]]]
    assert found.dtype == torch.int64
    assert nu.tolist() == pytest.approx([2 / 3, 1, 1])


def test_pseudo_labels_at_the_threshold_are_refused() -> None:
    """u < tau is strict: threshold 0 accepts nothing, so all background is ignored and nu is 0."""
    found, nu = pseudo_labels(torch.zeros(1, 1, 2, dtype=torch.long), two_class(0.9, 0.5), torch.zeros(2))
    assert found.eq(255).all()
    assert nu.item() == 0
    with pytest.raises(ModelError, match="do not fit"):
        pseudo_labels(torch.zeros(1, 1, 2, dtype=torch.long), two_class(0.9, 0.5), torch.zeros(3))


def test_factor() -> None:
    """sqrt(21/5) for 15-5 on VOC with background counted; a step of no class is refused."""
    assert pod_factor(21, 5) == pytest.approx(math.sqrt(4.2))
    with pytest.raises(ModelError, match="0 new"):
        pod_factor(21, 0)
