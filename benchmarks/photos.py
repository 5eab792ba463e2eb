"""The real-photograph tables: rows x seeds of a recipe, read from its records.

The store stands in `data/bench-NAME/`, which git ignores, so that a benchmark that was interrupted goes on where it
stopped. Seed 0 is run first and alone, then the others. Wall and CPU seconds are written only for phases that ran from
start to end without interruption, and are null otherwise; `stage_seconds` come from the records, and always stand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import QUICK, REPOSITORY, fresh_folder, need_data, replaygen, rounded, settings, write

if TYPE_CHECKING:
    from replaygen.plan import Plan
    from replaygen.runs import RunResult, StepResult

ROWS = ("finetune", "recall", "recall_no_inpaint", "exemplar", "joint")
SEEDS = (0, 1) if QUICK else (0, 1, 2)
WORKERS = 2
TINY: dict[str, Any] = {
    "views.size": 64, "views.count": 1, "views.label_size": 16, "train.fit.iterations": 3, "train.base.iterations": 4,
    "train.fit.warmup": 1, "train.base.warmup": 1, "method.joint.iterations": 6, "replay.web.count": 4,
    "replay.exemplars.count": 4, "network.width": 16, "scenario.holdout": 20,
}  # fmt: skip


def table(
    name: str, recipe: str, *, person: bool = False, rows: Sequence[str] = ROWS, main: str = "recall",
    quick: Mapping[str, Any] | None = None, seeds: Sequence[int] = SEEDS,
    extra: Callable[[Path], Mapping[str, Any]] | None = None,
) -> None:  # fmt: skip
    """Run a recipe for every seed and write its figures.

    Args:
        name: of the benchmark.
        recipe: of the recipe.
        person: also give the person's IoU after every step.
        rows: of the recipe, in the order of the figures.
        main: the row whose share of the gap is told.
        quick: what `--quick` lays over the recipe.
        seeds: of training.
        extra: more figures, from the folder that holds the store.
    """
    need_data("voc_animals", "web_animals", "weights")
    if quick is not None:
        TINY.clear()
        TINY.update(quick)
    with ExitStack() as stack:
        folder = stack.enter_context(fresh_folder()) if QUICK else REPOSITORY / "data" / f"bench-{name}"
        figures = _figures(recipe, folder, person, rows, main, seeds)
        write(name, {**figures, **(extra(folder) if extra is not None else {})})


def _figures(
    recipe: str, folder: Path, person: bool, rows: Sequence[str], main: str, seeds: Sequence[int]
) -> dict[str, Any]:
    from replaygen.runs import read_result

    alone = _run(recipe, folder, seeds[:1])
    every = _run(recipe, folder, seeds) if len(seeds) > 1 else {"seconds": 0.0, "cpu_seconds": 0.0}
    plan = _plan(recipe, folder, seeds)
    result = read_result(plan)
    figures: dict[str, Any] = {row: _row(result.last(row), seeds) for row in rows}
    figures["gap_closed"] = rounded(result.gap_closed(main) or [])
    if person:
        figures["person_iou"] = {row: _course(result, row, "person", seeds) for row in rows}
    figures["rows"] = list(rows)
    figures["quality"] = _quality(plan, seeds[0])
    figures |= {
        "seeds": list(seeds),
        "seconds_one_seed_alone": _part(alone, "seconds", 1),
        "seconds_per_seed": _total(alone, every, "seconds", len(seeds)),
        "cpu_seconds_per_seed": _total(alone, every, "cpu_seconds", len(seeds)),
        "stage_seconds_one_seed_alone": round(_stage_seconds(_plan(recipe, folder, seeds[:1])), 1),
        "stage_seconds_per_seed": round(_stage_seconds(plan) / len(seeds), 1),
        "workers": WORKERS,
    }
    return figures


def _quality(plan: Plan, seed: int) -> list[dict[str, Any]]:
    """How good each generated set is, by one seed's encoder and labels."""
    from replaygen.report.quality import qualities

    names = ("name", "source", "generated", "accepted", "found", "diversity", "kid", "floor", "memorised",
             "real_memorised")  # fmt: skip
    told = [{name: getattr(one, name) for name in names} for one in qualities(plan, seed)]
    return [{k: round(v, 1) if isinstance(v, float) else v for k, v in one.items()} for one in told]


