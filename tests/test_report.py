"""The report: what it says, that it asks for nothing outside itself, and that nothing from outside gets through raw."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from replaygen.errors import ReplaygenError
from replaygen.plan import Plan, Recipe
from replaygen.plan.build import Built, Opened
from replaygen.plan.recipe import RecipeTable
from replaygen.report import curves_svg, examples, overview_png, plain, sheet, write_report
from replaygen.report.colors import CLASSES, class_color, colorize, rgb
from replaygen.report.curves import spread
from replaygen.report.examples import place_of
from replaygen.report.pictures import overlay, photo
from replaygen.report.sheets import labelled_by, refusals, sheets
from replaygen.report.tables import confusion_table, final_rows, finding, gap_closed, heats
from replaygen.report.text import number
from replaygen.run.replay import ReplaySample, replay_sets
from replaygen.run.results import RunResult, StepResult, read_result
from replaygen.sample import encode_png
from replaygen.scenario import Scenario, Step
from replaygen.stages import Task
from replaygen.store import Counts, OutputObject, Record, Store, task_key, write_shard

U8 = npt.NDArray[np.uint8]

# a small run in a real store, without training anything


@dataclass
class World:
    """What the run is about; `predict(method, seed, step, truth)` stands for the trained models."""

    names: tuple[str, ...]
    steps: tuple[tuple[int, ...], ...]
    pictures: list[tuple[str, U8, U8]]
    predict: Callable[[str, int, int, U8], U8]
    rows: tuple[tuple[str, str], ...]
    photos: dict[int, list[tuple[U8, U8]]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    title: str = "A small run"
    file_name: str = "photo.jpg"
    wanted: int = 12


class Maker:
    """Publishes records as tasks would, and remembers the plan."""

    def __init__(self, root: Path, world: World) -> None:
        self.store, self.world, self.built = Store(root), world, Built()

    def task(
        self, stage: str, slot: str, outputs: dict[str, tuple[bytes, int]], inputs: tuple[tuple[str, str], ...] = (),
        rejected: dict[str, int] | None = None, seed: int | None = None, publish: bool = True, seconds: float = 1.5,
    ) -> str:  # fmt: skip
        params = {"slot": slot}
        key = task_key(stage, 1, params, seed, inputs)
        accepted = max([samples for _, samples in outputs.values()], default=1)
        counts = Counts(accepted + sum((rejected or {}).values()), accepted, rejected or {}, {})
        objects = []
        for name, (data, samples) in outputs.items():
            put = self.store.put(data)
            objects.append(OutputObject(name, put.digest, put.size, samples))
        if publish:
            self.store.publish(
                Record(
                    key, stage, 1, params, seed, inputs, slot, tuple(objects), counts,
                    {source: self.store.get(source).outputs_digest for _, source in inputs},  # type: ignore[union-attr]
                    {}, {"replaygen": "0.1.0", "torch": "2.13.0"}, "2026-03-01T10:00:00+00:00", seconds,
                )
            )  # fmt: skip
        self.built.add(Task(key, stage, 1, params, seed, inputs, slot, {}, counts.requested))
        return key

    def chain(self, method: str, seed: int, steps: range) -> dict[int, str]:
        models = {}
        for step in steps:
            model = self.task("train", f"train/{method}/seed{seed}/step{step}", {"model.json": (b"{}", 0)}, seed=seed)
            self.evaluate(method, seed, step, model)
            models[step] = model
        return models

    def evaluate(self, method: str, seed: int, step: int, model: str) -> None:
        world = self.world
        seen = [channel for channels in world.steps[: step + 1] for channel in channels]
        matrix = np.zeros((len(seen) + 1, len(seen) + 1), np.int64)
        shown = []
        for name, image, truth in world.pictures:
            current = np.where(np.isin(truth, [*seen, 255]), truth, 0).astype(np.uint8)
            predicted = world.predict(method, seed, step, current)
            valid = current != 255
            np.add.at(matrix, (current[valid], predicted[valid]), 1)
            members = {"png": encode_png(image), "true.png": encode_png(current), "pred.png": encode_png(predicted)}
            shown.append((name, members))
        old = tuple(c for channels in world.steps[:step] for c in channels)
        told = {
            "names": list(world.names[: len(seen) + 1]), "new": list(world.steps[step]), "old": list(old),
            "metrics": metrics(matrix, world.names, old, world.steps[step]), "matrix": matrix.tolist(),
            "images": len(world.pictures),
        }  # fmt: skip
        tar, index = write_shard(shown)
        self.task(
            "evaluate", f"evaluate/{method}/seed{seed}/step{step}",
            {"result.json": (json.dumps(told).encode(), 0), "examples.tar": (tar, len(shown)),
             "examples.index.json": (index, 0)}, (("model", model),),
        )  # fmt: skip

    def replay(self, source: str, chain: str, channel: int, model: str) -> None:
        world = self.world
        name = world.names[channel]
        images, labels = [], []
        for i, (image, mask) in enumerate(world.photos[channel]):
            about = {"class": name, "source": "folder", "file": f"{i:02d}-{world.file_name}", "licence": None}
            told = {"visible": [channel], "scores": {}, "labeler": model}
            images.append((f"s{i:03d}", {"png": encode_png(image), "json": json.dumps(about).encode()}))
            labels.append((f"s{i:03d}", {"mask.png": encode_png(mask), "label.json": json.dumps(told).encode()}))
        digests = {}
        parts = []
        for kind, items, refused in (("images", images, {"unreadable": 2}), ("labels", labels, {"class-absent": 5})):
            tar, index = write_shard(items)
            slot = f"{kind}/{source}/{chain if kind == 'labels' else ''}/{name}"
            parts.append((kind, self.task(
                "photos" if kind == "images" else "label", slot,
                {f"{kind}.tar": (tar, len(items)), f"{kind}.index.json": (index, 0)}, rejected=refused,
            )))  # fmt: skip
            digests[kind] = hashlib.sha256(tar).hexdigest()
            digests[f"{kind}_index"] = hashlib.sha256(index).hexdigest()
        count = len(images)
        manifest = {
            "class": name, "channel": channel, "source": source, "samples": count, "wanted": world.wanted,
            "shortfall": max(0, world.wanted - count), "shards": [{**digests, "samples": count}],
        }  # fmt: skip
        slot = f"replay/{source}/{chain}/{name}"
        self.task("replay", slot, {"manifest.json": (json.dumps(manifest).encode(), count)}, tuple(parts))

    def plan(self) -> Plan:
        world = self.world
        table = RecipeTable.model_validate(
            {
                "name": "small", "title": world.title, "data": {"path": "{data}"},
                "scenario": {"task": "-".join(str(len(new)) for new in world.steps)}, "network": {},
                "train": {"seeds": list(world.seeds)},
                "method": [{"name": name, "trainer": trainer} for name, trainer in world.rows],
            }
        )  # fmt: skip
        steps = []
        for k, new in enumerate(world.steps):
            steps.append(Step(k, new, tuple(c for channels in world.steps[:k] for c in channels), ()))
        scenario = Scenario(
            table.scenario.task, "overlapped", world.names, tuple(range(1, len(world.names))), 0, True, tuple(steps)
        )
        recipe = Recipe(table, Path("/home/nobody/work/pipelines/small.toml"), Path("/home/nobody/work"))
        return Plan(recipe, self.store, cast(Opened, SimpleNamespace(scenario=scenario)), self.built)


def metrics(matrix: npt.NDArray[np.int64], names: tuple[str, ...], old: Any, new: Any) -> dict[str, Any]:
    """As the evaluate stage gives them."""
    hit = np.diag(matrix)
    iou = 100.0 * hit / np.maximum(1, matrix.sum(0) + matrix.sum(1) - hit)
    seen = (0, *old, *new)
    return {
        "all": float(iou[list(seen)].mean()), "old": float(iou[[0, *old]].mean()) if old else None,
        "new": float(iou[list(new)].mean()), "background": float(iou[0]),
        "per_class": {names[c]: float(iou[c]) for c in seen}, "background_counted": True,
    }  # fmt: skip


def build(root: Path, world: World) -> Plan:
    """A whole run: base, chains, joint, replay labelled by the base and by each chain."""
    maker = Maker(root, world)
    last = len(world.steps) - 1
    for seed in world.seeds:
        base = maker.chain("base", seed, range(1))[0]
        for name, trainer in world.rows:
            models = maker.chain(name, seed, range(last, last + 1) if trainer == "joint" else range(1, last + 1))
            if trainer == "recall":
                for channel in world.photos:
                    first = channel in world.steps[0]
                    chain = f"base/seed{seed}" if first else f"{name}/seed{seed}"
                    maker.replay("web", chain, channel, base if first else models[1])
    return maker.plan()


def forgetful(method: str, seed: int, step: int, truth: U8) -> U8:
    """finetune keeps only the newest class, recall loses a strip of each image, joint nothing."""
    predicted = truth.copy()
    predicted[truth == 255] = 0
    if method == "finetune":
        predicted[predicted < truth[truth != 255].max(initial=0)] = 0
    elif method != "joint":
        predicted[:, : 4 + 3 * step + seed] = 0
    return predicted


def small_world(**changes: Any) -> World:
    """Three classes in three steps, squares on noise."""
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(5):
        image = rng.integers(60, 200, (72, 96, 3)).astype(np.uint8)
        truth = np.zeros((72, 96), np.uint8)
        truth[5:30, 5:40], truth[35:60, 10:50], truth[10:60, 60:90] = 1, 2, 3
        truth[0, :] = 255
        pictures.append((f"val-{i}", image, truth))
    photos = {1: [(image, np.where(truth == 1, 1, 0).astype(np.uint8)) for _, image, truth in pictures * 6]}
    world = World(
        ("background", "cat", "cow", "bus"), ((1,), (2,), (3,)), pictures, forgetful,
        (("finetune", "finetune"), ("recall", "recall"), ("joint", "joint")), photos,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(world, name, value)
    return world


@pytest.fixture(scope="module")
def small_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return build(tmp_path_factory.mktemp("store"), small_world(seeds=(0, 1)))
