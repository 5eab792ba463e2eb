"""Stages that keep a frozen encoder's features, so that training never pays for the encoder again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaygen.stages.base import NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import encoder_of, open_dataset_of
from replaygen.stages.screen import selected

if TYPE_CHECKING:
    from replaygen.sample import Image8

_MODULES = (
    "replaygen.learn.features",
    *NETWORK_MODULES,
)


@dataclass(frozen=True)
class CurrentFeatureParams:
    """ids: the data set's ids of the slice; network: the encoder's identity; views: the fixed views."""

    dataset: str
    ids: tuple[str, ...]
    network: dict[str, Any]
    views: dict[str, Any]
    threads: int


class CurrentFeatureStage(Stage[CurrentFeatureParams]):
    """Slice i of a step's current images -> features.safetensors, float16 [V, D, h, w] a tap."""

    name = "features-current"
    version = 1
    modules = _MODULES
    seconds_per_sample = 0.06
    bytes_per_sample = 400_000
    heavy = True
    Params = CurrentFeatureParams

    def run(self, params: CurrentFeatureParams, inputs: Inputs, out: Out) -> None:
        """Encode every view of every image once."""
        from replaygen.datasets import sample_id

        dataset = open_dataset_of(inputs.where, params.dataset)
        _encode(((sample_id(key), dataset.image(key)) for key in params.ids), params.views, inputs, out)


@dataclass(frozen=True)
class ReplayFeatureParams:
    """network: the encoder's identity; views: the fixed views."""

    network: dict[str, Any]
    views: dict[str, Any]
    threads: int


class ReplayFeatureStage(Stage[ReplayFeatureParams]):
    """Image shard i -> features.safetensors, float16 [V, D, h, w] a tap."""

    name = "features-replay"
    version = 1
    modules = _MODULES
    seconds_per_sample = 0.06
    bytes_per_sample = 400_000
    heavy = True
    Params = ReplayFeatureParams

    def run(self, params: ReplayFeatureParams, inputs: Inputs, out: Out) -> None:
        """Encode every view of every image once."""
        from replaygen.sample import decode_image

        shard = inputs.shard(inputs.record("images"), "images")
        kept = selected(inputs)
        for sample in shard.ids:
            if kept is not None and sample not in kept:
                out.reject(sample, "screened")
        images = (
            (sample, decode_image(members["png"] if "png" in members else members["jpg"], where=sample))
            for sample, members in shard
            if kept is None or sample in kept
        )
        _encode(images, params.views, inputs, out)


def _encode(images: Iterator[tuple[str, Image8]], views: dict[str, Any], inputs: Inputs, out: Out) -> None:
    from replaygen.learn import ViewSpec, encode_views, features_to_bytes

    net = encoder_of(inputs.where)
    spec = ViewSpec.model_validate(views)
    made = {}
    for sample, image in images:
        made[sample] = encode_views(net, [image], [sample], spec)[0]
        out.accept()
    out.put("features.safetensors", features_to_bytes(made), samples=len(made))
