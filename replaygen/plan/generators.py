"""Open the generators that a recipe names: where their weights lie, what they are, and which class is which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from replaygen.errors import ModelError, RecipeError, ReplaygenError
from replaygen.generators import biggan, classifiers, classmap, imagenet, pipelines_check
from replaygen.generators.folder import weights_folder, weights_identity
from replaygen.generators.specs import BigGanSpec, DiffusionSpec
from replaygen.learn.specs import file_sha256
from replaygen.plan.recipe import RecipeTable, ReplayTable
from replaygen.plan.workspace import expand_path

if TYPE_CHECKING:
    from replaygen.scenario import Scenario


_BIGGAN = {"pytorch_pretrained_biggan": "biggan", "scipy": "biggan"}
_DIFFUSION = {"diffusers": "diffusion"}
_PACKAGES = {"biggan": _BIGGAN, "gan": _BIGGAN, "diffusion": _DIFFUSION}


@dataclass(frozen=True)
class GeneratorAt:
    """A generator with published or own weights.

    Attributes:
        folder: where its files lie, in no key.
        weights: file -> sha256.
        labels: our class -> the generator's class, None where nothing stands for it.
        prompted: it draws from texts, not from classes.
        classifier: the folder or file of the classifier that maps classes when the run comes to it, and its digests.
        names, count: the generator's classes.
        found: what stands for every class of the scenario, and how that is known, before anything is measured.
        lora: a file of LoRA weights.
    """

    folder: Path
    weights: dict[str, str]
    labels: Mapping[str, int | None] = field(default_factory=dict)
    prompted: bool = False
    classifier: tuple[Path, dict[str, str]] | None = None
    lora: Path | None = None
    names: tuple[str, ...] | None = None
    count: int = 0
    found: classmap.ClassMap | None = None


def open_generators(
    recipe: RecipeTable, scenario: Scenario, *, path: Path, workspace: Path, cache_dir: Path
) -> dict[str, GeneratorAt]:
    """Every `biggan` and `diffusion` source of a recipe, opened; nothing is loaded.

    Raises:
        ModelError: missing or damaged weights, pickles, a class that the generator lacks.
        RecipeError: a class that nothing stands for.
    """
    for name, table in recipe.replay.items():
        kind = getattr(table.drawn(), "kind", table.source) if table.source == "fitted" else table.source
        for package, extra in _PACKAGES.get(kind, {}).items():
            if find_spec(package) is None:
                raise ModelError(
                    f"replay.{name} needs the package {package}", where=str(path),
                    hint=f"pip install 'replaygen[{extra}]'",
                )  # fmt: skip
    return {
        name: _open(name, table, scenario, path, workspace, cache_dir)
        for name, table in recipe.replay.items()
        if table.source in ("biggan", "diffusion")
    }


def _open(
    name: str, table: ReplayTable, scenario: Scenario, path: Path, workspace: Path, cache_dir: Path
) -> GeneratorAt:
    kind: Literal["biggan", "diffusion"] = "biggan" if table.source == "biggan" else "diffusion"
    assert table.path is not None
    expanded = expand_path(table.path, workspace=workspace, where=str(path))
    given = str(expanded) if expanded.exists() or table.path.startswith(("{", "$", "/", ".")) else table.path
    folder = weights_folder(given, workspace=workspace, kind=kind)
    weights = weights_identity(folder, kind, cache_dir=cache_dir)
    lora = None
    if table.diffusion is not None and table.diffusion.lora is not None:
        lora = expand_path(table.diffusion.lora, workspace=workspace, where=str(path))
        weights = {**weights, "lora": _file_digest(lora)}
    if kind == "diffusion" and pipelines_check.pipeline_kind(folder) == "text":
        if table.classes or table.map is not None:
            raise RecipeError(
                f"replay.{name} draws from texts: `classes` and `map` would be ignored", where=str(path),
                hint=f"leave them out; [replay.{name}.diffusion] words says what to call a class",
            )  # fmt: skip
        return GeneratorAt(folder, weights, prompted=True, lora=lora)
    told = sorted({"prompts", "words", "negative_prompt"} & (table.diffusion or DiffusionSpec()).model_fields_set)
    if told:
        raise RecipeError(
            f"replay.{name} draws by class: {', '.join(told)} would be ignored", where=str(path), hint="leave them out"
        )
    if kind == "biggan":
        biggan.truncation_row((table.biggan or BigGanSpec()).truncation, biggan.read_config(folder).n_stats)
    names, count = _classes(folder, kind)
    classifier = None
    if table.map is not None and table.map.classifier is not None:
        at = expand_path(table.map.classifier, workspace=workspace, where=str(path))
        classifier = at, classifiers.identity(at)
    wanted = [one for one in scenario.names[1:] if table.only is None or one in table.only]
    reviewed = imagenet.table_for(scenario.names[1:])
    try:
        found = classmap.resolve(
            scenario.names[1:], given=table.classes, generator_names=names, generator_count=count, table=reviewed
        )
    except ReplaygenError as error:
        place = f"{path}, {error.where}" if error.where else str(path)
        raise RecipeError(f"replay.{name}.classes: {error.what}", where=place, hint=error.hint) from None
    sure = ("given", "name") if classifier else ("given", "name", "table")
    labels = {one: found[one].index if found[one].origin in sure else None for one in wanted}
    missing = [one for one in wanted if labels[one] is None]
    if missing and classifier is None:
        raise RecipeError(
            f"replay.{name}: nothing that this generator makes stands for {', '.join(missing)} ("
            + "; ".join(f"{one}: {found[one].note}" for one in missing if found[one].note) + ")", where=str(path),
            hint=f"give [replay.{name}.classes] {missing[0]} = INDEX, name a classifier in [replay.{name}.map], "
            "leave the class out with `only`, or use a fitted generator",
        )  # fmt: skip
    return GeneratorAt(folder, weights, labels, False, classifier, lora, names, count, found)


def _classes(folder: Path, kind: Literal["biggan", "diffusion"]) -> tuple[tuple[str, ...] | None, int]:
    if kind == "biggan":
        config = biggan.read_config(folder)
        return config.classes, config.num_classes
    return pipelines_check.class_names(folder), pipelines_check.class_count(folder)


def _file_digest(path: Path) -> str:
    if not path.is_file():
        raise ModelError("the LoRA weights are missing", where=str(path), hint="a .safetensors file")
    return file_sha256(path)
