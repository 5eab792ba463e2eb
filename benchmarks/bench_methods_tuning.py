"""The trials behind the settings of the methods' table: `make bench-methods-tuning`.

On held-out training images (a quarter; camvid a fifth); the validation images choose nothing. On photos each published
method without replay got two trials, its paper's weights at the recipe's learning rate and at a sixth of it; RECALL
kept the settings that it has in voc-animals-web, and ours got all that are listed, more than the others. On digits the
published methods took the recipe's rates and their papers' weights untried; on camvid longer steps were tried with four
of them, and are given to every row, and heavier new classes with MiB and EWF, which stay as published.

    python benchmarks/bench_methods_tuning.py [--scenarios digits] [--seeds 0,1] [--only mib,replaygen] [--quick]
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench_methods import NEEDS, RECIPES, TINY, WORKERS, _listed, _path, _store
from common import QUICK, need_data, rounded, write

SLOW = 0.0005
PEERS = ("finetune", "frozen", "lwf", "ilt", "mib", "sdr", "plop", "ewf")
PLAIN = {"r_old": 3.0, "init": "random"}
LONGER = {"iterations": 180}
LONG = {"new x 20": {"new_weight": 20.0}, "longer": LONGER, "longer, new x 8": {**LONGER, "new_weight": 8.0}}
TRIALS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "real_photos": {
        **{name: {"published": {}, "slow": {"lr": SLOW}} for name in PEERS},
        "recall": {"published": {"replay": "web", "r_old": 3.0}},
        "recall_plus": {"published": {"replay": "plus", "r_old": 3.0}},
        "replaygen": {
            "photos labelled by helpers": {**PLAIN, "replay": "helper"},
            "mix 0.5": {**PLAIN, "replay": "web", "mix": 0.5},
            "ahead": {"r_old": 3.0, "replay": "helper", "ahead": True},
            "ahead, mix 0.5": {"r_old": 3.0, "replay": "helper", "ahead": True, "mix": 0.5},
            "ahead, mix 0.5, distil 1": {"r_old": 3.0, "replay": "helper", "ahead": True, "mix": 0.5, "distil": 1.0},
            "zoom 2": {**PLAIN, "replay": "far"},
            "zoom 3": {**PLAIN, "replay": "farther"},
            "zoom 2.5, ahead": {**PLAIN, "replay": "far_helper", "ahead": True},
            "zoom 2, chosen": {**PLAIN, "replay": "far_plus"},
            "zoom 2, chosen, knowledge": {**PLAIN, "replay": "far_plus", "knowledge": True},
            "zoom 2, knowledge": {**PLAIN, "replay": "far", "knowledge": True},
            "zoom 2, chosen, r_old 5": {**PLAIN, "replay": "far_plus", "r_old": 5.0},
            "zoom 2, chosen, distil 0.3": {**PLAIN, "replay": "far_plus", "distil": 0.3},
            "zoom 2, chosen of more": {**PLAIN, "replay": "far_plus_300"},
            "zoom 2, chosen, ahead": {**PLAIN, "replay": "far_plus", "ahead": True},
            "zoom 2, chosen, distil 1": {**PLAIN, "replay": "far_plus", "distil": 1.0},
            "zoom 2, chosen, new x 2": {**PLAIN, "replay": "far_plus", "new_weight": 2.0},
        },
    },
    "real_photos_person": {
        "replaygen": {
            "zoom 2, chosen": {**PLAIN, "replay": "far"},
            "zoom 2, chosen, distil 0.3": {**PLAIN, "replay": "far", "distil": 0.3},
            "zoom 2, chosen, distil 1": {**PLAIN, "replay": "far", "distil": 1.0},
        },
    },
    "digits": {
        "recall": {"published": {"replay": "photos", "init": "balanced"}},
        "replaygen": {
            "mix 0.5": {"replay": "photos", "mix": 0.5},
            "distil 1": {"replay": "photos", "distil": 1.0},
            "ahead": {"replay": "helper", "ahead": True},
            "r_old 3": {"replay": "photos", "r_old": 3.0},
            "merged": {"replay": "photos", "merged": True},
            "averaged weights": {"replay": "photos", "average": 0.95},
            "ahead, distil 1": {"replay": "helper", "ahead": True, "distil": 1.0},
            "ahead, random rows": {"replay": "helper", "ahead": True, "init": "random"},
            "ahead, random rows, distil 1": {"replay": "helper", "ahead": True, "init": "random", "distil": 1.0},
        },
    },
    "camvid": {
        "mib": {"published": {}, **LONG},
        "ewf": {"published": {}, **LONG},
        "sdr": {"longer": LONGER},
        "plop": {"longer": LONGER},
        "replaygen": {
            "argmax, distil 1": {"inpaint": "argmax", "distil": 1.0},
            "entropy, distil 1": {"inpaint": "entropy", "distil": 1.0},
            "entropy": {"inpaint": "entropy"},
            "distil 1, new x 5": {"distil": 1.0, "new_weight": 5.0},
            "distil 1, new x 20": {"distil": 1.0, "new_weight": 20.0},
            "new x 20": {"new_weight": 20.0},
            "longer, distil 1": {**LONGER, "distil": 1.0},
            "longer, distil 1, new x 3": {**LONGER, "distil": 1.0, "new_weight": 3.0},
            "longer, distil 1, new x 8": {**LONGER, "distil": 1.0, "new_weight": 8.0},
            "longer, distil 1, new x 20": {**LONGER, "distil": 1.0, "new_weight": 20.0},
            "longer, distil 1, new x 3, averaged": {**LONGER, "distil": 1.0, "new_weight": 3.0, "average": 0.95},
            "longer, distil 1, new x 3, sure pixels": {
                **LONGER,
                "distil": 1.0,
                "new_weight": 3.0,
                "inpaint": "confidence",
            },
            "400 iterations, distil 1, new x 3": {"iterations": 400, "distil": 1.0, "new_weight": 3.0},
            "longer, distil 5, new x 3": {**LONGER, "distil": 5.0, "new_weight": 3.0},
            "longer, distil 5, new x 8": {**LONGER, "distil": 5.0, "new_weight": 8.0},
            "longer, distil 10, new x 8": {**LONGER, "distil": 10.0, "new_weight": 8.0},
            "longer, distil 10, new x 20": {**LONGER, "distil": 10.0, "new_weight": 20.0},
        },
    },
}
HOLDOUT = {"real_photos": 4, "real_photos_person": 4, "digits": 4, "camvid": 5}
MORE = {
    "real_photos": {"helper": ("web", {"labeler": "helper"}), "far": ("web", {"zoom": 2.0}),
                    "farther": ("web", {"zoom": 3.0}), "far_helper": ("web", {"zoom": 2.5, "labeler": "helper"}),
                    "far_plus": ("plus", {"zoom": 2.0}),
                    "far_plus_300": ("plus", {"zoom": 2.0, "count": 300})},
    "real_photos_person": {},
    "digits": {"helper": ("photos", {"labeler": "helper"})},
    "camvid": {},
}  # fmt: skip
"""Replay sources that trials add: what they are made from, and what differs."""


def main() -> None:
    """Run every trial on the held-out part and write its mIoU."""
    seeds = [int(seed) for seed in _listed("--seeds", ["0"])]
    told = {}
    for scenario in _listed("--scenarios", list(TRIALS)):
        if NEEDS[scenario]:
            need_data(*NEEDS[scenario])
        names = [name for name in _listed("--only", list(TRIALS[scenario])) if name in TRIALS[scenario]]
        recipe = recipe_of(scenario, names, seeds)
        run(recipe)
        told[scenario] = figures(recipe, scenario, names)
    write("methods-tuning", told)


def recipe_of(scenario: str, names: list[str], seeds: list[int]) -> Any:
    """A scenario's recipe on its held-out part, one row a trial."""
    from replaygen.plan import Recipe
    from replaygen.plan.tables import MethodTable

    changes = {"scenario.holdout": HOLDOUT[scenario], **(TINY if QUICK else {})}
    recipe = Recipe.load(_path(RECIPES[scenario]), changes)
    given = recipe.table.replay
    sources = {**given, **{name: given[of].model_copy(update=told) for name, (of, told) in MORE[scenario].items()}}
    rows = tuple(
        MethodTable.model_validate({"name": f"{name}-{place}", "trainer": name, **told})
        for name in names
        for place, told in enumerate(TRIALS[scenario][name].values())
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


def figures(recipe: Any, scenario: str, names: list[str]) -> dict[str, Any]:
    """method -> trial -> all-class mIoU on the held-out images, a list over seeds."""
    from replaygen.runs.results import read_result
    from replaygen.store import Store

    result = read_result(recipe.plan(Store(_store())))
    return {
        name: {
            trial: rounded([step.metrics["all"] for step in result.last(f"{name}-{place}")])
            for place, trial in enumerate(TRIALS[scenario][name])
        }
        for name in names
    }


if __name__ == "__main__":
    main()
