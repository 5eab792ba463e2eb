"""Stages that give the background of current labels to the previous model: background inpainting and what it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaygen.errors import DataError
from replaygen.stages.base import DATA_MODULES, NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, open_current, open_model
from replaygen.stages.predicting import predict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from replaygen.labelers.background import Counts, InpaintMode
    from replaygen.labelers.model import Probabilities
    from replaygen.sample import Mask8
    from replaygen.scenario import Step

UNCERTAINTY = "uncertainty.json"

_MODULES = (
    "replaygen.labelers.background",
    "replaygen.stages.predicting",
    "replaygen.learn.predict",
    "replaygen.learn.checkpoint",
    *NETWORK_MODULES,
    *DATA_MODULES,
)


@dataclass(frozen=True)
class UncertaintyParams:
    """ids: the data set's ids of the slice of step `step`; flip, looks, views: as the relabelling predicts."""

    dataset: str
    scenario: str
    step: int
    ids: tuple[str, ...]
    flip: bool
    looks: int
    views: dict[str, Any]
    threads: int


class UncertaintyStage(Stage[UncertaintyParams]):
    """Slice i of a step's current images -> uncertainty.json: how unsure the previous model is, by what it predicts.

    {"channels": [0, *old], "counts": [[pixels of each bin] of each channel]}; see `background.count_uncertainty`.
    """

    name = "uncertainty"
    version = 1
    modules = _MODULES
    seconds_per_sample = 0.04
    bytes_per_sample = 200
    heavy = True
    Params = UncertaintyParams

    def run(self, params: UncertaintyParams, inputs: Inputs, out: Out) -> None:
        """Predict, and count the pixels that the step's own labels leave to background."""
        import numpy as np

        from replaygen.labelers.background import BINS, count_uncertainty

        old = _step(params, inputs).old
        counts = np.zeros((1 + len(old), BINS), np.uint64)
        for _, current, probabilities in _predicted(params, inputs):
            counts += count_uncertainty(probabilities, current, old=old)
            out.accept()
        out.put_json(UNCERTAINTY, {"channels": [0, *old], "counts": counts.tolist()})


@dataclass(frozen=True)
class RelabelParams:
    """How the background of a slice of a step's current labels is filled; see `labelers.background`.

    ids: the data set's ids of the slice of step `step`; mode: which variant; unsure: of "confidence" alone; floor: of
    "entropy" alone, on the scale of u (PLOP's own is 0.001 times the number of channels).
    """

    dataset: str
    scenario: str
    step: int
    ids: tuple[str, ...]
    mode: InpaintMode
    unsure: float
    floor: float
    flip: bool
    looks: int
    views: dict[str, Any]
    threads: int


class RelabelStage(Stage[RelabelParams]):
    """Slice i of a step's current images -> label shard i: background inpainted by the previous-step model.

    Mode "entropy" also reads the step's uncertainty tasks, all of its slices, as inputs "uncertainty".

    `visible` is C_0:k in every mode: where the model was too unsure a pixel is 255, which no loss reads, so what is
    still background was looked at for every class seen so far, and found to be none of them.
    """

    name = "relabel"
    version = 2
    modules = ("replaygen.labelers.model", *_MODULES)
    seconds_per_sample = 0.04
    bytes_per_sample = 1500
    heavy = True
    Params = RelabelParams

    def run(self, params: RelabelParams, inputs: Inputs, out: Out) -> None:
        """Y where Y is new, else what the previous model sees there."""
        from replaygen.datasets import sample_id
        from replaygen.labelers.background import accepted_share
        from replaygen.sample import encode_png

        step = _step(params, inputs)
        limits = _limits(inputs, step, params.floor) if params.mode == "entropy" else None
        model = inputs.record("model").key
        items = []
        for image_id, current, probabilities in _predicted(params, inputs):
            mask = _inpainted(params, probabilities, current, step, limits)
            scores = {"accepted": round(accepted_share(mask, current), 5)}
            told = {"visible": list(step.seen), "scores": scores, "labeler": model, "id": image_id}
            label = json.dumps(told, sort_keys=True).encode()
            items.append((sample_id(image_id), {"mask.png": encode_png(mask), "label.json": label}))
            out.accept()
        out.shard("labels", items)
        out.provenance = {"mode": params.mode}
        if limits is not None:
            out.provenance["limits"] = dict(zip(map(str, (0, *step.old)), limits.tolist(), strict=True))


def _inpainted(
    params: RelabelParams, probabilities: Probabilities, current: Mask8, step: Step,
    limits: npt.NDArray[np.float64] | None,
) -> Mask8:  # fmt: skip
    from replaygen.labelers.background import inpaint_sure
    from replaygen.labelers.model import inpaint_background

    if limits is not None:
        return inpaint_sure(probabilities, current, old=step.old, limits=limits)
    unsure = params.unsure if params.mode == "confidence" else 0.0
    return inpaint_background(probabilities, current, old=step.old, unsure=unsure)


def _limits(inputs: Inputs, step: Step, floor: float) -> npt.NDArray[np.float64]:
    import numpy as np

    from replaygen.labelers.background import BINS, entropy_limits

    counts: Counts = np.zeros((1 + len(step.old), BINS), np.uint64)
    records = inputs.records("uncertainty")
    if not records:
        raise DataError("relabelling by entropy needs the step's uncertainty", hint="plan the recipe again")
    for record in records:
        told = inputs.read_json(record, UNCERTAINTY)
        if told["channels"] != [0, *step.old]:
            raise DataError("the uncertainty is of other classes", where=record.slot, hint="plan the recipe again")
        counts += np.array(told["counts"], np.uint64)
    return entropy_limits(counts, floor)


def _step(params: UncertaintyParams | RelabelParams, inputs: Inputs) -> Step:
    return open_current(inputs.where, params.dataset, params.scenario)[1].steps[params.step]


def _predicted(params: UncertaintyParams | RelabelParams, inputs: Inputs) -> Iterator[tuple[str, Mask8, Probabilities]]:
    """The slice's images: id, the step's own label, and the previous model's probabilities."""
    from replaygen.datasets import sample_id

    dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
    net, _ = open_model(inputs, inputs.record("model"))
    features = Features.of(inputs)
    table = scenario.step_table(params.step)
    for image_id in params.ids:
        image = dataset.image(image_id)
        current = scenario.apply(table, dataset.mask(image_id))
        if current.shape != image.shape[:2]:
            raise DataError("image and mask differ in size", where=f"{dataset.root}: {image_id}")
        probabilities = predict(
            net, image, sample_id(image_id), features, views=params.views, looks=params.looks, flip=params.flip
        )
        yield image_id, current, probabilities
