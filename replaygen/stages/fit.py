"""The stage that fits a generator on a step's own images, or on a source's photos, and keeps its weights alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.stages.base import DATA_MODULES, Inputs, Out, Stage
from replaygen.stages.context import device_of, fit_folder, on_this_machine, open_current

if TYPE_CHECKING:
    from replaygen.generators.pictures import Fitted, Seen


@dataclass(frozen=True)
class FitParams:
    """classes, channels: what it learns; step: whose images it is fitted on, None for photos; fit: see `FitSpec`."""

    dataset: str
    scenario: str
    step: int | None
    classes: tuple[str, ...]
    channels: tuple[int, ...]
    fit: dict[str, Any]
    threads: int


class FitGeneratorStage(Stage[FitParams]):
    """A step's own images (or a source's photos) -> generator.safetensors, generator.json, snapshots, curve.json."""

    name = "fit-generator"
    version = 1
    modules = (
        "replaygen.generators.gan",
        "replaygen.generators.critic",
        "replaygen.generators.ddpm",
        "replaygen.generators.pictures",
        "replaygen.generators.specs",
        "replaygen.generators.draws",
        "replaygen.learn.partial",
        "replaygen.learn.fitting",
        "replaygen.learn.batches",
        *DATA_MODULES,
    )
    seconds_per_sample = 0.3
    bytes_per_sample = 700
    heavy = True
    Params = FitParams

    def run(self, params: FitParams, inputs: Inputs, out: Out) -> None:
        """Gather the pictures, fit, keep nothing of them but the weights."""
        from replaygen.generators.pictures import Pictures
        from replaygen.generators.specs import FitSpec

        spec = FitSpec.model_validate(params.fit)
        seen = _step_pictures(params, inputs) if params.step is not None else _photo_pictures(params, inputs)
        pictures = Pictures(params.classes, seen, spec)
        with on_this_machine():
            made = _fit(pictures, spec, inputs, fit_folder(inputs, out))
        out.accept(spec.length(warm=bool(inputs.records("previous"))))
        out.put("generator.safetensors", made.tensors)
        out.put_json("generator.json", made.config)
        if made.critic is not None:
            out.put("critic.safetensors", made.critic)
        out.put_json("curve.json", list(made.losses))
        out.shard("snapshots", _snapshots(made))
        out.provenance = {"pictures": len(pictures), "classes": list(params.classes)}


def _fit(pictures: Any, spec: Any, inputs: Inputs, partial: Path) -> Fitted:
    import logging

    log = logging.getLogger("replaygen.fit").info
    before = inputs.records("previous")
    seed, device = int(inputs.seed or 0), device_of(inputs.where)
    told = inputs.read_json(before[0], "generator.json") if before else {}
    tensors = inputs.read(before[0], "generator.safetensors") if before else b""
    if spec.kind == "gan":
        from replaygen.generators.gan import fit_gan

        critic = inputs.read(before[0], "critic.safetensors") if before else None
        start = (tensors, told, critic) if before else None
        return fit_gan(pictures, spec, seed=seed, partial=partial, start=start, device=device, log=log)
    from replaygen.generators.ddpm import fit_ddpm

    going = (tensors, told) if before else None
    return fit_ddpm(pictures, spec, seed=seed, partial=partial, start=going, device=device, log=log)


def _step_pictures(params: FitParams, inputs: Inputs) -> Iterator[Seen]:
    from replaygen.generators.pictures import Seen

    assert params.step is not None
    dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
    ids = scenario.steps[params.step].ids
    present = dataset.present(ids)
    raw = [scenario.raw[channel - 1] for channel in params.channels]
    for image_id in ids:
        held = [label for label, one in enumerate(raw) if one in present[image_id]]
        if not held:
            continue
        image, mask = dataset.image(image_id), dataset.mask(image_id)
        for label in held:
            yield Seen(label, image, mask == raw[label] if mask.shape == image.shape[:2] else None)


def _photo_pictures(params: FitParams, inputs: Inputs) -> Iterator[Seen]:
    from replaygen.generators.pictures import Seen
    from replaygen.sample import decode_image

    labels = {name: label for label, name in enumerate(params.classes)}
    for record in inputs.records("images"):
        for sample, members in inputs.shard(record, "images"):
            about = json.loads(members["json"])
            data = members["png"] if "png" in members else members["jpg"]
            yield Seen(labels[about["class"]], decode_image(data, where=sample))


def _snapshots(made: Fitted) -> list[tuple[str, dict[str, bytes]]]:
    from replaygen.sample import encode_png

    classes = made.config["classes"]
    items = []
    for iteration, images in made.snapshots:
        for n, image in enumerate(images):
            about = {"iteration": iteration, "class": classes[n % len(classes)]}
            members = {"png": encode_png(image), "json": json.dumps(about, sort_keys=True).encode()}
            items.append((f"i{iteration:08d}-{n:04d}", members))
    return items
