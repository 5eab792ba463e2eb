"""Plans of what labels stand on: who shares a task, what enters which key, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_DATA, Workspace

from replaygen.errors import DataError, RecipeError, ReplaygenError
from replaygen.plan import Plan, Recipe
from replaygen.stages import Task

HEAD = (
    """
name = "labelled"
shard = 8
"""
    + TINY_DATA
    + """
[scenario]
task = "4-2"
[network]
kind = "small"
widths = [8, 16]
[views]
size = 32
[train]
seeds = [0, 1]
[train.fit]
iterations = 4
batch = 4
"""
)

WEB = """
[replay.web]
source = "folder"
path = "{{data}}/photos"
count = 12
labeler = "helper"
only = ["zero", "four", "five", "six"]
"""

ROWS = """
[[method]]
name = "a"
trainer = "recall"
replay = "web"
[[method]]
name = "b"
trainer = "recall"
replay = "web"
lr = 0.05
"""

TRUST = "[replay.web.trust]\n"
ERASE = "[replay.web.erase]\n"


def plan(workspace: Workspace, text: str, changes: dict[str, Any] | None = None) -> Plan:
    """The plan of a recipe; nothing is run."""
    recipe = Recipe.load(workspace.recipe(text), changes or {})
    return recipe.plan(recipe.store())


def tasks(made: Plan, stage: str) -> list[Task]:
    """The tasks of a stage, each once."""
    return [task for task in made.tasks.values() if task.stage == stage]


def task_at(made: Plan, slot: str) -> Task:
    """The task that fills a slot."""
    return made.tasks[made.slots[slot]]


def roles(task: Task) -> dict[str, list[str]]:
    """Role -> keys of a task's inputs."""
    found: dict[str, list[str]] = {}
    for role, key in task.inputs:
        found.setdefault(role, []).append(key)
    return found


# who shares what


def test_rows_share_labels_of_helpers(workspace: Workspace) -> None:
    """One label task a class, source, shard and seed, for all rows: helpers do not depend on what rows learnt."""
    made = plan(workspace, HEAD + WEB + ROWS)
    shards = len(tasks(made, "photos"))
    assert shards == 4 * 2
    assert len(tasks(made, "label")) == 2 * shards
    voters = {slot.split("/")[2] for slot in made.slots if slot.startswith("label/web/")}
    assert voters == {"base", "helpers"}
    assert len(tasks(made, "helper")) == 2 * 2
    replay = {row: roles(task_at(made, f"train/{row}/seed0/step3"))["replay"] for row in "ab"}
    assert replay["a"] == replay["b"]
    assert len(replay["a"]) == 4


@pytest.mark.parametrize("labeler", ["model", "both"])
def test_labels_of_models_are_the_rows_own(workspace: Workspace, labeler: str) -> None:
    """Step 0 is shared, later steps are not; who asks both asks the row's model and the shared helper."""
    made = plan(workspace, HEAD + WEB.replace("helper", labeler) + ROWS, {"train.seeds": [0]})
    # two shards a class; of step 0 ("zero") one set for both rows, of "four", "five", "six" one each
    assert len(tasks(made, "label")) == 2 * (1 + 3 * 2)
    assert len(tasks(made, "helper")) == (3 if labeler == "both" else 0)
    one, other = (roles(task_at(made, f"label/web/{row}/seed0/four/0000")) for row in "ab")
    assert one["model"] != other["model"]
    assert one.get("helper") == other.get("helper")
    assert ("helper" in one) is (labeler == "both")
    base = roles(task_at(made, "label/web/base/seed0/zero/0000"))
    assert ("helper" in base) is (labeler == "both")


def test_the_helper_of_step_0_is_its_model(workspace: Workspace) -> None:
    """RECALL's first helper: at step 0 the model itself labels, and no helper is fitted."""
    made = plan(workspace, HEAD + WEB + ROWS)
    base = roles(task_at(made, "label/web/base/seed0/zero/0000"))
    assert base["model"] == [made.slots["train/base/seed0/step0"]]
    assert set(base) == {"images", "model", "encoder"}
    assert set(roles(task_at(made, "label/web/helpers/seed0/four/0000"))) == {"images", "helper", "encoder"}
    assert not [slot for slot in made.slots if slot.startswith("helper/seed0/step0")]


