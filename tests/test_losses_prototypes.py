"""SDR's prototypes and losses: by hand, by definition in numpy, by finite differences, and where nothing is there."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.prototypes import (
    CLOSEST,
    Prototypes,
    attraction,
    centroids,
    completed_labels,
    nearest_labels,
    prototype_matching,
    repulsion,
    sparsity,
)

Loss = Callable[[Tensor, Tensor, int], Tensor]
LOSSES: list[Loss] = [attraction, repulsion, sparsity]
Case = tuple[Tensor, Tensor]


def row_of_pixels(*pixels: tuple[float, ...]) -> Tensor:
    """One image of height 1: features float64 [1, D, 1, pixels]."""
    return torch.tensor(pixels, dtype=torch.float64).T.reshape(1, -1, 1, len(pixels))


def matched(prototypes: Prototypes, old: tuple[int, ...]) -> Loss:
    """`prototype_matching` with the other losses' arguments."""
    return lambda features, labels, channels: prototype_matching(features, labels, prototypes, old)


@pytest.fixture
def case() -> Case:
    """Two images of positive features, classes 0, 1, 3 of five and some ignored pixels; class 2 and 4 are absent."""
    dice = torch.Generator().manual_seed(8)
    features = torch.rand(2, 3, 4, 4, generator=dice, dtype=torch.float64) + 0.05
    labels = torch.tensor([0, 1, 3, 255])[torch.randint(0, 4, (2, 4, 4), generator=dice)]
    return features, labels


@pytest.fixture
def prototypes() -> Prototypes:
    """Five channels of width 3: 0, 1, 2 met before, 3 and 4 not."""
    dice = torch.Generator().manual_seed(9)
    made = Prototypes(5, 3)
    made.update(torch.rand(1, 3, 2, 3, generator=dice), torch.tensor([[[0, 1, 2], [2, 1, 0]]]))
    return made


def by_class(features: Tensor, labels: Tensor) -> dict[int, np.ndarray]:
    """The feature vectors of each class, [n_c, D], gathered pixel by pixel."""
    found: dict[int, list[np.ndarray]] = {}
    for b, i, j in np.ndindex(*labels.shape):
        if labels[b, i, j] != 255:
            found.setdefault(int(labels[b, i, j]), []).append(features[b, :, i, j].detach().numpy())
    return {c: np.array(rows) for c, rows in found.items()}


def test_nearest_labels_read_what_torch_reads() -> None:
    """Halving takes rows and columns 0, 2, ...; odd and growing sizes agree with torch's nearest interpolation."""
    labels = torch.arange(16).view(1, 4, 4)
    assert nearest_labels(labels, (2, 2)).tolist() == [[[0, 2], [8, 10]]]
    odd = torch.randint(0, 256, (2, 11, 7), generator=torch.Generator().manual_seed(1))
    for size in ((3, 2), (11, 7), (4, 4), (22, 9)):
        expected = torch.nn.functional.interpolate(odd[:, None].float(), size=size, mode="nearest")[:, 0].long()
        assert torch.equal(nearest_labels(odd, size), expected)


def test_completed_labels() -> None:
    """New classes and 255 stay; background takes what the old network sees, and old labels do too."""
    labels = torch.tensor([[[0, 0, 1, 2, 255]]])
    seen = torch.nn.functional.one_hot(torch.tensor([1, 0, 0, 1, 1]), 2).T.reshape(1, 2, 1, 5).float()
    assert completed_labels(labels, seen, [2]).tolist() == [[[1, 0, 0, 2, 255]]]
    with pytest.raises(ModelError, match="do not fit"):
        completed_labels(labels, seen[..., :2], [2])


def test_running_mean_by_hand() -> None:
    """Class 1 meets (2, 0), (4, 2), then (9, 4): mean (3, 1), then (5, 2); class 0 keeps (1, 1); 255 counts nowhere."""
    held = Prototypes(3, 2)
    held.update(row_of_pixels((2, 0), (4, 2), (1, 1), (99, 99)), torch.tensor([[[1, 1, 0, 255]]]))
    assert held.mean.tolist() == [[1, 1], [3, 1], [0, 0]]
    held.update(row_of_pixels((9, 4), (50, 50)), torch.tensor([[[1, 7]]]))
    assert held.mean.tolist() == [[1, 1], [5, 2], [0, 0]]
    assert held.count.tolist() == [1, 3, 0]
    assert held.known.tolist() == [True, True, False]


def test_running_mean_is_the_mean_of_the_stream() -> None:
    """A hundred batches of unequal class counts end at the float64 mean over all their pixels."""
    dice = torch.Generator().manual_seed(2)
    batches = [
        (torch.rand(1, 2, 3, 3, generator=dice), torch.randint(0, 3, (1, 3, 3), generator=dice)) for _ in range(100)
    ]
    held = Prototypes(3, 2)
    for features, labels in batches:
        held.update(features, labels)
    everything = by_class(torch.cat([f for f, _ in batches]).double(), torch.cat([y for _, y in batches]))
    expected = np.array([everything[c].mean(0) for c in range(3)])
    assert np.allclose(held.mean.numpy(), expected, rtol=0, atol=1e-6)


