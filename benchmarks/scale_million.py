"""1,000,000 photos in 15,625 shards: planned by a real recipe, run with a stage that does nothing, on one machine."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scale_cluster import cluster

from replaygen.testing import toys

if TYPE_CHECKING:
    from scale_cluster import Cluster

    from replaygen.plan import Plan, Task
    from replaygen.runs.execute import Outcome

CLASSES = 125
SETUP = "import scale_million; scale_million.setup()"
RECIPE = """
name = "million"
shard = 64
[data]
path = "made-up"
[scenario]
task = "125"
[network]
kind = "small"
[replay.web]
source = "folder"
path = "made-up"
count = {images}
"""


def setup() -> None:
    """On a worker: photos are not read, only counted."""
    toys.register({"photos": PhotosOfNothing})


class PhotosOfNothing(toys.NothingStage):
    """In the place of the stage `photos`: a record with counts, and no image."""

    name = "photos"
    Params = dict  # type: ignore[assignment]

    def run(self, params: Any, inputs: Any, out: Any) -> None:
        """Count the files of the slice."""
        out.accept(len(params["files"]))


class Watch:
    """Resident bytes of the scheduler and of this process, at every twentieth of the run."""

    def __init__(self, scheduler: int) -> None:
        import psutil

        self._watched = (psutil.Process(scheduler), psutil.Process())
        self._every = self._count = 0
        self.resident: list[tuple[int, int]] = []

    def start(self, plan: Plan) -> None:
        """Look once before the first task."""
        self._every = max(1, len(plan.tasks) // 20)
        self._look()

    def done(self, task: Task, outcome: Outcome) -> None:
        """Look at every twentieth."""
        self._count += 1
        if self._count % self._every == 0:
            self._look()

    def failed(self, task: Task, error: BaseException, again: bool) -> None:
        """A measurement in which anything fails is none."""
        raise error

    def note(self, message: str, **fields: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def _look(self) -> None:
        self.resident.append(tuple(process.memory_info().rss for process in self._watched))  # type: ignore[arg-type]

    def mb(self, which: int) -> list[float]:
        """What was seen, in 10^6 bytes."""
        return [round(pair[which] / 1e6, 1) for pair in self.resident]


def million(folder: str, images: int, workers: int) -> dict[str, Any]:
    """Plan and run `CLASSES` x `images` photos, then as many bare no-ops through `client.map` on the same cluster."""
    from replaygen.runs import run

    began = time.perf_counter()
    plan = _planned(Path(folder) / "store", images)
    waiting = len(plan.to_run())
    told: dict[str, Any] = {"plan_seconds": time.perf_counter() - began, "tasks": waiting}
    with cluster(Path(folder), workers, SETUP) as found:
        found.client.submit(sum, [1]).result()
        watch, before, mine = Watch(found.scheduler), found.seen(), time.process_time()
        workers_cpu = found.workers_cpu()
        began = time.perf_counter()
        done = run(plan, found.client, progress=watch)
        seconds, after = time.perf_counter() - began, found.seen()
        assert done.tally.made == waiting == len(plan.tasks)
        told |= {
            "seconds": seconds, "tasks_per_second": waiting / seconds,
            "samples": sum(stage.accepted for stage in done.tally.stages.values()),
            "bytes_per_shard": (after.bytes - before.bytes) / waiting,
            "messages_per_shard": (after.messages - before.messages) / waiting,
            "scheduler_cpu_ms": 1000 * (after.cpu - before.cpu) / waiting,
            "client_cpu_ms": 1000 * (time.process_time() - mine) / waiting,
            "worker_cpu_ms": 1000 * (found.workers_cpu() - workers_cpu) / waiting,
            "scheduler_mb": watch.mb(0), "client_mb": watch.mb(1),
        }  # fmt: skip
        began = time.perf_counter()
        again = run(plan, found.client)
        told["warm_seconds"] = time.perf_counter() - began
        assert (again.tally.made, again.tally.cached) == (0, waiting)
        told["bare"] = _bare(found, waiting)
    return told


def _bare(found: Cluster, count: int) -> dict[str, float]:
    """The same number of no-ops, all handed to `client.map` at once, and their results gathered."""
    before = found.seen()
    began = time.perf_counter()
    futures = found.client.map(_nothing, range(count), pure=False)
    found.client.gather(futures)
    seconds, after = time.perf_counter() - began, found.seen()
    return {
        "tasks_per_second": count / seconds, "scheduler_cpu_ms": 1000 * (after.cpu - before.cpu) / count,
        "bytes_per_task": (after.bytes - before.bytes) / count, "scheduler_mb": after.resident / 1e6,
    }  # fmt: skip


def _nothing(number: int) -> int:
    return number


def _planned(store: Path, images: int) -> Plan:
    """The photo shards of a recipe of `CLASSES` classes, from entries in memory: its tasks are the real ones."""
    import tomllib

    from replaygen.datasets import FolderPhotos, SegmentationDataset
    from replaygen.plan import Plan, Recipe
    from replaygen.plan.build import Built, Opened, build
    from replaygen.plan.open import scenario_arguments
    from replaygen.plan.recipe import check_recipe
    from replaygen.plan.rows import resolve_rows
    from replaygen.scenario import make_scenario
    from replaygen.store import Store

    names = [f"class{number:03d}" for number in range(1, CLASSES + 1)]
    photos = {name: [_entry(f"{name}/{i:05d}.jpg") for i in range(images)] for name in names}
    ids = [f"scene{i:05d}" for i in range(2 * CLASSES)]
    present = {key: {1 + i % CLASSES} for i, key in enumerate(ids)}
    dataset = SegmentationDataset.from_entries(
        "million", ["background", *names], {"train": ids[CLASSES:], "val": ids[:CLASSES]}, present
    )
    text = RECIPE.format(images=images)
    table = check_recipe(tomllib.loads(text), where="million", text=text)
    network, cut, here = table.network.pinned(), scenario_arguments(table), Path(__file__).resolve()
    opened = Opened(
        dataset=dataset, scenario=make_scenario(dataset, **cut), photos={"web": FolderPhotos.from_entries(photos)},
        generators={}, network=network.identity(), encoder={},
        rows=resolve_rows(table, workspace=here.parent, where="million"),
        where={"data": {}, "scenario": cut, "network": network.model_dump(mode="json"), "device": "cpu"},
    )  # fmt: skip
    built = build(table, opened)
    shards = {key: task for key, task in built.tasks.items() if task.stage == "photos"}
    slots = {slot: key for slot, key in built.slots.items() if key in shards}
    return Plan(Recipe(table, here, here.parent), Store(store), opened, Built(shards, slots))


def _entry(name: str) -> tuple[str, int, str]:
    return name, 100_000, hashlib.sha256(name.encode()).hexdigest()


def in_memory(folder: str, memory: str, images: int, workers: int) -> dict[str, Any]:
    """As `million`, with the store on a file system in memory: what the machinery costs without the disk."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=memory, prefix="replaygen-bench-") as instead:
        return million(instead, images, workers)
