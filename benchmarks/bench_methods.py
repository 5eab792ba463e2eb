"""The table of the field: every method on the same data, `make bench-methods`.

Four scenarios: real photographs with and without people, street scenes (CamVid 6-1, partitioned) and digit scenes. The
settings of each method stand in the recipes' `[methods.NAME]`; they were chosen on a held-out part of train, with more
trials for ours than for the others (`bench_methods_tuning.py` lists them). Each (method, seed) is a chain of cached
tasks that share step 0 and photos, in `data/bench-methods`, so the table grows over days and is rebuilt in minutes.

    python benchmarks/bench_methods.py [--scenarios real_photos,digits] [--seeds 0,1,2] [--only mib,plop] [--quick]

Seed 0 of every scenario is run before seed 1 of any. Whatever stands in the store is written, a method's lists as long
as the seeds that it has.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import QUICK, REPOSITORY, need_data, replaygen, rounded, settings, write

FOLDER = REPOSITORY / "data" / "bench-methods"
RECIPES = {
    "real_photos": "voc-animals-web",
    "digits": "digits",
    "camvid": "camvid-6-1",
    "real_photos_person": "voc-animals-person",
}
NEEDS = {
    "real_photos": ("voc_animals", "web_animals", "weights"),
    "real_photos_person": ("voc_animals", "web_animals", "weights"),
    "camvid": ("camvid", "weights"),
    "digits": (),
}
TINY = {"train.fit.iterations": 2, "train.base": {"iterations": 2}, "views.count": 1}
COLUMNS = ("all", "old", "new", "forgetting", "seconds")
WORKERS = 2


def main() -> None:
    """Run what is asked for, seed by seed, and write the table after each."""
    scenarios, seeds = asked(list(RECIPES))
    for seed in seeds:
        for scenario in scenarios:
            run(scenario, seed)
            write("methods", figures(RECIPES, max(seeds) + 1))


def asked(scenarios: list[str]) -> tuple[list[str], list[int]]:
    """Scenarios and seeds of the command line; it ends with a word where their data are not there."""
    chosen = _listed("--scenarios", scenarios)
    for scenario in chosen:
        if NEEDS[scenario]:
            need_data(*NEEDS[scenario])
    return chosen, [int(seed) for seed in _listed("--seeds", ["0"] if QUICK else ["0", "1", "2"])]


def run(scenario: str, seed: int) -> None:
    """One seed of every method on a scenario; what stands in the store is not run again."""
    only = _listed("--only", [])
    replaygen(
        "bench", "methods", RECIPES[scenario], "--seeds", str(seed + 1), "--cache", str(_store()),
        "--workers", str(WORKERS), *(["--only", ",".join(only)] if only else []), *settings(_changes()), "--json",
    )  # fmt: skip


def figures(scenarios: Mapping[str, str], seeds: int) -> dict[str, Any]:
    """scenario -> method -> lists over the seeds that stand in the store, percent and seconds."""
    told = {}
    for scenario, recipe in scenarios.items():
        rows = table(recipe, seeds)
        if rows:
            told[scenario] = rows
    return told


def table(recipe: str, seeds: int) -> dict[str, Any]:
    """method -> column -> list over seeds; empty where nothing was run."""
    from replaygen.cli.bench import FIELD, field_recipe
    from replaygen.cli.bench import figures as figures_of
    from replaygen.errors import ReplaygenError
    from replaygen.plan import Recipe
    from replaygen.runs.results import read_result
    from replaygen.store import Store

    store = Store(_store())
    try:
        field, _ = field_recipe(Recipe.load(_path(recipe), _changes()), store, FIELD, range(seeds))
        told = figures_of(read_result(field.plan(store)))
    except (OSError, ReplaygenError):  # the data of this scenario are not there
        return {}
    return {
        method: {column: _numbers(getattr(one, column), 1 if column == "seconds" else 2) for column in COLUMNS}
        for method, one in told.items()
        if any(value is not None for value in one.all)
    }


def _numbers(values: Sequence[float | None], digits: int) -> list[float | None]:
    return [None if value is None else rounded([value], digits)[0] for value in values]


def _changes() -> dict[str, Any]:
    return dict(TINY) if QUICK else {}


def _path(recipe: str) -> Path:
    return REPOSITORY / "pipelines" / f"{recipe}.toml"


def _store() -> Path:
    return FOLDER / ("quick" if QUICK else "cache")


def _listed(option: str, default: list[str]) -> list[str]:
    return sys.argv[sys.argv.index(option) + 1].split(",") if option in sys.argv[1:] else default


if __name__ == "__main__":
    main()
