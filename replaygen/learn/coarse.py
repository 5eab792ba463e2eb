"""Coarse classes: what a confusion matrix over classes says of groups of classes, such as animals and vehicles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from replaygen.classes import nearest_hint
from replaygen.errors import RecipeError
from replaygen.learn.metrics import Matrix, iou_of

Groups = Mapping[str, Sequence[str]]
"""Coarse class -> the names of its classes."""


@dataclass(frozen=True)
class Coarse:
    """Percent over coarse classes.

    Attributes:
        all: mIoU over the coarse classes that are there; channel 0 counts where it is called "background".
        per_class: coarse name -> IoU, None where neither truth nor prediction has it.
    """

    all: float | None
    per_class: dict[str, float | None]

    def as_json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {"all": self.all, "per_class": self.per_class}


def disjoint_groups(groups: Groups) -> None:
    """Refuse groups that are empty or share a class.

    Raises:
        ValueError: names the group or the class.
    """
    told: dict[str, str] = {}
    for name, classes in groups.items():
        if not classes:
            raise ValueError(f"coarse class {name!r} has no classes")
        for fine in classes:
            if fine in told:
                raise ValueError(f"{fine!r} is in {told[fine]!r} and in {name!r}; a class has one coarse class")
            told[fine] = name


def known_groups(groups: Groups, names: Sequence[str], where: str) -> None:
    """Refuse groups that name what is no class of the scenario, or that take the name of a class outside of them.

    Args:
        names: of all channels, names[0] is channel 0.
        where: the recipe, for the message.

    Raises:
        RecipeError: names the nearest class.
    """
    grouped = {fine for classes in groups.values() for fine in classes}
    for name, classes in groups.items():
        for fine in classes:
            if fine not in names[1:]:
                raise RecipeError(
                    f"coarse.{name} names a class {fine!r} that the scenario does not have", where=where,
                    hint=nearest_hint(fine, names[1:]),
                )  # fmt: skip
        if name == names[0] or (name in names and name not in grouped):
            raise RecipeError(
                f"coarse class {name!r} has the name of a class that is in no group", where=where,
                hint="name it otherwise, or put that class into a group",
            )  # fmt: skip


def coarse_matrix(matrix: Matrix, names: Sequence[str], groups: Groups) -> tuple[Matrix, tuple[str, ...]]:
    """Sum the rows and columns of each group: M'[g, h] = sum over i in g, j in h of M[i, j].

    A class in no group stays a class of its own; classes of a group that were not learnt yet are simply not there.

    Args:
        matrix: int64 [C, C], rows truth, columns prediction.
        names: of the C channels.

    Returns:
        int64 [G, G] and the G names: channel 0 first, then by the first class of each.
    """
    group_of = {fine: name for name, classes in groups.items() for fine in classes}
    told = [names[0], *(group_of.get(name, name) for name in names[1:])]
    order = tuple(dict.fromkeys(told))
    member = np.zeros((len(order), len(told)), dtype=np.int64)
    member[[order.index(name) for name in told], np.arange(len(told))] = 1
    summed: Matrix = member @ matrix @ member.T
    return summed, order


def summarise_coarse(matrix: Matrix, names: Sequence[str], groups: Groups) -> Coarse:
    """mIoU and IoU over coarse classes, in percent; a confusion within a group is no mistake.

    Args:
        matrix: int64 [C, C] of an evaluation, rows truth, columns prediction.
        names: of the C channels; channel 0 counts in the mean only where it is called "background".
    """
    summed, order = coarse_matrix(matrix, names, groups)
    iou = iou_of(summed) * 100.0
    told = {name: None if np.isnan(value) else float(value) for name, value in zip(order, iou, strict=True)}
    if names[0] != "background":
        del told[order[0]]
    values = [value for value in told.values() if value is not None]
    return Coarse(float(np.mean(values)) if values else None, told)