def test_names_are_in_no_key(workspace: Workspace) -> None:
    """Other names of rows and sources are the same work, screens, erasing and knowledge included."""
    text = HEAD + WEB + TRUST + ERASE + ROWS.replace("lr = 0.05", 'knowledge = true\ninpaint = "entropy"')
    plain = plan(workspace, text)
    renamed = text.replace("replay.web", "replay.pictures").replace('replay = "web"', 'replay = "pictures"')
    renamed = renamed.replace('name = "a"', 'name = "helpers"').replace('name = "b"', 'name = "other"')
    assert set(plan(workspace, renamed).tasks) == set(plain.tasks)


def test_how_enters_no_key(workspace: Workspace) -> None:
    """Device, workers, checkpoints and where an inpainter lives are in no key."""
    text = HEAD + WEB + TRUST + ERASE + ROWS.replace("lr = 0.05", 'knowledge = true\ninpaint = "pixels"')
    plain = plan(workspace, text)
    other = plan(workspace, text, {"run.device": "cpu", "run.workers": 3, "train.fit.checkpoint_every": 7})
    assert list(other.tasks) == list(plain.tasks)


def test_everything_stands_behind_its_inputs(workspace: Workspace) -> None:
    """Order and closure, with all that labels can go through."""
    text = HEAD + WEB.replace('"helper"', '"both"') + TRUST + ERASE
    made = plan(workspace, text + ROWS.replace("lr = 0.05", 'knowledge = true\ninpaint = "entropy"'))
    seen: set[str] = set()
    for key, task in made.tasks.items():
        assert {source for _, source in task.inputs} <= seen
        seen.add(key)
    assert set(made.slots.values()) == seen


# trust and erasing


def test_standards_are_of_a_step_and_a_seed(workspace: Workspace) -> None:
    """Classes of a step share its standards; these stand on two helpers that did not see each other's images."""
    made = plan(workspace, HEAD + WEB + TRUST + ROWS)
    assert len(tasks(made, "standards")) == 2 * 3
    assert len(tasks(made, "trust")) == 2 * 4
    assert len(tasks(made, "helper")) == 2 * (3 * 2 + 2)
    standards = task_at(made, "standards/web/seed1/step1")
    folds = [made.tasks[key].params["fold"] for key in roles(standards)["helper"]]
    assert folds == [0, 1]
    assert standards.params["folds"] == 2
    trust = [task_at(made, f"trust/web/helpers/seed1/{name}") for name in ("four", "five")]
    assert {roles(task)["standards"][0] for task in trust} == {standards.key}
    assert [task.key for task in trust] == sorted({task.key for task in trust}, key=[t.key for t in trust].index)
    assert all(len(roles(task)["labels"]) == 2 for task in trust)


def test_trust_is_in_no_label(workspace: Workspace) -> None:
    """Other limits: only selections, and what stands on them, are made anew; labels, helpers and standards are not."""
    text = HEAD + WEB + TRUST + ERASE + ROWS
    plain, strict = plan(workspace, text), plan(workspace, text, {"replay.web.trust.confidence": 0.3})
    changed = {task.stage for key, task in strict.tasks.items() if key not in plain.tasks}
    # a later step's labels are inpainted by a model that was trained on the selection
    assert changed == {"trust", "erase", "replay", "train", "evaluate", "relabel"}
    count = plan(workspace, text, {"replay.web.count": 11})
    assert {"trust", "replay"} <= {task.stage for key, task in count.tasks.items() if key not in plain.tasks}


def test_erasing_comes_after_trust(workspace: Workspace) -> None:
    """Only what is trusted is erased; the set is closed over erased shards, images and labels of the same record."""
    made = plan(workspace, HEAD + WEB + TRUST + ERASE + ROWS)
    erase = task_at(made, "erase/web/helpers/seed0/five/0001")
    assert roles(erase)["trusted"] == [made.slots["trust/web/helpers/seed0/five"]]
    assert roles(erase)["labels"] == [made.slots["label/web/helpers/seed0/five/0001"]]
    closed = roles(task_at(made, "replay/web/helpers/seed0/five"))
    assert closed["images"] == closed["labels"]
    assert erase.key in closed["images"]
    assert closed["trusted"] == roles(erase)["trusted"]
    alone = plan(workspace, HEAD + WEB + ERASE + ROWS)
    assert set(roles(task_at(alone, "erase/web/helpers/seed0/five/0000"))) == {"images", "labels"}


