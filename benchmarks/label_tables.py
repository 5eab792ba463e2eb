"""What labels do to the final mIoU: distractors planted among the photos, and each part of labelling on and off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import QUICK, replaygen, rounded, settings

from replaygen.store import Shard, Store

if TYPE_CHECKING:
    from replaygen.plan import Plan

ORDER = ["cat", "dog", "cow", "sheep", "horse"]
"""Cow and sheep are learnt early enough to be replayed."""
PLANTED = ("cow", "sheep")
SHARE = 0.3
"""Of the photos of a class that are distractors."""
DISTRACTORS = ("_distractor_goat", "_distractor_llama", "_distractor_pig")


def plant(data: Path, folder: Path) -> dict[str, int]:
    """Photos by class with goats, llamas and pigs among those of cow and sheep; how many were planted.

    The others are the very photos of the clean table: those whose shorter side has 112 pixels or more.
    """
    from PIL import Image

    photos, told = folder / "planted", {}
    shutil.rmtree(photos, ignore_errors=True)
    strangers = sorted(file for name in DISTRACTORS for file in (data / "web_animals" / name).iterdir())
    order = np.random.default_rng(0).permutation(len(strangers))
    for turn, name in enumerate(ORDER):
        (photos / name).mkdir(parents=True)
        kept = 0
        for file in sorted((data / "web_animals" / name).iterdir()):
            with Image.open(file) as image:
                if min(image.size) < 112:
                    continue
            shutil.copyfile(file, photos / name / file.name)
            kept += 1
        if name in PLANTED:
            count = round(kept * SHARE / (1 - SHARE))
            start = (turn % 2) * (len(strangers) // 2)
            for index in order[start : start + count]:
                file = strangers[int(index) % len(strangers)]
                shutil.copyfile(file, photos / name / f"planted-{file.parent.name}-{file.name}")
            told[name] = count
    return told


def distractors(
    data: Path, folder: Path, recipe: str, quick: Mapping[str, Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """Rows of a recipe, on clean photos and on the planted ones."""
    planted = plant(data, folder)
    rows = ("recall", "recall_trusted")
    sources = ("web", "trusted")
    common = {**quick, "scenario.classes": ORDER, "train.seeds": list(seeds)}
    common |= {f"replay.{source}.count": 8 if QUICK else 300 for source in sources}
    common |= {"replay.trusted.oversample": 1.0}
    told: dict[str, Any] = {"planted": planted, "rows": {}}
    for kind in ("clean", "planted"):
        changes = dict(common)
        if kind == "planted":
            for source in sources:
                changes |= {f"replay.{source}.path": str(folder / "planted"), f"replay.{source}.min_side": 0}
        store = str(folder / "cache")
        methods = [part for row in rows for part in ("--method", row)]
        for seed in seeds:
            replaygen("train", recipe, *methods, "--seed", str(seed), "--workers", "2", "--cache", store,
                      *settings(changes))  # fmt: skip
        plan = opened(recipe, changes, Path(store), rows)
        for row in rows:
            entry = told["rows"].setdefault(row, {})
            entry[kind] = rounded(last(plan, row, seeds))
            if kind == "planted":
                entry["in_buffer"] = {name: in_buffer(plan, row, name, seeds) for name in PLANTED}
    best = told["rows"]["recall_trusted"]
    shares = [share for told_of in best["in_buffer"].values() for share in told_of["share"]]
    told["lost"] = {
        row: rounded([a - b for a, b in zip(entry["clean"], entry["planted"], strict=True)])
        for row, entry in told["rows"].items()
    }
    return {**told, "worst_share": max(shares), "mean_share": round(float(np.mean(shares)), 4)}


def opened(recipe: str, changes: Mapping[str, Any], root: Path, rows: Sequence[str]) -> Plan:
    """The plan of some rows."""
    from replaygen.plan import Recipe

    return Recipe.load(recipe, dict(changes)).narrowed(methods=list(rows)).plan(Store(root))


def last(plan: Plan, row: str, seeds: Sequence[int], metric: str = "all") -> list[float]:
    """A metric after the last step, in percent, one a seed."""
    from replaygen.runs import read_result

    by_seed = {step.seed: step.metrics[metric] for step in read_result(plan).last(row)}
    return [float(by_seed[seed]) for seed in seeds]


def in_buffer(plan: Plan, row: str, name: str, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Planted photos among those that a row trains on, a number each seed."""
    told: dict[str, list[float]] = {"samples": [], "planted": [], "share": []}
    for seed in seeds:
        samples = strangers = 0
        for manifest in _manifests(plan, row, name, seed):
            for part in manifest["shards"]:
                shard = Shard(plan.store.read(part["images"]), plan.store.read(part["images_index"]))
                labels = Shard(plan.store.read(part["labels"]), plan.store.read(part["labels_index"]))
                for sample in part.get("kept", labels.ids[: part["samples"]]):
                    samples += 1
                    strangers += "planted-" in json.loads(shard.read(sample, "json"))["file"]
        told["samples"].append(samples)
        told["planted"].append(strangers)
        told["share"].append(round(strangers / max(1, samples), 4))
    return told


def _manifests(plan: Plan, row: str, name: str, seed: int) -> list[dict[str, Any]]:
    """The manifests of a class that the last step of a row was trained on."""
    final = max(int(slot.rsplit("step", 1)[1]) for slot in plan.slots if slot.startswith(f"train/{row}/seed{seed}/"))
    task = plan.tasks[plan.slots[f"train/{row}/seed{seed}/step{final}"]]
    found = []
    for role, key in task.inputs:
        record = plan.store.get(key) if role == "replay" else None
        if record is not None and record.params["class_name"] == name:
            found.append(json.loads(plan.store.read(record.output("manifest.json").digest)))
    return found


def table(
    recipe: str, folder: Path, rows: Sequence[str], seeds: Sequence[int], changes: Mapping[str, Any], reference: str
) -> dict[str, Any]:
    """Rows of a recipe over seeds: mIoU after the last step, the difference to a row, and the share of joint."""
    asked = {**changes, "train.seeds": list(seeds)}
    replaygen("run", recipe, "--cache", str(folder / "cache"), "--report", str(folder / f"{recipe}.html"),
              "--workers", "2", *settings(asked))  # fmt: skip
    plan = opened(recipe, asked, folder / "cache", rows)
    found = {row: {metric: last(plan, row, seeds, metric) for metric in ("all", "old", "new")} for row in rows}
    joint, beside = np.array(found["joint"]["all"]), np.array(found[reference]["all"])
    told: dict[str, Any] = {}
    for row, values in found.items():
        own = np.array(values["all"])
        told[row] = {metric: rounded(of_seeds) for metric, of_seeds in values.items()}
        told[row] |= {
            "mean": round(float(own.mean()), 2),
            "spread": round(float(own.std(ddof=1)), 2) if len(seeds) > 1 else None,
            "to_reference": rounded((own - beside).tolist()), "share_of_joint": rounded((100 * own / joint).tolist()),
        }  # fmt: skip
    highest = max((row for row in rows if row != "joint"), key=lambda row: told[row]["mean"])
    return {"rows": told, "reference": reference, "highest": highest, "seeds": list(seeds)}
