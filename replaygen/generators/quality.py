"""How good a set of generated images is: like the real ones, as varied, and not copied from them.

Sets of features are compared by KID, by their spread and by k-nearest-neighbour manifolds; pixels are compared to find
copies of training images. Everything is deterministic; what is drawn at random is drawn by a seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from replaygen.errors import DataError

if TYPE_CHECKING:
    from replaygen.sample import Image8

    Features = npt.NDArray[np.floating]
    """float [n, D], one row an image."""
    Small = npt.NDArray[np.uint8]
    """uint8 [n, SIDE, SIDE, 3], see `small`."""

SIDE = 64
"""Side in pixels that images are brought to before they are compared as pixels."""

_STEPS = 9
"""Shifts tried along each axis: -4..4 pixels of SIDE, that is -2..2 of the 32 x 32 grid that is compared."""

_GRID = 28
"""Side of what is compared: 32 less the shifts on both sides."""

_MIDDLE = slice(_STEPS // 2, _STEPS // 2 + 2 * _GRID, 2)

_FLAT = 0.5
"""Contrast in grey levels that counts as none: a flat image is like no other."""

SAME = 0.2
"""Training images closer than this are taken for copies of each other, and say nothing about how far others are."""

_LARGEST = 1000
_ASKED = 500
_ROWS = 8


def scale_of(real: Features) -> float:
    """Root mean square of the real features; features divided by it make KID comparable between encoders.

    Raises:
        DataError: all features are zero, or one is not finite.
    """
    scale = float(np.sqrt(np.mean(np.square(real, dtype=np.float64))))
    if not np.isfinite(scale) or scale == 0.0:
        raise DataError("the encoder's features of the real images are all zero, or not finite")
    return scale


def kid(
    real: Features, fake: Features, *, subsets: int = 50, size: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """Kernel inception distance (Binkowski 2018): unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j), over random subsets.

    Args:
        real: float [n, D].
        fake: float [m, D].
        subsets: pairs of subsets drawn.
        size: images of a subset, without repetition; default: half of the smaller set, at most 1000.

    Returns:
        mean and standard deviation over the subsets; the mean is 0 for equal distributions, and can be below.

    Raises:
        DataError: fewer than two images in a set or subset, or fewer than `size`.
    """
    real, fake = _rows(real), _rows(fake)
    smaller = min(len(real), len(fake))
    size = min(_LARGEST, max(2, (smaller + 1) // 2)) if size is None else size
    if not 2 <= size <= smaller:
        raise DataError(f"KID needs 2 images or more in each set, asked for {size} of {len(real)} and {len(fake)}")
    random = np.random.default_rng(seed)
    values = [
        _mmd2(real[random.permutation(len(real))[:size]], fake[random.permutation(len(fake))[:size]])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def kid_floor(real: Features, count: int, *, splits: int = 100, quantile: float = 0.95, seed: int = 0) -> float:
    """KID that real images score against other real images: what a perfect generator stays below, 19 times in 20.

    The real set is split at random into `count` images (at most half of it) and the rest; the mean of their MMD^2 is 0,
    so it is the quantile over splits that tells a difference from chance.

    Args:
        real: float [n, D], four images or more.
        count: how many images were generated.
    """
    real = _rows(real)
    part = min(count, len(real) // 2, _LARGEST)
    if part < 2:
        raise DataError(f"{len(real)} real images and {count} generated ones are too few to compare")
    random = np.random.default_rng(seed)
    values = []
    for _ in range(splits):
        order = random.permutation(len(real))
        values.append(_mmd2(real[order[:part]], real[order[part : part + _LARGEST]]))
    return float(np.quantile(values, quantile))


def _rows(features: Features) -> npt.NDArray[np.float64]:
    return np.asarray(features, dtype=np.float64)


def _mmd2(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    within = [(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))
              for kernel in (_cubic(x, x), _cubic(y, y))]  # fmt: skip
    return float(sum(within) - 2.0 * _cubic(x, y).mean())


def _cubic(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    kernel: npt.NDArray[np.float64] = (x @ y.T / x.shape[1] + 1.0) ** 3
    return kernel


def diversity(features: Features) -> float:
    """Mean Euclidean distance between two different images, float [n, D]; divide by the real set's for a share of it.

    Raises:
        DataError: fewer than two images.
    """
    rows = _rows(features)
    if len(rows) < 2:
        raise DataError("the diversity of fewer than two images is not defined")
    total = sum(float(_distances(rows[i : i + _LARGEST], rows).sum()) for i in range(0, len(rows), _LARGEST))
    return total / (len(rows) * (len(rows) - 1))


def _distances(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return torch.cdist(torch.from_numpy(x), torch.from_numpy(y), compute_mode="donot_use_mm_for_euclid_dist").numpy()


@dataclass(frozen=True)
class Manifolds:
    """How two sets lie to each other, by balls that reach to each image's k-th neighbour in its own set.

    Attributes:
        precision: share of the generated images inside a real ball (Kynkaanniemi 2019): do they look real?
        recall: share of the real images inside a generated ball (the same): is what is real generated?
        density: real balls around a generated image, over k (Naeem 2020); precision that one outlier cannot lift.
        coverage: share of the real balls that hold a generated image (the same); recall that outliers cannot lift.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(real: Features, fake: Features, *, k: int = 5, draws: int = 8, seed: int = 0) -> Manifolds:
    """Precision, recall, density and coverage of equally many images of both sets.

    Args:
        real: float [n, D].
        fake: float [m, D]; where n and m differ, the larger set is thinned at random, and `draws` thinnings averaged.
        k: neighbours.

    Raises:
        DataError: a set has no more than k images.
    """
    real, fake = _rows(real), _rows(fake)
    count = min(len(real), len(fake))
    if count <= k:
        raise DataError(f"{count} images are too few for balls that reach {k} neighbours")
    count = min(count, 2 * _LARGEST)
    random = np.random.default_rng(seed)
    told = []
    for _ in range(1 if len(real) == len(fake) == count else draws):
        few, drawn = (rows[random.permutation(len(rows))[:count]] for rows in (real, fake))
        told.append(_manifolds(few, drawn, k))
    precision, recall, density, coverage = np.mean(told, axis=0).tolist()
    return Manifolds(precision, recall, density, coverage)


