"""What a recipe needs beside data is looked for before any work: packages, LaMa's environment, a teacher's labels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAINING, Workspace

from replaygen.errors import DataError, ModelError, RecipeError, ReplaygenError
from replaygen.plan import Plan, Recipe

LAMA = {"backend": "lama", "weights": "big.pt", "sha256": "0" * 64}
SERVER = {"backend": "lama", "server": "http://127.0.0.1:9", "sha256": "0" * 64}


def refused(workspace: Workspace, changes: dict[str, Any], kind: type[ReplaygenError]) -> ReplaygenError:
    """Why a recipe is refused; nothing was made."""
    recipe = Recipe.load(workspace.recipe(TRAINING), changes)
    store = recipe.store()
    with pytest.raises(kind) as caught:
        recipe.plan(store)
    assert not list((Path(store.root) / "records").rglob("*.json"))
    return caught.value


def planned(workspace: Workspace, changes: dict[str, Any]) -> Plan:
    """The plan of a changed recipe."""
    recipe = Recipe.load(workspace.recipe(TRAINING), changes)
    return recipe.plan(recipe.store())


@pytest.mark.parametrize(
    "changes",
    [
        {"replay.photos.erase": {}},
        {"replay.photos.erase": SERVER},
        {"replay.photos.refine": "grabcut"},
        {"method.web.inpaint": "pixels"},
        {"method.web.inpaint": True, "relabel.mode": "pixels"},
    ],
)
def test_without_opencv_a_recipe_that_needs_it_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Erasing and outlines along colour edges need cv2; the error says which table asks, and how to get it."""
    planned(workspace, changes)
    monkeypatch.setitem(sys.modules, "cv2", None)
    planned(workspace, {"method.web.inpaint": "entropy"})
    error = refused(workspace, changes, DataError)
    assert "needs the package cv2" in str(error)
    assert error.hint == "pip install 'replaygen[inpaint]'"


@pytest.mark.parametrize(
    "changes", [{"replay.photos.erase": LAMA}, {"method.web.inpaint": "pixels", "relabel.erase": LAMA}]
)
def test_without_its_environment_lama_is_refused(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Weights need the environment that runs them; a server that runs elsewhere does not."""
    monkeypatch.setenv("REPLAYGEN_STATE", str(tmp_path / "state"))
    error = refused(workspace, changes, ModelError)
    assert "not installed" in str(error)
    assert error.hint == "replaygen doctor --install lama"
    planned(workspace, {name: SERVER if one == LAMA else one for name, one in changes.items()})


def teacher(root: Path, labels: tuple[str, ...]) -> dict[str, Any]:
    """A recipe's changes for a teacher with these labels."""
    root.mkdir()
    (root / "config.json").write_text(json.dumps({"id2label": {str(i): name for i, name in enumerate(labels)}}))
    (root / "preprocessor_config.json").write_text("{}")
    (root / "model.safetensors").write_bytes(b"")
    return {"replay.photos.labeler": "teacher", "replay.photos.teacher.model": str(root)}


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


def test_a_class_that_a_teacher_does_not_know_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    """By name, by a wrong name in `classes`, by an index that is not there: as the tasks would refuse it later."""
    changes = teacher(tmp_path / "teacher", ("wall", "sewen", *(name for name in DIGITS if name != "seven")))
    error = refused(workspace, changes, RecipeError)
    assert "'seven'" in str(error)
    assert "sewen" in error.hint
    assert "wall2" in str(refused(workspace, {**changes, "replay.photos.teacher.classes.seven": "wall2"}, RecipeError))
    assert "no label 10" in str(refused(workspace, {**changes, "replay.photos.teacher.classes.seven": 10}, RecipeError))
    assert "sevn" in str(refused(workspace, {**changes, "replay.photos.teacher.classes.sevn": 1}, RecipeError))
    planned(workspace, {**changes, "replay.photos.teacher.classes.seven": "sewen"})


def test_only_classes_that_are_labelled_need_a_label(workspace: Workspace, tmp_path: Path) -> None:
    """The last step's classes are never replayed; of a step whose classes `only` leaves out nothing is asked."""
    planned(workspace, teacher(tmp_path / "most", ("wall", *DIGITS)))  # without "nine", which comes last
    changes = teacher(tmp_path / "fewer", ("wall", *DIGITS[:8]))
    assert "'eight'" in str(refused(workspace, changes, RecipeError))
    planned(workspace, {**changes, "replay.photos.only": ["zero"]})


def test_what_a_teacher_tells_from_the_rest_is_in_the_key(workspace: Workspace, tmp_path: Path) -> None:
    """The other classes of a step decide what is background: another order of classes is another label."""
    changes = {**teacher(tmp_path / "teacher", ("wall", *DIGITS, "nine")), "scenario.task": "2-8"}
    keys = {}
    for second in ("one", "five"):
        order = ["zero", second, *(name for name in (*DIGITS, "nine") if name not in ("zero", second))]
        plan = planned(workspace, {**changes, "scenario.classes": order})
        slots = [slot for slot in plan.slots if slot.startswith("label/photos/") and "/zero/" in slot]
        keys[second] = plan.slots[slots[0]]
    assert keys["one"] != keys["five"]
