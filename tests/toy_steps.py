"""Two steps on toy scenes, for tests of trainers: a red square and a green disc first, then a blue bar."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

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
    """Mean IoU of the old classes 1 and 2, and IoU of the new class 3, on new scenes."""
    net = load_network(checkpoint.tensors, checkpoint.info, SPEC)
    confusion = Confusion(net.channels)
    for seed in range(900, 920):
        image, mask = scene(seed, (1, 2, 3))
        confusion.update(predict_mask(net, image, 32), mask)
    iou = confusion.iou()
    return float(iou[1:3].mean()), float(iou[3])


def job(k: int, options: Any = None, fit: FitOptions = FIT) -> StepJob:
    """Step 0 learns the first two shapes, step 1 the third."""
    torch.set_num_threads(1)
    new, old = ((1, 2), ()) if k == 0 else ((3,), (1, 2))
    names = NAMES[: 1 + len(new) + len(old)]
    return StepJob(k=k, names=names, new=new, old=old, spec=SPEC, fit=fit, options=options, device="cpu")


def step_zero() -> Checkpoint:
    """Step 0, by fine-tuning."""
    current = samples("base", range(40), (1, 2), (1, 2))
    found: Checkpoint = method("finetune").step(0, current, None, None, job(0))
    return found


def unlabelled() -> Samples:
    """Scenes with all shapes of which only the new one is labelled: the old ones are taught to be background."""
    return samples("current", range(100, 130), (1, 2, 3), (3,))
