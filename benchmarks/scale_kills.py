"""Row 8: workers killed in each of five stages of a real recipe, and a task that kills every worker it meets."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.testing import deaths, toys

if TYPE_CHECKING:
    from replaygen.plan import Plan

STAGES = ("photos", "exemplars", "label", "train", "evaluate")
RECIPE = """
name = "kills"
shard = 32
[data]
kind = "digits"
path = "{data}"
options = {{ train = 60, val = 12, photos = 24 }}
[scenario]
task = "8-1"
[network]
kind = "small"
widths = [16, 24]
[views]
size = 32
[replay.photos]
source = "folder"
path = "{{data}}/photos"
count = 8
[replay.kept]
source = "exemplar"
count = 6
[train.fit]
iterations = 6
batch = 4
optimizer = "adamw"
background_weight = 0.05
[train.base]
iterations = 80
batch = 16
lr = 0.02
[[method]]
name = "recall"
trainer = "recall"
replay = "kept"
[[method]]
name = "web"
trainer = "recall"
replay = "photos"
[[method]]
name = "joint"
trainer = "joint"
"""


def kills(folder: str, each: int, workers: int) -> dict[str, Any]:
    """SIGKILL a worker `each` times in each stage, over as many runs as it takes, and compare with an inline run."""
    here = Path(folder)
    path = here / "pipelines" / "kills.toml"
    path.parent.mkdir()
    path.write_text(RECIPE.format(data=here / "digits"))
    truth, _ = _made(path, here / "whole", None)
    died: Counter[str] = Counter()
    twice, unequal, runs, began = 0, 0, 0, time.perf_counter()
    while any(died[stage] < each for stage in STAGES):
        wanted = {stage: min(2, each - died[stage]) for stage in STAGES if died[stage] < each}
        marks = here / f"deaths-{runs}"
        outputs, again = _made(path, here / f"killed-{runs}", deaths.preload(marks, wanted, runs), workers)
        unequal += outputs != truth
        twice += again + len(deaths.done_twice(marks))
        died += deaths.deaths(marks)
        runs += 1
    return {
        "kills": dict(died), "runs": runs, "runs_with_other_bytes": unequal, "done_twice": twice,
        "seconds": time.perf_counter() - began, **_poison(here, workers),
    }  # fmt: skip


def _made(recipe: Path, store: Path, preload: str | None, workers: int = 0) -> tuple[dict[str, str], int]:
    """Run a recipe: slot -> outputs digest, and how many tasks were told as done more than once."""
    import dask
    import distributed  # noqa: F401  before `set`, which on leaving takes out what it brings in

    from replaygen.plan import Recipe
    from replaygen.runs import run
    from replaygen.runs.progress import Quiet
    from replaygen.store import Store

    told: Counter[str] = Counter()

    class Counting(Quiet):
        def done(self, task: Any, outcome: Any) -> None:
            told[task.key] += 1

    plan = Recipe.load(recipe, {"run.workers": workers}).plan(Store(store))
    with dask.config.set({"distributed.worker.preload": [preload] if preload else []}):
        run(plan, progress=Counting())
    return _digests(plan), sum(count - 1 for count in told.values())


def _digests(plan: Plan) -> dict[str, str]:
    found = {}
    for slot, key in plan.slots.items():
        record = plan.store.get(key)
        if record is None:
            raise RuntimeError(f"{slot} was not made")
        found[slot] = record.outputs_digest
    return found


def _poison(folder: Path, workers: int) -> dict[str, Any]:
    """One task that kills its worker, among others: what the run says, how many workers died, what else was lost."""
    import dask
    import distributed  # noqa: F401  before `set`, which on leaving takes out what it brings in

    from replaygen.errors import TaskError
    from replaygen.runs import run
    from replaygen.store import Store

    toys.register()
    tasks = [toys.toy(toys.ShardStage, number, samples=4, bytes=10, seconds=0.1) for number in range(40)]
    tasks.insert(7, toys.toy(toys.DeadlyStage, 7, seconds=0.2))
    marks = folder / "poison"
    plan = toys.toy_plan(Store(folder / "poisoned"), tasks, workers=workers)
    preload = f"{toys.PRELOAD}; {deaths.preload(marks, {'toy-deadly': 0}, 0)}"
    said = ""
    with dask.config.set({"distributed.worker.preload": [preload]}):
        try:
            run(plan)
        except TaskError as error:
            said = error.what
    lost = [slot for slot, key in plan.slots.items() if plan.store.get(key) is None]
    return {
        "poison_named": said.startswith("toy-deadly/00007 failed:"), "poison_lost": lost,
        "poison_deaths": (marks / "runs").read_text().count("\n"),
    }  # fmt: skip
