"""Views whose colours are changed, and masks smaller than their images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from replaygen.learn import ViewSpec, apply_view, apply_view_to_mask, image_item
from replaygen.learn.views import view_box

PLAIN = ViewSpec(size=24, count=6, crop=(0.5, 0.9))
COLOURED = PLAIN.model_copy(update={"jitter": 0.4})


def picture() -> tuple[Any, Any]:
    """Grey values 60..139 that leave room for jitter, and a mask of 4 channels."""
    rows, columns = np.mgrid[0:40, 0:40]
    grey = (60 + rows + columns).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, 2), (grey // 35).astype(np.uint8)


def test_jitter_leaves_the_whole_image_alone() -> None:
    """View 0 is the photograph as it is."""
    image, _ = picture()
    assert np.array_equal(apply_view(image, None, "a", 0, COLOURED)[0], apply_view(image, None, "a", 0, PLAIN)[0])


@pytest.mark.parametrize("v", range(1, 6))
def test_jitter_changes_colours_and_no_label(v: int) -> None:
    """A crop's colours change and its mask does not."""
    image, mask = picture()
    plain, coloured = (apply_view(image, mask, "a", v, spec) for spec in (PLAIN, COLOURED))
    assert not np.array_equal(plain[0], coloured[0])
    assert np.array_equal(plain[1], coloured[1])  # type: ignore[arg-type]
    assert np.array_equal(apply_view_to_mask(mask, "a", v, COLOURED), plain[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("v", range(1, 6))
def test_jitter_is_a_line_with_bounded_slopes(v: int) -> None:
    """Contrast turns around the mean and brightness scales it, each within 1 - jitter .. 1 + jitter."""
    image, _ = picture()
    before, after = (apply_view(image, None, "a", v, spec)[0].astype(float) for spec in (PLAIN, COLOURED))
    brightness = after.mean() / before.mean()
    contrast = after.std() / before.std() / brightness
    assert 0.59 < brightness < 1.41
    assert 0.58 < contrast < 1.42
    line = ((before - before.mean()) * contrast + before.mean()) * brightness
    assert np.abs(np.clip(line, 0, 255) - after).max() < 1.5


def test_jitter_depends_on_id_and_view_only() -> None:
    """The same sample and view have the same colours again; other ones have others."""
    image = np.full((30, 30, 3), 120, np.uint8)
    found = {
        name: [int(apply_view(image, None, name, v, COLOURED)[0][0, 0, 0]) for v in (1, 2, 3, 1, 2, 3)] for name in "ab"
    }
    assert found["a"][:3] == found["a"][3:]
    assert len({*found["a"], *found["b"]}) > 3


def test_jitter_stays_in_range() -> None:
    """Nothing wraps around: white and black stay bytes near white and black."""
    image = np.zeros((30, 30, 3), np.uint8)
    image[:, 15:] = 255
    for v in range(1, 12):
        square, _ = apply_view(image, None, "x", v, COLOURED)
        assert square.dtype == np.uint8
        assert square.max() > 120 > square.min()


def test_masks_may_be_smaller_than_images() -> None:
    """label_size is the mask's side, size the image's."""
    image, mask = picture()
    spec = ViewSpec(size=32, label_size=8, count=3)
    square, small = apply_view(image, mask, "a", 2, spec)
    assert small is not None
    assert (square.shape, small.shape) == ((32, 32, 3), (8, 8))
    loaded = image_item("a", (1,), False, lambda: (image, mask), spec).load(1)
    assert (loaded[0].shape, loaded[2].shape) == ((32, 32, 3), (8, 8))  # type: ignore[union-attr]


def test_masks_have_the_images_size_by_default() -> None:
    """Without label_size, mask and image are equally large."""
    assert ViewSpec(size=48).mask_size == 48
    assert ViewSpec(size=48, label_size=12).mask_size == 12


@pytest.mark.parametrize("v", range(4))
def test_small_mask_shows_the_same_crop(v: int) -> None:
    """Each pixel of the small mask is the middle of its block of the large one, of the same crop and mirroring."""
    mask = (np.arange(90)[:, None] * 2 // 3 + np.arange(90)[None, :] * 2).astype(np.uint8)
    large, small = (
        apply_view_to_mask(mask, "a", v, ViewSpec(size=90, label_size=side, count=4)) for side in (90, 30)
    )  # fmt: skip
    assert np.array_equal(large[1::3, 1::3], small)


@pytest.mark.parametrize("table", [{"jitter": 1.0}, {"jitter": -0.1}, {"label_size": 2}])
def test_impossible_views_are_refused(table: dict[str, float]) -> None:
    """Jitter that could blacken an image, and masks of no use, are refused."""
    with pytest.raises(ValidationError):
        ViewSpec.model_validate(table)


def test_far_views_are_surrounded_by_mirror_images() -> None:
    """A view of twice the sides holds every pixel of the picture about four times, image and mask alike."""
    spec = ViewSpec(size=64, count=40, crop=(2.0, 2.0), flip=False)
    mask = np.zeros((32, 32), np.uint8)
    mask[4:12, 8:20] = 1
    image = np.repeat(mask[..., None] * 200, 3, 2).astype(np.uint8)
    for v in range(1, 40):
        square, labels = apply_view(image, mask, "far", v, spec)
        assert labels is not None
        assert abs(labels.mean() - mask.mean()) < 0.05
        assert (((square[..., 0] > 100) == (labels == 1)).mean()) > 0.97


def test_near_views_stay_as_they_were() -> None:
    """A range up to 1 gives boxes within the picture, whatever farther ranges do."""
    for v in range(1, 200):
        left, top, right, bottom = view_box(50, 80, "near", v, ViewSpec(count=200, crop=(0.5, 1.0)))[0]
        assert 0 <= left < right <= 80
        assert 0 <= top < bottom <= 50
    assert ViewSpec(crop=(0.5, 1.0)).zoomed(2.0).crop == (0.5, 2.0)
    assert ViewSpec(crop=(0.5, 1.0)).zoomed(1.0).crop == (0.5, 1.0)
    with pytest.raises(ValidationError, match="two shares"):
        ViewSpec(crop=(0.5, 5.0))
