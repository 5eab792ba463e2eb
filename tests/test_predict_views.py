"""Predictions averaged over views: each crop adds what it sees, where it lies."""

from __future__ import annotations

import numpy as np
import pytest

from replaygen.learn import NetworkSpec, ViewSpec, build_network, predict_over_views, predict_probabilities
from replaygen.learn.networks import SegNet
from replaygen.learn.views import view_box


@pytest.fixture(scope="module")
def net() -> SegNet:
    """A small random network of three channels."""
    return build_network(NetworkSpec(kind="small", widths=(8, 16)), 3, seed=0).eval()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A random picture, wider than high."""
    return np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)


def test_one_look_is_the_plain_prediction(net: SegNet, image: np.ndarray) -> None:
    """With view 0 alone the average is that one prediction."""
    spec = ViewSpec(size=32, count=4)
    plain = predict_probabilities(net, image, 32, flip=True)
    assert np.allclose(predict_over_views(net, image, "x", spec, views=1, flip=True), plain, atol=1e-6)


def test_probabilities_stay_probabilities(net: SegNet, image: np.ndarray) -> None:
    """Everywhere the average of views sums to 1."""
    made = predict_over_views(net, image, "x", ViewSpec(size=32, count=6))
    assert made.shape == (3, 40, 56)
    assert np.allclose(made.sum(0), 1, atol=1e-5)


def test_a_crop_speaks_only_for_its_own_part(net: SegNet, image: np.ndarray) -> None:
    """Outside a crop's box the second look changes nothing; inside it does."""
    spec = ViewSpec(size=32, count=2, crop=(0.4, 0.5))
    one = predict_over_views(net, image, "x", spec, views=1)
    two = predict_over_views(net, image, "x", spec, views=2)
    (left, top, right, bottom), _ = view_box(40, 56, "x", 1, spec)
    inside = np.zeros((40, 56), bool)
    inside[round(top) : round(bottom), round(left) : round(right)] = True
    changed = (np.abs(one - two) > 1e-7).any(0)
    assert changed[inside].mean() > 0.9
    assert not changed[~inside].any()


def test_mirrored_views_are_turned_back(image: np.ndarray) -> None:
    """A network that reads colour pixel by pixel says the same in every view, mirrored ones too."""
    import torch

    class Colour(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (images,)

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(20.0))

        def forward(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return self.scale * features[0]

    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :20, 0] = picture[:, 20:45, 1] = picture[:, 45:, 2] = 255
    spec = ViewSpec(size=64, count=8, crop=(0.6, 1.0))
    made = predict_over_views(SegNet(Colour(), Head(), 3), picture, "y", spec)
    assert any(view_box(64, 64, "y", v, spec)[1] for v in range(8))
    assert (made.argmax(0) == picture.argmax(2)).mean() > 0.98
