"""The reduce stage that trains one step of one method."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from replaygen.classes import slug
from replaygen.errors import ModelError
from replaygen.stages.base import DATA_MODULES, NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, device_of, fit_folder, network_spec, open_current

if TYPE_CHECKING:
    from replaygen.datasets import SegmentationDataset
    from replaygen.learn import Checkpoint, FitOptions, Item, ViewSpec
    from replaygen.learn.fitting import Event, Log
    from replaygen.sample import Image8, Mask8
    from replaygen.scenario import Scenario
    from replaygen.store import Shard

log = logging.getLogger("replaygen.train")


@dataclass(frozen=True)
class TrainParams:
    """method: sha256 of the method's file; options: its own; fit: how it is fitted; all_data: joint training."""

    method: str
    options: dict[str, Any]
    fit: dict[str, Any]
    step: int
    all_data: bool
    dataset: str
    scenario: str
    network: dict[str, Any]
    views: dict[str, Any]
    threads: int


class TrainStage(Stage[TrainParams]):
    """Previous model, current data and replay -> model.safetensors, model.json, fit.json, and the method's source."""

    name = "train"
    version = 2
    modules = (
        "replaygen.learn.fitting",
        "replaygen.learn.ahead",
        "replaygen.learn.optimise",
        "replaygen.learn.precision",
        "replaygen.learn.partial",
        "replaygen.learn.losses",
        "replaygen.learn.distillation",
        "replaygen.learn.prototypes",
        "replaygen.learn.pod",
        "replaygen.learn.teacher",
        "replaygen.learn.batches",
        "replaygen.learn.mixing",
        "replaygen.learn.buffer",
        "replaygen.learn.job",
        "replaygen.learn.checkpoint",
        *NETWORK_MODULES,
        *DATA_MODULES,
    )
    seconds_per_sample = 0.01
    bytes_per_sample = 300
    heavy = True
    Params = TrainParams

    def run(self, params: TrainParams, inputs: Inputs, out: Out) -> None:
        """Hand current data, replay and the previous model to the method's `step`."""
        from replaygen.learn import FitOptions, Samples, StepJob, ViewSpec

        dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
        spec = network_spec(inputs.where)
        if spec.identity() != params.network:
            raise ModelError("the network's files changed after the plan was made", hint="run the recipe again")
        views = ViewSpec.model_validate(params.views)
        source = inputs.read_object(params.method)
        method = load_method(source, params.method)
        step = scenario.step(params.step)
        fit = FitOptions.model_validate({**params.fit, **inputs.where.get("fit", {})})
        job = StepJob(
            k=params.step, names=scenario.names[: 1 + len(step.seen)],
            new=step.seen if params.all_data else step.new, old=() if params.all_data else step.old, spec=spec,
            fit=fit, options=method.Options(**params.options) if hasattr(method, "Options") else None,
            seed=int(inputs.seed or 0), device=device_of(inputs.where), partial=fit_folder(inputs, out),
            log=_log(fit, inputs.slot),
        )  # fmt: skip
        current = Samples(list(_current_items(params, dataset, scenario, inputs, views)))
        replayed = list(_replay_items(inputs, views))
        previous = _previous(inputs)
        made = method.step(params.step, current, Samples(replayed) if replayed else None, previous, job)
        out.accept(job.fit.iterations * job.fit.batch)
        out.put("model.safetensors", made.tensors)
        out.put_json("model.json", {**made.info, "all_data": params.all_data})
        if made.state is not None:
            out.put("state.safetensors", made.state)
        out.put("method.py", source)
        out.provenance = {"current": len(current), "replay": len(replayed)}


def _log(fit: FitOptions, slot: str) -> Log:
    """Warnings are seen by everybody, the rest by whoever asks for it; TensorBoard gets a folder a slot."""
    if fit.tensorboard is None:
        return _tell
    from replaygen.learn.board import Board

    return Board(Path(fit.tensorboard) / slot.removeprefix("train/"), _tell)


def _tell(event: Event) -> None:
    log.log(logging.WARNING if event["event"] == "warning" else logging.INFO, "%s", event)


