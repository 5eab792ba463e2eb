"""A purged photo leaves nothing behind in what judges, erases and relabels: vectors, scores, shards, later labels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_DATA, Workspace

from replaygen.plan import Plan, Recipe
from replaygen.runs import run
from replaygen.stages.label import read_vectors
from replaygen.store import PurgeReport, Record, Shard, Store

JUDGED = (
    """
name = "judged"
shard = 4
"""
    + TINY_DATA
    + """
[scenario]
task = "8-1"
[network]
kind = "small"
widths = [16, 24]
[views]
size = 32
[replay.photos]
source = "folder"
path = "{{data}}/photos"
count = 8
only = ["zero", "one"]
trust = {{ split = false, area = 0, confidence = 0, agreement = 0, typical = 0 }}
erase = {{ unsure = true, most = 0.9 }}
unsure = 0.2
[train.fit]
iterations = 4
batch = 4
optimizer = "adamw"
[train.base]
iterations = 120
batch = 16
lr = 0.02
[[method]]
name = "web"
trainer = "recall"
replay = "photos"
knowledge = true
"""
)


@dataclass(frozen=True)
class Judged:
    """A recipe that was run, and what became of one photo of it.

    Attributes:
        held: what was known of the photo, see `traces_of`.
        slice_, others: the keys of its image shard, and of all other tasks that are not made of it.
        stood, left: the store's files before and after the purge.
        cached: what the next plan finds in the store; after: the plan, once it was run.
    """

    before: Plan
    photo: str
    held: dict[str, bytes]
    slice_: str
    others: frozenset[str]
    report: PurgeReport
    stood: dict[str, bytes]
    left: dict[str, bytes]
    cached: frozenset[str]
    after: Plan


def of_stage(plan: Plan, stage: str) -> dict[str, Record]:
    """Slot -> record of a stage's tasks."""
    found = {}
    for slot, key in plan.slots.items():
        if plan.tasks[key].stage == stage:
            record = plan.store.get(key)
            assert record is not None, slot
            found[slot] = record
    return found


def shard(store: Store, record: Record, name: str) -> Shard:
    """A shard of a record."""
    return Shard(*(store.read(record.output(f"{name}.{kind}").digest) for kind in ("tar", "index.json")))


def traces_of(plan: Plan, photo: str) -> dict[str, bytes]:
    """What each kind of task has of a photo: bytes that are nobody else's, by "stage: what"."""
    found: dict[str, bytes] = {}
    for stage, names in {"photos": ("images",), "label": ("labels",), "erase": ("images", "labels"),
                         "knowledge": ("labels",)}.items():  # fmt: skip
        for record in of_stage(plan, stage).values():
            for name in names:
                held = shard(plan.store, record, name)
                if photo in held:
                    found |= {f"{stage}: {kind}": held.read(photo, kind) for kind in held.extensions(photo)}
    for record in of_stage(plan, "label").values():
        vectors = read_vectors(plan.store.read(record.output("vectors.safetensors").digest))
        if photo in vectors:
            found["label: vector"] = np.ascontiguousarray(vectors[photo], np.float32).tobytes()
    for record in of_stage(plan, "trust").values():
        told = json.loads(plan.store.read(record.output("selection.json").digest))
        if photo in told["scores"]:
            found["trust: scores"] = json.dumps(told["scores"][photo], sort_keys=True, separators=(",", ":")).encode()
    return found


