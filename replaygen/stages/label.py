"""Stages that make label shards: pseudo-labels of replay images, and inpainted labels of current images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from replaygen.errors import DataError
from replaygen.stages.base import DATA_MODULES, NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, open_current, open_model
from replaygen.stages.screen import selected

if TYPE_CHECKING:
    from replaygen.labelers.model import Probabilities
    from replaygen.learn import SegNet
    from replaygen.sample import Image8


@dataclass(frozen=True)
class LabelParams:
    """channel: the queried class; restrict, unsure: see `labelers.model.label_photo`.

    min_share: photos where the class covers less of the picture are refused; views, looks, flip: predictions are
    averaged over the first `looks` fixed views, and over each one's mirror image.
    """

    class_name: str
    channel: int
    restrict: Literal["query", "step", "seen"]
    unsure: float
    min_share: float
    flip: bool
    looks: int
    views: dict[str, Any]
    threads: int


class LabelStage(Stage[LabelParams]):
    """Image shard i -> label shard i, by the model of the step that learnt the class. Labelled once."""

    name = "label"
    version = 1
    modules = (
        "replaygen.labelers.model",
        "replaygen.learn.predict",
        "replaygen.learn.checkpoint",
        *NETWORK_MODULES,
    )
    seconds_per_sample = 0.04
    bytes_per_sample = 1500
    heavy = True
    Params = LabelParams

    def run(self, params: LabelParams, inputs: Inputs, out: Out) -> None:
        """Predict, keep the queried class and background, refuse where the class is absent."""
        from replaygen.labelers.model import label_photo
        from replaygen.sample import decode_image, encode_png

        model_record = inputs.record("model")
        net, info = open_model(inputs, model_record)
        features = Features.of(inputs)
        shard = inputs.shard(inputs.record("images"), "images")
        kept = selected(inputs)
        items = []
        for sample, members in shard:
            if kept is not None and sample not in kept:
                out.reject(sample, "screened")
                continue
            image = decode_image(members["png"] if "png" in members else members["jpg"], where=sample)
            probabilities = _predict(net, image, sample, features, params)
            label = label_photo(
                probabilities, params.channel, restrict=params.restrict,
                step_channels=tuple(info["new"]), unsure=params.unsure,
            )  # fmt: skip
            if label.share == 0:
                out.reject(sample, "class-absent")
                continue
            if label.share < params.min_share:
                out.reject(sample, "area-too-small", share=round(label.share, 5))
                continue
            told = {
                "visible": [params.channel],
                "scores": {"share": round(label.share, 5), "confidence": round(label.confidence, 5)},
                "labeler": model_record.key,
            }
            items.append(
                (sample, {"mask.png": encode_png(label.mask), "label.json": json.dumps(told, sort_keys=True).encode()})
            )
            out.accept()
        out.shard("labels", items)


@dataclass(frozen=True)
class RelabelParams:
    """ids: the data set's ids of the slice of step `step`; unsure: see `labelers.model.inpaint_background`."""

    dataset: str
    scenario: str
    step: int
    ids: tuple[str, ...]
    unsure: float
    flip: bool
    looks: int
    views: dict[str, Any]
    threads: int


class RelabelStage(Stage[RelabelParams]):
    """Slice i of a step's current images -> label shard i: background inpainted by the previous-step model."""

    name = "relabel"
    version = 1
    modules = (
        "replaygen.labelers.model",
        "replaygen.learn.predict",
        "replaygen.learn.checkpoint",
        *NETWORK_MODULES,
        *DATA_MODULES,
    )
    seconds_per_sample = 0.04
    bytes_per_sample = 1500
    heavy = True
    Params = RelabelParams

    def run(self, params: RelabelParams, inputs: Inputs, out: Out) -> None:
        """Y where Y is new, else what the previous model sees there."""
        from replaygen.datasets import sample_id
        from replaygen.labelers.model import inpaint_background
        from replaygen.sample import encode_png

        dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
        model_record = inputs.record("model")
        net, _ = open_model(inputs, model_record)
        features = Features.of(inputs)
        step = scenario.steps[params.step]
        table = scenario.step_table(params.step)
        items = []
        for image_id in params.ids:
            image = dataset.image(image_id)
            current = scenario.apply(table, dataset.mask(image_id))
            if current.shape != image.shape[:2]:
                raise DataError("image and mask differ in size", where=f"{dataset.root}: {image_id}")
            probabilities = _predict(net, image, sample_id(image_id), features, params)
            mask = inpaint_background(probabilities, current, old=step.old, unsure=params.unsure)
            told = {"visible": list(step.seen), "scores": {}, "labeler": model_record.key, "id": image_id}
            items.append(
                (
                    sample_id(image_id),
                    {"mask.png": encode_png(mask), "label.json": json.dumps(told, sort_keys=True).encode()},
                )
            )
            out.accept()
        out.shard("labels", items)


def _predict(
    net: SegNet, image: Image8, sample: str, features: Features, params: LabelParams | RelabelParams
) -> Probabilities:
    from replaygen.learn import ViewSpec, predict_over_views

    spec = ViewSpec.model_validate(params.views)
    cached = (lambda v: features.read(sample, v)) if features else None
    return predict_over_views(net, image, sample, spec, features=cached, views=params.looks, flip=params.flip)
