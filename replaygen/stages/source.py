"""Stages that make image shards: photos of a folder, and real images kept as exemplars."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from replaygen.classes import slug
from replaygen.errors import DataError
from replaygen.stages.base import DATA_MODULES, Inputs, Out, Stage
from replaygen.stages.context import open_current


@dataclass(frozen=True)
class PhotoParams:
    """files: [[relative name, sha256], ...] of the slice; max_side: larger photos are shrunk to it, in pixels."""

    class_name: str
    files: tuple[tuple[str, str], ...]
    max_side: int | None


class PhotoStage(Stage[PhotoParams]):
    """Slice i of a class's photos -> image shard i."""

    name = "photos"
    version = 1
    modules = ("replaygen.sources.folder", "replaygen.sample")
    seconds_per_sample = 0.004
    bytes_per_sample = 15_000
    Params = PhotoParams

    def run(self, params: PhotoParams, inputs: Inputs, out: Out) -> None:
        """Read, check against the planned sha256, decode once, write."""
        from replaygen.sources.folder import photo_id, photo_sample

        root = Path(inputs.where["root"])
        items = []
        for name, sha256 in params.files:
            sample = photo_id(params.class_name, sha256)
            try:
                data = (root / name).read_bytes()
            except FileNotFoundError:
                raise DataError(
                    "a photo is gone since the plan was made", where=str(root / name),
                    hint="is the folder mounted here? else run the recipe again",
                ) from None  # fmt: skip
            if hashlib.sha256(data).hexdigest() != sha256:
                raise DataError(
                    "a photo changed after the plan was made", where=str(root / name), hint="run the plan again"
                )
            try:
                members = photo_sample(
                    data, class_name=params.class_name, name=name, sha256=sha256, max_side=params.max_side
                )
            except DataError:
                out.reject(sample, "unreadable")
                continue
            items.append((sample, members))
            out.accept()
        out.shard("images", items)


@dataclass(frozen=True)
class ExemplarParams:
    """ids: the data set's ids of the slice; step: whose labels they carry."""

    dataset: str
    scenario: str
    class_name: str
    step: int
    ids: tuple[str, ...]


class ExemplarStage(Stage[ExemplarParams]):
    """Slice i of a class's kept real images -> image shard i and label shard i, with the step's own labels.

    Inputs "labels", where there are any: the step's labels with inpainted background, which are kept instead.
    """

    name = "exemplars"
    version = 1
    modules = (
        "replaygen.sources.exemplar",
        *DATA_MODULES,
    )
    seconds_per_sample = 0.006
    bytes_per_sample = 20_000
    Params = ExemplarParams

    def run(self, params: ExemplarParams, inputs: Inputs, out: Out) -> None:
        """Copy images and step labels; visible is C_k, or what an inpainted label says, as for current data."""
        from replaygen.datasets import sample_id
        from replaygen.sample import encode_jpeg, encode_png

        dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
        visible = list(scenario.visible(params.step))
        inpainted = [inputs.shard(record, "labels") for record in inputs.records("labels")]
        images, labels = [], []
        for image_id in params.ids:
            image = dataset.image(image_id)
            mask = scenario.apply(scenario.step_table(params.step), dataset.mask(image_id))
            sample = f"{slug(params.class_name)}-{sample_id(image_id)}"
            about = {
                "class": params.class_name, "source": "exemplar", "file": image_id, "licence": None, "parent": None,
                "height": int(image.shape[0]), "width": int(image.shape[1]),
            }  # fmt: skip
            encoded = {"png": encode_png(image)} if max(image.shape) <= 64 else {"jpg": encode_jpeg(image)}
            images.append((sample, {**encoded, "json": json.dumps(about, sort_keys=True).encode()}))
            told = {"visible": visible, "scores": {}, "labeler": "data set"}
            label = {"mask.png": encode_png(mask), "label.json": json.dumps(told, sort_keys=True).encode()}
            for shard in inpainted:
                if sample_id(image_id) in shard.ids:
                    label = {name: shard.read(sample_id(image_id), name) for name in label}
            labels.append((sample, label))
            out.accept()
        out.shard("images", images)
        out.shard("labels", labels)