@pytest.mark.parametrize("labeler", ["model", "helper", "both"])
def test_screens_and_erasing_find_the_same_labels(workspace: Workspace, labeler: str) -> None:
    """Labels made for one are there for the other; a model's for neither are other tasks, without vectors or marks.

    Those of a helper are the same whatever becomes of them, so that sources which differ in that share them.
    """
    keys, shared = {}, labeler == "helper"
    for name, more in (("trust", TRUST), ("erase", ERASE), ("all", TRUST + ERASE), ("none", "")):
        made = plan(workspace, HEAD + WEB.replace("helper", labeler) + more + ROWS, {"train.seeds": [0]})
        keys[name] = {task.key for task in tasks(made, "label") if task.slot.split("/")[2] in ("base", "helpers")}
        one = tasks(made, "label")[0]
        assert (one.params["marks"], one.params["vectors"]) == ((name != "none" or shared),) * 2
        assert ("encoder" in roles(one)) is (name != "none" or shared)
    assert keys["trust"] == keys["erase"] == keys["all"]
    assert (keys["none"] == keys["all"]) is shared
    assert shared or not keys["none"] & keys["all"]


# knowledge


def test_knowledge_goes_step_by_step(workspace: Workspace) -> None:
    """At step k every older class is filled by the helper of step k, from the labels of step k - 1."""
    text = HEAD + WEB + TRUST + ERASE + ROWS.replace("lr = 0.05", "knowledge = true")
    made = plan(workspace, text, {"train.seeds": [0]})
    slots = {slot for slot in made.slots if slot.startswith("knowledge/")}
    expected = {1: ["zero"], 2: ["zero", "four", "five"], 3: ["zero", "four", "five", "six"]}
    assert slots == {
        f"knowledge/web/b/seed0/step{k}/{name}/{i:04d}" for k, names in expected.items() for name in names
        for i in (0, 1)
    }  # fmt: skip
    for k in (1, 2, 3):
        task = task_at(made, f"knowledge/web/b/seed0/step{k}/zero/0001")
        given = roles(task)
        assert given["helper"] == [made.slots[f"helper/seed0/step{k}"]]
        assert task.params["channels"] == list(made.opened.scenario.steps[k].new)
        before = f"knowledge/web/b/seed0/step{k - 1}/zero/0001" if k > 1 else "erase/web/base/seed0/zero/0001"
        assert given["labels"] == [made.slots[before]]
        assert given["images"] == [made.slots["erase/web/base/seed0/zero/0001"]]
        assert given["trusted"] == [made.slots["trust/web/base/seed0/zero"]]
        closed = roles(task_at(made, f"replay/web/b/seed0/step{k}/zero"))
        assert closed["labels"][1] == task.key
        assert (
            made.slots[f"replay/web/b/seed0/step{k}/zero"] in roles(task_at(made, f"train/b/seed0/step{k}"))["replay"]
        )
    plain = {made.tasks[key].slot for key in roles(task_at(made, "train/a/seed0/step3"))["replay"]}
    assert not any("/step" in slot for slot in plain)


# exemplars

KEPT = '[replay.kept]\nsource = "exemplar"\ncount = 3\n'


