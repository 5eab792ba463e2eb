"""`bench methods`: one row a method of the field, the recipe's own where it has one, and the paired tests."""

from __future__ import annotations

import json

import pytest
from conftest import TRAINING, Workspace
from typer.testing import CliRunner

from replaygen.cli.app import app
from replaygen.cli.bench import FIELD, chosen, field_recipe
from replaygen.errors import RecipeError
from replaygen.plan import Recipe

JOINT = '[[method]]\nname = "joint"\ntrainer = "joint"\n'
NO_REPLAY = TRAINING[: TRAINING.index("[replay.photos]")] + TRAINING[TRAINING.index("[train.fit]") :]


def _field(workspace: Workspace, text: str = TRAINING, only: str | None = None) -> tuple[Recipe, list[str]]:
    recipe = Recipe.load(workspace.recipe(text))
    return field_recipe(recipe, recipe.store(), chosen(only, "recipe"), range(2))


def test_every_method_of_the_field_gets_a_row(workspace: Workspace) -> None:
    """In the field's order, under its own name, with the seeds asked for; the recipe's other rows stand back."""
    recipe, left_out = _field(workspace)
    assert tuple(row.name for row in recipe.table.method) == FIELD
    assert recipe.table.train.seeds == (0, 1)
    assert recipe.partial
    assert left_out == []


def test_rows_of_the_recipe_keep_their_options(workspace: Workspace) -> None:
    """A method that the recipe has keeps its replay and options; one that it has not gets the first replay source."""
    text = TRAINING.replace('replay = "kept"', 'replay = "kept"\nr_old = 3.0')
    rows = {row.name: row for row in _field(workspace, text)[0].table.method}
    assert (rows["recall"].replay, rows["recall"].model_extra) == ("kept", {"r_old": 3.0})
    assert (rows["recall_plus"].replay, rows["recall_plus"].model_extra) == ("photos", {})
    assert rows["mib"].replay is None


def test_a_row_under_another_name_is_found_by_its_trainer(workspace: Workspace) -> None:
    """The recipe's only RECALL row is called "web": it is the table's "recall", with its photos."""
    start = TRAINING.index('[[method]]\nname = "recall"')
    text = TRAINING[:start] + TRAINING[TRAINING.index('[[method]]\nname = "web"') :]
    recipe, _ = _field(workspace, text, "finetune,recall")
    assert [(row.name, row.trainer, row.replay) for row in recipe.table.method] == [
        ("finetune", "finetune", None), ("recall", "recall", "photos"),
    ]  # fmt: skip


def test_joint_training_is_as_long_as_a_chain(workspace: Workspace) -> None:
    """Without a row of its own it is fitted as step 0 is, for the iterations of step 0 and of both later steps."""
    recipe, _ = _field(workspace, TRAINING.replace(JOINT, ""), "joint")
    assert recipe.table.method[0].model_extra == {"iterations": 80 + 2 * 6, "batch": 16, "lr": 0.02}


def test_without_replay_its_methods_are_left_out_and_named(workspace: Workspace) -> None:
    """What cannot train without replay is told, not silently dropped; what can do without stays."""
    text = NO_REPLAY[: NO_REPLAY.index('[[method]]\nname = "recall"')] + JOINT
    recipe, left_out = _field(workspace, text)
    assert {row.name for row in recipe.table.method} == set(FIELD) - {"recall", "recall_plus"}
    assert [note.split()[0] for note in left_out] == ["recall", "recall_plus"]


def test_only_takes_names_of_the_field() -> None:
    """A misspelt name is refused with the right one; the order is the table's."""
    assert chosen("joint, mib", "recipe") == ("mib", "joint")
    with pytest.raises(RecipeError) as caught:
        chosen("mib,plob", "recipe")
    assert "'plop'" in caught.value.hint


def test_the_comparison_is_one_command(workspace: Workspace) -> None:
    """Figures are lists over seeds, step 0 is shared, the second time everything is cached and the table is printed."""
    command = ["bench", "methods", str(workspace.recipe(TRAINING)), "--seeds", "2", "--only", "finetune,mib,joint"]
    command += ["--cache", str(workspace.root / "cache")]
    first = CliRunner().invoke(app, [*command, "--json"])
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert list(told["figures"]) == ["finetune", "mib", "joint"]
    assert told["seeds"] == [0, 1]
    for method, row in told["figures"].items():
        assert set(row) == {"old", "new", "all", "forgetting", "seconds"}
        assert all(len(values) == 2 for values in row.values())
        assert (row["forgetting"] == [None, None]) == (method == "joint")
    tests = told["comparison"]["against_best"]
    assert {name: (row["other"], row["pairs"]) for name, row in tests.items()} == {
        "finetune": ("mib", 2), "mib": ("finetune", 2),
    }  # fmt: skip
    assert told["tally"]["stages"]["train"]["tasks"] == 2 + 2 * 2 * 2 + 2
    again = CliRunner().invoke(app, command)
    assert "0 tasks done" in again.stdout
    lines = again.stdout.splitlines()
    row = next(line for line in lines if line.startswith("mib "))
    assert "(2 seeds)" in row
    assert " ± " in row
    assert not any(" against the best other row, " in line for line in lines)
    assert any(line.startswith("joint ") and line.endswith("upper bound") for line in lines)


def test_settings_of_the_field_win_over_rows(workspace: Workspace) -> None:
    """`[methods.recall]` is recall's row in the comparison; the recipe's own rows and their plan stay as they were."""
    text = TRAINING + '\n[methods.recall]\nreplay = "photos"\nr_old = 2.0\n\n[methods.mib]\ndistil = 5.0\n'
    rows = {row.name: row for row in _field(workspace, text)[0].table.method}
    assert (rows["recall"].replay, rows["recall"].model_extra) == ("photos", {"r_old": 2.0})
    assert (rows["mib"].trainer, rows["mib"].model_extra) == ("mib", {"distil": 5.0})
    loaded = Recipe.load(workspace.recipe(text))
    assert [row.name for row in loaded.table.method] == [
        row.name for row in Recipe.load(workspace.recipe(TRAINING)).table.method
    ]


def test_settings_of_the_field_are_checked(workspace: Workspace) -> None:
    """Replay that is declared nowhere is refused when the recipe is read."""
    with pytest.raises(RecipeError) as caught:
        Recipe.load(workspace.recipe(TRAINING + '\n[methods.mib]\nreplay = "fotos"\n'))
    assert "'photos'" in str(caught.value)
