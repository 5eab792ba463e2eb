"""The previous step's model as a teacher: it predicts, it never learns."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.networks import Prediction, SegNet
from replaygen.learn.precision import Precision
from replaygen.learn.samples import Batch


class Teacher:
    """M_{k-1}, in evaluation mode and without gradient, on the device of the fit and in its precision."""

    def __init__(self, net: SegNet, device: torch.device, precision: Precision | None = None) -> None:
        if device.type == "cuda":
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net = net.to(device).eval().requires_grad_(False)
        self.precision = precision or Precision(device)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Prediction:
        """What it says of a batch, at the size of the batch's masks: logits float32 [B, V, M, M] and its maps."""
        with self.precision.autocast():
            features = batch.features
            if features is None:
                assert batch.images is not None
                features = self.net.encode(batch.images)
            return self.net.predicted(features, (batch.masks.shape[1], batch.masks.shape[2]))


def fused(net: SegNet, before: Mapping[str, Tensor], alpha: float) -> SegNet:
    """EWF: theta = (1 - alpha) theta_{t-1} + alpha theta_t, in place, for every floating tensor of both; returns `net`.

    Tensors that grew by rows for new classes are fused in their old rows, and keep their new ones.

    Args:
        net: theta_t.
        before: theta_{t-1}, `saved_tensors()` of the previous step's network.
        alpha: 0..1, the new network's part.

    Raises:
        ModelError: alpha lies outside 0..1, or a tensor shrank.
    """
    if not 0 <= alpha <= 1:
        raise ModelError(f"alpha = {alpha} is no share", hint="0 keeps the old network, 1 the new one")
    with torch.no_grad():
        for name, now in net.saved_tensors().items():
            old = before.get(name)
            if old is None or not now.is_floating_point():
                continue
            if old.shape[1:] != now.shape[1:] or old.shape[:1] > now.shape[:1]:
                raise ModelError(f"tensor {name!r} was {tuple(old.shape)} and is {tuple(now.shape)}")
            rows = now[: old.shape[0]] if now.ndim else now
            rows.copy_((1 - alpha) * old.to(now) + alpha * rows)
    return net
