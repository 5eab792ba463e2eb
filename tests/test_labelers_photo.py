"""Labels of photos by one opinion or several: who competes, how opinions are averaged, what is marked and measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaygen.errors import ModelError
from replaygen.labelers.model import Restrict
from replaygen.labelers.photo import OTHER, UNSURE, Opinion, PhotoOpinion, label_by_all, refine_outline
from replaygen.labelers.vectors import region_vectors
from replaygen.sample import IGNORE


def row(*pixels: tuple[float, ...]) -> np.ndarray:
    """Probabilities of a picture of one row, a tuple of channels a pixel: float32 [C, 1, W]."""
    return np.array(pixels, np.float32).T[:, None]


def label(
    *opinions: Opinion, channel: int = 1, restrict: Restrict = "query", step: tuple[int, ...] = (1, 2), **more: float
) -> PhotoOpinion:
    """The label of a photo of class 1 of a step that learnt 1 and 2."""
    return label_by_all(opinions, channel, restrict=restrict, step_channels=step, **more)


# background, the queried class, another of its step, one of an earlier or later step
FOUR = Opinion(
    row((0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.1, 0.2), (0.05, 0.5, 0.15, 0.3), (0.2, 0.25, 0.25, 0.3)), (0, 1, 2, 3)
)


@pytest.mark.parametrize(
    ("restrict", "expected"),
    [("query", [[1, 0, 1, 1]]), ("step", [[0, 0, 1, 1]]), ("seen", [[0, 0, 1, 0]])],
)
def test_only_those_who_compete_can_win(restrict: Restrict, expected: list[list[int]]) -> None:
    """Query: class against background; step: its classes too; seen: all. Another winner is background in the label."""
    assert label(FOUR, restrict=restrict).mask.tolist() == expected


def test_what_competes_is_scaled_to_one() -> None:
    """By hand: 0.2 against 0.1 is 2/3, 0.5 against 0.05 is 10/11, 0.25 against 0.2 is 5/9; share 3/4."""
    told = label(FOUR)
    assert told.share == 0.75
    assert told.confidence == pytest.approx((2 / 3 + 10 / 11 + 5 / 9) / 3, abs=1e-6)
    np.testing.assert_allclose(told.weight, [[2 / 3, 3 / 7, 10 / 11, 5 / 9]], rtol=1e-6)
    assert told.agreement == 1.0
    assert told.other == pytest.approx(2 / 3)


def test_the_mean_of_opinions_decides() -> None:
    """By hand: a network of three classes and a helper of its own two, each scaled to {bg, 1} first, then averaged."""
    model = Opinion(row((0.1, 0.3, 0.6), (0.3, 0.2, 0.5), (0.45, 0.55, 0.0)), (0, 3, 1))
    helper = Opinion(row((0.8, 0.2), (0.6, 0.4), (0.1, 0.9)), (0, 1))
    mine = np.array([6 / 7, 5 / 8, 0.0])
    joint = (mine + np.array([0.2, 0.4, 0.9])) / 2
    told = label(model, helper)
    np.testing.assert_allclose(told.weight[0], joint, rtol=1e-6)
    assert told.mask.tolist() == [[1, 1, 0]]
    assert told.confidence == pytest.approx(joint[:2].mean(), abs=1e-6)
    # alone the model labels pixels 0 and 1, the helper pixel 2
    assert told.agreement == pytest.approx((1.0 + 0.0) / 2)
    assert label(helper, model).mask.tolist() == told.mask.tolist()


def test_ties_are_background() -> None:
    """Where class and background are equal nothing is labelled, for one opinion and for two that cancel out."""
    even = Opinion(row((0.5, 0.5), (0.25, 0.25), (0.0, 0.0)), (0, 1))
    told = label(even)
    assert told.mask.tolist() == [[0, 0, 0]]
    assert (told.share, told.confidence, told.agreement, told.other) == (0.0, 0.0, 1.0, 0.0)
    assert np.isfinite(told.weight).all()
    one, other = Opinion(row((0.25, 0.75)), (0, 1)), Opinion(row((0.75, 0.25)), (0, 1))
    assert label(one, other).mask.tolist() == [[0]]


def test_unsure_pixels_are_left_open() -> None:
    """A winner below `unsure` is 255, be it class or background; one that reaches it stays."""
    told = Opinion(row((0.25, 0.75), (0.375, 0.625), (0.625, 0.375), (0.75, 0.25)), (0, 1))
    assert label(told, unsure=0.75).mask.tolist() == [[1, IGNORE, IGNORE, 0]]
    assert label(told, unsure=0.0).mask.tolist() == [[1, 1, 0, 0]]


def test_marks_tell_what_could_be_erased() -> None:
    """UNSURE where the winner is doubtful, OTHER where the widest opinion sees another class outside the label."""
    narrow = Opinion(row((0.9, 0.1), (0.55, 0.45), (0.1, 0.9), (0.9, 0.1)), (0, 1))
    wide = Opinion(row((0.1, 0.0, 0.9), (0.55, 0.45, 0.0), (0.04, 0.36, 0.6), (0.9, 0.1, 0.0)), (0, 1, 5))
    told = label(narrow, wide)
    assert told.mask.tolist() == [[0, 0, 1, 0]]
    assert told.marks.tolist() == [[OTHER, UNSURE, 0, 0]]
    assert told.other == 1.0
    assert label(narrow, wide, doubtful=0.5).marks.tolist() == [[OTHER, 0, 0, 0]]
    assert label(narrow).marks.tolist() == [[0, UNSURE, 0, 0]]


def test_a_glance_measures_agreement_and_decides_nothing() -> None:
    """Agreement is the IoU of the label with a single look; the label itself is the mean's."""
    mean = row((0.2, 0.8), (0.2, 0.8), (0.8, 0.2), (0.8, 0.2))
    glance = row((0.2, 0.8), (0.8, 0.2), (0.2, 0.8), (0.8, 0.2))
    told = label(Opinion(mean, (0, 1), glance))
    assert told.mask.tolist() == [[1, 1, 0, 0]]
    assert told.agreement == pytest.approx(1 / 3)
    assert label(Opinion(mean, (0, 1), mean)).agreement == 1.0


