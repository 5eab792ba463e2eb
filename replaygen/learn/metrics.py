"""Intersection over union from one confusion matrix over whole images, and what continual learning reads from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from replaygen.errors import DataError
from replaygen.sample import IGNORE

Matrix = npt.NDArray[np.int64]


class StepClasses(Protocol):
    """What a summary needs to know of a step: the channels that were learnt before it, and in it."""

    @property
    def old(self) -> tuple[int, ...]: ...
    @property
    def new(self) -> tuple[int, ...]: ...


class Confusion:
    """Counts of pixels; `matrix[i, j]`: true channel i, predicted channel j, int64 [C, C]."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.matrix: Matrix = np.zeros((channels, channels), dtype=np.int64)

    def update(self, pred: npt.NDArray[Any], true: npt.NDArray[Any]) -> None:
        """Add one image (or a stack of them): integer arrays of equal shape; pixels whose truth is 255 are left out.

        Raises:
            DataError: shapes differ, or a value lies outside 0..C-1.
        """
        if pred.shape != true.shape:
            raise DataError(f"prediction {pred.shape} and truth {true.shape} differ in size")
        kept = true != IGNORE
        rows, columns = true[kept].astype(np.int64), pred[kept].astype(np.int64)
        if rows.size and (min(rows.min(), columns.min()) < 0 or max(rows.max(), columns.max()) >= self.channels):
            raise DataError(
                f"a label or prediction lies outside 0..{self.channels - 1}", hint="remap masks to channels"
            )
        counts = np.bincount(rows * self.channels + columns, minlength=self.channels**2)
        self.matrix += counts.reshape(self.channels, self.channels)

    def iou(self) -> npt.NDArray[np.float64]:
        """IoU of each channel, 0..1, float64 [C]; NaN where a channel is in neither truth nor prediction."""
        return iou_of(self.matrix)


def iou_of(matrix: Matrix) -> npt.NDArray[np.float64]:
    """IoU = TP / (TP + FP + FN) of each channel; NaN where the three are 0."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hit
    iou: npt.NDArray[np.float64] = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
    return iou


def summarise(matrix: Matrix, step: StepClasses, names: Sequence[str]) -> dict[str, Any]:
    """mIoU in percent after a step.

    Background counts in `old` (from the first increment on) and in `all`; `old_without_background` and
    `all_without_background` are given too. A channel 0 that is not called "background" ("other") counts nowhere.
    A class absent from both truth and prediction has IoU None and is left out of the means. None: nothing to average.

    Args:
        matrix: int64 [C, C] of `Confusion`, C = 1 + seen classes (more channels are not read).
        step: its `old` and `new` channels.
        names: the name of each channel.

    Returns:
        all, old, new, background, old_without_background, all_without_background (float or None), per_class
        (name -> float or None), background_counted (bool), absent (names left out).
    """
    iou = iou_of(matrix) * 100.0
    background = bool(names[0] == "background")
    base = (0,) if background else ()

    def mean(channels: Sequence[int]) -> float | None:
        present = [float(iou[c]) for c in channels if not np.isnan(iou[c])]
        return float(np.mean(present)) if present else None

    seen = (*step.old, *step.new)
    told = {names[c]: None if np.isnan(iou[c]) else float(iou[c]) for c in (*base, *seen)}
    return {
        "all": mean((*base, *seen)),
        "old": mean((*base, *step.old)) if step.old else None,
        "new": mean(step.new),
        "background": mean(base),
        "old_without_background": mean(step.old),
        "all_without_background": mean(seen),
        "per_class": told,
        "background_counted": background,
        "absent": [name for name, value in told.items() if value is None],
    }


def confusion_rate(matrix: Matrix, a: int, b: int) -> float | None:
    """Percent of the pixels of true channel a that were predicted as b; None where a has no pixels."""
    total = int(matrix[a].sum())
    return 100.0 * int(matrix[a, b]) / total if total else None


def over_steps(summaries: Sequence[Mapping[str, Any]], new: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What a whole run says, in percent points.

    With R[t][i] the mean IoU after step t of the classes learnt at step i: forgetting_i = max_t R[t][i] - R[T][i] and
    BWT = mean_i (R[T][i] - R[i][i]), i < T; harmonic = 2 / (1 / old + 1 / new) after the last step.

    Args:
        summaries: of `summarise`, one for each step from 0.
        new: the names of the classes learnt at each step.

    Returns:
        average (mean of `all` over steps), harmonic, forgetting (by step), bwt, by_step (R); None: undefined.
    """
    by_step: list[list[float | None]] = []
    for told in summaries:
        row: list[float | None] = []
        for names in new[: len(by_step) + 1]:
            values = [told["per_class"][name] for name in names if told["per_class"].get(name) is not None]
            row.append(float(np.mean(values)) if values else None)
        by_step.append(row)
    last = len(by_step) - 1
    forgetting, moved = [], []
    for i in range(last):
        course = [by_step[t][i] for t in range(i, last + 1)]
        known = [value for value in course if value is not None]
        end, start = course[-1], course[0]
        forgetting.append(None if end is None else max(known) - end)
        if end is not None and start is not None:
            moved.append(end - start)
    averages = [told["all"] for told in summaries if told["all"] is not None]
    old, fresh = summaries[-1]["old"], summaries[-1]["new"]
    defined = old is not None and fresh is not None
    return {
        "average": float(np.mean(averages)) if averages else None,
        "harmonic": (2 * old * fresh / (old + fresh) if old + fresh > 0 else 0.0) if defined else None,
        "forgetting": forgetting,
        "bwt": float(np.mean(moved)) if moved else None,
        "by_step": by_step,
    }
