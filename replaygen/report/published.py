"""Published results of the field, to stand beside one's own: only numbers that were read in a published table."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replaygen.plan.recipe import RecipeTable

COMPARABILITY = (
    "Published rows are not strictly comparable: RECALL uses DeepLab-v2, papers of the MiB lineage use DeepLab-v3 or "
    "v3+ and evaluate on centre crops, this run on full images, and papers differ in whether background counts in old."
)
"""What to say wherever published rows are shown."""


@dataclass(frozen=True)
class Published:
    """One method's mIoU after the last step as its table has it, in percent.

    Attributes:
        method: as the table calls it.
        old, new: None where the table gives the mean over all classes alone.
        network: head and backbone.
        note: its lineage, and what sets it apart from a run here.
        trainer: the file of `trainers/` that is the same method, or None.
    """

    method: str
    task: str
    setting: str
    dataset: str
    old: float | None
    new: float | None
    all: float
    network: str
    note: str
    trainer: str | None = None


@lru_cache(maxsize=1)
def every_row() -> tuple[Published, ...]:
    """All published rows, in the table's order."""
    told = tomllib.loads(resources.files("replaygen.report").joinpath("published.toml").read_text(encoding="utf-8"))
    rows = []
    for table in told["table"]:
        for row in table["row"]:
            about = {name: row[name] for name in ("method", "network", "note")}
            tasks = {name: numbers for name, numbers in row.items() if isinstance(numbers, list)}
            for task, numbers in tasks.items():
                old, new, every = numbers if len(numbers) == 3 else (None, None, *numbers)
                rows.append(
                    Published(
                        task=task, setting=table["setting"], dataset=table["dataset"], old=old, new=new, all=every,
                        trainer=row.get("trainer"), **about,
                    )
                )  # fmt: skip
    return tuple(rows)


def published_rows(dataset: str, task: str, setting: str) -> tuple[Published, ...]:
    """The published rows of one task in one setting; empty where none are known."""
    wanted = (dataset, task, setting)
    return tuple(row for row in every_row() if (row.dataset, row.task, row.setting) == wanted)


def published_datasets() -> tuple[str, ...]:
    """The data sets of which rows are known."""
    return tuple(dict.fromkeys(row.dataset for row in every_row()))


def published_of(rows: Sequence[Published], trainer: str) -> Published | None:
    """The row of the method that a trainer is; None where there is none."""
    return next((row for row in rows if row.trainer == trainer), None)


@dataclass(frozen=True)
class Beside:
    """A row of a run and the published row of the same trainer."""

    method: str
    published: Published


def beside(table: RecipeTable) -> tuple[Beside, ...]:
    """The published rows of a run's own trainers, in the recipe's order; empty where the recipe compares with nothing.

    A row is found by its trainer's name, so a changed copy under another name has no published row.
    """
    if table.compare is None:
        return ()
    known = published_rows(table.compare.dataset, table.scenario.task, table.scenario.setting)
    pairs = [(row.name, published_of(known, Path(row.trainer).stem)) for row in table.method]
    return tuple(Beside(name, found) for name, found in pairs if found is not None)
