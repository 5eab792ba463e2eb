"""The measurements of bench_overhead.py; each runs in an interpreter of its own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replaygen.plan import Plan, Task
    from replaygen.runs.execute import Outcome

CLASSES = 150
SCENE_IMAGES = 20_000
LARGE = """
name = "large"
[data]
path = "made-up"
[scenario]
task = "100-10"
[network]
kind = "small"
[replay.web]
source = "folder"
path = "made-up"
count = 10_000
[[method]]
name = "recall"
trainer = "recall"
replay = "web"
"""


class Watch:
    """Notes when the run began and when each task was done, as seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.began = 0.0
        self.done_at: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def start(self, plan: Plan) -> None:
        """The workers stand; the first submit comes next."""
        self.began = time.perf_counter()

    def done(self, task: Task, outcome: Outcome) -> None:
        """A task came back."""
        self.done_at[task.key] = time.perf_counter()
        self.seconds[task.key] = outcome.seconds

    def close(self) -> None:
        """The last one came back."""


def compose(recipe: str, changes: Mapping[str, Any], store: str) -> int:
    """Compose and scan the data set, by planning once; returns the number of tasks."""
    return len(_plan(recipe, changes, store).tasks)


def inline(recipe: str, changes: Mapping[str, Any], store: str) -> dict[str, Any]:
    """A cold run in this process: wall seconds from the recipe to the end, and what was spent outside stages."""
    from replaygen.runs import run

    began = time.perf_counter()
    done = run(_plan(recipe, {**changes, "run.workers": 0}, store))
    wall = time.perf_counter() - began
    return {
        "overhead": 1.0 - done.tally.seconds / wall, "outside_seconds": wall - done.tally.seconds,
        "stage_seconds": done.tally.seconds, "tasks": done.tally.made,
    }  # fmt: skip


def on_dask(recipe: str, changes: Mapping[str, Any], store: str, workers: int) -> dict[str, Any]:
    """A cold run on Dask workers, and the same graph of sleeping tasks through a bare client on fresh workers."""
    from replaygen.runs import run
    from replaygen.runs.clusters import local_client

    plan, watch = _plan(recipe, changes, store), Watch()
    inputs = {key: [source for _, source in task.inputs] for key, task in plan.tasks.items()}
    started = time.perf_counter()
    with local_client(workers) as client:
        start_seconds = time.perf_counter() - started
        done = run(plan, client, progress=watch)
    with local_client(workers) as client:
        began, done_at = _sleep_through(client, inputs, watch.seconds)
    spent = sum(watch.seconds.values())
    return {
        "overhead": 1.0 - spent / offered(inputs, watch.done_at, watch.began, workers),
        "bare": 1.0 - spent / offered(inputs, done_at, began, workers),
        "stage_seconds": spent, "tasks": done.tally.made, "start_seconds": start_seconds,
    }  # fmt: skip


def offered(
    inputs: Mapping[str, Sequence[str]], done_at: Mapping[str, float], began: float, workers: int
) -> float:  # fmt: skip
    """Worker seconds on offer: the integral of min(workers, tasks ready or running) until the last task was done."""
    changes: list[tuple[float, int]] = []
    for key, end in done_at.items():
        ready = max((done_at[source] for source in inputs[key]), default=began)
        changes += [(ready, 1), (end, -1)]
    total, there, last = 0.0, 0, began
    for moment, change in sorted(changes):
        total += min(workers, there) * (moment - last)
        there, last = there + change, moment
    return total


def _sleep_through(
    client: Any, inputs: Mapping[str, Sequence[str]], seconds: Mapping[str, float]
) -> tuple[float, dict[str, float]]:
    """The same graph with tasks that only sleep: when it began, and when each task was done."""
    from distributed import as_completed

    began = time.perf_counter()
    futures: dict[str, Any] = {}
    for key, sources in inputs.items():
        futures[key] = client.submit(_sleep, seconds[key], [futures[source] for source in sources], key=key, pure=False)
    done_at = {future.key: time.perf_counter() for future in as_completed(list(futures.values()))}
    return began, done_at


def _sleep(seconds: float, after: Sequence[None]) -> None:
    time.sleep(seconds)


def plan_large(store: str, images: int) -> dict[str, Any]:
    """Plan 150 classes x `images` photos from entries in memory, with statuses against an empty store."""
    import resource

    from replaygen.datasets import FolderPhotos, SegmentationDataset
    from replaygen.plan import Plan
    from replaygen.plan.build import build
    from replaygen.store import Store

    names = [f"class{number:03d}" for number in range(1, CLASSES + 1)]
    photos = {name: [_entry(f"{name}/{i:05d}.jpg") for i in range(images)] for name in names}
    ids = [f"scene{i:05d}" for i in range(SCENE_IMAGES)]
    present = {key: {1 + i % CLASSES, 1 + (7 * i + 3) % CLASSES} for i, key in enumerate(ids)}
    splits = {"train": ids[:-1000], "val": ids[-1000:]}
    began = time.perf_counter()
    dataset = SegmentationDataset.from_entries("large", ["background", *names], splits, present)
    recipe, opened = _opened(dataset, FolderPhotos.from_entries(photos))
    plan = Plan(recipe, Store(store), opened, build(recipe.table, opened))
    told = str(plan)
    seconds = time.perf_counter() - began
    assert len(plan.to_run()) == len(plan.tasks), told
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "tasks": len(plan.tasks), "peak_gb": peak}


def _entry(name: str) -> tuple[str, int, str]:
    return name, 100_000, hashlib.sha256(name.encode()).hexdigest()


def _opened(dataset: Any, photos: Any) -> tuple[Any, Any]:
    """What opening the recipe gives, of a data set and photos that are in memory only."""
    import tomllib

    from replaygen.plan import Recipe
    from replaygen.plan.build import Opened
    from replaygen.plan.open import scenario_arguments
    from replaygen.plan.recipe import check_recipe
    from replaygen.plan.rows import resolve_rows
    from replaygen.scenario import make_scenario

    here = Path(__file__).resolve().parent.parent
    table = check_recipe(tomllib.loads(LARGE), where="large", text=LARGE)
    network = table.network.pinned()
    cut = scenario_arguments(table)
    opened = Opened(
        dataset=dataset, scenario=make_scenario(dataset, **cut), photos={"web": photos}, network=network.identity(),
        encoder={}, rows=resolve_rows(table, workspace=here, where="large"),
        where={"data": {}, "scenario": cut, "network": network.model_dump(mode="json"), "device": "cpu"},
    )  # fmt: skip
    return Recipe(table, here / "large.toml", here), opened


def _plan(recipe: str, changes: Mapping[str, Any], store: str) -> Plan:
    from replaygen.plan import Recipe
    from replaygen.store import Store

    return Recipe.load(recipe, changes).plan(Store(store))
