"""The reduce stage that evaluates one model: full images, all seen classes, one confusion matrix over the set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from replaygen.stages.base import DATA_MODULES, NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, open_current, open_model

if TYPE_CHECKING:
    from replaygen.datasets import SegmentationDataset
    from replaygen.scenario import Scenario

EXAMPLES = 12
"""How many predictions are kept to look at."""


@dataclass(frozen=True)
class EvaluateParams:
    """step: whose model and whose seen classes; holdout: evaluate on the scenario's held-out part of train instead."""

    dataset: str
    scenario: str
    step: int
    split: str
    holdout: bool
    flip: bool
    protocol: Literal["background", "ignore"]
    size: int
    threads: int


class EvaluateStage(Stage[EvaluateParams]):
    """A model -> result.json (metrics, confusion), and a few predictions in examples.tar."""

    name = "evaluate"
    version = 1
    modules = (
        "replaygen.learn.metrics",
        "replaygen.learn.predict",
        "replaygen.learn.checkpoint",
        *NETWORK_MODULES,
        *DATA_MODULES,
    )
    seconds_per_sample = 0.03
    bytes_per_sample = 500
    heavy = True
    Params = EvaluateParams

    def run(self, params: EvaluateParams, inputs: Inputs, out: Out) -> None:
        """Predict every image at its full size; never a crop, never a checkpoint chosen on this split."""
        from replaygen.datasets import sample_id
        from replaygen.learn import Confusion, predict_probabilities, summarise
        from replaygen.sample import encode_png

        dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
        net, info = open_model(inputs, inputs.record("model"))
        step = scenario.step(params.step)
        names = scenario.names[: 1 + len(step.seen)]
        table = scenario.eval_table(params.step, params.protocol)
        ids = scenario.holdout_ids if params.holdout else dataset.split(params.split)
        features = Features.of(inputs)
        shown = choose_examples(dataset, scenario, ids)
        confusion, examples = Confusion(len(names)), []
        for key in ids:
            image, truth = dataset.image(key), scenario.apply(table, dataset.mask(key))
            seen = features.read(sample_id(key), 0) if features else image
            likely = predict_probabilities(net, seen, params.size, shape=image.shape[:2], flip=params.flip)
            predicted = likely.argmax(0).astype("uint8")
            confusion.update(predicted, truth)
            out.accept()
            if key in shown:
                members = {"png": encode_png(image), "true.png": encode_png(truth), "pred.png": encode_png(predicted)}
                examples.append((sample_id(key), members))
        joint = bool(info.get("all_data"))
        out.put_json(
            "result.json",
            {
                "names": list(names), "step": params.step, "new": list(step.new), "old": list(step.old),
                "metrics": summarise(confusion.matrix, step, names), "matrix": confusion.matrix.tolist(),
                "images": len(ids), "split": "holdout" if params.holdout else params.split,
                "trained_together": joint,
            },
        )  # fmt: skip
        out.shard("examples", examples)


def choose_examples(dataset: SegmentationDataset, scenario: Scenario, ids: Sequence[str]) -> set[str]:
    """The images whose predictions are kept: many classes first, ties broken by a hash; the same for every model."""
    raw = set(scenario.raw)
    present = dataset.present(ids)
    order = sorted(ids, key=lambda key: (-len(raw & present[key]), hashlib.sha256(key.encode()).digest()))
    return set(order[:EXAMPLES])
