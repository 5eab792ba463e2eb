"""The method files: what they declare, and that RECALL remembers what fine-tuning forgets."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from replaygen.errors import DataError
from replaygen.learn import (
    Checkpoint,
    Confusion,
    FitOptions,
    NetworkSpec,
    Samples,
    StepJob,
    ViewSpec,
    image_item,
    load_network,
    predict_mask,
)

FOLDER = Path(__file__).parents[1] / "trainers"
METHODS = sorted(path.stem for path in FOLDER.glob("*.py"))
NAMES = ("background", "red square", "green disc", "blue bar")
SPEC = NetworkSpec(widths=(8, 12, 16))
VIEWS = ViewSpec(size=32, count=4, crop=(0.8, 1.0))
FIT = FitOptions(iterations=90, batch=8, lr=0.01, optimizer="adamw", background_weight=0.3)

LONGER = FIT.model_copy(update={"iterations": 220})


def method(name: str) -> ModuleType:
    """A trainer, loaded by path."""
    found = importlib.util.spec_from_file_location(f"trainer_{name}", FOLDER / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


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
    assert set(literals["TRAITS"]) == {"replay", "inpaint", "data"}
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


def scene(seed: int, shapes: tuple[int, ...]) -> tuple[Any, Any]:
    """A dim noisy picture with one coloured shape a class, and the mask of all of them."""
    dice = np.random.default_rng(seed)
    image = dice.integers(20, 70, (32, 32, 3)).astype(np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    rows, columns = np.mgrid[0:32, 0:32]
    for channel in shapes:
        y, x = dice.integers(7, 25, 2)
        inside = {
            1: (abs(rows - y) < 5) & (abs(columns - x) < 5),
            2: (rows - y) ** 2 + (columns - x) ** 2 < 30,
            3: (abs(rows - y) < 3) & (abs(columns - x) < 8),
        }[channel]
        image[inside] = 40
        image[inside, channel - 1] = 220
        mask[inside] = channel
    return image, mask


def samples(kind: str, seeds: range, shapes: tuple[int, ...], labelled: tuple[int, ...]) -> Samples:
    """Scenes whose masks keep the labelled classes only."""

    def read(seed: int) -> tuple[Any, Any]:
        image, mask = scene(seed, shapes)
        return image, np.where(np.isin(mask, labelled), mask, 0).astype(np.uint8)

    return Samples([
        image_item(f"{kind}-{seed}", labelled, kind == "replay", lambda seed=seed: read(seed), VIEWS)  # type: ignore[misc]
        for seed in seeds
    ])  # fmt: skip


def old_and_new(checkpoint: Checkpoint) -> tuple[float, float]:
    """IoU of the old class 1 and of the new class 3, on new scenes."""
    net = load_network(checkpoint.tensors, checkpoint.info, SPEC)
    confusion = Confusion(net.channels)
    for seed in range(900, 920):
        image, mask = scene(seed, (1, 2, 3))
        confusion.update(predict_mask(net, image, 32), mask)
    iou = confusion.iou()
    return float(iou[1:3].mean()), float(iou[3])


def job(k: int, options: Any = None) -> StepJob:
    """Step 0 learns the first two shapes, step 1 the third."""
    torch.set_num_threads(1)
    new, old = ((1, 2), ()) if k == 0 else ((3,), (1, 2))
    names = NAMES[: 1 + len(new) + len(old)]
    return StepJob(k=k, names=names, new=new, old=old, spec=SPEC, fit=FIT, options=options, device="cpu")


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    """Step 0, by fine-tuning."""
    current = samples("base", range(40), (1, 2), (1, 2))
    found: Checkpoint = method("finetune").step(0, current, None, None, job(0))
    return found


@pytest.fixture(scope="module")
def step_one() -> Samples:
    """Scenes with all shapes of which only the new one is labelled: the old ones are taught to be background."""
    return samples("current", range(100, 130), (1, 2, 3), (3,))


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
