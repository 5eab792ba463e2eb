"""Real photographs by way of Flickr's protocol: the table of the folder, who made every photo, and distractors.

A local Flickr (`replaygen.testing.local_flickr`) serves the photos of web_animals. Owners, titles and licences are made
up by it. Resumes where it was interrupted; see `photos.py`.

Figures: as in `real-photos`, where `recall` replays photos that the crawl found and `recall_folder` those of the
folder, and
    photos, photos_with_proof: in the replay sets of seed 0; with owner, page, title, licence, its address, both times
        and both digests.
    distractors: goats, llamas and pigs planted among the answers for cow and sheep (learnt in the order cat, dog, cow,
        sheep, horse, so that both are replayed; thumbnails are let in). By class: `offered` candidates and `planted`
        among them; and how many of these were `fetched`, passed the `door` screens, and reached the `buffer`
        (the set that is trained on) after labelling; `buffer_samples` is the size of that set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import QUICK, need_data, replaygen, settings
from photos import TINY, table

from replaygen.store import Shard
from replaygen.testing.local_flickr import LocalFlickr

if TYPE_CHECKING:
    from replaygen.plan import Plan
    from replaygen.store import Record

ROWS = ("finetune", "recall", "recall_folder", "joint")
FREE = (4, 7, 8, 9, 10, 11)
PLANT = {"cow": ["_distractor_goat", "_distractor_llama", "_distractor_pig"],
         "sheep": ["_distractor_goat", "_distractor_llama", "_distractor_pig"]}  # fmt: skip
PORTS = (8731, 8732)
"""Fixed, so that an interrupted crawl finds its photos again."""


def main() -> None:
    """The table, then the distractors."""
    data = need_data("voc_animals", "web_animals", "weights")
    quick = {**TINY, "replay.flickr.count": 4}
    del quick["replay.exemplars.count"]
    with _flickr(data / "web_animals", PORTS[0]):
        table("flickr", "voc-animals-flickr", rows=ROWS, quick=quick, extra=lambda folder: _extra(data, folder, quick))


def _extra(data: Path, folder: Path, quick: dict[str, Any]) -> dict[str, Any]:
    from replaygen.runs.proof import proofs

    plan = _plan(folder, {**(quick if QUICK else {}), "train.seeds": [0]})
    kept = [one for one in proofs(plan) if one.decision == "accepted"]
    whole = [
        one for one in kept
        if all((one.owner, one.page, one.title, one.licence, one.licence_url, one.fetched_at, one.sha256_raw,
                one.sha256_derived))
    ]  # fmt: skip
    with _flickr(data / "web_animals", PORTS[1], plant=PLANT) as server:
        others = {name.removeprefix("_distractor_") for name in PLANT["cow"]}
        planted = {f"flickr-{photo.id}" for photo in server.photos.values() if photo.words[0] in others}
        changes = {**(quick if QUICK else {}), "replay.flickr.min_side": 64, "replay.flickr.count": 8 if QUICK else 300}
        changes |= {"replay.flickr.oversample": 1.0, "scenario.classes": ["cat", "dog", "cow", "sheep", "horse"]}
        replaygen("train", "voc-animals-flickr", "--method", "recall", "--seed", "0", "--workers", "2", "--cache",
                  str(folder / "distractors"), *settings(changes))  # fmt: skip
        told = _distractors(_plan(folder, changes, "distractors"), planted)
    return {"photos": len(kept), "photos_with_proof": len(whole), "distractors": told}


def _distractors(plan: Plan, planted: set[str]) -> dict[str, Any]:
    """How far planted photos came, by class."""
    from replaygen.runs.proof import proofs

    told: dict[str, dict[str, int]] = {}
    columns = ("offered", "planted", "fetched", "door", "buffer", "buffer_samples")
    for one in proofs(plan):
        row = told.setdefault(one.class_name, dict.fromkeys(columns, 0))
        row["offered"] += 1
        row["planted"] += one.photo in planted
        row["buffer_samples"] += one.decision == "accepted"
        row["buffer"] += one.decision == "accepted" and one.photo in planted
    for key, task in plan.tasks.items():
        record = plan.store.get(key)
        if record is not None and task.stage in ("fetch", "select"):
            column = "fetched" if task.stage == "fetch" else "door"
            row = told[task.params["class_name"]]
            row[column] += sum("flickr-" + sample.rsplit("-", 1)[1] in planted for sample in _samples(plan, record))
    return {name: row for name, row in told.items() if row["planted"]}


def _samples(plan: Plan, record: Record) -> Iterable[str]:
    """The samples of a fetch, or of a selection."""
    if record.stage == "select":
        kept: list[str] = json.loads(plan.store.read(record.output("selection.json").digest))["kept"]
        return kept
    return Shard(*(plan.store.read(record.output(name).digest) for name in ("images.tar", "images.index.json"))).ids


def _plan(folder: Path, changes: dict[str, Any], store: str = "cache") -> Plan:
    from replaygen.plan import Recipe
    from replaygen.store import Store

    recipe = Recipe.load("voc-animals-flickr", changes)
    if store != "cache":
        recipe = recipe.narrowed(methods=["recall"], seeds=[0])
    return recipe.plan(Store(folder / store))


@contextmanager
def _flickr(root: Path, port: int, **options: Any) -> Iterator[LocalFlickr]:
    """A local Flickr, and an environment that leads to it and to nothing else."""
    with LocalFlickr(root, licences=FREE, port=port, **options) as server:
        before = {name: os.environ.get(name) for name in server.environment()}
        os.environ.update(server.environment())
        try:
            yield server
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


if __name__ == "__main__":
    main()