def test_exemplars_are_shared_unless_their_labels_are_the_rows(workspace: Workspace) -> None:
    """Plain exemplars are one set for all rows; with `complete` later ones hold the row's own labels."""
    rows = ROWS.replace('"web"', '"kept"').replace("lr = 0.05", 'inpaint = "confidence"')
    plain = plan(workspace, HEAD + KEPT + rows, {"train.seeds": [0]})
    assert len(tasks(plain, "exemplars")) == 4 + 2 + 2
    assert not any("labels" in roles(task) for task in tasks(plain, "exemplars"))
    assert {slot.count("/") for slot in plain.slots if slot.startswith("exemplars/")} == {3}
    made = plan(workspace, HEAD + KEPT + "complete = true\n" + rows, {"train.seeds": [0]})
    assert len(tasks(made, "exemplars")) == 4 + 2 * 2 + 2 * 2
    four = roles(task_at(made, "exemplars/kept/b/seed0/four/0000"))
    step = made.opened.scenario.steps[1]
    assert len(four["labels"]) == -(-len(step.ids) // 8)
    assert four["labels"] == roles(task_at(made, "train/b/seed0/step1"))["labels"]
    assert not roles(task_at(made, "exemplars/kept/zero/0000"))
    assert "replay/kept/b/seed0/four" in made.slots


@pytest.mark.parametrize(
    ("row", "mode", "refused"),
    [('inpaint = "pixels"', "argmax", True), ("inpaint = true", "pixels", True), ("", "pixels", True),
     ('inpaint = "entropy"', "pixels", False), ("inpaint = false", "pixels", False), ("", "entropy", False)],
)  # fmt: skip
def test_labels_of_other_pixels_are_not_kept(workspace: Workspace, row: str, mode: str, refused: bool) -> None:
    """Labels of erased images do not fit exemplars, which are whole: refused, where that is the row's mode."""
    text = HEAD + KEPT + "complete = true\n" + of_mode(None).replace('"web"', '"kept"') + row
    changes = {"train.seeds": [0], "relabel.mode": mode}
    if not refused:
        assert plan(workspace, text, changes).tasks
        return
    with pytest.raises(RecipeError, match="use another mode"):
        plan(workspace, text, changes)


# background inpainting

MODES = (None, False, True, "argmax", "confidence", "entropy", "pixels")


def of_mode(mode: Any) -> str:
    """A row of a mode."""
    told = {None: "", False: "inpaint = false", True: "inpaint = true"}.get(mode, f'inpaint = "{mode}"')
    return ROWS.split("[[method]]")[2].join(["[[method]]", ""]).replace("lr = 0.05", told)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_chooses_how_backgrounds_are_filled(workspace: Workspace, mode: Any) -> None:
    """`true`, and nothing for a trainer that inpaints, is `relabel.mode`; a name is that mode; `false` is none."""
    made = plan(workspace, HEAD + WEB + of_mode(mode), {"train.seeds": [0], "relabel.mode": "confidence"})
    stages = {task.stage for task in made.tasks.values()} & {"relabel", "remove", "uncertainty"}
    expected = {False: set(), "entropy": {"relabel", "uncertainty"}, "pixels": {"remove"}}
    assert stages == expected.get(mode, {"relabel"})
    found = {task.params["mode"] for task in tasks(made, "relabel")}
    wanted = {None: "confidence", True: "confidence"}.get(mode, mode)
    assert found == ({wanted} if "relabel" in stages else set())
    given = roles(task_at(made, "train/b/seed0/step1"))
    assert ("labels" in given) is (mode is not False)
    assert given.get("pixels") == (given["labels"] if mode == "pixels" else None)


def test_each_mode_has_its_own_number(workspace: Workspace) -> None:
    """`unsure` is of confidence and pixels' own is off, `floor` of entropy: the other modes' keys do not know them."""
    for mode, key in (
        ("argmax", None),
        ("confidence", "relabel.unsure"),
        ("entropy", "relabel.floor"),
        ("pixels", None),
    ):
        plain = plan(workspace, HEAD + WEB + of_mode(mode), {"train.seeds": [0]})
        for name, value in (("relabel.unsure", 0.9), ("relabel.floor", 0.5)):
            other = plan(workspace, HEAD + WEB + of_mode(mode), {"train.seeds": [0], name: value})
            assert (set(other.tasks) != set(plain.tasks)) is (name == key), (mode, name)
    made = plan(workspace, HEAD + WEB + of_mode("entropy"), {"train.seeds": [0], "relabel.floor": 0.001})
    old = len(made.opened.scenario.steps[2].old)
    assert task_at(made, "relabel/b/seed0/step2/0000").params["floor"] == pytest.approx(0.001 * (1 + old))


def test_entropy_reads_the_whole_step(workspace: Workspace) -> None:
    """Every slice's labels stand on the uncertainty of all slices, by the same model."""
    made = plan(workspace, HEAD + WEB + of_mode("entropy"), {"train.seeds": [0]})
    count = -(-len(made.opened.scenario.steps[1].ids) // 8)
    assert count > 1
    wanted = [made.slots[f"uncertainty/b/seed0/step1/{i:04d}"] for i in range(count)]
    for i in range(count):
        given = roles(task_at(made, f"relabel/b/seed0/step1/{i:04d}"))
        assert given["uncertainty"] == wanted
        assert given["model"] == [made.slots["train/base/seed0/step0"]]


# what is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + WEB + TRUST + "confidense = 0.2\n" + ROWS, "confidence"),
        (HEAD + WEB + TRUST + "duplicate = 0.9\n" + ROWS, "duplicates"),
        (HEAD + WEB + TRUST + "spilt = true\n" + ROWS, "split"),
        (HEAD + WEB + ERASE + "backand = 'opencv'\n" + ROWS, "backend"),
        (HEAD + WEB + ERASE + "dialate = 3\n" + ROWS, "dilate"),
        (HEAD + WEB + "[knowledge]\nunsuer = 0.5\n" + ROWS, "unsure"),
        (HEAD + WEB + "[relabel]\nmod = 'entropy'\n" + ROWS, "mode"),
        (HEAD + WEB + "[relabel.erase]\ntxt = true\n" + ROWS, "text"),
        (HEAD + WEB + "[train.helper]\niteration = 5\n" + ROWS, "iterations"),
        (HEAD + WEB + "labeller = 'model'\n" + ROWS, "labeler"),
        (HEAD + WEB + "refin = 'grabcut'\n" + ROWS, "refine"),
        (HEAD + WEB + "[replay.web.trsut]\narea = 0.1\n" + ROWS, "trust"),
        (HEAD + WEB + "[replay.web.teacher]\nmodl = 'x'\nmodel = 'y'\n" + ROWS, "model"),
        (HEAD + WEB + ROWS + "knowlege = true\n", "knowledge"),
        (HEAD + WEB + ROWS + "inpant = 'entropy'\n", "inpaint"),
        (HEAD + WEB + "[knowlege]\nunsure = 0.5\n" + ROWS, "knowledge"),
    ],
)
def test_misspelt_keys_are_refused_with_the_right_one(workspace: Workspace, text: str, said: str) -> None:
    """Before any work, with the nearest key."""
    with pytest.raises(RecipeError) as caught:
        plan(workspace, text)
    assert said in str(caught.value.hint)
    assert "recipe.toml" in str(caught.value.where)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + KEPT + "labeler = 'helper'\n" + ROWS.replace("web", "kept"), "own labels"),
        (HEAD + KEPT + "[replay.kept.trust]\n" + ROWS.replace("web", "kept"), "takes no `trust`"),
        (HEAD + KEPT + "[replay.kept.erase]\n" + ROWS.replace("web", "kept"), "takes no `erase`"),
        (HEAD + WEB + "complete = true\n" + ROWS, "takes no `complete`"),
        (HEAD + WEB + "label = 'seen'\n" + ROWS, "classes of its own step only"),
        (HEAD + WEB.replace("helper", "teacher") + ROWS, "go together"),
        (HEAD + WEB + "[replay.web.teacher]\nmodel = 'x'\n" + ROWS, "go together"),
        (HEAD + WEB + TRUST + "confidence = 1.0\n" + ROWS, "confidence"),
        (HEAD + WEB + TRUST + "keep = 1.5\n" + ROWS, "keep"),
        (HEAD + WEB + TRUST + "area = 0.5\n" + ROWS, "area"),
        (HEAD + WEB + ROWS + 'inpaint = "plop"\n', "entropy"),
        (HEAD + WEB + ROWS + '[[method]]\nname = "j"\ntrainer = "joint"\ninpaint = "pixels"\n', "every label"),
        (HEAD + WEB + ROWS + '[[method]]\nname = "f"\ntrainer = "finetune"\nknowledge = true\n', "knowledge"),
        (HEAD + WEB + "[train.helper]\niterations = 0\n" + ROWS, "iterations"),
    ],
)
def test_what_cannot_be_is_refused(workspace: Workspace, text: str, said: str) -> None:
    """Contradictions and values out of range are errors, not other runs."""
    with pytest.raises(ReplaygenError) as caught:
        plan(workspace, text)
    assert said in f"{caught.value} {caught.value.hint}"


