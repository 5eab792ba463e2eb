"""One vector for what stands in a region of a picture: the encoder's deepest map, averaged over the region."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


def region_vectors(deepest: Tensor, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """v = sum_i w_i f_i / sum_i w_i over the cells i of a feature map, and the plain mean of f.

    Args:
        deepest: float [D, h, w], the deepest tap of the whole picture (view 0).
        weight: float32 [H, W] in 0..1, how much each pixel belongs to the region; each cell has the mean of its pixels.

    Returns:
        float32 [2, D], the region and the whole; the region is all 0 where it is empty.
    """
    import torch
    import torch.nn.functional as F

    cells = deepest.float().cpu()
    grid = (cells.shape[-2], cells.shape[-1])
    shares = F.adaptive_avg_pool2d(torch.from_numpy(weight)[None, None], grid)[0, 0]
    total = shares.sum().clamp_min(1e-12)
    region = (cells * shares).sum((1, 2)) / total
    made: npt.NDArray[np.float32] = torch.stack([region, cells.mean((1, 2))]).numpy()
    return made
