"""Which pixels of a picture have to go, so that picture and label agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from replaygen.errors import DataError
from replaygen.sample import IGNORE

if TYPE_CHECKING:
    import numpy.typing as npt

    from replaygen.sample import Mask8

    Region = npt.NDArray[np.bool_]
    """bool [H, W], True where a pixel is to be filled anew."""

KEEP, OTHER, UNSURE = 0, 1, 2
"""The values of `erase.png`."""

TOO_MUCH = "too-much-to-erase"


@dataclass(frozen=True)
class Erasure:
    """What has to go.

    Attributes:
        region: bool [H, W].
        share: the region's share of the picture, 0..1.
        why: kind -> share of the picture that it asked for, before growing; only kinds that are there. Kinds may lie
            over each other, and a label may forbid a part, so they need not add up to `share`.
        refused: `TOO_MUCH`, or None.
    """

    region: Region
    share: float
    why: dict[str, float]
    refused: str | None

    def as_json(self, backend: str) -> dict[str, Any]:
        """What an image's and a label's JSON say of it: {"share", "backend", "why"}."""
        why = {name: round(share, 5) for name, share in self.why.items()}
        return {"share": round(self.share, 5), "backend": backend, "why": why}


def find_erasure(
    spec: Mapping[str, Any], label: Mask8, marks: Mask8 | None = None, text: Region | None = None
) -> Erasure:
    """What a replay image must lose: the kinds that `spec` names, without specks, grown.

    A pixel that the label gives to a class never goes, whatever lies over it: letters across the object stay.

    Args:
        spec: an `EraseSpec` as plain data; `others`, `unsure`, `text`, `dilate`, `most` and `least` are read.
        label: uint8 [H, W]; 0 background, channels, 255 not known.
        marks: `erase.png`, uint8 [H, W]: 0 keep, 1 another class, 2 unsure; None: nothing is marked.
        text: bool [H, W], where letters are; None: nowhere. Letters are small, so none of them is a speck.

    Raises:
        DataError: sizes differ, or a mark has no meaning.
    """
    wanted: dict[str, Region] = {}
    if marks is not None:
        _same_size(label, marks)
        if marks.max(initial=0) > UNSURE:
            raise DataError(f"erase.png holds the value {marks.max()}", hint="0 keep, 1 another class, 2 unsure")
        least = float(spec["least"]) * label.size
        wanted |= {
            name: without_specks(marks == value, least)
            for name, value in (("others", OTHER), ("unsure", UNSURE)) if spec[name]
        }  # fmt: skip
    if spec["text"] and text is not None:
        _same_size(label, text)
        wanted["text"] = text
    return _erasure(spec, label, wanted)


def find_old(spec: Mapping[str, Any], label: Mask8, predicted: Mask8) -> Erasure:
    """What a current image must lose: what the previous model takes for an old class where the label says background.

    Void (255) asks for nothing, but may go where an old class grows into it.

    Args:
        spec: as for `find_erasure`; `dilate`, `most` and `least` are read.
        label: uint8 [H, W], the step's own: 0 background, channels of the step, 255 void.
        predicted: uint8 [H, W], the previous model's winner among background and the old classes.

    Raises:
        DataError: sizes differ.
    """
    _same_size(label, predicted)
    old = without_specks((label == 0) & (predicted > 0), float(spec["least"]) * label.size)
    return _erasure(spec, label, {"old": old})


def without_specks(region: Region, least: float) -> Region:
    """The region without its connected parts (8 neighbours) of fewer than `least` pixels."""
    import cv2

    if least <= 1 or not region.any():
        return region
    _, parts, numbers, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    large = numbers[:, cv2.CC_STAT_AREA] >= least
    large[0] = False
    kept: Region = large[parts]
    return kept


def grown(region: Region, radius: float) -> Region:
    """Every pixel at most `radius` pixels from one of the region, centre to centre: bool [H, W]."""
    import cv2

    if radius < 1 or not region.any():
        return region
    away = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near: Region = away <= radius + 1e-3
    return near


def _erasure(spec: Mapping[str, Any], label: Mask8, wanted: dict[str, Region]) -> Erasure:
    free = (label == 0) | (label == IGNORE)
    region = np.zeros(label.shape, np.bool_)
    for part in wanted.values():
        region |= part
    region = grown(region, float(spec["dilate"]) * max(label.shape) / 256) & free
    share = float(region.mean())
    # a picture that is all hole has nothing left to be filled from
    refused = TOO_MUCH if share > float(spec["most"]) or bool(region.all()) else None
    why = {name: float(part.mean()) for name, part in wanted.items() if part.any()}
    return Erasure(region, share, why, refused)


def _same_size(label: Mask8, other: npt.NDArray[Any]) -> None:
    if label.size == 0 or label.shape != other.shape:
        raise DataError(f"a label of {list(label.shape)} pixels cannot be read beside {list(other.shape)}")
