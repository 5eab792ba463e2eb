"""Stages that map a generator's classes and draw image shards from it."""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from replaygen.canonical import digest_of
from replaygen.errors import DataError, ModelError
from replaygen.holding import HELD
from replaygen.learn.specs import file_sha256
from replaygen.stages.base import DATA_MODULES, Inputs, Out, Stage
from replaygen.stages.context import device_of, on_this_machine, open_current

if TYPE_CHECKING:
    from replaygen.generators.draws import Generator

CLASS_ABSENT = "no-class-match"


@dataclass(frozen=True)
class MapParams:
    """ids: per class the data set's images that contain it; classifier: file -> sha256.

    names, count: the generator's classes, into which the classifier's are translated; reviewed: what the reviewed table
    says of each class, (index, name, quality, note), where it says anything; see `generators.classmap`.
    """

    dataset: str
    scenario: str
    classes: tuple[str, ...]
    ids: tuple[tuple[str, ...], ...]
    classifier: dict[str, str]
    names: tuple[str, ...] | None
    count: int
    reviewed: dict[str, Any]
    minimum: float
    threads: int


class ClassMapStage(Stage[MapParams]):
    """Real images of some classes -> classmap.json: which of a classifier's classes stands for each."""

    name = "class-map"
    version = 1
    modules = (
        "replaygen.generators.classmap",
        "replaygen.generators.classifiers",
        "replaygen.generators.imagenet",
        "replaygen.learn.oplist",
        *DATA_MODULES,
    )
    seconds_per_sample = 0.1
    bytes_per_sample = 10
    heavy = True
    Params = MapParams

    def run(self, params: MapParams, inputs: Inputs, out: Out) -> None:
        """argmax over the classifier's classes of its mean confidence (RECALL's rule)."""
        from replaygen.generators.classifiers import identity, open_classifier
        from replaygen.generators.classmap import measure, resolve
        from replaygen.generators.imagenet import Entry

        dataset, _ = open_current(inputs.where, params.dataset, params.scenario)
        at = Path(inputs.where["classifier"])
        if identity(at) != params.classifier:
            what = "the classifier's files changed after the plan was made"
            raise ModelError(what, where=str(at), hint="run the recipe again")
        classify = open_classifier(at, device_of(inputs.where))
        images = {
            name: (dataset.image(image_id) for image_id in ids)
            for name, ids in zip(params.classes, params.ids, strict=True)
        }
        limit = max((len(ids) for ids in params.ids), default=1)
        found = measure(images, classify, minimum=params.minimum, limit=limit)
        table = {name: Entry(**entry) for name, entry in params.reviewed.items()}
        mapped = resolve(
            params.classes, given={}, generator_names=params.names, generator_count=params.count, table=table,
            measured=found,
        )  # fmt: skip
        out.accept(sum(len(ids) for ids in params.ids))
        out.put("classmap.json", mapped.to_json())


@dataclass(frozen=True)
class DrawParams:
    """label: the generator's class, None where a class map says it; weights: file -> sha256.

    prompts: one for each seed, or none for a generator that draws by class.
    """

    class_name: str
    label: int | None
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    spec: dict[str, Any]
    weights: dict[str, str]
    threads: int


class _DrawStage(Stage[DrawParams]):
    """Slice i of a class's seeds -> image shard i. What is not finite, black or blank is refused and counted."""

    source: ClassVar[str]
    heavy = True
    Params = DrawParams

    @abstractmethod
    def open(self, params: DrawParams, inputs: Inputs) -> Generator:
        """The generator, ready to draw."""

    def run(self, params: DrawParams, inputs: Inputs, out: Out) -> None:
        """Draw, look at each image, encode."""
        from replaygen.generators.draws import image_id

        label = self._label(params, inputs)
        if label is None and not params.prompts:
            for seed in params.seeds:
                out.reject(image_id(params.class_name, seed), CLASS_ABSENT)
            out.shard("images", [])
            return
        with on_this_machine():
            self._draw(params, label, self._held(params, inputs), inputs, out)

    def _draw(self, params: DrawParams, label: int | None, generator: Generator, inputs: Inputs, out: Out) -> None:
        from replaygen.generators.draws import Draw, fault, image_id, to_uint8
        from replaygen.sample import encode_jpeg, encode_png

        items = []
        batch = int(params.spec.get("batch") or params.spec.get("draw_batch") or 1)
        for start in range(0, len(params.seeds), batch):
            seeds = params.seeds[start : start + batch]
            prompts = params.prompts[start : start + batch] or [None] * len(seeds)
            draws = [Draw(seed, label, prompt) for seed, prompt in zip(seeds, prompts, strict=True)]
            for draw, image in zip(draws, generator.draw(draws), strict=True):
                sample = image_id(params.class_name, draw.seed)
                reason = fault(image)
                if reason is not None:
                    out.reject(sample, reason)
                    continue
                about = {
                    "class": params.class_name, "source": self.source, "seed": draw.seed, "label": label,
                    "prompt": draw.prompt, "licence": None, "parent": None, "generator": _named(params, inputs),
                    "height": int(image.shape[0]), "width": int(image.shape[1]),
                }  # fmt: skip
                small = max(image.shape) <= 64
                encoded = {"png": encode_png(to_uint8(image))} if small else {"jpg": encode_jpeg(to_uint8(image))}
                items.append((sample, {**encoded, "json": json.dumps(about, sort_keys=True).encode()}))
                out.accept()
        out.shard("images", items)

    def _label(self, params: DrawParams, inputs: Inputs) -> int | None:
        measured = inputs.records("classmap")
        if params.label is not None or not measured:
            return params.label
        from replaygen.generators.classmap import ClassMap

        return ClassMap.from_json(inputs.read(measured[0], "classmap.json"))[params.class_name].index

    def _held(self, params: DrawParams, inputs: Inputs) -> Generator:
        name = digest_of([self.name, params.spec, _named(params, inputs), device_of(inputs.where)])
        return HELD.hold("generator", name, lambda: self.open(params, inputs))


