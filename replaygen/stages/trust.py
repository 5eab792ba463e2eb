"""Stages of the screens on labels: what real images of a class look like to a labeler, and which labels are trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from replaygen.errors import ModelError
from replaygen.stages.base import DATA_MODULES, NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, one_thread, open_current, open_helper, open_model
from replaygen.stages.helper import fold_of
from replaygen.stages.label import VECTORS, deepest_map, opinion, read_vectors, vector_bytes
from replaygen.stages.screen import SELECTION

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from replaygen.sample import Image8, Mask8
    from replaygen.screens.trust import Candidates, Standards

    Known = npt.NDArray[np.bool_]

STANDARDS = "standards.json"


@dataclass(frozen=True)
class StandardsParams:
    """folds: of the helpers, which are given in the order of their folds; the rest as `LabelParams`."""

    dataset: str
    scenario: str
    step: int
    folds: int
    restrict: Literal["query", "step", "seen"]
    unsure: float
    refine: Literal["none", "grabcut"]
    flip: bool
    looks: int
    views: dict[str, Any]
    threads: int


class StandardsStage(Stage[StandardsParams]):
    """A step's real images and its fold helpers -> standards.json, vectors.safetensors: one entry a class.

    Each image is labelled, class by class, by the helper that was fitted without it, the way photos are. Kept of it:
    the true share, the labeler's confidence and agreement, how typical its region is, the IoU with the truth, and the
    mean feature of the true region. No pixel of it is kept.
    """

    name = "standards"
    version = 1
    modules = (
        "replaygen.labelers.photo",
        "replaygen.labelers.vectors",
        "replaygen.screens.trust",
        "replaygen.stages.helper",
        "replaygen.stages.label",
        "replaygen.stages.predicting",
        "replaygen.learn.predict",
        "replaygen.learn.checkpoint",
        *NETWORK_MODULES,
        *DATA_MODULES,
    )
    seconds_per_sample = 0.1
    bytes_per_sample = 3000
    heavy = True
    Params = StandardsParams

    def run(self, params: StandardsParams, inputs: Inputs, out: Out) -> None:
        """Label every real image as if it were a photo, and compare with the truth."""
        import numpy as np

        from replaygen.screens.trust import typicality

        told: dict[str, Any] = {}
        vectors: dict[str, Any] = {}
        for channel, rows in _measured(params, inputs, out).items():
            if not rows:
                continue
            real, seen = (np.stack([row.pop(name) for row in rows]) for name in ("real", "seen"))
            found = [i for i, row in enumerate(rows) if row["share"] > 0]
            typical = typicality(seen[:, 0], real[:, 0], others=True) if len(rows) > 1 else np.zeros(len(rows))
            told[str(channel)] = {
                "images": len(rows), "area": [row["area"] for row in rows],
                **{name: [round(rows[i][name], 6) for i in found] for name in ("confidence", "agreement", "iou")},
                "typical": [round(float(typical[i]), 6) for i in found],
            }  # fmt: skip
            vectors[str(channel)] = real
        out.put_json(STANDARDS, told)
        out.put(VECTORS, vector_bytes(vectors), samples=sum(map(len, vectors.values())))


def _measured(params: StandardsParams, inputs: Inputs, out: Out) -> dict[int, list[dict[str, Any]]]:
    """For each class of the step, a row an image that shows it."""
    from replaygen.datasets import sample_id

    dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
    step, table = scenario.step(params.step), scenario.step_table(params.step)
    look = _Look(params, inputs, step.new)
    rows: dict[int, list[dict[str, Any]]] = {channel: [] for channel in step.new}
    for key in step.ids:
        truth = scenario.apply(table, dataset.mask(key))
        there = [channel for channel in step.new if bool((truth == channel).any())]
        image = dataset.image(key) if there else None
        for channel in there:
            assert image is not None
            rows[channel].append(look(image, sample_id(key), fold_of(key, params.folds), truth, channel))
        out.accept()
    return rows


class _Look:
    """How one real image looks to the helper that was fitted without it."""

    def __init__(self, params: StandardsParams, inputs: Inputs, new: tuple[int, ...]) -> None:
        self.params, self.new = params, new
        self.features = Features.of(inputs)
        self.helpers = [open_helper(inputs, record) for record in inputs.records("helper")]
        seen = [info.get("fold") for _, info in self.helpers]
        if seen != list(range(params.folds)):
            raise ModelError(
                f"the helpers were fitted without the folds {seen}, not one after the other without each of "
                f"{params.folds}", hint="plan the recipe again",
            )  # fmt: skip
        encoders = [open_model(inputs, record)[0] for record in inputs.records("encoder")]
        self.encoder = encoders[0] if encoders else None

    def __call__(self, image: Image8, sample: str, fold: int, truth: Mask8, channel: int) -> dict[str, Any]:
        import numpy as np

        from replaygen.labelers.photo import label_by_all
        from replaygen.labelers.vectors import region_vectors
        from replaygen.sample import IGNORE

        params = self.params
        net, info = self.helpers[fold]
        told = opinion(
            net, (0, *info["channels_of"]), image, sample, self.features, views=params.views, looks=params.looks,
            flip=params.flip,
        )  # fmt: skip
        label = label_by_all(
            [told], channel, restrict=params.restrict, step_channels=self.new, unsure=params.unsure,
            image=image if params.refine == "grabcut" else None,
        )  # fmt: skip
        deepest = deepest_map(self.encoder, image, sample, self.features, params.views)
        known = truth != IGNORE
        return {
            "area": round(float((truth == channel).mean()), 6), "share": label.share, "confidence": label.confidence,
            "agreement": label.agreement, "iou": _iou(label.mask == channel, truth == channel, known),
            "real": region_vectors(deepest, (truth == channel).astype(np.float32)),
            "seen": region_vectors(deepest, label.weight),
        }  # fmt: skip


def _iou(one: Known, other: Known, known: Known) -> float:
    union = int(((one | other) & known).sum())
    return int((one & other & known).sum()) / union if union else 1.0


@dataclass(frozen=True)
class TrustParams:
    """channel: the class; the rest as `TrustSpec`."""

    class_name: str
    channel: int
    area: float
    confidence: float
    agreement: float
    typical: float
    split: bool
    adversarial: float
    duplicates: float
    best: bool
    keep: float


class TrustStage(Stage[TrustParams]):
    """All label shards of a class and the standards of its step -> selection.json: {"kept", "rejected", "scores"}.

    `kept` is ordered, best first. A replay set takes the first `wanted` of `order`: "best", or "ids", whose order says
    nothing of them. No image or label is written anew.
    """

    name = "trust"
    version = 1
    modules = ("replaygen.screens.trust", "replaygen.stages.label")
    seconds_per_sample = 0.001
    bytes_per_sample = 200
    Params = TrustParams

    def run(self, params: TrustParams, inputs: Inputs, out: Out) -> None:
        """Compare numbers; no picture is read."""
        from replaygen.screens.specs import TrustSpec
        from replaygen.screens.trust import judge

        told = {name: value for name, value in asdict(params).items() if name in TrustSpec.model_fields}
        real = _standards(inputs, params.channel)
        with one_thread():
            verdict = judge(_candidates(inputs), real, TrustSpec(**told))
        order = "best" if params.best else "ids"
        told = {"kept": verdict.kept, "rejected": verdict.rejected, "scores": verdict.scores, "order": order}
        out.put_json(SELECTION, told)
        if not real.enough:
            out.provenance["limits"] = f"none: {len(real.confidence)} real images in which the class is found"
        out.accept(len(verdict.kept))
        for one in verdict.rejected:
            out.reject(one["id"], one["reason"], value=one["value"])


def _candidates(inputs: Inputs) -> Candidates:
    import numpy as np

    from replaygen.screens.trust import Candidates

    rows = sorted(_labelled(inputs), key=lambda row: row[0])
    scores = [row[1] for row in rows]
    share, confidence, agreement = (
        np.array([score[name] for score in scores], np.float64) for name in ("share", "confidence", "agreement")
    )
    vectors = np.stack([row[2] for row in rows]) if rows else np.zeros((0, 2, 1), np.float32)
    return Candidates(tuple(row[0] for row in rows), share, confidence, agreement, vectors)


def _labelled(inputs: Inputs) -> Iterator[tuple[str, dict[str, float], Any]]:
    for record in inputs.records("labels"):
        shard, vectors = inputs.shard(record, "labels"), read_vectors(inputs.read(record, VECTORS))
        for sample in shard.ids:
            yield sample, json.loads(shard.read(sample, "label.json"))["scores"], vectors[sample]


def _standards(inputs: Inputs, channel: int) -> Standards:
    import numpy as np

    from replaygen.screens.trust import Standards

    record = inputs.record("standards")
    told = inputs.read_json(record, STANDARDS).get(str(channel), {})
    vectors = read_vectors(inputs.read(record, VECTORS)).get(str(channel), np.zeros((0, 2, 1), np.float32))
    area, confidence, agreement, typical = (
        np.array(told.get(name, []), np.float64) for name in ("area", "confidence", "agreement", "typical")
    )
    return Standards(area, confidence, agreement, typical, vectors)