def everything(root: Path) -> dict[str, bytes]:
    """Every file of a store by its path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def below(plan: Plan, keys: Iterable[str]) -> set[str]:
    """Some tasks, and all that is made from them."""
    found = set(keys)
    for key, task in plan.tasks.items():  # each stands behind its inputs
        if any(source in found for _, source in task.inputs):
            found.add(key)
    return found


def files_with(files: dict[str, bytes], wanted: bytes) -> list[str]:
    """The files that hold some bytes."""
    return [path for path, data in files.items() if wanted in data]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Judged:
    """Run, purge the first photo from which something was erased, plan, run again."""
    workspace = Workspace(tmp_path_factory.mktemp("judged") / "work", tiny_digits)
    recipe = Recipe.load(workspace.recipe(JUDGED))
    before = run(recipe.plan(recipe.store())).plan
    store = before.store
    erased = (shard(store, record, "images") for record in of_stage(before, "erase").values())
    photo = next(one for held in erased for one in held.ids if b'"erased"' in held.read(one, "json"))
    held = traces_of(before, photo)
    (slice_,) = (one.key for one in of_stage(before, "photos").values() if photo in shard(store, one, "images"))
    stood = everything(store.root)
    report = store.purge([photo], "its owner asked")
    left = everything(store.root)
    planned = recipe.plan(store)
    cached = frozenset(key for key, status in store.statuses(planned.tasks).items() if status.state == "cached")
    after = run(planned).plan
    others = before.tasks.keys() - below(before, [slice_])
    return Judged(before, photo, held, slice_, frozenset(others), report, stood, left, cached, after)


def test_every_stage_held_something_of_the_photo(judged: Judged) -> None:
    """The test looks where there was something to find: image, label, vector, scores, erased copies, later labels."""
    assert judged.held.keys() >= {
        "photos: png", "label: mask.png", "label: erase.png", "label: vector", "trust: scores", "erase: png",
        "erase: json", "erase: mask.png", "knowledge: mask.png", "knowledge: label.json",
    }  # fmt: skip
    assert judged.held["erase: png"] != judged.held["photos: png"]
    for what, data in judged.held.items():
        assert files_with(judged.stood, data), what
    named = files_with(judged.stood, judged.photo.encode())
    assert len([path for path in named if path.startswith("objects/")]) > 10


def test_no_byte_of_a_purged_photo_is_left(judged: Judged) -> None:
    """No picture, mask, vector or score of it, whole or erased; nothing but its tombstone has its name."""
    assert {what: found for what, data in judged.held.items() if (found := files_with(judged.left, data))} == {}
    assert {path.split("/")[0] for path in files_with(judged.left, judged.photo.encode())} == {"tombstones"}


def test_no_key_with_it_is_reachable(judged: Judged) -> None:
    """Its slice, and whatever was made from it, has no record, and no slot and no record names it."""
    gone = below(judged.before, [judged.slice_])
    stages = {judged.before.tasks[key].stage for key in gone}
    assert stages == {"photos", "label", "trust", "erase", "knowledge", "replay", "relabel", "train", "evaluate"}
    assert set(judged.report.records) == gone
    assert {path for key in gone for path in files_with(judged.left, key.encode())} == set()


def test_only_weights_are_told_as_weights(judged: Judged) -> None:
    """A label shard's vectors are no weights that somebody may have copied."""
    told = {one for one in judged.report.weights if one.startswith("train/")}
    assert set(judged.report.weights) == told
    assert told == {"train/web/seed0/step1", "train/web/seed0/step2"}


def test_the_next_plan_redoes_what_descends_from_it_and_nothing_else(judged: Judged) -> None:
    """The slice stands without the photo; its labels, the class's selection and all below are made anew."""
    (derived,) = judged.report.derived
    plan = judged.after
    redone = below(plan, [derived]) - {derived}
    assert judged.cached == plan.tasks.keys() - redone
    assert judged.others < judged.cached
    for stage in ("helper", "standards"):
        assert {one.key for one in of_stage(plan, stage).values()} <= judged.others
    labels = {one.key for one in of_stage(plan, "label").values()}
    assert len(labels & redone) == 1
    assert len({one.key for one in of_stage(plan, "trust").values()} & redone) == 1


def test_the_photo_stays_away(judged: Judged) -> None:
    """The run after the purge makes everything without it; the others of its slice are there."""
    assert traces_of(judged.after, judged.photo) == {}
    files = everything(judged.after.store.root)
    assert {path.split("/")[0] for path in files_with(files, judged.photo.encode())} == {"tombstones"}
    (derived,) = judged.report.derived
    slice_ = judged.after.store.get(derived)
    assert slice_ is not None
    assert len(shard(judged.after.store, slice_, "images")) == 3
    assert len(of_stage(judged.after, "train")) == 3