def test_tensors_are_live_and_restored_in_place(prototypes: Prototypes) -> None:
    """`update` shows in the tensors taken before it, and writing a saved copy into them takes it back."""
    live = prototypes.tensors()
    saved = {name: tensor.clone() for name, tensor in live.items()}
    prototypes.update(torch.ones(1, 3, 1, 1), torch.tensor([[[4]]]))
    assert live["mean"][4].tolist() == [1, 1, 1]
    for name, tensor in live.items():
        tensor.copy_(saved[name])
    assert prototypes.known.tolist() == [True, True, True, False, False]


def test_grown_and_loaded_are_copies(prototypes: Prototypes) -> None:
    """Both hold the same means and do not change what they came from; shrinking and foreign tensors are refused."""
    grown, loaded = prototypes.grown(7), Prototypes.from_tensors(prototypes.tensors())
    assert grown.known.tolist() == [True, True, True, False, False, False, False]
    assert torch.equal(grown.mean[:5], prototypes.mean)
    assert torch.equal(loaded.mean, prototypes.mean)
    before = prototypes.mean.clone()
    for copy in (grown, loaded):
        copy.update(torch.ones(1, 3, 1, 1), torch.tensor([[[0]]]))
    assert torch.equal(prototypes.mean, before)
    with pytest.raises(ModelError, match="cannot become 4"):
        prototypes.grown(4)
    with pytest.raises(ModelError, match="no prototypes"):
        Prototypes.from_tensors({"mean": before})
    with pytest.raises(ModelError, match="width"):
        prototypes.update(torch.ones(1, 2, 1, 1), torch.tensor([[[0]]]))


def test_losses_by_hand() -> None:
    """Class 1 holds (0, 0) and (6, 8), so p^ = (3, 4); class 2 holds (3, 1), which is its p^.

    Attraction: class 1 lies 5 from its centroid, class 2 lies 0: (5 + 0)/2. Repulsion: the centroids are 3 apart,
    (1/2)(1/3 + 1/3). Matching of 1 with p = (0, 0): 5. Sparsity: m_1 = 8, m_2 = 3; (0, 0) is left out,
    (6, 8)/8 = (3/4, 1) and (3, 1)/3 = (1, 1/3) remain.
    """
    features, labels = row_of_pixels((0, 0), (6, 8), (3, 1), (7, 7)), torch.tensor([[[1, 1, 2, 255]]])
    assert attraction(features, labels, 3).item() == pytest.approx(2.5, abs=1e-12)
    assert repulsion(features, labels, 3).item() == pytest.approx(1 / 3, abs=1e-12)
    ratios = (math.exp(0.75) + math.e) / 1.75, (math.e + math.exp(1 / 3)) / (4 / 3)
    assert sparsity(features, labels, 3).item() == pytest.approx(sum(ratios) / 2, abs=1e-7)
    held = Prototypes(3, 2)
    held.update(row_of_pixels((-1, 0), (1, 0)), torch.tensor([[[1, 1]]]))
    assert prototype_matching(features, labels, held, [0, 1]).item() == pytest.approx(5, abs=1e-12)


def test_losses_equal_their_definition(case: Case, prototypes: Prototypes) -> None:
    """Each formula in numpy over the pixels gathered by class."""
    groups = by_class(*case)
    means = {c: rows.mean(0) for c, rows in groups.items()}
    pull = np.mean([np.mean([math.dist(f, means[c]) for f in rows]) for c, rows in groups.items()])
    assert attraction(*case, 5).item() == pytest.approx(pull, abs=1e-12)
    push = sum(1 / math.dist(means[j], means[k]) for j in means for k in means if j != k) / len(means)
    assert repulsion(*case, 5).item() == pytest.approx(push, abs=1e-12)
    scaled = [f / (rows.max() + 1e-8) for rows in groups.values() for f in rows]
    assert sparsity(*case, 5).item() == pytest.approx(np.mean([np.exp(f).sum() / f.sum() for f in scaled]), abs=1e-12)
    # 0 and 1 are present and known; 2 is known but absent, 3 is present but was never met
    kept = np.mean([math.dist(means[c], prototypes.mean[c].double().numpy()) for c in (0, 1)])
    assert prototype_matching(*case, prototypes, [0, 1, 2, 3]).item() == pytest.approx(kept, abs=1e-12)


