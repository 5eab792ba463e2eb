"""The training pictures of a fitted generator: a step's images, class by class, at the generator's size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from replaygen.errors import DataError
from replaygen.generators.specs import LEAST, FitSpec

if TYPE_CHECKING:
    from replaygen.sample import Image8


@dataclass(frozen=True)
class Seen:
    """One image for one class: `label` indexes the classes; `object` is bool [H, W], where the class is, if known."""

    label: int
    image: Image8
    object: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Fitted:
    """A fitted generator.

    Attributes:
        tensors: safetensors bytes; equal fits give equal bytes.
        config: JSON-able: "kind", "classes" and the architecture.
        losses: a few a fit, {"iteration": i, ...}.
        snapshots: (iteration, uint8 [n, S, S, 3]) drawn by the averaged weights with fixed seeds, classes in turn.
        critic: a GAN's discriminator, to go on from at the next step.
    """

    tensors: bytes
    config: dict[str, Any]
    losses: tuple[dict[str, float], ...]
    snapshots: tuple[tuple[int, npt.NDArray[np.uint8]], ...]
    critic: bytes | None = None


def points(total: int, count: int) -> list[int]:
    """At most `count` iterations at equal distances, the last of them `total`."""
    return sorted({math.ceil(total * (i + 1) / count) for i in range(count)})


class Pictures:
    """Squares of one size with a class each; every class comes up equally often.

    Args:
        classes: names; label i is classes[i].
        seen: images of the classes; an image of two classes is given twice.
        spec: `size`, `flip`, `focus` and `context` are read.

    Raises:
        DataError: a class has fewer than two images.
    """

    def __init__(self, classes: Sequence[str], seen: Iterable[Seen], spec: FitSpec) -> None:
        self.classes = tuple(classes)
        self.size = spec.size
        self.flip = spec.flip
        self.focus = spec.focus
        whole: list[list[Image8]] = [[] for _ in self.classes]
        close: list[list[Image8]] = [[] for _ in self.classes]
        for one in seen:
            whole[one.label].append(square(one.image, self.size))
            if self.focus and one.object is not None and one.object.any():
                close[one.label].append(square(around(one.image, one.object, spec.context), self.size))
        for name, images in zip(self.classes, whole, strict=True):
            if len(images) < LEAST:
                raise DataError(
                    f"class {name!r} has {len(images)} images to fit a generator on",
                    hint=f"it needs {LEAST} at least; leave the class out with `only`, or use another source",
                )
        self._whole = [np.stack(images) for images in whole]
        self._close = [np.stack(images) if images else None for images in close]

    def __len__(self) -> int:
        return sum(len(images) for images in self._whole)

    @property
    def digest(self) -> str:
        """sha256 over all images, their labels and the settings."""
        digest = hashlib.sha256(repr((self.classes, self.size, self.flip, self.focus)).encode())
        for images in (*self._whole, *self._close):
            digest.update(str(None if images is None else images.shape).encode())
            if images is not None:
                digest.update(images.tobytes())
        return digest.hexdigest()

    def batch(self, random: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        """float32 [n, 3, S, S] in -1..1 and int64 [n], drawn by `random`."""
        images = np.empty((n, self.size, self.size, 3), np.uint8)
        labels = random.integers(len(self.classes), size=n)
        for row, label in enumerate(labels):
            close = self._close[label]
            pool = close if close is not None and random.random() < self.focus else self._whole[label]
            image = pool[random.integers(len(pool))]
            images[row] = image[:, ::-1] if self.flip and random.random() < 0.5 else image
        made = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        return made, torch.from_numpy(labels.astype(np.int64))


def square(image: Image8, size: int) -> Image8:
    """The whole image as uint8 [size, size, 3], each pixel the mean of what it covers."""
    from PIL import Image

    scaled = Image.fromarray(image).resize((size, size), Image.Resampling.BOX if min(image.shape[:2]) >= size
                                           else Image.Resampling.BICUBIC)  # fmt: skip
    return np.asarray(scaled, dtype=np.uint8)


def around(image: Image8, where: npt.NDArray[np.bool_], context: float) -> Image8:
    """A square crop around all of `where` bool [H, W], `context` times its longer side, inside the image."""
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    height, width = where.shape
    side = round(context * max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
    side = max(8, min(side, height, width))
    top = int(np.clip((rows[0] + rows[-1] + 1 - side) // 2, 0, height - side))
    left = int(np.clip((columns[0] + columns[-1] + 1 - side) // 2, 0, width - side))
    return image[top : top + side, left : left + side]
