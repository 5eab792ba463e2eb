"""The method files: what they declare, and that RECALL remembers what fine-tuning forgets."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from toy_steps import (
    FIT,
    FOLDER,
    LONGER,
    METHODS,
    NAMES,
    SPEC,
    job,
    method,
    old_and_new,
    samples,
    step_zero,
    unlabelled,
)

from replaygen.errors import DataError
from replaygen.learn import Checkpoint, Samples, StepJob


@pytest.mark.parametrize("name", METHODS)
def test_method_file_can_be_read_without_running_it(name: str) -> None:
    """TRAITS and the defaults of Options are literals, imports are allowed ones, and the file is short."""
    source = (FOLDER / f"{name}.py").read_text()
    assert len(source.splitlines()) < 300
    tree = ast.parse(source)
    literals = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert set(literals["TRAITS"]) - {"knowledge"} == {"replay", "inpaint", "data"}
    assert literals["TRAITS"]["data"] in ("step", "all")
    options = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options")
    for line in options.body:
        if isinstance(line, ast.AnnAssign):
            assert line.value is not None
            ast.literal_eval(line.value)
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for top in (full.split(".")[0] for full in names):
            assert top in {"replaygen", "torch", "numpy"} or top in sys.stdlib_module_names


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    """Step 0, by fine-tuning."""
    return step_zero()


@pytest.fixture(scope="module")
def step_one() -> Samples:
    """Scenes with all shapes of which only the new one is labelled: the old ones are taught to be background."""
    return unlabelled()


def test_finetuning_forgets(base: Checkpoint, step_one: Samples) -> None:
    """After step 1 without replay, the old classes are gone and the new one is there."""
    made = method("finetune").step(1, step_one, None, base, job(1))
    old, new = old_and_new(made)
    assert made.info["step"] == 1
    assert made.info["names"] == list(NAMES)
    assert old < 0.15
    assert new > 0.4


@pytest.mark.parametrize("merged", [False, True])
def test_recall_remembers(base: Checkpoint, merged: bool) -> None:
    """With replay of the old classes and inpainted current labels, old and new classes are both there."""
    recall = method("recall")
    inpainted = samples("current", range(100, 130), (1, 2, 3), (1, 2, 3))
    replay = samples("replay", range(200, 230), (1, 2), (1, 2))
    made = recall.step(1, inpainted, replay, base, job(1, recall.Options(merged=merged)))
    old, new = old_and_new(made)
    assert old > 0.4
    assert new > 0.4


def test_recall_without_replay_is_refused(base: Checkpoint, step_one: Samples) -> None:
    """Without replay RECALL would silently be fine-tuning."""
    with pytest.raises(DataError, match="no replay"):
        method("recall").step(1, step_one, None, base, job(1))


def test_joint_starts_afresh() -> None:
    """Joint training needs no previous model and learns all classes at once."""
    everything = samples("all", range(40), (1, 2, 3), (1, 2, 3))
    names = NAMES
    together = StepJob(k=1, names=names, new=(1, 2, 3), old=(), spec=SPEC, fit=LONGER, device="cpu")
    old, new = old_and_new(method("joint").step(1, everything, None, None, together))
    assert old > 0.4
    assert new > 0.4


def short(name: str, base: Checkpoint, options: Any = None, **changes: Any) -> Checkpoint:
    """Four iterations of a method's step 1, with other fit options."""
    fit = FIT.model_copy(update={"iterations": 4} | changes)
    trainer = method(name)
    replay = samples("replay", range(200, 206), (1, 2), (1, 2)) if trainer.TRAITS["replay"] else None
    current = samples("current", range(100, 110), (1, 2, 3), (1, 2, 3))
    found: Checkpoint = trainer.step(1, current, replay, base, job(1, options, fit))
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_follows_the_background_weight(name: str, base: Checkpoint) -> None:
    """A background weight that moves gives another network than one that stays; moving to itself gives the same."""
    still, moving, nowhere = (
        short(name, base, background_weight_end=end) for end in (None, 1.0, FIT.background_weight)
    )  # fmt: skip
    assert moving.tensors != still.tensors
    assert nowhere.tensors == still.tensors


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"joint"}))
def test_every_method_follows_the_weight_of_new_classes(name: str, base: Checkpoint) -> None:
    """Heavier new classes give another network; a weight of 1 gives the same as none."""
    plain, one, heavy = (short(name, base, new_weight=weight) for weight in (None, 1.0, 9.0))
    assert heavy.tensors != plain.tensors
    assert one.tensors == plain.tensors


@pytest.mark.parametrize("name", ["finetune", "recall"])
def test_new_rows_can_start_from_the_background(name: str, base: Checkpoint) -> None:
    """init = "balanced" copies the background's row to the new class; "random", the default, does not."""
    options = method(name).Options
    for given, same in ((options(init="balanced"), True), (options(), False)):
        made = short(name, base, given, iterations=1, lr=1e-9, lr_end=0, weight_decay=0)
        weight = load(made.tensors)["head.classify.weight"]
        assert torch.allclose(weight[3], weight[0], atol=1e-6) == same


def test_joint_can_take_turns_by_class() -> None:
    """balance = true draws images of rare classes as often as others: the class of 2 images of 20 gets its third."""
    joint = method("joint")
    few = [replace(item, group=1 if i < 9 else 2 if i < 18 else 3) for i, item in enumerate(
        samples("all", range(20), (1, 2, 3), (1, 2, 3)).items
    )]  # fmt: skip
    fit = FIT.model_copy(update={"iterations": 3, "batch": 3})
    together = StepJob(k=1, names=NAMES, new=(1, 2, 3), old=(), spec=SPEC, fit=fit, device="cpu")
    balanced, plain = (
        joint.step(1, Samples(few), None, None, replace(together, options=joint.Options(balance=flag)))
        for flag in (True, False)
    )
    assert balanced.tensors != plain.tensors
    batches = together.batches(Samples(few), balance=True)
    assert all(sorted(few[index].balance_class for _, index, _ in batches.drawn(t)) == [1, 2, 3] for t in range(3))
