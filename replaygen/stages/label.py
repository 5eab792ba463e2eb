"""The stage that makes pseudo-labels of replay images: once, right after the step that learnt their class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from replaygen.stages.base import NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, open_helper, open_model
from replaygen.stages.predicting import predict
from replaygen.stages.screen import selected

if TYPE_CHECKING:
    from replaygen.labelers.photo import Opinion, PhotoOpinion
    from replaygen.learn import SegNet
    from replaygen.sample import Image8

VECTORS = "vectors.safetensors"


@dataclass(frozen=True)
class LabelParams:
    """channel: the queried class; restrict, unsure, refine: see `labelers.photo`; step: the channels learnt with it.

    min_share: photos where the class covers less of the picture are refused; views, looks, flip: predictions are
    averaged over the first `looks` fixed views, and over each one's mirror image; marks: also write what could be
    erased; vectors: also write each region's mean feature; teacher: what a teacher is, where one votes.
    """

    class_name: str
    channel: int
    step: tuple[int, ...]
    restrict: Literal["query", "step", "seen"]
    unsure: float
    refine: Literal["none", "grabcut"]
    min_share: float
    flip: bool
    looks: int
    views: dict[str, Any]
    marks: bool
    vectors: bool
    teacher: dict[str, Any] | None
    threads: int


class LabelStage(Stage[LabelParams]):
    """Image shard i -> label shard i, by the step's model, its helper decoder, both, or a teacher. Labelled once.

    Inputs: "images"; "model" and "helper", whose mean decides; "encoder", whose features are pooled where none are
    cached; perhaps "features" and "selection".
    """

    name = "label"
    version = 2
    modules = (
        "replaygen.labelers.model",
        "replaygen.labelers.photo",
        "replaygen.labelers.teacher",
        "replaygen.labelers.specs",
        "replaygen.generators.imagenet",
        "replaygen.labelers.vectors",
        "replaygen.learn.predict",
        "replaygen.learn.checkpoint",
        "replaygen.stages.predicting",
        *NETWORK_MODULES,
    )
    seconds_per_sample = 0.04
    bytes_per_sample = 1500
    heavy = True
    Params = LabelParams

    def run(self, params: LabelParams, inputs: Inputs, out: Out) -> None:
        """Ask every labeler, keep the queried class and background, refuse where the class is absent."""
        from replaygen.labelers.photo import label_by_all
        from replaygen.sample import decode_image

        voters = _Voters(inputs, params)
        kept = selected(inputs)
        items, vectors = [], {}
        for sample, members in inputs.shard(inputs.record("images"), "images"):
            if kept is not None and sample not in kept:
                out.reject(sample, "screened")
                continue
            image = decode_image(members["png"] if "png" in members else members["jpg"], where=sample)
            label = label_by_all(
                voters.opinions(image, sample), params.channel, restrict=params.restrict, step_channels=params.step,
                unsure=params.unsure, image=image if params.refine == "grabcut" else None,
            )  # fmt: skip
            if label.share == 0:
                out.reject(sample, "class-absent")
                continue
            if label.share < params.min_share:
                out.reject(sample, "area-too-small", share=round(label.share, 5), limit=params.min_share)
                continue
            items.append((sample, _members(label, params, voters.names)))
            if params.vectors:
                vectors[sample] = voters.vector(image, sample, label)
            out.accept()
        out.shard("labels", items)
        if params.vectors:
            out.put(VECTORS, vector_bytes(vectors), samples=len(vectors))


class _Voters:
    """The networks that vote on the photos of a task."""

    def __init__(self, inputs: Inputs, params: LabelParams) -> None:
        self.params = params
        self.features = Features.of(inputs)
        self.names = [record.key for role in ("model", "helper") for record in inputs.records(role)]
        self._nets: list[tuple[SegNet, tuple[int, ...]]] = []
        for record in inputs.records("model"):
            net, info = open_model(inputs, record)
            self._nets.append((net, tuple(range(len(info["names"])))))
        for record in inputs.records("helper"):
            net, info = open_helper(inputs, record)
            self._nets.append((net, (0, *info["channels_of"])))
        encoders = [open_model(inputs, record)[0] for record in inputs.records("encoder")]
        self._encoder = encoders[0] if encoders else None
        self._teacher: Any = None
        if params.teacher is not None:
            from replaygen.labelers.teacher import teacher_of

            self._teacher = teacher_of(params.teacher, inputs.where)
            self.names.append("teacher")

    def opinions(self, image: Image8, sample: str) -> list[Opinion]:
        """Everybody's opinion of a photo."""
        from replaygen.labelers.photo import Opinion

        views, looks, flip = self.params.views, self.params.looks, self.params.flip
        told = [
            opinion(net, channels, image, sample, self.features, views=views, looks=looks, flip=flip)
            for net, channels in self._nets
        ]
        if self._teacher is not None:
            told.append(Opinion(self._teacher.probabilities(image, flip=flip), (0, *self.params.step)))
        return told

    def vector(self, image: Image8, sample: str, label: PhotoOpinion) -> Any:
        """float32 [2, D] of the labelled region and of the whole."""
        from replaygen.labelers.vectors import region_vectors

        return region_vectors(deepest_map(self._encoder, image, sample, self.features, self.params.views), label.weight)


def opinion(
    net: SegNet, channels: tuple[int, ...], image: Image8, sample: str, features: Features, *,
    views: Mapping[str, Any], looks: int, flip: bool,
) -> Opinion:  # fmt: skip
    """A network's opinion of a photo: the mean of its looks, and the first of them alone where there are several."""
    from replaygen.labelers.photo import Opinion

    mean = predict(net, image, sample, features, views=views, looks=looks, flip=flip)
    if looks == 1 and not flip:
        return Opinion(mean, channels)
    return Opinion(mean, channels, predict(net, image, sample, features, views=views, looks=1, flip=False))


def deepest_map(
    encoder: SegNet | None, image: Image8, sample: str, features: Features, views: Mapping[str, Any]
) -> Any:
    """float [D, h, w] of the whole picture, from cached features where there are some."""
    if features:
        return features.read(sample, 0)[-1]
    import torch

    from replaygen.learn import ViewSpec, apply_view
    from replaygen.learn.samples import stack_images

    assert encoder is not None
    square, _ = apply_view(image, None, sample, 0, ViewSpec.model_validate(views))
    with torch.inference_mode():
        return encoder.encode(stack_images([square]).to(next(encoder.parameters()).device))[-1][0]


def _members(label: PhotoOpinion, params: LabelParams, names: list[str]) -> dict[str, bytes]:
    from replaygen.sample import encode_png

    scores = {"share": label.share, "confidence": label.confidence, "agreement": label.agreement, "other": label.other}
    told = {
        "visible": [params.channel],
        "scores": {name: round(value, 5) for name, value in scores.items()},
        "labeler": " ".join(names),
    }
    made = {"mask.png": encode_png(label.mask), "label.json": json.dumps(told, sort_keys=True).encode()}
    return {**made, "erase.png": encode_png(label.marks)} if params.marks else made


def vector_bytes(vectors: Mapping[str, Any]) -> bytes:
    """id -> float32 array, as one safetensors file."""
    import numpy as np
    from safetensors.numpy import save

    return save({sample: np.ascontiguousarray(vectors[sample], np.float32) for sample in sorted(vectors)})


def read_vectors(data: bytes) -> dict[str, Any]:
    """The inverse of `vector_bytes`."""
    from safetensors.numpy import load

    return load(data)
