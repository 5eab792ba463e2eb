"""A fit for TensorBoard: loss, learning rate and images/s as curves, some predictions as pictures."""

from __future__ import annotations

import colorsys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.events import Event, Log
from replaygen.learn.networks import SegNet
from replaygen.learn.samples import Batch
from replaygen.sample import IGNORE

SHOWN = 4
"""Samples of the first batch whose predictions are shown."""


class Board:
    """A log that passes every event on, and writes TensorBoard's files.

    Args:
        folder: of this fit alone; made when there is something to write.
        then: gets the events.

    Raises:
        ModelError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, then: Log) -> None:
        if find_spec("tensorboard") is None:
            raise ModelError(
                "TensorBoard's files need the package tensorboard, which is not installed",
                where=str(folder), hint="pip install 'replaygen[tensorboard]', or leave `tensorboard` out",
            )  # fmt: skip
        self.folder = folder
        self.then = then
        self._writer: Any = None
        self._begins = 0

    def __call__(self, event: Event) -> None:
        """Curves of every progress; a resumed fit hides what the killed one wrote after its last checkpoint."""
        self.then(event)
        if event["event"] == "resumed":
            self._begins = int(event["iteration"]) + 1
        elif event["event"] == "progress":
            for name in ("loss", "lr", "images_per_second"):
                self._open().add_scalar(name, event[name], event["iteration"])
            self._open().flush()
        elif event["event"] == "finished" and self._writer is not None:
            self._writer.close()
            self._writer = None

    @torch.no_grad()
    def watch(self, iteration: int, net: SegNet, batch: Batch) -> None:
        """One row a sample: the image where the batch has it, the mask, the prediction."""
        size = (batch.masks.shape[1], batch.masks.shape[2])
        features = None if batch.features is None else tuple(feature[:SHOWN] for feature in batch.features)
        columns = []
        if features is None:
            assert batch.images is not None
            images = batch.images[:SHOWN].contiguous(memory_format=torch.channels_last)
            features = net.encode(images)
            columns.append(torch.nn.functional.interpolate(images, size, mode="area"))
        predicted = net.decode(features, size).argmax(1)
        columns += [coloured(batch.masks[:SHOWN], net.channels), coloured(predicted, net.channels)]
        rows = torch.cat([column.cpu() for column in columns], 3)
        self._open().add_image("predictions", torch.cat(list(rows), 1), iteration)

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._begins or None)
        return self._writer


def coloured(masks: Tensor, channels: int) -> Tensor:
    """int64 [B, H, W] -> float32 [B, 3, H, W] in 0..1: background black, ignored white, classes in turn round the hues.

    255 is ignored.
    """
    table = torch.ones(IGNORE + 1, 3)
    table[0] = 0.0
    for channel in range(1, channels):
        # steps of the golden ratio keep neighbours apart, however many classes there are
        table[channel] = torch.tensor(colorsys.hsv_to_rgb(channel * 0.618034 % 1.0, 0.75, 0.95))
    return table.to(masks.device)[masks].permute(0, 3, 1, 2)
