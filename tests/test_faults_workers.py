"""Row 8: workers that are killed in every stage cost nothing but time, and a task that kills them is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAINING, Workspace

from replaygen.errors import TaskError
from replaygen.plan import Plan, Recipe, Task
from replaygen.runs import run
from replaygen.runs.clusters import local_client
from replaygen.runs.progress import Quiet
from replaygen.store import Store
from replaygen.testing import deaths, toys

STAGES = ("photos", "exemplars", "label", "train", "evaluate")


class Told(Quiet):
    """What a run tells about its tasks."""

    def __init__(self) -> None:
        self.dones: Counter[str] = Counter()
        self.failures: list[tuple[str, bool]] = []

    def done(self, task: Task, outcome: Any) -> None:
        """Count."""
        self.dones[task.slot] += 1

    def failed(self, task: Task, error: BaseException, again: bool) -> None:
        """Remember."""
        self.failures.append((task.slot, again))


@contextmanager
def _workers(count: int, preload: str) -> Iterator[Any]:
    import dask
    import distributed  # noqa: F401  before `set`, which on leaving takes out what it brings in

    with dask.config.set({"distributed.worker.preload": [preload]}), local_client(count) as client:
        yield client


def _outputs(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    records = {slot: plan.store.get(key) for slot, key in plan.slots.items()}
    assert None not in records.values()
    return {slot: [(output.name, output.digest) for output in record.outputs] for slot, record in records.items()}  # type: ignore[union-attr]


def _killed(workspace: Workspace, times: dict[str, int], number: int, expected: Any) -> int:
    """A run whose workers die so often in each stage; how often they did."""
    folder = workspace.root / f"deaths-{number}"
    plan = Recipe.load(workspace.recipe(TRAINING)).plan(Store(workspace.root / f"killed-{number}"))
    told = Told()
    with _workers(2, deaths.preload(folder, times, number)) as client:
        done = run(plan, client, progress=told)
    assert _outputs(plan) == expected
    assert done.tally.made + done.tally.adopted == len(plan.tasks) == told.dones.total()
    assert set(told.dones.values()) == {1}
    assert not any(again is False for _, again in told.failures)
    assert deaths.done_twice(folder) == []
    return deaths.deaths(folder).total()


def test_a_worker_killed_in_each_of_five_stages(workspace: Workspace) -> None:
    """One SIGKILL in each stage: all is made, byte for byte as without, and nothing that stood is made again."""
    expected = _outputs(run(Recipe.load(workspace.recipe(TRAINING)).plan(Store(workspace.root / "whole"))).plan)
    assert _killed(workspace, dict.fromkeys(STAGES, 1), 0, expected) == len(STAGES)


@pytest.mark.soak
def test_a_worker_killed_twenty_times_in_each_of_five_stages(workspace: Workspace) -> None:
    """Row 8 in full."""
    expected = _outputs(run(Recipe.load(workspace.recipe(TRAINING)).plan(Store(workspace.root / "whole"))).plan)
    kills: Counter[str] = Counter()
    for number in range(40):
        wanted = {stage: min(3, 20 - kills[stage]) for stage in STAGES if kills[stage] < 20}
        if not wanted:
            break
        _killed(workspace, wanted, number, expected)
        kills += deaths.deaths(workspace.root / f"deaths-{number}")
    assert kills == dict.fromkeys(STAGES, 20)


def test_only_the_task_at_fault_is_named(tmp_path: Path) -> None:
    """A task that waits in the worker that a poison task ends is given up with it by Dask: it is made all the same."""
    import dask
    from distributed import Client, LocalCluster

    strict = {"distributed.worker.preload": [toys.PRELOAD], "distributed.scheduler.allowed-failures": 0}
    good = [toys.toy(toys.ShardStage, number, samples=2, bytes=10) for number in range(6)]
    poison, told = toys.toy(toys.DeadlyStage, 99, seconds=1.0), Told()
    with (
        toys.registered(),
        dask.config.set(strict),
        LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        plan = toys.toy_plan(Store(tmp_path), [*good[:2], poison, *good[2:]])
        with pytest.raises(TaskError, match=r"^toy-deadly/00099 failed: .*workers died"):
            run(plan, client, progress=told)
        assert [task.slot for task in plan.to_run()] == ["toy-deadly/00099"]
    assert {slot for slot, again in told.failures if not again} == {"toy-deadly/00099"}
    blamed = {slot for slot, again in told.failures if again}
    assert blamed > {"toy-deadly/00099"}, "no other task was with the worker: nothing was tried"
