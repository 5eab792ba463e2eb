"""Row 10: several runs, a gc and a killed run share one store. Row 11: a disk that fills up under a run."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BUILD_ONLY, Workspace

from replaygen.errors import TaskError
from replaygen.plan import Plan, Recipe, Task
from replaygen.runs import run
from replaygen.runs.progress import Quiet
from replaygen.store import Store


def _outputs(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    records = {slot: plan.store.get(key) for slot, key in plan.slots.items()}
    assert None not in records.values()
    return {slot: [(output.name, output.digest) for output in record.outputs] for slot, record in records.items()}  # type: ignore[union-attr]


def _command(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "replaygen", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def _share(workspace: Workspace, runs: int, killed: int, seed: int) -> None:
    """So many commands at once on one store, some of them killed as soon as results stand, while gc runs and runs."""
    recipe, dice = str(workspace.recipe(BUILD_ONLY)), random.Random(seed)
    shared = workspace.root / f"shared-{seed}"
    store = Store(shared)
    waste = store.put(b"nobody wants this").digest
    started = [_command("run", recipe, "--cache", str(shared), "--json") for _ in range(runs)]
    records = shared / "records"
    victims = [(process, dice.randint(1, 20)) for process in started[:killed]]
    try:
        while any(process.poll() is None for process in started):
            store.gc()
            standing = sum(1 for _ in records.rglob("*.json"))
            for process, limit in victims:
                if standing >= limit and process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        told = [process.communicate()[1].decode() for process in started]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert [process.returncode for process in started[killed:]] == [0] * (runs - killed), told
    store.gc()
    plan = Recipe.load(recipe).plan(Store(shared))
    assert plan.to_run() == []
    assert _outputs(plan) == _outputs(run(Recipe.load(recipe).plan(Store(workspace.root / f"serial-{seed}"))).plan)
    report = store.verify()
    assert (report.damaged, report.missing) == ((), ())
    assert not (shared / "objects" / waste[:2] / waste).exists(), "gc never collected"
    assert not any((shared / "leases").iterdir())


def test_four_commands_a_gc_and_a_kill_on_one_store(workspace: Workspace) -> None:
    """Whoever is left makes it all, nothing is missing or damaged, and it equals what one run makes."""
    _share(workspace, 4, 1, seed=0)


@pytest.mark.soak
def test_four_commands_a_gc_and_kills_at_length(workspace: Workspace) -> None:
    """Row 10, twenty times, up to three of four killed."""
    for seed in range(1, 21):
        _share(workspace, 4, seed % 4, seed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of 300 kB; skipped where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k,mode=0700", "replaygen-test", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Failures(Quiet):
    """The failures of a run: slot, the error, and whether it is tried again."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, BaseException, bool]] = []

    def failed(self, task: Task, error: BaseException, again: bool) -> None:
        """Remember."""
        self.seen.append((task.slot, error, again))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_fills_the_disk_stops_and_can_go_on(workspace: Workspace, small_disk: Path, workers: int) -> None:
    """Said at once with a way out, nothing tried again, nothing partial; with more room the same run finishes."""
    recipe = Recipe.load(workspace.recipe(BUILD_ONLY), {"run.workers": workers})
    told = Failures()
    with pytest.raises(TaskError, match="No space left on device") as caught:
        run(recipe.plan(Store(small_disk / "cache")), progress=told)
    assert "free space" in str(caught.value)
    assert not any(again for _, _, again in told.seen)
    assert len(told.seen) <= max(1, 2 * workers), "only what was with the workers may fail"
    report = Store(small_disk / "cache", readonly=True).verify()
    assert (report.damaged, report.missing) == ((), ())
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    plan = recipe.plan(Store(small_disk / "cache"))
    assert 0 < len(plan.to_run()) < len(plan.tasks)
    assert _outputs(run(plan).plan) == _outputs(run(recipe.plan(Store(workspace.root / "roomy"))).plan)
