"""What each part of ours brings, and what replay does for the methods of the field: `make bench-methods-ablation`.

Ours without one part at a time, and published methods with what ours has. On real photographs and on digit scenes
these are the replay buffers ("mib + web", "sdr + web", ...), which no paper's code can do; in street scenes, where ours
takes no replay, the weight of new classes. Tasks share `bench-methods`' store, so step 0, photos, labels and the rows
that both have are trained once.

    python benchmarks/bench_methods_ablation.py [--scenarios real_photos,digits] [--seeds 0,1] [--only mib+far]
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench_methods import COLUMNS, RECIPES, WORKERS, _changes, _listed, _numbers, _path, _store, asked
from common import write

OWN: dict[str, dict[str, dict[str, Any]]] = {
    "real_photos": {
        "replaygen": {},
        "near_views": {"replay": "web"},
        "without_inpainting": {"inpaint": False},
        "merged_labels": {"merged": True},
        "distil_1": {"distil": 1.0},
        "mix_0.5": {"mix": 0.5},
    },
    "digits": {
        "replaygen": {},
        "without_ahead": {"ahead": False},
        "without_distillation": {"distil": 0.0},
        "without_inpainting": {"inpaint": False},
        "random_rows": {"init": "random"},
        "merged_labels": {"merged": True},
    },
    "camvid": {
        "replaygen": {},
        "even_weights": {"new_weight": 1.0},
        "without_distillation": {"distil": 0.0},
        "without_inpainting": {"inpaint": False},
        "merged_labels": {"merged": True},
    },
}
"""Ours, and what changes when one part is taken away or put in."""
FIELD = ("finetune", "frozen", "lwf", "ilt", "mib", "sdr", "plop", "ewf")


def main() -> None:
    """Run the rows of each scenario, seed by seed, and write what stands."""
    scenarios, seeds = asked(list(OWN))
    for seed in seeds:
        for scenario in scenarios:
            run(scenario, seed + 1)
            write("methods-ablation", {name: rows for name in OWN if (rows := table(name, max(seeds) + 1))})


def recipe_of(scenario: str, seeds: int, only: Sequence[str] = ()) -> Any:
    """The scenario's recipe with the ablation's rows, or with some of them."""
    from replaygen.plan import Recipe
    from replaygen.plan.tables import MethodTable

    recipe = Recipe.load(_path(RECIPES[scenario]), _changes())
    field = recipe.table.field_rows()
    ours = field["replaygen"].model_dump()
    rows = [MethodTable.model_validate({**ours, **changes, "name": name}) for name, changes in OWN[scenario].items()]
    source = ours["replay"]
    given = {"replay": source, "r_old": ours.get("r_old", 1.0)} if source else {"new_weight": ours["new_weight"]}
    for name in FIELD:
        row = field.get(name, MethodTable(name=name, trainer=name)).model_dump()
        rows.append(MethodTable.model_validate({**row, "name": f"{name}+{source or 'weight'}", **given}))
    if only:
        rows = [row for row in rows if row.name in only]
    train = recipe.table.train.model_copy(update={"seeds": tuple(range(seeds))})
    return replace(recipe, table=recipe.table.model_copy(update={"method": tuple(rows), "train": train}), partial=True)


def run(scenario: str, seeds: int) -> None:
    """All rows of some seeds; what stands in the store is not run again."""
    from replaygen.cli.app import executed
    from replaygen.store import Store

    recipe = recipe_of(scenario, seeds, _listed("--only", []))
    run_table = recipe.table.run.model_copy(update={"workers": WORKERS})
    executed(replace(recipe, table=recipe.table.model_copy(update={"run": run_table})), Store(_store()), as_json=True)


def table(scenario: str, seeds: int) -> dict[str, Any]:
    """row -> column -> list over the seeds that stand; `brings`: ours minus the row, mean over their common seeds.

    Empty where nothing was run, or the data are not there.
    """
    from replaygen.cli.bench import figures
    from replaygen.errors import ReplaygenError
    from replaygen.runs.results import read_result
    from replaygen.store import Store

    try:
        told = figures(read_result(recipe_of(scenario, seeds).plan(Store(_store()))))
    except (OSError, ReplaygenError):
        return {}
    rows: dict[str, Any] = {
        name: {column: _numbers(getattr(one, column), 1 if column == "seconds" else 2) for column in COLUMNS}
        for name, one in told.items()
        if any(value is not None for value in one.all)
    }
    ours = rows.get("replaygen", {"all": []})["all"]
    for row in rows.values():
        both = [a - b for a, b in zip(ours, row["all"], strict=False) if a is not None and b is not None]
        row["brings"] = round(statistics.fmean(both), 2) if both else None
    return rows


if __name__ == "__main__":
    main()
