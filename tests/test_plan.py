"""Plans: keys from ingredients alone, and a reason for everything that is to run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import BUILD_ONLY, TRAINING, Workspace

from replaygen.plan import Plan, Recipe
from replaygen.runs import run


def _plan(workspace: Workspace, text: str, **changes: Any) -> Plan:
    recipe = Recipe.load(workspace.recipe(text), {key.replace("__", "."): value for key, value in changes.items()})
    return recipe.plan(recipe.store())


def test_planning_twice_gives_the_same_keys(workspace: Workspace) -> None:
    """A plan is a function of the recipe and its data."""
    assert list(_plan(workspace, TRAINING).tasks) == list(_plan(workspace, TRAINING).tasks)


def test_how_changes_no_key(workspace: Workspace) -> None:
    """Workers, retries and device are in no key."""
    plain = _plan(workspace, TRAINING)
    other = _plan(workspace, TRAINING, run__workers=4, run__retries=0, run__device="cpu")
    assert list(plain.tasks) == list(other.tasks)


def test_a_weight_of_new_classes_changes_only_what_reads_it(workspace: Workspace) -> None:
    """Step 0 and joint training have no old classes: what comes before the first step, and joint, keep their keys."""
    plain, heavy = (_plan(workspace, TRAINING, **more).slots for more in ({}, {"train__fit__new_weight": 8.0}))
    same = {slot for slot in plain if plain[slot] == heavy[slot]}
    trained = {slot for slot in plain if slot.startswith("train/")}
    assert trained & same == {slot for slot in trained if slot.startswith(("train/base/", "train/joint/"))} != set()
    assert trained - same
    assert not any(slot.startswith("label/") and "/base/" in slot for slot in plain.keys() - same)


def test_every_task_stands_behind_its_inputs(workspace: Workspace) -> None:
    """Order and closure: an input's key is planned before the task that reads it."""
    seen: set[str] = set()
    for key, task in _plan(workspace, TRAINING).tasks.items():
        assert {source for _, source in task.inputs} <= seen
        seen.add(key)


def test_rows_share_the_base_and_their_photos(workspace: Workspace) -> None:
    """Step 0 is one task for all rows of a seed, and photos are read once."""
    plan = _plan(workspace, TRAINING)
    stages = [task.stage for task in plan.tasks.values()]
    assert stages.count("train") == 1 + 3 * 2 + 1
    assert sum(slot.startswith("train/base") for slot in plan.slots) == 1


def test_a_changed_parameter_is_named_and_what_stands_below_says_upstream(workspace: Workspace) -> None:
    """`count 24 → 12` for the set, and only what depends on it is to run."""
    run(_plan(workspace, BUILD_ONLY))
    changed = _plan(workspace, BUILD_ONLY, replay__kept__count=4)
    reasons = {changed.tasks[key].slot: status.reason for key, status in changed.status.items() if not status.cached}
    assert reasons["replay/kept/zero"].startswith("changed: wanted 10 → 4")
    assert reasons["exemplars/kept/zero/0000"].startswith("changed: ids [8 items] → ")
    assert not any(slot.startswith("photos/") for slot in reasons)


def test_a_changed_photo_changes_its_own_shard_only(workspace: Workspace, tmp_path: Path) -> None:
    """A photo enters by its bytes: replacing one asks for one shard anew, of its class alone."""
    own = tmp_path / "own"
    shutil.copytree(workspace.data, own)
    workspace.data = own
    run(_plan(workspace, BUILD_ONLY))
    victim = sorted((own / "photos" / "three").glob("*.png"))[0]
    victim.write_bytes(sorted((own / "photos" / "four").glob("*.png"))[0].read_bytes())
    waiting = {task.slot.rsplit("/", 1)[0] for task in _plan(workspace, BUILD_ONLY).to_run()}
    assert waiting == {"photos/photos/three"}


def test_a_plan_writes_nothing_but_what_it_remembers_of_files(workspace: Workspace) -> None:
    """Planning makes no record and no object."""
    plan = _plan(workspace, TRAINING)
    assert plan.to_run()
    root = Path(plan.store.root)
    assert not list((root / "records").rglob("*.json"))
    assert not [path for path in (root / "objects").rglob("*") if path.is_file()]


def test_a_shuffled_table_makes_the_same_plan(workspace: Workspace) -> None:
    """Keys come from values, not from the order they are written in."""
    text = TRAINING.replace("iterations = 6\nbatch = 4", "batch = 4\niterations = 6")
    assert list(_plan(workspace, TRAINING).tasks) == list(_plan(workspace, text).tasks)


def test_narrowing_keeps_what_other_rows_made(workspace: Workspace) -> None:
    """Training one row leaves the others reachable for gc."""
    whole = _plan(workspace, BUILD_ONLY)
    run(whole)
    recipe = Recipe.load(workspace.recipe(BUILD_ONLY)).narrowed(seeds=[0])
    run(recipe.plan(whole.store))
    assert whole.store.gc(dry_run=True).records == ()


def test_an_unknown_row_is_refused(workspace: Workspace) -> None:
    """`train --method` with a name the recipe lacks names the nearest one."""
    from replaygen.errors import RecipeError

    with pytest.raises(RecipeError, match="recal"):
        Recipe.load(workspace.recipe(TRAINING)).narrowed(methods=["recal"])


def test_sequential_labels_are_not_inpainted(workspace: Workspace) -> None:
    """In `sequential` the step's own labels show the old classes, so a model's guess has no place there."""
    slots = _plan(workspace, TRAINING, scenario__setting="sequential").slots
    assert not any(slot.startswith("relabel/") for slot in slots)
    assert any(slot.startswith("relabel/") for slot in _plan(workspace, TRAINING).slots)


def test_names_are_in_no_key(workspace: Workspace, repository: Path) -> None:
    """Another name for the same trainer file, row or replay source is no other work."""
    plain = _plan(workspace, TRAINING)
    (workspace.root / "trainers").mkdir()
    shutil.copyfile(repository / "trainers" / "recall.py", workspace.root / "trainers" / "mine.py")
    text = TRAINING.replace('name = "web"\ntrainer = "recall"', 'name = "renamed"\ntrainer = "mine"')
    text = text.replace("[replay.photos]", "[replay.pictures]").replace('replay = "photos"', 'replay = "pictures"')
    assert set(_plan(workspace, text).tasks) == set(plain.tasks)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"replay.photos.only": ["two", "threee"]}, "three"),
        ({"replay.photos.folders": {"twoo": "x"}}, "two"),
        ({"scenario.task": "10"}, "one step"),
    ],
)
def test_what_would_be_ignored_is_refused(workspace: Workspace, change: dict[str, Any], said: str) -> None:
    """A misspelt class, or a task without a later step, is an error and not a smaller run."""
    from replaygen.errors import ReplaygenError

    recipe = Recipe.load(workspace.recipe(TRAINING), change)
    with pytest.raises(ReplaygenError) as caught:
        recipe.plan(recipe.store())
    assert said in str(caught.value)
