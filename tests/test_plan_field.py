"""Plans of what the field's comparison adds: replay ahead, far views, optional replay, knowledge by trait."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Workspace
from test_plan_labelled import HEAD, ROWS, WEB, plan, roles, task_at, tasks

from replaygen.errors import RecipeError
from replaygen.plan.method import read_method

ROW = '[[method]]\nname = "c"\ntrainer = "replaygen"\nreplay = "web"\n'


def trained_on(made: object, slot: str) -> int:
    """How many replay sets a training reads."""
    return len(roles(task_at(made, slot)).get("replay", []))  # type: ignore[arg-type]


def test_ahead_trains_on_the_classes_being_learnt(workspace: Workspace) -> None:
    """Step 1 reads sets of zero (step 0), four and five (its own, by its helper); step 2 those and six."""
    without, ahead = (plan(workspace, HEAD + WEB + ROW + more) for more in ("", "ahead = true\n"))
    assert [trained_on(without, f"train/c/seed0/step{k}") for k in (1, 2)] == [1, 3]
    assert [trained_on(ahead, f"train/c/seed0/step{k}") for k in (1, 2)] == [3, 4]
    helper = task_at(ahead, "helper/seed0/step1").key
    assert helper in roles(task_at(ahead, "label/web/helpers/seed0/four/0000"))["helper"]
    order = list(ahead.tasks)
    assert order.index(helper) < order.index(task_at(ahead, "train/c/seed0/step1").key)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WEB.replace('labeler = "helper"\n', "") + ROW + "ahead = true\n", "which comes after"),
        (WEB + ROW.replace('replay = "web"\n', "") + "ahead = true\n", "names none"),
        (WEB + ROW.replace('replay = "web"\n', "") + "knowledge = true\n", "for replay labels"),
    ],
)
def test_what_cannot_be_ahead_is_refused(workspace: Workspace, text: str, said: str) -> None:
    """A set labelled by the step's model, or no set at all, cannot be there before the step."""
    with pytest.raises(RecipeError, match=said):
        plan(workspace, HEAD + text)


def test_knowledge_is_a_trait_that_a_row_may_refuse(workspace: Workspace) -> None:
    """recall_plus plans knowledge inpainting by itself, but with `knowledge = false`; recall the other way round."""
    row = ROW.replace('"replaygen"', '"recall_plus"')
    assert tasks(plan(workspace, HEAD + WEB + row), "knowledge")
    assert not tasks(plan(workspace, HEAD + WEB + row + "knowledge = false\n"), "knowledge")
    assert not tasks(plan(workspace, HEAD + WEB + ROWS), "knowledge")


def test_replay_is_optional_for_most(workspace: Workspace) -> None:
    """mib plans with replay and without; with it, its trainings read the sets."""
    row = ROW.replace('"replaygen"', '"mib"')
    with_replay = plan(workspace, HEAD + WEB + row)
    without = plan(workspace, HEAD + WEB + row.replace('replay = "web"\n', ""))
    assert trained_on(with_replay, "train/c/seed0/step1") == 1
    assert trained_on(without, "train/c/seed0/step1") == 0


def test_far_views_change_the_set_and_no_label(workspace: Workspace) -> None:
    """`zoom` enters the manifest's key, so trainings are new; the labels are the ones there were."""
    near, far = (
        plan(workspace, HEAD + text + ROWS) for text in (WEB, WEB.replace("count = 12", "count = 12\nzoom = 2.0"))
    )
    label, first = "label/web/helpers/seed0/four/0000", "replay/web/helpers/seed0/four"
    assert task_at(near, label).key == task_at(far, label).key
    assert task_at(near, first).key != task_at(far, first).key
    assert task_at(near, "train/a/seed0/step2").key != task_at(far, "train/a/seed0/step2").key


def test_unknown_kind_of_replay_is_refused(tmp_path: Path) -> None:
    """TRAITS' replay is True, False or "optional"."""
    path = tmp_path / "odd.py"
    path.write_text('TRAITS = {"replay": "maybe"}\n\n\ndef step(k, current, buffer, previous, job):\n    return None\n')
    with pytest.raises(RecipeError, match="trait replay"):
        read_method(path)


def test_only_replay_is_seen_from_afar(workspace: Workspace) -> None:
    """[views] crop ends at the picture, since labels are made from these views."""
    with pytest.raises(RecipeError, match="beyond the picture"):
        plan(workspace, HEAD.replace("size = 32", "size = 32\ncrop = [0.5, 2.0]") + WEB + ROWS)
