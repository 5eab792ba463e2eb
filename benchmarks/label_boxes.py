"""Labels of real web photos against the boxes that came with some of them: weak truth, but of the photos themselves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import rounded
from label_tables import opened

from replaygen.sample import decode_mask
from replaygen.store import Shard

ROWS = ("recall", "recall_helper", "recall_trusted", "recall_strict")
Box = tuple[float, float, float, float]


def boxes(recipe: str, data: Path, root: Path, changes: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Row -> mean IoU in percent of the label's box with the given one, and how many photos that is of, one a seed.

    Of the photos that a row trains on at its last step those count that have one box. Its label's box holds all pixels.
    """
    known = _known(data)
    plan = opened(recipe, {**changes, "train.seeds": list(seeds)}, root, ROWS)
    told: dict[str, Any] = {}
    for row in ROWS:
        means, counts = [], []
        for seed in seeds:
            final = max(slot for slot in plan.slots if slot.startswith(f"train/{row}/seed{seed}/"))
            found = []
            for role, key in plan.tasks[plan.slots[final]].inputs:
                record = plan.store.get(key) if role == "replay" else None
                if record is None:
                    continue
                manifest = json.loads(plan.store.read(record.output("manifest.json").digest))
                for part in manifest["shards"]:
                    images, labels = (
                        Shard(plan.store.read(part[name]), plan.store.read(part[f"{name}_index"]))
                        for name in ("images", "labels")
                    )
                    for sample in part.get("kept", labels.ids[: part["samples"]]):
                        given = known.get(json.loads(images.read(sample, "json"))["file"])
                        mask = decode_mask(labels.read(sample, "mask.png"), where=sample) == manifest["channel"]
                        if given is not None and mask.any():
                            found.append(_iou(_around(mask), given))
            means.append(100 * float(np.mean(found)))
            counts.append(len(found))
        told[row] = {"box_iou": rounded(means), "photos": counts}
    return told


def _known(data: Path) -> dict[str, Box]:
    """File -> its box, of the photos that have exactly one."""
    found: dict[str, Box] = {}
    with (data / "web_animals" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            parts = [part.split() for part in row["boxes_xyxy"].split(";") if part.strip()]
            if len(parts) == 1 and len(parts[0]) == 4:
                left, top, right, bottom = map(float, parts[0])
                found[row["file"]] = left, top, right, bottom
    return found


def _around(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Box:
    rows, columns = np.nonzero(mask)
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def _iou(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)
