"""How right pseudo-labels are: labelled images of the train split, kept out of every step, treated as web photos.

For every class that is replayed, the held-out images that show it are copied into a folder of photos (under the
benchmark's own folder, which git ignores). The recipe's chain is trained without them; then each setting labels
them as it labels photos, and its screens judge them by what they learnt from the step's real images.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import QUICK

from replaygen.sample import IGNORE, decode_mask
from replaygen.sources.folder import photo_id
from replaygen.store import Shard, Store

if TYPE_CHECKING:
    from replaygen.plan import Plan
    from replaygen.plan.labelled import Held
    from replaygen.sample import Mask8

RECIPE = "voc-animals-labels"
HOLDOUT = 4
"""1 / HOLDOUT of the train images is kept out and labelled."""
TTA = {"flip": True, "looks": 4}
HELPER = {**TTA, "labeler": "helper"}
OFF = {"area": 0.0, "confidence": 0.0, "typical": 0.0, "split": False}
STRICT = {"area": 0.005, "confidence": 0.35, "typical": 0.2}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"label": "seen"},
    "query": {"label": "query", **TTA},
    "helper": HELPER,
    "both": {**TTA, "labeler": "both"},
    "grabcut": {**HELPER, "refine": "grabcut"},
    "area": {**HELPER, "trust": {**OFF, "area": 0.02}},
    "confidence": {**HELPER, "trust": {**OFF, "confidence": 0.3}},
    "agreement": {**HELPER, "trust": {**OFF, "agreement": 0.3}},
    "typical": {**HELPER, "trust": {**OFF, "typical": 0.3}},
    "adversarial": {**HELPER, "trust": {**OFF, "adversarial": 0.3}},
    "split": {**HELPER, "trust": {**OFF, "split": True}},
    "fixed_0.7": {**HELPER, "unsure": 0.0},
    "default": {**HELPER, "trust": {}},
    "refined": {**HELPER, "refine": "grabcut", "trust": {}},
    "strict": {**HELPER, "refine": "grabcut", "trust": STRICT},
}
"""What is compared; "fixed_0.7" keeps the helper's labels whose mean confidence is 0.7 or more; "default" is what
`[replay.NAME.trust]` does by itself, "refined" that with outlines drawn anew, "strict" what keeps the better half."""
BEST, PLAIN = "refined", "plain"


@dataclass
class Pixels:
    """Intersection and union with the truth, of each image of a class, and which were kept."""

    both: list[int]
    either: list[int]
    kept: list[bool]

    def pooled(self, only: Sequence[bool] | None = None) -> float:
        """IoU in percent over all pixels of some images."""
        chosen = self.kept if only is None else only
        pairs = [(i, u) for i, u, take in zip(self.both, self.either, chosen, strict=True) if take]
        return 100 * sum(i for i, _ in pairs) / max(1, sum(u for _, u in pairs))

    def mean(self) -> float:
        """The mean over kept images of their IoU in percent."""
        values = [i / max(1, u) for i, u, kept in zip(self.both, self.either, self.kept, strict=True) if kept]
        return 100 * float(np.mean(values)) if values else float("nan")


def quality(folder: Path, seed: int, changes: Mapping[str, Any]) -> dict[str, dict[str, Pixels]]:
    """Setting -> class -> how its labels of the held-out images agree with the truth."""
    from replaygen.runs import run

    photos = folder / "held-out"
    truths = _export(photos, {**changes, "scenario.holdout": HOLDOUT}, folder)
    tables = {
        f"replay.q_{name.replace('.', '')}": {
            "source": "folder", "path": str(photos), "count": 100_000, "label": "query", **setting,
        }
        for name, setting in SETTINGS.items()
    }  # fmt: skip
    plan, held = probed({**changes, "scenario.holdout": HOLDOUT, **tables}, folder / "cache", seed)
    run(plan)
    told: dict[str, dict[str, Pixels]] = {name: {} for name in SETTINGS}
    for name in SETTINGS:
        for one in held[f"q_{name.replace('.', '')}"]:
            class_name = plan.opened.scenario.names[one.channel]
            told[name][class_name] = _compared(plan, one, truths[class_name], least=0.7 if "fixed" in name else 0.0)
    return told


def probed(changes: Mapping[str, Any], root: Path, seed: int) -> tuple[Plan, dict[str, list[Held]]]:
    """A plan of the chain `recall` with more replay sets beside it that nobody trains on: those whose name is q_*."""
    from replaygen.plan import Plan, Recipe
    from replaygen.plan.build import Builder

    store = Store(root)
    recipe = Recipe.load(RECIPE, dict(changes)).narrowed(methods=["recall"], seeds=[seed])
    opened = recipe.open(store)
    builder = Builder(recipe.table, opened)
    built = builder.build()
    held: dict[str, list[Held]] = {source: [] for source in recipe.table.replay if source.startswith("q_")}
    for step in opened.scenario.steps[:-1]:
        chain = f"recall/seed{seed}" if step.index else f"base/seed{seed}"
        model = built.slots[f"train/{chain}/step{step.index}"]
        for source in held:
            held[source] += builder.labelled.held(source, step, model, chain, seed)
    return Plan(recipe, store, opened, built), held


def _export(photos: Path, changes: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Mask8]]:
    """Copy the held-out images of each class; class -> photo -> the truth in channels, uint8 [H, W]."""
    from replaygen.plan import Recipe

    opened = Recipe.load(RECIPE, dict(changes)).open(Store(folder / "cache"))
    scenario, dataset = opened.scenario, opened.dataset
    ids = scenario.holdout_ids[:24] if QUICK else scenario.holdout_ids
    present = dataset.present(ids)
    truths: dict[str, dict[str, Mask8]] = {}
    for step in scenario.steps[:-1]:
        for channel in step.new:
            name, raw = scenario.names[channel], scenario.raw[channel - 1]
            truths[name] = {}
            shutil.rmtree(photos / name, ignore_errors=True)
            (photos / name).mkdir(parents=True)
            for key in (key for key in ids if raw in present[key]):
                data = (Path(dataset.root) / "images" / f"{key}.jpg").read_bytes()
                (photos / name / f"{key}.jpg").write_bytes(data)
                sample = photo_id(name, hashlib.sha256(data).hexdigest())
                truths[name][sample] = scenario.apply(scenario.full_table(), dataset.mask(key))
    return truths


def _compared(plan: Plan, one: Held, truths: Mapping[str, Mask8], *, least: float) -> Pixels:
    """Every held-out image of a class, in the order of their ids; one without a label is wrong, and refused."""
    labels = dict(labelled(plan, one))
    kept = trusted(plan, one)
    made = Pixels([], [], [])
    for sample, truth in sorted(truths.items()):
        known, real = truth != IGNORE, truth == one.channel
        mask, told = labels.get(sample, (np.zeros_like(truth), {}))
        found = mask == one.channel
        made.both.append(int((found & real & known).sum()))
        made.either.append(int(((found & known) | real).sum()))
        sure = told.get("scores", {}).get("confidence", 0.0) >= least
        made.kept.append(sample in labels and (kept is None or sample in kept) and sure)
    return made


def labelled(plan: Plan, one: Held) -> Iterator[tuple[str, tuple[Mask8, dict[str, Any]]]]:
    """(sample, (mask, what its label says)) of a set's label shards."""
    for key in one.labels:
        record = plan.store.get(key)
        assert record is not None
        shard = Shard(*(plan.store.read(record.output(name).digest) for name in ("labels.tar", "labels.index.json")))
        for sample, members in shard:
            yield sample, (decode_mask(members["mask.png"], where=sample), json.loads(members["label.json"]))


