"""On Dask: the same bytes as inline, names only through the scheduler, a task that kills its worker is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TRAINING, Workspace

from replaygen.errors import ReplaygenError, TaskError
from replaygen.plan import Plan, Recipe
from replaygen.runs import run
from replaygen.runs.clusters import local_client
from replaygen.store import Store


def _plan(workspace: Workspace, text: str, cache: str) -> Plan:
    recipe = Recipe.load(workspace.recipe(text))
    return recipe.plan(Store(workspace.root / cache))


def _outputs(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    records = {slot: plan.store.get(key) for slot, key in plan.slots.items()}
    return {
        slot: [(output.name, output.digest) for output in record.outputs] for slot, record in records.items() if record
    }


def test_dask_gives_the_bytes_of_inline(workspace: Workspace) -> None:
    """Two worker processes, the same datasets, weights and metrics, byte for byte."""
    inline = run(_plan(workspace, TRAINING, "inline")).plan
    with local_client(2) as client:
        dask = run(_plan(workspace, TRAINING, "dask"), client).plan
    assert _outputs(dask) == _outputs(inline)
    assert len(_outputs(inline)) == len(inline.slots)


def test_a_task_that_kills_its_worker_is_named(workspace: Workspace, repository: Path) -> None:
    """A method that takes its process down ends in an error with its name, after few deaths, not in a hang."""
    (workspace.root / "trainers").mkdir()
    source = (repository / "trainers" / "joint.py").read_text()
    deadly = source.replace("net = job.fresh_network()", "import os; os.kill(os.getpid(), 9)")
    (workspace.root / "trainers" / "mine.py").write_text(deadly)
    text = TRAINING.replace('trainer = "joint"', 'trainer = "mine"')
    with local_client(1) as client, pytest.raises(TaskError, match="train/joint/seed0/step2"):
        run(_plan(workspace, text, "deadly"), client)


def test_a_cluster_that_is_not_there_is_an_error(workspace: Workspace) -> None:
    """An address where nothing answers ends in an error that names it."""
    recipe = Recipe.load(workspace.recipe(TRAINING), {"run.cluster": "tcp://127.0.0.1:9"})
    with pytest.raises(ReplaygenError, match=r"127\.0\.0\.1:9"):
        run(recipe.plan(recipe.store()))


def test_a_worker_with_two_threads_gives_the_same_bytes(workspace: Workspace) -> None:
    """Random numbers belong to the process: a worker with more threads still does one task at a time."""
    from distributed import Client, LocalCluster

    inline = run(_plan(workspace, TRAINING, "inline")).plan
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        threaded = run(_plan(workspace, TRAINING, "threads"), client).plan
    assert _outputs(threaded) == _outputs(inline)


def test_two_stores_on_one_scheduler(workspace: Workspace) -> None:
    """The same recipe into two stores through one cluster: each store gets everything."""
    with local_client(1) as client:
        first = run(_plan(workspace, TRAINING, "one"), client)
        second = run(_plan(workspace, TRAINING, "two"), client)
    assert first.tally.made == second.tally.made == len(first.plan.tasks)
