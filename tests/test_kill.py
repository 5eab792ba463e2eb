"""Row 1: a run that is killed at any moment and run again gives the bytes of a run that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BUILD_ONLY, TRAINING, Workspace

from replaygen.plan import Recipe
from replaygen.store import Store


def _command(recipe: Path, cache: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "replaygen", "run", str(recipe), "--cache", str(cache), "--json", *more]


def _outputs(recipe: Path, cache: Path) -> dict[str, list[tuple[str, str]]]:
    store = Store(cache, readonly=True)
    plan = Recipe.load(recipe).plan(store)
    found = {}
    for slot, key in plan.slots.items():
        record = store.get(key)
        if record is not None:
            found[slot] = [(output.name, output.digest) for output in record.outputs]
    return found


def _standing(recipe: Path, cache: Path) -> int:
    """How many tasks have a record; slots may share a task."""
    store = Store(cache, readonly=True)
    return sum(store.get(key) is not None for key in Recipe.load(recipe).plan(store).tasks)


def _uninterrupted(recipe: Path, cache: Path) -> tuple[float, dict[str, list[tuple[str, str]]]]:
    subprocess.run(_command(recipe, cache), check=True, capture_output=True)
    began = time.perf_counter()
    other = cache.with_name(cache.name + "-timed")
    subprocess.run(_command(recipe, other), check=True, capture_output=True)
    return time.perf_counter() - began, _outputs(recipe, cache)


def _kill_and_resume(recipe: Path, cache: Path, after: float) -> tuple[int, int, int]:
    """Returns (results that stood after the kill, tasks the second run made, tasks in all)."""
    process = subprocess.Popen(
        _command(recipe, cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(after)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    standing = _standing(recipe, cache) if (cache / "format").is_file() else 0
    again = subprocess.run(_command(recipe, cache), check=True, capture_output=True, text=True)
    tally = json.loads(again.stdout)["tally"]
    return standing, tally["made"], tally["made"] + tally["adopted"] + tally["cached"]


def _kills(workspace: Workspace, text: str, times: int, seed: int, *, earliest: float) -> None:
    recipe = workspace.recipe(text)
    whole, expected = _uninterrupted(recipe, workspace.root / "whole")
    random_ = random.Random(seed)
    midway = 0
    for number in range(times):
        cache = workspace.root / f"killed-{number}"
        standing, made, total = _kill_and_resume(recipe, cache, random_.uniform(earliest, 1.0) * whole)
        assert _outputs(recipe, cache) == expected
        assert made <= total - standing, "a result that stood was made again"
        midway += 0 < standing < total
    assert midway >= times // 10, "hardly a kill fell into the work itself"


def test_build_killed_anywhere_resumes_to_the_same_bytes(workspace: Workspace) -> None:
    """Twenty SIGKILLs of a build of replay images: the same bytes, and only what was in flight is redone."""
    _kills(workspace, BUILD_ONLY, 20, seed=1, earliest=0.3)


def test_training_killed_anywhere_resumes_to_the_same_weights(workspace: Workspace) -> None:
    """A few SIGKILLs of a whole run with training: labels, weights and metrics are those of an uninterrupted run."""
    _kills(workspace, TRAINING, 3, seed=2, earliest=0.4)


@pytest.mark.soak
def test_two_hundred_kills(workspace: Workspace) -> None:
    """The soak of row 1: 180 kills of a build, 20 of a training."""
    _kills(workspace, BUILD_ONLY, 180, seed=3, earliest=0.2)
    workspace.root = workspace.root / "training"
    (workspace.root / "pipelines").mkdir(parents=True)
    _kills(workspace, TRAINING, 20, seed=4, earliest=0.2)
