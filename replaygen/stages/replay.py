"""The reduce stage that closes a class's replay set: one manifest that names every shard in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from replaygen.stages.base import Inputs, Out, Stage


@dataclass(frozen=True)
class ReplayParams:
    """wanted: samples asked for; a shortfall is reported."""

    class_name: str
    channel: int
    wanted: int


class ReplayStage(Stage[ReplayParams]):
    """All shards of a class -> manifest.json: [{images, images_index, labels, labels_index, features?, samples}].

    `samples` is how many of a shard's labelled samples belong to the set, the first in the order of their ids.
    """

    name = "replay"
    version = 1
    seconds_per_sample = 0.00005
    bytes_per_sample = 10
    Params = ReplayParams

    def run(self, params: ReplayParams, inputs: Inputs, out: Out) -> None:
        """Join the i-th image, label and feature shards by position."""
        images, labels, features = (inputs.records(role) for role in ("images", "labels", "features"))
        shards: list[dict[str, Any]] = []
        for i, (image_record, label_record) in enumerate(zip(images, labels, strict=True)):
            labelled = label_record.output("labels.tar").samples
            samples = min(labelled, params.wanted - sum(shard["samples"] for shard in shards))
            for _ in range(labelled - samples):
                out.reject(f"shard-{i}", "more-than-wanted")
            shard: dict[str, Any] = {
                "images": image_record.output("images.tar").digest,
                "images_index": image_record.output("images.index.json").digest,
                "labels": label_record.output("labels.tar").digest,
                "labels_index": label_record.output("labels.index.json").digest,
                "samples": samples,
            }
            if features:
                shard["features"] = features[i].output("features.safetensors").digest
            shards.append(shard)
            out.accept(samples)
        total = sum(shard["samples"] for shard in shards)
        out.put_json(
            "manifest.json",
            {
                "class": params.class_name, "channel": params.channel, "samples": total,
                "wanted": params.wanted, "shortfall": max(0, params.wanted - total), "shards": shards,
            },
        )  # fmt: skip
