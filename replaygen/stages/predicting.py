"""Predictions inside stages: over the fixed views of an image, from cached features where there are some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replaygen.labelers.model import Probabilities
    from replaygen.learn import SegNet
    from replaygen.sample import Image8
    from replaygen.stages.context import Features


def predict(
    net: SegNet,
    image: Image8,
    sample: str,
    features: Features,
    *,
    views: Mapping[str, Any],
    looks: int,
    flip: bool,
) -> Probabilities:
    """Class probabilities of one image: the mean over its first `looks` fixed views, and over their mirror images.

    Args:
        net: the network.
        image: uint8 [H, W, 3].
        sample: its id, which seeds the views and names its cached features.
        features: cached features; false where there are none, and the views are encoded.
        views: a plain `ViewSpec`.

    Returns:
        float32 [C, H, W], sums to 1 over channels.
    """
    from replaygen.learn import ViewSpec, predict_over_views

    spec = ViewSpec.model_validate(views)
    cached = (lambda v: features.read(sample, v)) if features else None
    return predict_over_views(net, image, sample, spec, features=cached, views=looks, flip=flip)
