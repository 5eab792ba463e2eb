"""Stages of the screens at the door: what each image looks like, and which of a class are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from replaygen.stages.base import Inputs, Out, Stage
from replaygen.stages.context import open_dataset_of

LOOKS = "looks.json"
SELECTION = "selection.json"


@dataclass(frozen=True)
class LookParams:
    """Nothing: a look depends on the image alone."""


class LookStage(Stage[LookParams]):
    """Image shard i -> looks.json: [{sample, photo, sha256 of the raw bytes, look}]."""

    name = "looks"
    version = 1
    modules = ("replaygen.screens.looks",)
    seconds_per_sample = 0.004
    bytes_per_sample = 300
    Params = LookParams

    def run(self, params: LookParams, inputs: Inputs, out: Out) -> None:
        """Decode, hash and measure."""
        from replaygen.sample import decode_image
        from replaygen.screens.looks import look

        told = []
        for sample, members in inputs.shard(inputs.record("images"), "images"):
            about = json.loads(members["json"])
            image = decode_image(members["png"] if "png" in members else members["jpg"], where=sample)
            photo = about.get("photo") or sample
            told.append({"sample": sample, "photo": photo, "sha256": about["sha256"], "look": look(image)})
            out.accept()
        out.put_json(LOOKS, told)


@dataclass(frozen=True)
class EvaluatedLookParams:
    """ids: images of the data set that are evaluated on."""

    dataset: str
    ids: tuple[str, ...]


class EvaluatedLookStage(Stage[EvaluatedLookParams]):
    """Slice i of the evaluation images -> looks.json: [[id, hash]], for the leak check and for nothing else."""

    name = "looks-evaluated"
    version = 1
    modules = ("replaygen.screens.looks", "replaygen.datasets.base")
    seconds_per_sample = 0.004
    bytes_per_sample = 50
    Params = EvaluatedLookParams

    def run(self, params: EvaluatedLookParams, inputs: Inputs, out: Out) -> None:
        """Decode and hash."""
        from replaygen.screens.looks import look

        dataset = open_dataset_of(inputs.where, params.dataset)
        out.put_json(LOOKS, [[image, look(dataset.image(image))["hash"]] for image in params.ids])
        out.accept(len(params.ids))


@dataclass(frozen=True)
class SelectParams:
    """As `ScreenSpec`."""

    class_name: str
    duplicates: int
    leaks: int
    grayscale: bool
    text: float
    flat: bool


class SelectStage(Stage[SelectParams]):
    """Looks of a class, of the classes before it and of the evaluation images -> which samples are kept, and why not.

    selection.json: {"kept": [sample], "rejected": [{"id", "reason", "of"?, "distance"?}]}; looks.json: those of the
    kept, for the classes that come later.
    """

    name = "select"
    version = 1
    modules = ("replaygen.screens.doors",)
    seconds_per_sample = 0.0001
    bytes_per_sample = 100
    Params = SelectParams

    def run(self, params: SelectParams, inputs: Inputs, out: Out) -> None:
        """Compare hashes and measures; no image is read and none is written."""
        from dataclasses import asdict

        from replaygen.screens.doors import choose

        own = list(_seen(inputs, "looks"))
        if inputs.records("search"):
            told = inputs.read_json(inputs.record("search"), "candidates.json")["candidates"]
            rank = {one["photo"]: i for i, one in enumerate(told)}
            own.sort(key=lambda seen: (rank.get(seen.photo, len(rank)), seen.sample))
        evaluated = [
            (str(image), str(phash))
            for record in inputs.records("evaluated")
            for image, phash in inputs.read_json(record, LOOKS)
        ]
        told = asdict(params)
        del told["class_name"]
        choice = choose(own, list(_seen(inputs, "before")), evaluated, **told)
        kept = set(choice.kept)
        out.put_json(SELECTION, {"kept": choice.kept, "rejected": choice.rejected})
        out.put_json(LOOKS, [_plain(seen) for seen in own if seen.sample in kept])
        out.accept(len(kept))
        for rejected in choice.rejected:
            out.reject(rejected["id"], rejected["reason"])


def selected(inputs: Inputs) -> frozenset[str] | None:
    """The samples that a task's selection keeps; None where it has none, and all are kept."""
    records = inputs.records("selection")
    if not records:
        return None
    return frozenset(sample for record in records for sample in inputs.read_json(record, SELECTION)["kept"])


def _seen(inputs: Inputs, role: str) -> Iterator[Any]:
    from replaygen.screens.doors import Seen

    for record in inputs.records(role):
        for one in inputs.read_json(record, LOOKS):
            yield Seen(one["sample"], one["photo"], one["sha256"], one["look"])


def _plain(seen: Any) -> dict[str, Any]:
    return {"sample": seen.sample, "photo": seen.photo, "sha256": seen.sha256, "look": seen.look}