def test_a_helper_of_too_few_images_is_refused_by_the_plan(workspace: Workspace) -> None:
    """Eight images make a helper, but not always two of half of them; the way out is told."""
    text = HEAD.replace('"4-2"', '"8-1"').replace("seeds = [0, 1]", "seeds = [0]") + WEB.replace("six", "eight")
    for fewest, refused in ((4, False), (9, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("replaygen.plan.labelled.FEWEST", fewest)
            if not refused:
                assert tasks(plan(workspace, text + ROWS), "helper")
                continue
            with pytest.raises(DataError, match="would be fitted on 8 images") as caught:
                plan(workspace, text + ROWS)
            assert 'labeler = "model"' in str(caught.value.hint)


def test_looks_are_no_more_than_there_are(workspace: Workspace) -> None:
    """Labels, standards and knowledge look at the fixed views that there are."""
    text = (
        HEAD + WEB + "looks = 5\n" + TRUST + "[knowledge]\nlooks = 9\n" + ROWS.replace("lr = 0.05", "knowledge = true")
    )
    made = plan(workspace, text, {"views.count": 3})
    for stage in ("label", "standards", "knowledge"):
        assert {task.params["looks"] for task in tasks(made, stage)} == {3}


def test_without_rows_nothing_is_labelled(workspace: Workspace, tmp_path: Path) -> None:
    """A recipe that only builds has photos and exemplars; no model, so no labels, helpers or screens."""
    made = plan(workspace, HEAD + WEB + TRUST + KEPT)
    assert {task.stage for task in made.tasks.values()} == {"photos", "exemplars", "replay"}