def test_networks_that_do_not_know_the_class_are_refused() -> None:
    """No opinion, a helper of another step, and one that lacks a class of the step."""
    with pytest.raises(ModelError, match="without an opinion"):
        label()
    with pytest.raises(ModelError, match=r"asked for \[1\]"):
        label(Opinion(row((0.5, 0.5)), (0, 4)))
    with pytest.raises(ModelError, match=r"asked for \[2\]"):
        label(Opinion(row((0.5, 0.5)), (0, 1)), restrict="step")
    with pytest.raises(ModelError, match=r"asked for \[2, 3\]"):
        label(FOUR, Opinion(row(*[(0.5, 0.5)] * 4), (0, 1)), restrict="seen")


def two_colours(half: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A red left half and a blue right one with grain, and a probability whose edge is 6 pixels too far right."""
    random = np.random.default_rng(0)
    image = np.zeros((40, 2 * half, 3), np.float64)
    image[:, :half], image[:, half:] = (200, 40, 40), (40, 40, 200)
    image += random.normal(0, 8, image.shape)
    probability = np.full((40, 2 * half), 0.05, np.float32)
    probability[:, : half - 8] = 0.95
    probability[:, half - 8 : half + 6] = 0.7
    return np.clip(image, 0, 255).astype(np.uint8), probability


def test_outlines_move_to_the_edge_of_the_picture() -> None:
    """The region of p > 1/2 reaches 6 pixels too far; refined it ends where the colours do, and sure pixels stay."""
    image, probability = two_colours()
    before = image.copy()
    cut = refine_outline(image, probability)
    assert cut.dtype == bool
    assert cut[:, :24].mean() > 0.99
    assert cut[:, 24:].mean() < 0.01
    assert cut[probability > 0.9].all()
    assert not cut[probability < 0.1].any()
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(cut, refine_outline(image, probability))


def test_outlines_stay_where_nothing_is_sure() -> None:
    """Without 20 sure pixels on either side there is nothing to learn colours from."""
    image, probability = two_colours()
    for unsure in (np.minimum(probability, 0.8), np.maximum(probability, 0.2)):
        np.testing.assert_array_equal(refine_outline(image, unsure), unsure > 0.5)
    few = np.full((40, 48), 0.3, np.float32)
    few.ravel()[:19] = 0.95
    few[20:] = 0.05
    np.testing.assert_array_equal(refine_outline(image, few), few > 0.5)


def test_a_refined_label_is_the_cut() -> None:
    """With an image the label is the cut, and share and confidence are those of the cut."""
    image, probability = two_colours()
    told = label_by_all(
        [Opinion(np.stack([1 - probability, probability]), (0, 1))], 1, restrict="query", step_channels=(1,),
        image=image,
    )  # fmt: skip
    cut = refine_outline(image, told.weight)
    np.testing.assert_array_equal(told.mask == 1, cut)
    assert told.share == pytest.approx(cut.mean())
    assert told.confidence == pytest.approx(probability[cut].mean(), abs=1e-5)
    assert told.agreement < 1


def test_a_region_has_the_mean_feature_of_its_cells() -> None:
    """By hand: cells weigh as much as the region covers them; an empty region has no feature."""
    import torch

    deepest = torch.tensor([[[1.0, 3.0]], [[10.0, 20.0]]])
    weight = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.float32)
    region, whole = region_vectors(deepest, weight)
    np.testing.assert_allclose(region, [(1 + 0.25 * 3) / 1.25, (10 + 0.25 * 20) / 1.25], rtol=1e-6)
    np.testing.assert_allclose(whole, [2, 15])
    np.testing.assert_array_equal(region_vectors(deepest, np.zeros((2, 4), np.float32))[0], [0, 0])


shapes = st.tuples(
    st.integers(1, 3), st.integers(2, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1)
)


def drawn(shape: tuple[int, int, int, int, int]) -> list[Opinion]:
    """Opinions of bg + n classes, now sure and now not; the first knows all, the others perhaps fewer."""
    voters, n, height, width, seed = shape
    random = np.random.default_rng(seed)
    made = []
    for voter in range(voters):
        channels = (0, *random.permutation(np.arange(1, n + 1 if voter == 0 else 3)).tolist())
        odds = [np.exp(random.normal(size=(len(channels), height, width)) * random.choice([0.1, 2, 40])) for _ in "ab"]
        first, second = (one / one.sum(0) for one in odds)
        glance = second.astype(np.float32) if random.random() < 0.5 else None
        made.append(Opinion(first.astype(np.float32), channels, glance))
    return made


@settings(max_examples=150, deadline=None)
@given(shapes, st.sampled_from(["query", "step"]), st.floats(0, 1, width=32), st.booleans())
def test_a_label_holds_background_its_class_and_void(
    shape: tuple[int, int, int, int, int], restrict: Restrict, unsure: float, refined: bool
) -> None:
    """Whatever networks say: masks in {0, channel, 255}, marks in {0, 1, 2}, every score in 0..1, no NaN."""
    opinions = drawn(shape)
    channel = 1 + shape[-1] % 2
    height, width = shape[2:4]
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8) if refined else None
    told = label_by_all(
        opinions, channel, restrict=restrict, step_channels=(1, 2), unsure=unsure, image=image
    )  # fmt: skip
    assert told.mask.dtype == told.marks.dtype == np.uint8
    assert told.mask.shape == told.marks.shape == told.weight.shape == (height, width)
    assert set(np.unique(told.mask)) <= {0, channel, IGNORE}
    assert set(np.unique(told.marks)) <= {0, OTHER, UNSURE}
    assert all(0 <= value <= 1 for value in (told.share, told.confidence, told.agreement, told.other))
    assert np.isfinite(told.weight).all()
    assert not (told.marks[told.mask == channel] == OTHER).any()
    assert (told.mask == channel).mean() == pytest.approx(told.share)
    if unsure > 0:
        open_ = label_by_all(opinions, channel, restrict=restrict, step_channels=(1, 2), image=image)
        assert ((told.mask == open_.mask) | (told.mask == IGNORE)).all()