def _changes(seeds: Sequence[int]) -> dict[str, Any]:
    return {**(TINY if QUICK else {}), "train.seeds": list(seeds)}


def _plan(recipe: str, folder: Path, seeds: Sequence[int]) -> Plan:
    from replaygen.plan import Recipe
    from replaygen.store import Store

    path = REPOSITORY / "pipelines" / f"{recipe}.toml"
    return Recipe.load(path, _changes(seeds)).plan(Store(folder / "cache"))


def _run(recipe: str, folder: Path, seeds: Sequence[int]) -> Mapping[str, Any] | None:
    """Run some seeds; wall and CPU seconds of what they added, None where a part of it stood before."""
    from replaygen.canonical import digest_of

    folder.mkdir(parents=True, exist_ok=True)
    before = set(_plan(recipe, folder, seeds[:1]).tasks) if len(seeds) > 1 else set()
    plan = _plan(recipe, folder, seeds)
    fresh = {task.key for task in plan.to_run()} == set(plan.tasks) - before
    remembered = folder / f"seconds-{digest_of(sorted(plan.tasks))[:16]}.json"
    if fresh:
        remembered.unlink(missing_ok=True)
    elif not plan.to_run():
        return _remembered(remembered)
    else:
        print(f"{recipe}: going on where an earlier run stopped", file=sys.stderr)
    done = replaygen(
        "run", recipe, "--cache", str(folder / "cache"), "--report", str(folder / "report.html"),
        "--workers", str(WORKERS), *settings(_changes(seeds)),
    )  # fmt: skip
    if not fresh:
        return None
    remembered.write_text(json.dumps({"seconds": done.seconds, "cpu_seconds": done.cpu_seconds}), encoding="utf-8")
    return _remembered(remembered)


def _remembered(path: Path) -> Mapping[str, Any] | None:
    """What an uninterrupted run of the same tasks took."""
    if not path.is_file():
        return None
    told: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return told


def _part(taken: Mapping[str, Any] | None, name: str, seeds: int) -> float | None:
    return None if taken is None else round(float(taken[name]) / seeds, 1)


def _total(alone: Mapping[str, Any] | None, rest: Mapping[str, Any] | None, name: str, seeds: int) -> float | None:
    """Both phases together, for one seed."""
    if alone is None or rest is None:
        return None
    return round(float(alone[name] + rest[name]) / seeds, 1)


def _stage_seconds(plan: Plan) -> float:
    """Seconds inside stages of every task of a plan, whenever it was made."""
    records = [plan.store.get(key) for key in plan.tasks]
    return sum(record.seconds for record in records if record is not None)


def _row(last: Sequence[StepResult], seeds: Sequence[int]) -> dict[str, Any]:
    """Figures of a row after its last step, each a list over seeds, percent, background counted in all and old."""
    if len(last) != len(seeds):
        raise RuntimeError(f"{len(last)} of {len(seeds)} seeds were evaluated")
    return {
        "all": rounded([step.metrics["all"] for step in last]),
        "old": rounded([step.metrics["old"] for step in last]),
        "new": rounded([step.metrics["new"] for step in last]),
        "per_class": {
            name: rounded([step.metrics["per_class"][name] for step in last]) for name in last[0].metrics["per_class"]
        },
        "cow_to_sheep": rounded([step.rate("cow", "sheep") for step in last]),
        "sheep_to_cow": rounded([step.rate("sheep", "cow") for step in last]),
    }


def _course(result: RunResult, row: str, name: str, seeds: Sequence[int]) -> list[list[float]]:
    """A class's IoU in percent after every step of a row, a list for each seed; joint has its one step only."""
    return [rounded([step.metrics["per_class"][name] for step in result.of(row, seed)]) for seed in seeds]
