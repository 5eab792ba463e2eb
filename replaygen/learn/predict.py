"""Predictions at full image size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from replaygen.learn.heads import resize
from replaygen.learn.networks import SegNet
from replaygen.learn.samples import stack_images
from replaygen.learn.specs import ViewSpec
from replaygen.learn.views import apply_view, view_box
from replaygen.portions import portions_of

if TYPE_CHECKING:
    from replaygen.sample import Image8, Mask8


def predict_probabilities(
    net: SegNet,
    image: Image8 | Sequence[Tensor],
    size: int,
    *,
    shape: tuple[int, int] | None = None,
    flip: bool = False,
) -> npt.NDArray[np.float32]:
    """Class probabilities of one image.

    The image is resized to size x size (view 0); the head's own logits are resized to the full image, then softmax.

    Args:
        net: the network; put into evaluation mode.
        image: uint8 [H, W, 3], or the features of its view 0, a tensor [D, h, w] for each tap.
        size: the side the network sees, in pixels.
        shape: (H, W) of the result; needed with features, else the image's own.
        flip: average the probabilities with those of the mirrored image, or of the mirrored features.

    Returns:
        float32 [C, H, W], sums to 1 over channels.

    Raises:
        ValueError: features without `shape`.
    """
    net.eval()
    device = next(net.parameters()).device
    with torch.inference_mode():
        if not isinstance(image, np.ndarray):
            if shape is None:
                raise ValueError("features need `shape`")
            maps = tuple(feature.unsqueeze(0).to(device) for feature in image)
        else:
            shape = shape or (image.shape[0], image.shape[1])
            square, _ = apply_view(image, None, "", 0, ViewSpec(size=size))
            maps = (stack_images([square]).to(device),)
        (height, width), encoded = shape, not isinstance(image, np.ndarray)

        def forward(mirrored: Sequence[bool]) -> Tensor:
            batch = tuple(torch.cat([x.flip(-1) if turn else x for turn in mirrored]) for x in maps)
            logits = net.head_logits(batch if encoded else net.encode(batch[0]))
            return resize(logits.float(), height, width).softmax(1)

        looks = [False, True] if flip else [False]
        parts = [part for part, _ in portions_of(net, len(looks), device).over(looks, forward)]
        probabilities = parts[0] if len(parts) == 1 else torch.cat(parts)
        if flip:
            probabilities = (probabilities[:1] + probabilities[1:].flip(-1)) / 2
        return probabilities[0].cpu().numpy()


def predict_over_views(
    net: SegNet,
    image: Image8,
    sample_id: str,
    spec: ViewSpec,
    *,
    features: Callable[[int], Sequence[Tensor]] | None = None,
    views: int | None = None,
    flip: bool = False,
) -> npt.NDArray[np.float32]:
    """Class probabilities of one image, averaged over its fixed views: a crop adds what it sees, where it lies.

    Args:
        net: the network; put into evaluation mode.
        image: uint8 [H, W, 3].
        sample_id: seeds the views, as in `apply_view`.
        spec: the views.
        features: view -> its cached features; None: the views are encoded.
        views: how many views, from view 0; None: all of `spec`.
        flip: average each view with its mirror image.

    Returns:
        float32 [C, H, W], sums to 1 over channels.
    """
    height, width = image.shape[:2]
    total: npt.NDArray[np.float32] | None = None
    count = np.zeros((height, width), np.float32)
    for v in range(views or spec.count):
        (left, top, right, bottom), mirrored = view_box(height, width, sample_id, v, spec)
        rows = slice(round(top), max(round(bottom), round(top) + 1))
        columns = slice(round(left), max(round(right), round(left) + 1))
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        seen = features(v) if features is not None else apply_view(image, None, sample_id, v, spec)[0]
        part = predict_probabilities(net, seen, spec.size, shape=shape, flip=flip)
        if total is None:
            total = np.zeros((part.shape[0], height, width), np.float32)
        total[:, rows, columns] += part[:, :, ::-1] if mirrored else part
        count[rows, columns] += 1
    assert total is not None
    return total / count


def predict_mask(net: SegNet, image: Image8, size: int, *, flip: bool = False) -> Mask8:
    """The most probable channel of every pixel: uint8 [H, W, 3] -> uint8 [H, W]."""
    mask: Mask8 = predict_probabilities(net, image, size, flip=flip).argmax(0).astype(np.uint8)
    return mask
