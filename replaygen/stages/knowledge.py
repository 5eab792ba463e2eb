"""The stage that gives older replay labels the classes that are being learnt now (RECALL+'s knowledge inpainting)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from replaygen.errors import DataError, ModelError
from replaygen.stages.base import NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, open_helper
from replaygen.stages.predicting import predict
from replaygen.stages.screen import SELECTION


@dataclass(frozen=True)
class KnowledgeParams:
    """class_name: whose replay it is; step: the step k that learns now; channels: C_k, as the helper has them.

    unsure: see `labelers.knowledge.fill_background`; views, looks, flip: predictions are averaged over the first
    `looks` fixed views, and over each one's mirror image.
    """

    class_name: str
    step: int
    channels: tuple[int, ...]
    unsure: float
    flip: bool
    looks: int
    views: dict[str, Any]
    threads: int


class KnowledgeStage(Stage[KnowledgeParams]):
    """Label shard i of an older class (maybe filled at earlier steps) -> the same labels, with C_k in their background.

    Inputs: "labels", "images" (their image shard), maybe "features" of it, "helper" (D^H_k), and maybe "trusted", a
    selection: labels that it does not keep are left out. What a label has beside mask and JSON is carried over.
    `labeler` stays who labelled first; `also` lists the helpers; scores.knowledge is the share of pixels filled so far.
    """

    name = "knowledge"
    version = 1
    modules = (
        "replaygen.labelers.knowledge",
        "replaygen.stages.predicting",
        "replaygen.learn.predict",
        "replaygen.learn.checkpoint",
        *NETWORK_MODULES,
    )
    seconds_per_sample = 0.04
    bytes_per_sample = 1500
    heavy = True
    Params = KnowledgeParams

    def run(self, params: KnowledgeParams, inputs: Inputs, out: Out) -> None:
        """Fill what is background, and nothing else."""
        from replaygen.labelers.knowledge import fill_background
        from replaygen.sample import decode_image, decode_mask, encode_png

        helper = inputs.record("helper")
        net, info = open_helper(inputs, helper)
        if list(info["channels_of"]) != list(params.channels):
            raise ModelError(
                f"the helper knows channels {list(info['channels_of'])}, step {params.step} learns "
                f"{list(params.channels)}", where=helper.slot, hint="plan the recipe again",
            )  # fmt: skip
        features = Features.of(inputs)
        images = inputs.shard(inputs.record("images"), "images")
        trusted = _trusted(inputs)
        items = []
        for sample, members in inputs.shard(inputs.record("labels"), "labels"):
            if trusted is not None and sample not in trusted:
                out.reject(sample, "untrusted")
                continue
            kind = "png" if "png" in images.extensions(sample) else "jpg"
            image = decode_image(images.read(sample, kind), where=sample)
            mask = decode_mask(members["mask.png"], where=sample)
            if mask.shape != image.shape[:2]:
                raise DataError("image and label differ in size", where=f"{inputs.slot}: {sample}")
            probabilities = predict(
                net, image, sample, features, views=params.views, looks=params.looks, flip=params.flip
            )
            filled = fill_background(mask, probabilities, channels=params.channels, unsure=params.unsure)
            told = _told(json.loads(members["label.json"]), params.channels, filled.share, helper.key)
            label = json.dumps(told, sort_keys=True).encode()
            items.append((sample, {**members, "mask.png": encode_png(filled.mask), "label.json": label}))
            out.accept()
        out.shard("labels", items)


def _told(before: dict[str, Any], channels: tuple[int, ...], share: float, helper: str) -> dict[str, Any]:
    scores = dict(before.get("scores", {}))
    scores["knowledge"] = round(scores.get("knowledge", 0.0) + share, 5)
    visible = sorted({*before["visible"], *channels})
    return {**before, "visible": visible, "scores": scores, "also": [*before.get("also", []), helper]}


def _trusted(inputs: Inputs) -> frozenset[str] | None:
    records = inputs.records("trusted")
    if not records:
        return None
    return frozenset(sample for record in records for sample in inputs.read_json(record, SELECTION)["kept"])
