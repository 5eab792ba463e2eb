"""`rg.trainer("recall").fit(scenario, data, ...)`: a training from Python objects. It builds a plan and runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.plan import Recipe
from replaygen.plan.recipe import check_recipe
from replaygen.plan.workspace import find_trainer

if TYPE_CHECKING:
    from replaygen.runs import Run
    from replaygen.store import Store


@dataclass(frozen=True)
class Trainer:
    """A method by name ("recall") or by the path of its file."""

    name: str

    def fit(
        self,
        scenario: Mapping[str, Any],
        data: Mapping[str, Any],
        *,
        network: Mapping[str, Any],
        replay: Mapping[str, Any] | None = None,
        views: Mapping[str, Any] | None = None,
        fit: Mapping[str, Any] | None = None,
        base: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        store: Store | None = None,
        name: str = "fit",
    ) -> Run:
        """Train this method through every step; whatever the store holds already is not done again.

        Args:
            scenario, data, network, replay, views: the recipe's tables of the same names, as dictionaries.
            fit: changes of `[train.fit]`; base: of `[train.base]`.
            options: the method's own options.
            seed: of the run.
            store: by default `cache/` of the current folder.
            name: under which the store remembers the run.

        Raises:
            RecipeError: a table that is wrong, before anything runs.
        """
        from replaygen.runs import run

        find_trainer(self.name, Path.cwd())
        method = {**(options or {}), "name": Path(self.name).stem, "trainer": self.name}
        tables: dict[str, Any] = {
            "name": name, "scenario": dict(scenario), "data": dict(data), "network": dict(network),
            "train": {"seeds": [seed], "fit": dict(fit or {}), "base": dict(base or {})},
        }  # fmt: skip
        if views is not None:
            tables["views"] = dict(views)
        if replay is not None:
            tables["replay"] = {"replay": dict(replay)}
            method["replay"] = "replay"
        recipe = Recipe(check_recipe({**tables, "method": [method]}, where="fit()"), Path("fit()"), Path.cwd())
        return run(recipe.plan(store if store is not None else recipe.store()))


def trainer(name: str) -> Trainer:
    """A trainer by name, or by the path of a method file."""
    return Trainer(name)