def _named(params: DrawParams, inputs: Inputs) -> str:
    fitted = inputs.records("generator")
    return fitted[0].output("generator.safetensors").digest if fitted else digest_of(params.weights)


def _checked(params: DrawParams, inputs: Inputs, kind: Any) -> Path:
    from replaygen.generators.folder import weights_identity

    folder = Path(inputs.where["folder"])
    found = weights_identity(folder, kind, cache_dir=Path(inputs.where["cache_dir"]))
    if "lora" in inputs.where:
        found["lora"] = file_sha256(Path(inputs.where["lora"]))
    if found != params.weights:
        raise ModelError(
            "the generator's files changed after the plan was made", where=str(folder), hint="run the recipe again"
        )
    return folder


class BigGanStage(_DrawStage):
    """Draws from pytorch-pretrained-biggan's generator."""

    name = "biggan"
    version = 1
    source = "biggan"
    modules = (
        "replaygen.generators.draws",
        "replaygen.generators.biggan",
        "replaygen.generators.biggan_net",
        "replaygen.sample",
    )
    seconds_per_sample = 0.5
    bytes_per_sample = 20_000

    def open(self, params: DrawParams, inputs: Inputs) -> Generator:
        """From a folder whose files are still those that were planned."""
        from replaygen.generators.biggan import open_biggan
        from replaygen.generators.specs import BigGanSpec

        folder = _checked(params, inputs, "biggan")
        return open_biggan(folder, BigGanSpec.model_validate(params.spec), device_of(inputs.where))


class DiffusionStage(_DrawStage):
    """Draws from a diffusers pipeline."""

    name = "diffusion"
    version = 1
    source = "diffusion"
    modules = (
        "replaygen.generators.draws",
        "replaygen.generators.diffusion",
        "replaygen.generators.pipelines_check",
        "replaygen.sample",
    )
    seconds_per_sample = 60.0
    bytes_per_sample = 60_000

    def open(self, params: DrawParams, inputs: Inputs) -> Generator:
        """From a folder whose files are still those that were planned."""
        from replaygen.generators.diffusion import open_diffusion
        from replaygen.generators.specs import DiffusionSpec

        folder = _checked(params, inputs, "diffusion")
        spec = DiffusionSpec.model_validate({**params.spec, "lora": inputs.where.get("lora")})
        return open_diffusion(folder, spec, device_of(inputs.where))


class FittedStage(_DrawStage):
    """Draws from a generator that a `fit-generator` task made."""

    name = "fitted"
    version = 1
    source = "fitted"
    modules = (
        "replaygen.generators.draws",
        "replaygen.generators.biggan",
        "replaygen.generators.biggan_net",
        "replaygen.generators.ddpm",
        "replaygen.sample",
    )
    seconds_per_sample = 0.02
    bytes_per_sample = 5_000

    def open(self, params: DrawParams, inputs: Inputs) -> Generator:
        """From the weights in the store."""
        import tempfile

        from replaygen.generators.specs import BigGanSpec, FitSpec

        record = inputs.record("generator")
        tensors, config = inputs.read(record, "generator.safetensors"), inputs.read_json(record, "generator.json")
        spec = FitSpec.model_validate({**record.params["fit"], **params.spec})
        if config["classes"][params.label or 0] != params.class_name:
            raise DataError(f"the fitted generator does not know {params.class_name!r}")
        if config["kind"] == "diffusion":
            from replaygen.generators.ddpm import open_ddpm

            return open_ddpm(tensors, config, spec, device_of(inputs.where))
        from replaygen.generators.biggan import open_biggan

        drawn = BigGanSpec(truncation=spec.truncation, batch=spec.draw_batch)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            (Path(folder) / "model.safetensors").write_bytes(tensors)
            return open_biggan(Path(folder), drawn, device_of(inputs.where))
