"""The reduce stage that closes a class's replay set: one manifest that names every shard in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from replaygen.stages.base import Inputs, Out, Stage
from replaygen.stages.screen import SELECTION
from replaygen.store import Record


@dataclass(frozen=True)
class ReplayParams:
    """wanted: samples asked for, a shortfall is reported; zoom: the farthest view, see `ViewSpec.zoomed`."""

    class_name: str
    channel: int
    wanted: int
    zoom: float = 1.0


class ReplayStage(Stage[ReplayParams]):
    """All shards of a class -> manifest.json; a shard: {images, images_index, labels, labels_index, samples, ...}.

    `features` is there where features are cached.
    `samples` is how many of a shard's labelled samples belong to the set: the first in the order of their ids, or,
    where the class was screened (inputs "trusted"), those that `kept` lists, of all shards together the first in the
    order that the selection asks for.
    """

    name = "replay"
    version = 3
    seconds_per_sample = 0.00005
    bytes_per_sample = 10
    Params = ReplayParams

    def run(self, params: ReplayParams, inputs: Inputs, out: Out) -> None:
        """Join the i-th image, label and feature shards by position."""
        images, labels, features = (inputs.records(role) for role in ("images", "labels", "features"))
        chosen = _chosen(params.wanted, labels, inputs)
        shards: list[dict[str, Any]] = []
        for i, (image_record, label_record) in enumerate(zip(images, labels, strict=True)):
            labelled = label_record.output("labels.tar").samples
            samples = min(labelled, params.wanted - sum(shard["samples"] for shard in shards))
            shard: dict[str, Any] = {
                "images": image_record.output("images.tar").digest,
                "images_index": image_record.output("images.index.json").digest,
                "labels": label_record.output("labels.tar").digest,
                "labels_index": label_record.output("labels.index.json").digest,
            }
            if chosen is not None:
                shard["kept"], trusted = chosen[i]
                samples = len(shard["kept"])
                if trusted > samples:
                    out.reject_unnamed("more-than-wanted", trusted - samples)
            else:
                for _ in range(labelled - samples):
                    out.reject(f"shard-{i}", "more-than-wanted")
            shard["samples"] = samples
            if features:
                shard["features"] = features[i].output("features.safetensors").digest
            shards.append(shard)
            out.accept(samples)
        total = sum(shard["samples"] for shard in shards)
        out.put_json(
            "manifest.json",
            {
                "class": params.class_name, "channel": params.channel, "samples": total,
                "wanted": params.wanted, "shortfall": max(0, params.wanted - total), "zoom": params.zoom,
                "shards": shards,
            },
        )  # fmt: skip


def _chosen(wanted: int, labels: list[Record], inputs: Inputs) -> list[tuple[list[str], int]] | None:
    """For each label shard the ids that belong to the set, and how many are trusted; None where nobody was screened."""
    if not inputs.records("trusted"):
        return None
    told = inputs.read_json(inputs.record("trusted"), SELECTION)
    ranked = told["kept"] if told["order"] == "best" else sorted(told["kept"])
    held = [set(inputs.shard(record, "labels").ids) for record in labels]
    there = set().union(*held)
    chosen = set([sample for sample in ranked if sample in there][:wanted])
    return [(sorted(chosen & ids), len(ids.intersection(ranked))) for ids in held]