def _manifolds(
    real: npt.NDArray[np.float64], fake: npt.NDArray[np.float64], k: int
) -> tuple[float, float, float, float]:
    # position 0 of the sorted row is the image itself
    radius_real, radius_fake = (np.partition(_distances(rows, rows), k, axis=1)[:, k] for rows in (real, fake))
    between = _distances(real, fake)
    in_real, in_fake = between <= radius_real[:, None], between <= radius_fake[None, :]
    return (
        float(in_real.any(0).mean()), float(in_fake.any(1).mean()), float(in_real.sum(0).mean() / k),
        float(in_real.any(1).mean()),
    )  # fmt: skip


def small(image: Image8) -> npt.NDArray[np.uint8]:
    """An image squeezed to uint8 [SIDE, SIDE, 3], each pixel the mean of what it covers; for `nearest`."""
    from PIL import Image

    shrinks = min(image.shape[:2]) >= SIDE
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), method), dtype=np.uint8)


def nearest(
    queries: Small, references: Small, *, resolution: int = SIDE,
    owners: tuple[Sequence[int], Sequence[int]] | None = None, device: str = "cpu",
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:  # fmt: skip
    """For each image its nearest reference, by how well the two can be laid over each other.

    Luminance and colour differences are compared at about 32 x 32, each less its mean, all over their common contrast:
    d = sqrt(2 - 2 r), with r the correlation of the query, mirrored or not and shifted by up to 2 of these pixels in
    halves of one, that is largest. 0: a copy, however bright or contrasty; sqrt(2): nothing in common.

    Args:
        queries: uint8 [m, SIDE, SIDE, 3], made by `small`.
        references: uint8 [n, SIDE, SIDE, 3], likewise.
        resolution: what the coarser of the two sets had; detail that it cannot have is taken out of both.
        owners: a number for each query and each reference; those with equal numbers are not compared.

    Returns:
        index int64 [m] and distance float64 [m]; -1 and infinity where there is nothing to compare with.
    """
    nearby, far = np.full(len(queries), -1, np.int64), np.full(len(queries), np.inf)
    if not len(references):
        return nearby, far
    fixed = torch.cat([_unit(_planes(references[start : start + _LARGEST], resolution, device)[..., _MIDDLE, _MIDDLE])
                       for start in range(0, len(references), _LARGEST)])  # fmt: skip
    own = None if owners is None else (np.asarray(owners[0])[:, None] == np.asarray(owners[1])[None, :])
    for start in range(0, len(queries), _ROWS):
        likeness = _likeness(_planes(queries[start : start + _ROWS], resolution, device), fixed).cpu()
        if own is not None:
            likeness[torch.from_numpy(own[start : start + _ROWS])] = -torch.inf
        best, index = likeness.double().max(1)
        nearby[start : start + _ROWS] = torch.where(best == -torch.inf, -1, index).numpy()
        far[start : start + _ROWS] = (2.0 - 2.0 * best).clamp_min(0.0).sqrt().numpy()
    return nearby, far


def _planes(images: Small, resolution: int, device: str) -> Tensor:
    """Luminance and two colour differences, a little blurred: uint8 [n, SIDE, SIDE, 3] -> [n, 3, SIDE - 1, SIDE - 1].

    Every second value of a row is a pixel of the 32 x 32 image; the values between are the same, half a pixel on.
    """
    weights = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], device=device)
    planes = torch.einsum("nhwc,dc->ndhw", torch.from_numpy(images).to(device).float(), weights)
    if resolution < SIDE:
        planes = functional.interpolate(planes, (resolution, resolution), mode="area")
        planes = functional.interpolate(planes, (SIDE, SIDE), mode="bilinear", align_corners=False)
    line = torch.tensor([0.25, 0.5, 0.25], device=device)
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    for _ in range(2):
        planes = functional.conv2d(functional.pad(planes, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return functional.avg_pool2d(planes, 2, stride=1)


def _likeness(planes: Tensor, fixed: Tensor) -> Tensor:
    """The largest correlation over mirroring and shifts: [b, 3, SIDE - 1, SIDE - 1], rows of `_unit` [n, D] -> [b, n].

    The rows have no mean, so a shifted window's own mean does not matter to its product with them, only to its length.
    """
    planes = planes - planes.mean((-2, -1), keepdim=True)
    both = torch.cat([planes, planes.flip(-1)])
    windows = functional.unfold(both, _GRID, dilation=2)
    ones = torch.ones(3, 1, _GRID, _GRID, device=both.device)
    sums, squares = (functional.conv2d(x, ones, dilation=2, groups=3).flatten(2) for x in (both, both.square()))
    lengths = (squares - sums.square() / _GRID**2).clamp_min(0.0).sum(1) + fixed.shape[1] * _FLAT**2
    products = (fixed @ windows) / lengths.sqrt()[:, None]
    return products.amax(-1).view(2, len(planes), -1).amax(0)


def _unit(planes: Tensor) -> Tensor:
    """Each plane less its mean, all over their common length: [..., 3, h, w] -> [..., 3 h w]."""
    rows = (planes - planes.mean((-2, -1), keepdim=True)).flatten(-3)
    return rows / (rows.square().sum(-1, keepdim=True) + rows.shape[-1] * _FLAT**2).sqrt()


@dataclass(frozen=True)
class Copies:
    """Which generated images are copies of training images.

    Attributes:
        threshold: the distance below which one is.
        memorised: bool [m].
        nearest: int64 [m], index of the nearest training image.
        distance: float64 [m], see `nearest`.
        ratio: mean distance from a generated image to its nearest training image, over that from a training image to
            its nearest other one; about 1 for new images, near 0 for copies.
        among_real: share of the training images that would be called copies of other training images.
    """

    threshold: float
    memorised: npt.NDArray[np.bool_]
    nearest: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float64]
    ratio: float
    among_real: float

    @property
    def share(self) -> float:
        """Share of the generated images that are copies."""
        return float(self.memorised.mean())

    def closest(self, count: int) -> Iterator[int]:
        """Indices of the generated images that are closest to a training image, closest first."""
        yield from np.argsort(self.distance, kind="stable")[:count].tolist()


def copies(
    fake: Small, real: Small, *, resolution: int = SIDE, owners: Sequence[int] | None = None, device: str = "cpu"
) -> Copies:
    """Find the generated images that are copies of training images, by a threshold that the training images set.

    A generated image is memorised if it is nearer to a training image than half of what nearly all (99 %) training
    images, of which 500 are asked at most, keep from each other. Training images within `SAME` of each other are near
    copies themselves (frames of a video, a photo posted twice), so they are not asked: duplicates in the data do not
    hide copies of the data. Where less than a quarter is left to ask, the threshold is half of `SAME`.

    Args:
        fake: uint8 [m, SIDE, SIDE, 3], made by `small`.
        real: uint8 [n, SIDE, SIDE, 3], likewise: the training images, and crops of them that were trained on.
        resolution: shorter side of the generated images; see `nearest`.
        owners: for each of `real` the number of the image it is (a crop of); by default each is its own.

    Raises:
        DataError: no generated image, or fewer than two training images.
    """
    owners = list(range(len(real))) if owners is None else list(owners)
    if not len(fake) or len(set(owners)) < 2:
        raise DataError(f"{len(fake)} generated and {len(set(owners))} training images are too few to compare")
    index, distance = nearest(fake, real, resolution=resolution, device=device)
    asked = np.unique(np.linspace(0, len(real) - 1, min(len(real), _ASKED)).round().astype(np.int64))
    mine = [owners[i] for i in asked]
    _, apart = nearest(real[asked], real, resolution=resolution, owners=(mine, owners), device=device)
    threshold = _threshold(apart)
    return Copies(
        threshold, distance < threshold, index, distance, float(distance.mean() / max(float(apart.mean()), 1e-9)),
        float((apart < threshold).mean()),
    )  # fmt: skip


def _threshold(apart: npt.NDArray[np.float64]) -> float:
    distinct = apart[apart >= SAME]
    return float(np.quantile(distinct, 0.01)) / 2 if 4 * len(distinct) >= len(apart) else SAME / 2
