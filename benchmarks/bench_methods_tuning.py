"""The trials behind the settings of the methods' table: `make bench-methods-tuning`.

On a held-out quarter of the training images of voc-animals-web; the validation images choose nothing. Each published
method gets the same number of trials: its paper's weights at the recipe's learning rate and at a sixth of it. Ours was
tried in more ways, which are all listed. Camvid and digits take the recipe's rates and the papers' weights.

    python benchmarks/bench_methods_tuning.py [--seeds 0,1] [--only mib,replaygen] [--quick]
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench_methods import NEEDS, RECIPES, TINY, WORKERS, _listed, _path, _store
from common import QUICK, need_data, rounded, write

SLOW = 0.0005
PEERS = ("finetune", "frozen", "lwf", "ilt", "mib", "sdr", "plop", "ewf")
WEB = {"replay": "web", "r_old": 3.0}
FAR = {"replay": "far", "r_old": 3.0}
TRIALS: dict[str, dict[str, dict[str, Any]]] = {
    **{name: {"published": {}, "slow": {"lr": SLOW}} for name in PEERS},
    "recall": {"published": WEB, "slow": {**WEB, "lr": 0.0015}},
    "replaygen": {
        "plain": {**WEB, "init": "random"},
        "distil 1": {**WEB, "init": "random", "distil": 1.0},
        "mix": {**WEB, "init": "random", "mix": 0.5},
        "far": {**FAR, "init": "random"},
        "far, ahead": {"replay": "far_helper", "r_old": 3.0, "init": "random", "ahead": True},
    },
}


def main() -> None:
    """Run every trial on the held-out part and write its mIoU."""
    need_data(*NEEDS["real_photos"])
    seeds = [int(seed) for seed in _listed("--seeds", ["0"])]
    names = _listed("--only", list(TRIALS))
    recipe = recipe_of(names, seeds)
    run(recipe)
    write("methods-tuning", figures(recipe, names))


def recipe_of(names: list[str], seeds: list[int]) -> Any:
    """voc-animals-web on its held-out part, one row a trial."""
    from replaygen.plan import Recipe
    from replaygen.plan.tables import MethodTable

    recipe = Recipe.load(_path(RECIPES["real_photos"]), {"scenario.holdout": 4, **(TINY if QUICK else {})})
    web = recipe.table.replay["web"]
    sources = {
        **recipe.table.replay,
        "far": web.model_copy(update={"zoom": 2.0}),
        "far_helper": web.model_copy(update={"zoom": 2.5, "labeler": "helper"}),
    }
    rows = tuple(
        MethodTable.model_validate({"name": f"{name}-{place}", "trainer": name, **told})
        for name in names
        for place, told in enumerate(TRIALS[name].values())
    )
    train = recipe.table.train.model_copy(update={"seeds": tuple(seeds)})
    table = recipe.table.model_copy(update={"method": rows, "replay": sources, "train": train})
    return replace(recipe, table=table, partial=True)


def run(recipe: Any) -> None:
    """All trials; what stands in the store is not run again."""
    from replaygen.cli.app import executed
    from replaygen.store import Store

    how = recipe.table.run.model_copy(update={"workers": WORKERS})
    executed(replace(recipe, table=recipe.table.model_copy(update={"run": how})), Store(_store()), as_json=True)


def figures(recipe: Any, names: list[str]) -> dict[str, Any]:
    """method -> trial -> all-class mIoU on the held-out images, a list over seeds."""
    from replaygen.runs.results import read_result
    from replaygen.store import Store

    result = read_result(recipe.plan(Store(_store())))
    return {
        name: {
            trial: rounded([step.metrics["all"] for step in result.last(f"{name}-{place}")])
            for place, trial in enumerate(TRIALS[name])
        }
        for name in names
    }


if __name__ == "__main__":
    main()