def trusted(plan: Plan, one: Held) -> set[str] | None:
    """The samples that a set's screens keep; None where it has none."""
    if not one.trusted:
        return None
    record = plan.store.get(one.trusted[0])
    assert record is not None
    return set(json.loads(plan.store.read(record.output("selection.json").digest))["kept"])


def summary(seeds: Sequence[Mapping[str, Mapping[str, Pixels]]]) -> dict[str, Any]:
    """Figures over seeds: for each setting pooled and mean IoU, the share kept, and the gain over plain argmax."""
    table: dict[str, Any] = {}
    for name in SETTINGS:
        rows = [_figures(told[name], told[PLAIN]) for told in seeds]
        table[name] = {key: [round(row[key], 2) for row in rows] for key in rows[0]}
        table[name]["per_class"] = {
            cls: [round(told[name][cls].pooled(), 1) for told in seeds] for cls in seeds[0][name]
        }
    best = table[BEST]
    mean = {key: float(np.mean(best[key])) for key in ("gain", "gain_same_images", "keep_rate")}
    return {
        "settings": table, "kept_iou_gain": round(mean["gain"], 2),
        "kept_iou_gain_same_images": round(mean["gain_same_images"], 2), "keep_rate": round(mean["keep_rate"], 3),
        "images": {cls: len(pixels.kept) for cls, pixels in seeds[0][PLAIN].items()},
    }  # fmt: skip


def _figures(mine: Mapping[str, Pixels], plain: Mapping[str, Pixels]) -> dict[str, float]:
    """All classes together: pooled over pixels, and the mean over images."""
    own, other = _joined(mine), _joined(plain)
    return {
        "pooled": own.pooled(), "mean": own.mean(), "keep_rate": float(np.mean(own.kept)),
        "gain": own.pooled() - other.pooled([True] * len(other.kept)),
        "plain_on_the_same": other.pooled(own.kept), "gain_same_images": own.pooled() - other.pooled(own.kept),
    }  # fmt: skip


def _joined(classes: Mapping[str, Pixels]) -> Pixels:
    parts = list(classes.values())
    return Pixels(
        [i for part in parts for i in part.both], [u for part in parts for u in part.either],
        [kept for part in parts for kept in part.kept],
    )  # fmt: skip