def test_centroids(case: Case) -> None:
    """The mean of each class, zeros and absent for the others."""
    found, present = centroids(*case, 5)
    groups = by_class(*case)
    assert present.tolist() == [True, True, False, True, False]
    for c in range(5):
        expected = groups[c].mean(0) if c in groups else np.zeros(3)
        assert np.allclose(found[c].numpy(), expected, rtol=0, atol=1e-14)


def test_gradients(case: Case, prototypes: Prototypes) -> None:
    """They agree with finite differences (sparsity's below: its maximum is held), and skip ignored pixels."""
    features, labels = case[0].requires_grad_(), case[1]
    for loss in (attraction, repulsion, matched(prototypes, (0, 1))):
        assert torch.autograd.gradcheck(lambda f, loss=loss: loss(f, labels, 5), (features,))
    for loss in (*LOSSES, matched(prototypes, (0, 1))):
        found = torch.autograd.grad(loss(features, labels, 5), features)[0].permute(0, 2, 3, 1)
        assert found[labels == 255].eq(0).all()
        assert found[labels != 255].abs().sum() > 0


def test_gradient_of_sparsity(case: Case) -> None:
    """With each class's maximum held by a pixel that does not move, the gradient is the finite difference."""
    features, labels = case
    top = torch.full((2, 3, 1, 4), 2.0, dtype=torch.float64)
    top_labels = torch.tensor([0, 1, 3, 3]).expand(2, 1, 4)

    def loss(moving: Tensor) -> Tensor:
        return sparsity(torch.cat([moving, top], 2), torch.cat([labels, top_labels], 1), 5)

    assert torch.autograd.gradcheck(loss, (features.requires_grad_(),))


def test_sparsity_holds_the_class_maximum() -> None:
    """For (6, 8) alone, m = 8 fixed: d/df_j = (exp(f_j/8) S - E) / (8 S^2), S = 7/4, E = exp(3/4) + e."""
    features = row_of_pixels((6, 8)).requires_grad_()
    found = torch.autograd.grad(sparsity(features, torch.tensor([[[1]]]), 2), features)[0].flatten()
    total = math.exp(0.75) + math.e
    expected = [(math.exp(f / 8) * 1.75 - total) / (8 * 1.75**2) for f in (6, 8)]
    assert found.tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_pixels_does_not_matter_but_their_batch_does(loss: Loss, case: Case) -> None:
    """Two images side by side in one give the batch's number; centroids span the batch, so singles do not average."""
    features, labels = case
    joined = loss(torch.cat([features[:1], features[1:]], 3), torch.cat([labels[:1], labels[1:]], 2), 5)
    assert torch.allclose(loss(features, labels, 5), joined, atol=1e-12)
    singles = torch.stack([loss(features[i : i + 1], labels[i : i + 1], 5) for i in range(2)]).mean()
    assert not torch.allclose(loss(features, labels, 5), singles, atol=1e-6)


@pytest.mark.parametrize("label", [255, 0])
def test_nothing_or_one_class_of_zeros(label: int, prototypes: Prototypes) -> None:
    """All ignored, or one class without active features: finite losses and gradients, 0 but for matching."""
    features = torch.zeros(1, 3, 2, 2, requires_grad=True)
    labels = torch.full((1, 2, 2), label)
    for loss in (*LOSSES, matched(prototypes, (0, 1)), matched(prototypes, ())):
        value = loss(features, labels, 5)
        assert torch.autograd.grad(value, features)[0].isfinite().all()
        assert value.item() == 0 or (label == 0 and value.item() == pytest.approx(prototypes.mean[0].norm().item()))


def test_equal_centroids_do_not_explode() -> None:
    """Two classes with the same centroid: repulsion at its cap, (1/2)(2/CLOSEST), and no gradient."""
    features = torch.ones(1, 2, 1, 2, requires_grad=True)
    value = repulsion(features, torch.tensor([[[0, 1]]]), 2)
    assert value.item() == pytest.approx(1 / CLOSEST)
    assert torch.autograd.grad(value, features)[0].eq(0).all()


def test_large_features_at_ignored_pixels_and_half_precision(case: Case) -> None:
    """Ignored pixels of 6e4 in float16 change no loss and give no NaN; the losses come in float32."""
    features, labels = case[0].half(), case[1]
    wild = torch.where((labels == 255)[:, None], 6e4, features).requires_grad_()
    for loss in LOSSES:
        value = loss(wild, labels, 5)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(features, labels, 5))
        assert torch.autograd.grad(value, wild)[0].isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_does_not_touch_the_means(loss: Loss, case: Case) -> None:
    """Inside a bfloat16 region the losses of float32 features are the same numbers."""
    features, labels = case[0].float(), case[1]
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(features, labels, 5)
    assert torch.equal(inside, loss(features, labels, 5))


def test_labels_of_another_size_are_refused(case: Case) -> None:
    """Labels that were not brought to the features' size name the function that does it."""
    with pytest.raises(ModelError, match="nearest_labels"):
        attraction(case[0], case[1][:, :2], 5)
