"""`[run] tensorboard`: where every training writes TensorBoard's files. It is a how, and in no key."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from replaygen.errors import RecipeError
from replaygen.plan.workspace import expand_path, workspace_of

if TYPE_CHECKING:
    from replaygen.plan.recipe import RecipeTable


def with_board(table: RecipeTable, path: Path) -> RecipeTable:
    """The recipe of the file `path`, its folder for TensorBoard among the fit options that are in no key.

    Raises:
        RecipeError: TensorBoard is not installed.
    """
    if table.run.tensorboard is None:
        return table
    if find_spec("tensorboard") is None:
        raise RecipeError(
            "run.tensorboard needs the package tensorboard, which is not installed",
            where=str(path), hint="pip install 'replaygen[tensorboard]', or leave it out",
        )  # fmt: skip
    folder = expand_path(table.run.tensorboard, workspace=workspace_of(path), where=str(path))
    fit = table.train.fit.model_copy(update={"tensorboard": str(folder.absolute())})
    return table.model_copy(update={"train": table.train.model_copy(update={"fit": fit})})
