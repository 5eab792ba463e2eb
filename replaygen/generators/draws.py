"""What one generated image is drawn from: a seed of its own, and a class or a prompt. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from replaygen.classes import slug

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Float3 = npt.NDArray[np.float32]
    """float32 [n, H, W, 3], RGB in 0..1; NaN where the generator failed."""

BLACK = 2 / 255
"""An image whose brightest value is not above this is black: what a safety checker returns."""


@dataclass(frozen=True)
class Draw:
    """One image: `seed` is its own (63 bits), `label` the generator's class index, `prompt` a text."""

    seed: int
    label: int | None = None
    prompt: str | None = None


class Generator(Protocol):
    """What is drawn from."""

    def draw(self, draws: Sequence[Draw]) -> Float3:
        """Images float32 [n, H, W, 3] in 0..1, row i a function of draws[i] and the generator's batch size alone."""
        ...


def seeds_of(class_name: str, *, count: int, seed: int) -> list[int]:
    """The first `count` image seeds of a class: sha256 of (seed, class, number), 63 bits. Longer lists start alike."""
    return [
        int.from_bytes(hashlib.sha256(f"{seed}:{class_name}:{number}".encode()).digest()[:8], "big") >> 1
        for number in range(count)
    ]


def image_id(class_name: str, seed: int) -> str:
    """The sample id of a generated image, of its class and its seed."""
    return f"{slug(class_name)}-{seed:016x}"


def normals(seed: int, size: int) -> npt.NDArray[np.float32]:
    """float32 [size] standard normal numbers of one image, from Philox keyed by its seed."""
    import numpy as np

    return np.random.Generator(np.random.Philox(seed)).standard_normal(size, dtype=np.float32)


def truncated_normals(seed: int, size: int) -> npt.NDArray[np.float32]:
    """float32 [size] standard normal numbers redrawn until within [-2, 2], from Philox keyed by the image's seed."""
    import numpy as np

    random = np.random.Generator(np.random.Philox(seed))
    values = random.standard_normal(size, dtype=np.float32)
    while (outside := np.abs(values) > 2).any():
        values[outside] = random.standard_normal(int(outside.sum()), dtype=np.float32)
    return values


def fault(image: npt.NDArray[np.float32]) -> str | None:
    """Why an image float32 [H, W, 3] cannot be used: "not-finite", "black" (a safety checker's), "blank"; else None."""
    import numpy as np

    if not np.isfinite(image).all():
        return "not-finite"
    if float(image.max()) <= BLACK:
        return "black"
    if float(image.max() - image.min()) <= BLACK:
        return "blank"
    return None


def to_uint8(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] of a finite float image in 0..1, rounded to nearest."""
    import numpy as np

    rounded: npt.NDArray[np.uint8] = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    return rounded
