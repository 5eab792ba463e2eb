"""CutMix between current and replay samples: what is pasted, from whom, and that it is a function of seed and t."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from replaygen.errors import DataError
from replaygen.learn import Batch, CutMixed, MixedBatches, Samples, ViewSpec, feature_item, image_item
from replaygen.learn.mixing import partners

VIEWS = ViewSpec(size=32, count=1)


def flat(value: int, side: int = 32) -> np.ndarray:
    """A square of one value."""
    return np.full((side, side), value, np.uint8)


def images(kind: str, value: int, visible: tuple[int, ...], count: int = 4) -> Samples:
    """Grey pictures whose every pixel is of the class that the value says."""
    return Samples([
        image_item(f"{kind}-{i}", visible, kind == "replay",
                   lambda: (np.repeat(flat(value * 20)[..., None], 3, 2), flat(value)), VIEWS)
        for i in range(count)
    ])  # fmt: skip


def mixed(share: float, buffer: bool = True, seed: int = 3) -> CutMixed:
    """Class 3 in current pictures, class 1 in replay."""
    replay = images("replay", 1, (1,)) if buffer else None
    batches = MixedBatches(images("current", 3, (2, 3)), replay, batch=6, seed=0, iterations=8, channels=4)
    return CutMixed(batches, share, seed)


def foreign(batch: Batch) -> list[float]:
    """For each sample the share of pixels that are of the other kind."""
    own = torch.where(batch.replay, 1, 3)[:, None, None]
    return (batch.masks != own).float().mean((1, 2)).tolist()


def test_pixels_and_labels_are_pasted_together() -> None:
    """Every pixel's grey still belongs to its label."""
    batch = mixed(1.0)[0]
    assert batch.images is not None
    assert torch.allclose(batch.images[:, 0] * 255, batch.masks.float() * 20, atol=0.01)


def test_each_kind_receives_from_the_other() -> None:
    """With share 1 every sample holds a rectangle of the other kind, within the range of areas up to rounding."""
    shares = [share for t in range(8) for share in foreign(mixed(1.0)[t])]
    assert min(shares) > 0.08
    assert max(shares) < 0.65


def test_share_of_samples() -> None:
    """Half of the samples receive with share 0.5, none with 0."""
    hit = [share > 0 for t in range(8) for share in foreign(mixed(0.5)[t])]
    assert 0.25 < sum(hit) / len(hit) < 0.75
    assert not any(share > 0 for share in foreign(mixed(0.0)[0]))


def test_visible_is_what_both_can_be_trusted_for() -> None:
    """A sample that received is visible where both are: nowhere for {1} and {2, 3}."""
    assert not mixed(1.0)[0].visible.any()
    assert mixed(0.0)[0].visible.any(1).all()


def test_batch_depends_on_seed_and_place_only() -> None:
    """Batch 5 is the same whether or not others were asked for, and another with another seed."""
    later = mixed(1.0)
    for t in range(5):
        _ = later[t]
    assert torch.equal(later[5].masks, mixed(1.0)[5].masks)
    assert not torch.equal(mixed(1.0)[5].masks, mixed(1.0, seed=4)[5].masks)


def test_without_replay_samples_receive_from_each_other() -> None:
    """A batch of one kind only mixes within it and keeps its labels' classes."""
    batch = mixed(1.0, buffer=False)[0]
    assert set(batch.masks.unique().tolist()) == {3}
    assert set(partners(torch.zeros(5, dtype=torch.bool), torch.Generator().manual_seed(0))) <= set(range(5))


def test_cached_features_are_cut_in_cells_of_the_coarsest_map() -> None:
    """Maps of 8 and 4 cells and masks of 16 are pasted over the same part of the picture."""
    views = ViewSpec(size=32, count=1, label_size=16)

    def some(kind: str, value: int) -> Samples:
        maps = tuple(torch.full((2, side, side), float(value)) for side in (8, 4))
        return Samples([
            feature_item(f"{kind}-{i}", (1, 3), kind == "replay", lambda v: maps, lambda: flat(value), views)
            for i in range(4)
        ])  # fmt: skip

    batches = MixedBatches(some("current", 3), some("replay", 1), batch=4, seed=0, iterations=2, channels=4)
    batch = CutMixed(batches, 1.0, 0)[0]
    assert batch.features is not None
    for taps in batch.features:
        up = torch.nn.functional.interpolate(taps[:, :1], (16, 16), mode="nearest")[:, 0]
        assert torch.equal(up, batch.masks.float())


def test_bad_settings_and_maps_are_refused() -> None:
    """Shares beyond 1, and maps that do not divide into the cells, say what to do."""
    with pytest.raises(DataError, match="must be shares"):
        mixed(1.5)
    odd = ViewSpec(size=30, count=1)
    items = [image_item(f"a{i}", (1,), False, lambda: (np.zeros((30, 30, 3), np.uint8), flat(1, 30)), odd)
             for i in range(2)]  # fmt: skip
    batches = MixedBatches(Samples(items), None, batch=2, seed=0, iterations=20, channels=2)
    with pytest.raises(DataError, match="cannot be cut"):
        [CutMixed(batches, 1.0, 0)[t] for t in range(20)]
