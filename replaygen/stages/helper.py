"""The stage that fits helper decoders: RECALL's D^H_k, a head of step k's own classes on the frozen step-0 encoder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replaygen.errors import DataError, ModelError
from replaygen.sample import IGNORE
from replaygen.stages.base import DATA_MODULES, NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, device_of, fit_folder, network_spec, open_current

if TYPE_CHECKING:
    from replaygen.datasets import SegmentationDataset
    from replaygen.learn import Item, SegNet, ViewSpec
    from replaygen.sample import Mask8
    from replaygen.scenario import Scenario

log = logging.getLogger("replaygen.helper")

FEWEST = 4
"""Images that a helper is fitted on at least."""


@dataclass(frozen=True)
class HelperParams:
    """step: whose classes it learns; folds, fold: fitted without the images of that fold; fold None: on all of them."""

    dataset: str
    scenario: str
    step: int
    fit: dict[str, Any]
    network: dict[str, Any]
    views: dict[str, Any]
    folds: int
    fold: int | None
    threads: int


class HelperStage(Stage[HelperParams]):
    """Step k's own images and labels, and the step-0 model -> model.safetensors, model.json (`channels_of`).

    D^H_k has 1 + |C_k| channels: background and the step's classes, `channels_of` names theirs in the scenario. Its
    encoder is E_0 of the step-0 model and stays as it is; its head starts as D_0 with a new classifier (of step 0:
    all new). Loss: L = CE(D^H_k(E_0(X)), Y) over step
    k's images, where Y holds C_k and background (RECALL, Maracani et al. 2021, section 4.2).
    """

    name = "helper"
    version = 1
    modules = (
        "replaygen.learn.fitting",
        "replaygen.learn.ahead",
        "replaygen.learn.optimise",
        "replaygen.learn.precision",
        "replaygen.learn.partial",
        "replaygen.learn.losses",
        "replaygen.learn.batches",
        "replaygen.learn.job",
        "replaygen.learn.checkpoint",
        *NETWORK_MODULES,
        *DATA_MODULES,
    )
    seconds_per_sample = 0.01
    bytes_per_sample = 300
    heavy = True
    Params = HelperParams

    def run(self, params: HelperParams, inputs: Inputs, out: Out) -> None:
        """Fit a new head on the frozen encoder."""
        from replaygen.learn import FitOptions, Samples, StepJob, ViewSpec, cross_entropy

        dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
        spec = network_spec(inputs.where)
        if spec.identity() != params.network:
            raise ModelError("the network's files changed after the plan was made", hint="run the recipe again")
        step = scenario.step(params.step)
        names = (scenario.names[0], *(scenario.names[channel] for channel in step.new))
        job = StepJob(
            k=params.step, names=names, new=tuple(range(1, len(names))), old=(), spec=spec,
            fit=FitOptions.model_validate({**params.fit, **inputs.where.get("fit", {})}), seed=int(inputs.seed or 0),
            device=device_of(inputs.where), partial=fit_folder(inputs, out), log=log.info,
        )  # fmt: skip
        views = ViewSpec.model_validate(params.views)
        current = Samples(list(_items(params, dataset, scenario, Features.of(inputs), views)))
        if len(current) < FEWEST:
            raise DataError(
                f"a helper of step {params.step} would be fitted on {len(current)} images", hint=f"it needs {FEWEST}"
            )
        # the step-0 model has seen all images of step 0, so a fold of that step may not start from its head
        net = _base(inputs, spec).renewed(len(names), seed=job.seed, keep=params.step > 0).at_step(max(params.step, 1))

        def loss(said: Any, batch: Any) -> Any:
            return cross_entropy(said.logits, batch.masks, weight=job.class_weights(batch.progress))

        made = job.finish(net, job.train(net, job.batches(current), loss))
        out.accept(job.fit.iterations * job.fit.batch)
        out.put("model.safetensors", made.tensors)
        out.put_json("model.json", {**made.info, "channels_of": list(step.new), "fold": params.fold})
        out.provenance = {"current": len(current)}


def _base(inputs: Inputs, spec: Any) -> SegNet:
    """The step-0 model with its encoder frozen from now on, whatever the recipe says of later steps."""
    from replaygen.learn import load_network

    record = inputs.record("base")
    net = load_network(inputs.read(record, "model.safetensors"), inputs.read_json(record, "model.json"), spec, step=0)
    if not net.fixed_encoder:
        net.freeze = "after_base"
    return net


def fold_of(image: str, folds: int) -> int:
    """The fold of an image, by its id alone."""
    return int.from_bytes(hashlib.sha256(image.encode()).digest()[:4], "big") % folds


def own_labels(scenario: Scenario, step: int) -> npt.NDArray[np.uint8]:
    """uint8 [256]: from a data set's raw mask values to a helper's channels, 0 background, 1.. the step's classes."""
    table = np.zeros(256, np.uint8)
    for place, channel in enumerate(scenario.step(step).new, start=1):
        table[scenario.raw[channel - 1]] = place
    table[IGNORE] = IGNORE
    return table


def _items(
    params: HelperParams, dataset: SegmentationDataset, scenario: Scenario, features: Features, views: ViewSpec
) -> Iterator[Item]:
    table = own_labels(scenario, params.step)
    visible = tuple(range(1, 1 + len(scenario.step(params.step).new)))
    for key in scenario.step(params.step).ids:
        if params.fold is None or fold_of(key, params.folds) != params.fold:
            yield _item(key, dataset, scenario, table, visible, features, views)


def _item(
    key: str, dataset: SegmentationDataset, scenario: Scenario, table: npt.NDArray[np.uint8],
    visible: tuple[int, ...], features: Features, views: ViewSpec,
) -> Item:  # fmt: skip
    from replaygen.datasets import sample_id
    from replaygen.learn import feature_item, image_item

    def mask() -> Mask8:
        return scenario.apply(table, dataset.mask(key))

    sample = sample_id(key)
    if features:
        return feature_item(sample, visible, False, lambda v: features.read(sample, v), mask, views)
    return image_item(sample, visible, False, lambda: (dataset.image(key), mask()), views)
