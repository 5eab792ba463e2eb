"""Cached features of a frozen encoder: made for fixed views, kept as float16 in one safetensors file a shard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from replaygen.errors import DataError, ModelError
from replaygen.learn.networks import SegNet
from replaygen.learn.samples import Features, stack_images
from replaygen.learn.specs import ViewSpec
from replaygen.learn.views import apply_view
from replaygen.portions import portions_of

if TYPE_CHECKING:
    from replaygen.sample import Image8

_NAME = re.compile(r"([a-z0-9_-]+)/(\d{1,3})")


def encode_views(
    net: SegNet, images: Sequence[Image8], ids: Sequence[str], spec: ViewSpec, views: Sequence[int] | None = None
) -> list[Features]:
    """Features of the fixed views of some images, one image at a time (so they do not depend on the batch).

    Args:
        net: a network whose encoder is frozen; put into evaluation mode.
        images: uint8 [H, W, 3] each.
        ids: the samples' ids, which seed the views.
        views: which views; all of `spec` by default.

    Returns:
        for each image a tuple with one float16 tensor [V, D, h, w] a tap, on the CPU.

    Raises:
        ModelError: the encoder is not frozen, or a value does not fit float16.
        DataError: fresh views, which cannot be cached.
    """
    if not net.frozen_encoder:
        raise ModelError("only a frozen encoder's features can be cached", hint='set network.freeze = "always"')
    if spec.fresh:
        raise DataError("fresh views cannot be cached", hint="set views.fresh = false and views.count")
    net.eval()
    device = next(net.parameters()).device

    def forward(squares: Sequence[Image8]) -> Features:
        with torch.no_grad():
            maps = net.encode(stack_images(squares).to(device))
        return tuple(feature.to(torch.float16).cpu().contiguous() for feature in maps)

    made = []
    for image, sample_id in zip(images, ids, strict=True):
        squares = [apply_view(image, None, sample_id, v, spec)[0] for v in views or range(spec.count)]
        parts = [part for part, _ in portions_of(net, len(squares), device).over(squares, forward)]
        half = parts[0] if len(parts) == 1 else tuple(torch.cat(tap) for tap in zip(*parts, strict=True))
        if not all(bool(torch.isfinite(feature).all()) for feature in half):
            raise ModelError("features do not fit float16", where=sample_id, hint="tap another layer")
        made.append(half)
    return made


def features_to_bytes(features: Mapping[str, Features]) -> bytes:
    """id -> float16 [V, D, h, w] a tap, as one safetensors file; equal features, equal bytes."""
    from safetensors.torch import save

    for sample_id in features:
        if not _NAME.fullmatch(f"{sample_id}/0"):
            raise DataError(f"{sample_id!r} is no sample id", hint="ids match [a-z0-9_-]+")
    tensors = {
        f"{sample_id}/{tap}": feature.contiguous()
        for sample_id in sorted(features)
        for tap, feature in enumerate(features[sample_id])
    }
    return save(tensors)


def features_from_bytes(data: bytes) -> dict[str, Features]:
    """The inverse of `features_to_bytes`.

    Raises:
        DataError: not such a file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a features file ({error})") from None
    return {
        sample_id: tuple(tensors[f"{sample_id}/{tap}"] for tap in range(taps))
        for sample_id, taps in _taps(tensors).items()
    }


class FeatureFile:
    """A features file on disk, of which only the views asked for are read.

    Raises:
        DataError: not a features file.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = cast(Any, safe_open(str(path), framework="pt"))
            self._of = _taps(list(self._file.keys()))
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(f"not a features file ({error})", where=str(path)) from None

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._of)

    def read(self, sample_id: str, view: int) -> Features:
        """float16 [D, h, w] for each tap of one view."""
        if sample_id not in self._of:
            raise DataError(f"no features of {sample_id!r}", where=str(self.path))
        slices = [self._file.get_slice(f"{sample_id}/{tap}") for tap in range(self._of[sample_id])]
        if view >= slices[0].get_shape()[0]:
            raise DataError(f"no view {view} of {sample_id!r}", where=str(self.path), hint="was views.count changed?")
        return tuple(part[view : view + 1][0] for part in slices)


def _taps(names: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None:
            raise DataError(f"not a features file: it holds {name!r}")
        counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    present = set(names)
    for sample_id, taps in counts.items():
        if any(f"{sample_id}/{tap}" not in present for tap in range(taps)):
            raise DataError(f"a tap of {sample_id!r} is missing from the features file")
    return counts
