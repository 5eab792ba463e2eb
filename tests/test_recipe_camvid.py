"""The CamVid recipe: street scenes in which classes share every picture, cut into blocks of video."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from replaygen.plan import Plan, Recipe

NAME = "camvid-6-1"


@pytest.fixture(scope="module")
def plan(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The shipped recipe, planned in a workspace and a store of its own; nothing runs."""
    if not (data_root / "camvid").is_dir():
        pytest.skip("needs the CamVid folder pack: set REPLAYGEN_DATA to the folder that holds camvid/")
    if not (data_root / "weights" / "mobilenet_v2_1.0_imagenet.json").is_file():
        pytest.skip("needs the ImageNet encoder: set REPLAYGEN_DATA to the folder that holds weights/")
    root = tmp_path_factory.mktemp("camvid")
    (root / "pipelines").mkdir()
    shutil.copy(Path(__file__).parents[1] / "pipelines" / f"{NAME}.toml", root / "pipelines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPLAYGEN_DATA", str(data_root))
        recipe = Recipe.load(root / "pipelines" / f"{NAME}.toml")
        return recipe.plan(recipe.store())


def test_the_recipe_learns_six_classes_then_one_a_step(plan: Plan) -> None:
    """6-1 of eleven classes; unlabelled pixels are no class, and channel 0 is "other", outside mIoU."""
    scenario = plan.opened.scenario
    assert [len(step.new) for step in scenario.steps] == [6, 1, 1, 1, 1, 1]
    assert scenario.setting == "partitioned"
    assert scenario.names[0] == "other"
    assert scenario.background is None


def test_every_image_belongs_to_one_step(plan: Plan) -> None:
    """The steps' blocks are the training split, in its order, each image once; none of val is among them."""
    scenario, dataset = plan.opened.scenario, plan.opened.dataset
    taught = [key for step in scenario.steps for key in step.ids]
    assert taught == list(dataset.split("train"))
    assert set(taught).isdisjoint(dataset.split("val"))
    assert {len(step.ids) for step in scenario.steps} <= {61, 62}


def test_every_step_shows_its_classes(plan: Plan) -> None:
    """A class is in enough images of its own block to keep the exemplars that the recipe asks for."""
    scenario, dataset = plan.opened.scenario, plan.opened.dataset
    wanted = plan.recipe.table.replay["exemplars"].count
    for step in scenario.steps:
        present = dataset.present(step.ids)
        for channel in step.new:
            holding = sum(scenario.raw[channel - 1] in present[key] for key in step.ids)
            assert holding >= max(wanted, len(step.ids) // 2), scenario.names[channel]


def test_classes_share_their_pictures(plan: Plan) -> None:
    """What makes this data set hard: nearly every image of a later step holds most of the old classes, unlabelled."""
    scenario, dataset = plan.opened.scenario, plan.opened.dataset
    for step in scenario.steps[1:]:
        old = {scenario.raw[channel - 1] for channel in step.old}
        hidden = [len(old & set(found)) for found in dataset.present(step.ids).values()]
        assert sum(hidden) / len(hidden) > 0.75 * len(old)


RECALL = ("recall", "recall_merged", "recall_no_inpaint", "recall_entropy", "recall_knowledge", "recall_complete",
          "recall_both", "recall_all")  # fmt: skip


def test_rows_and_replay_are_planned(plan: Plan) -> None:
    """A chain per incremental row on one shared base, and a joint model; plain exemplars are shared by their rows."""
    trained = Counter(slot.split("/")[1] for slot in plan.slots if slot.startswith("train/"))
    assert trained == {"base": 1, "joint": 1, **dict.fromkeys(("finetune", *RECALL), 5)}
    names, steps = plan.opened.scenario.names, plan.opened.scenario.steps
    sets = {slot for slot in plan.slots if slot.startswith("replay/exemplars/") and slot.count("/") == 2}
    assert sets == {f"replay/exemplars/{name}" for name in names[1:11]}
    relabelled = {slot.split("/")[1] for slot in plan.slots if slot.startswith("relabel/")}
    assert relabelled == set(RECALL) - {"recall_no_inpaint"}
    assert {slot.split("/")[1] for slot in plan.slots if slot.startswith("uncertainty/")} == {
        "recall_entropy",
        "recall_all",
    }
    for row in ("recall_knowledge", "recall_both", "recall_all"):
        for k in range(1, len(steps)):
            sets = {slot for slot in plan.slots if slot.startswith("replay/") and f"/{row}/seed0/step{k}/" in slot}
            assert {slot.split("/")[-1] for slot in sets} == set(names[1 : 1 + len(steps[k].old)])


def test_joint_trains_as_long_as_a_chain(plan: Plan) -> None:
    """The upper bound has as many iterations as base and steps together."""
    rows = plan.opened.rows
    fits = {row.name: row.fit["iterations"] for row in rows.rows}
    steps, joint = len(plan.opened.scenario.steps) - 1, fits.pop("joint")
    assert {rows.base.fit["iterations"] + steps * each for each in fits.values()} == {joint}