def load_method(source: bytes, digest: str) -> ModuleType:
    """A method's module from its source, which the plan named by its sha256."""
    name = f"replaygen_method_{digest[:16]}"
    if name not in sys.modules:
        module = ModuleType(name)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            exec(compile(source, f"<method {digest[:12]}>", "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _previous(inputs: Inputs) -> Checkpoint | None:
    from replaygen.learn import Checkpoint

    records = inputs.records("previous")
    if not records:
        return None
    record = records[0]
    carried = (
        inputs.read(record, "state.safetensors")
        if any(one.name == "state.safetensors" for one in record.outputs)
        else None
    )
    return Checkpoint(inputs.read(record, "model.safetensors"), inputs.read_json(record, "model.json"), carried)


def _current_items(
    params: TrainParams, dataset: SegmentationDataset, scenario: Scenario, inputs: Inputs, views: ViewSpec
) -> Iterator[Item]:
    from replaygen.datasets import sample_id

    steps = range(len(scenario.steps)) if params.all_data else (params.step,)
    table = scenario.full_table() if params.all_data else scenario.step_table(params.step)
    visible = scenario.step(params.step).seen if params.all_data else scenario.visible(params.step)
    relabelled = _Shards(inputs, "labels", "labels")
    pixels = _Shards(inputs, "pixels", "images")
    features = Features.of(inputs)
    rarest = _rarest(dataset, scenario, visible, [key for k in steps for key in scenario.step(k).ids])
    seen: set[str] = set()
    for k in steps:
        for key in scenario.step(k).ids:
            if key in seen:
                continue
            seen.add(key)
            sample = sample_id(key)
            shard = relabelled.holding(sample)
            changed = pixels.holding(sample)
            image = _image(dataset, key) if changed is None else _changed(changed, sample)
            if shard is not None:
                told = json.loads(shard.read(sample, "label.json"))
                yield _item(sample, tuple(told["visible"]), False, image, _label(shard, sample),
                            features, views, rarest[key])  # fmt: skip
            else:
                yield _item(sample, visible, False, image, _truth(dataset, scenario, key, table),
                            features, views, rarest[key])  # fmt: skip


def _replay_items(inputs: Inputs, views: ViewSpec) -> Iterator[Item]:
    from replaygen.learn import FeatureFile, ReplayShard, replay_items
    from replaygen.store import Shard

    for record in inputs.records("replay"):
        manifest = inputs.read_json(record, "manifest.json")
        shards = []
        for part in manifest["shards"]:
            images, labels = (
                Shard(inputs.read_object(part[name]), inputs.read_object(part[f"{name}_index"]))
                for name in ("images", "labels")
            )
            features = FeatureFile(inputs.open_object(part["features"])) if "features" in part else None
            kept = tuple(part["kept"]) if "kept" in part else None
            shards.append(ReplayShard(images, labels, features, manifest["channel"], part["samples"], kept))
        yield from replay_items(shards, views.zoomed(manifest["zoom"]), prefix=f"{slug(manifest['class'])}-")


def _item(
    sample: str, visible: tuple[int, ...], replay: bool, image: Callable[[], Image8], mask: Callable[[], Mask8],
    features: Features, views: ViewSpec, group: int | None = None,
) -> Item:  # fmt: skip
    from replaygen.learn import feature_item, image_item

    if features:
        return feature_item(sample, visible, replay, lambda v: features.read(sample, v), mask, views, group)
    return image_item(sample, visible, replay, lambda: (image(), mask()), views, group)


def _image(dataset: SegmentationDataset, key: str) -> Callable[[], Image8]:
    return lambda: dataset.image(key)


def _changed(shard: Shard, sample: str) -> Callable[[], Image8]:
    from replaygen.sample import decode_image

    kind = "png" if "png" in shard.extensions(sample) else "jpg"
    return lambda: decode_image(shard.read(sample, kind), where=sample)


def _truth(dataset: SegmentationDataset, scenario: Scenario, key: str, table: Any) -> Callable[[], Mask8]:
    return lambda: scenario.apply(table, dataset.mask(key))


def _label(shard: Shard, sample: str) -> Callable[[], Mask8]:
    from replaygen.sample import decode_mask

    return lambda: decode_mask(shard.read(sample, "mask.png"), where=sample)


class _Shards:
    """Which of a task's input shards holds a sample."""

    def __init__(self, inputs: Inputs, role: str, name: str) -> None:
        self._of = {}
        for record in inputs.records(role):
            shard = inputs.shard(record, name)
            self._of.update(dict.fromkeys(shard.ids, shard))

    def holding(self, sample: str) -> Shard | None:
        return self._of.get(sample)


def _rarest(
    dataset: SegmentationDataset, scenario: Scenario, visible: Sequence[int], ids: Sequence[str]
) -> dict[str, int]:
    """For each image the channel of its rarest visible class, 0 where it has none: what it stands for in balance."""
    present = dataset.present(ids)
    channel_of = {raw: channel for channel, raw in enumerate(scenario.raw, start=1) if channel in visible}
    held = {key: [channel_of[raw] for raw in present[key] if raw in channel_of] for key in ids}
    counts = Counter(channel for channels in held.values() for channel in channels)
    return {key: min(channels, key=lambda c: (counts[c], c), default=0) for key, channels in held.items()}
