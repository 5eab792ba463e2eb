"""A recipe: one TOML file that says what to make, and in `[run]` how. Unknown keys are refused with file and line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from replaygen.classes import nearest_hint
from replaygen.crawl.specs import CrawlSpec, FlickrSpec, ScreenSpec, WebSpec
from replaygen.datasets.opening import OPTIONS
from replaygen.errors import RecipeError
from replaygen.generators.specs import BigGanSpec, DiffusionSpec, FitSpec, MapSpec
from replaygen.inpainters.specs import EraseSpec
from replaygen.labelers.specs import TeacherSpec
from replaygen.learn.coarse import disjoint_groups
from replaygen.learn.specs import FARTHEST, NetworkSpec, ViewSpec
from replaygen.plan.board import with_board
from replaygen.plan.lines import line_of
from replaygen.plan.tables import (
    CompareTable,
    KnowledgeTable,
    MethodTable,
    RelabelTable,
    RunTable,
    Table,
    TrainTable,
)
from replaygen.screens.specs import TrustSpec


class DataTable(Table):
    """Where the current data are."""

    kind: Literal["folder", "voc", "ade20k", "digits"] = Field(
        default="folder", description="a folder pack (images/ masks/ classes.json splits/), a VOC 2012 devkit, ADE20K, "
        "or the demo's digit scenes",
    )  # fmt: skip
    path: str = Field(description="the data set's folder; digit scenes are composed there once")
    train: str = Field(default="train", description="the split that steps learn from")
    val: str = Field(default="val", description="the split that is evaluated")
    options: dict[str, Any] = Field(
        default_factory=dict, description="digits: size, train, val, photos, seed; voc: train_aug, a list file"
    )

    @model_validator(mode="after")
    def _known_options(self) -> DataTable:
        known = OPTIONS[self.kind]
        for name in self.options:
            if name not in known:
                hint = nearest_hint(name, known) if known else f"{self.kind} has none"
                raise ValueError(f"data of kind {self.kind!r} has no option {name!r}; {hint}")
        return self


class ScenarioTable(Table):
    """How the classes are cut into steps."""

    task: str = Field(description='classes a step: "15-1" (15 first, then one a step), or every step: "2-1-1-1"')
    setting: Literal["sequential", "disjoint", "overlapped", "partitioned"] = Field(
        default="overlapped", description="which images a step has, and which of their classes are labelled"
    )
    classes: tuple[str, ...] | None = Field(
        default=None, description="in learning order; those left out count as background. Default: the data set's order"
    )
    holdout: int = Field(default=0, ge=0, description="hold out 1/n of train and evaluate on it instead of val")

    @field_validator("holdout")
    @classmethod
    def _leaves_some(cls, value: int) -> int:
        if value == 1:
            raise ValueError("1 would hold out everything; n holds out 1/n of train, 0 nothing")
        return value

    protocol: Literal["background", "ignore"] = Field(
        default="background", description="what pixels of classes not yet seen count as in evaluation"
    )


_LABELLED = ("folder", "biggan", "diffusion", "fitted", "flickr", "web")
"""Sources whose images get a pseudo-label."""

_OF_LABELLING = frozenset({"labeler", "label", "refine", "unsure", "min_share", "flip", "looks"})

_TABLES_OF = {
    "folders": ("folder", "web"),
    "biggan": ("biggan",),
    "diffusion": ("diffusion",),
    "fit": ("fitted",),
    "map": ("biggan", "diffusion"),
    "classes": ("biggan", "diffusion"),
    "flickr": ("flickr",),
    "web": ("web",),
    "crawl": ("flickr", "web"),
    "screen": ("folder", "flickr", "web"),
    "trust": _LABELLED,
    "erase": _LABELLED,
    "teacher": _LABELLED,
}


class ReplayTable(Table):
    """One replay source."""

    source: Literal["folder", "exemplar", "biggan", "diffusion", "fitted", "flickr", "web"] = Field(
        description="folders of photos, kept real images, a generator, or photos of other people"
    )
    path: str | None = Field(
        default=None, description="photos, lists of addresses, or a generator's weights: a folder or a published name"
    )
    folders: dict[str, str] = Field(default_factory=dict, description="class name -> folder name, where they differ")
    count: int = Field(default=150, ge=1, description="samples wanted per class")
    oversample: float = Field(default=1.0, ge=1.0, description="look at count x this many; what is too many is left")
    seed: int = Field(default=0, description="of which photos are taken, of drawn images, of a fit")
    max_side: int | None = Field(default=256, ge=16, description="photos whose longer side has more pixels are shrunk")
    min_side: int = Field(default=0, ge=0, description="photos whose shorter side has fewer pixels are left out")
    only: tuple[str, ...] | None = Field(default=None, description="classes to make replay for; default: all it has")
    classes: dict[str, int | str] = Field(default_factory=dict, description="class -> the generator's class")
    biggan: BigGanSpec | None = None
    diffusion: DiffusionSpec | None = None
    fit: FitSpec | None = None
    map: MapSpec | None = None
    flickr: FlickrSpec | None = None
    web: WebSpec | None = None
    crawl: CrawlSpec | None = None
    screen: ScreenSpec | None = None
    labeler: Literal["model", "helper", "both", "teacher", "given"] = Field(
        default="model", description="who labels: the step's model, its helper decoder, the mean of both, a teacher, "
        "or nobody: the masks given with the images, in a pack that `replaygen import` wrote",
    )  # fmt: skip
    label: Literal["query", "step", "seen"] = Field(
        default="query", description="who competes for a pixel: class or background, the step's classes, or all so far"
    )
    refine: Literal["none", "grabcut"] = Field(default="none", description="draw outlines anew along colour edges")
    teacher: TeacherSpec | None = None
    trust: TrustSpec | None = None
    erase: EraseSpec | None = None
    zoom: float = Field(
        default=1.0, ge=1.0, le=FARTHEST, description="train on views of up to this many sides of the picture: photos "
        "show their object larger than real images do",
    )  # fmt: skip
    complete: bool = Field(default=False, description="exemplar: keep labels with their background inpainted")
    unsure: float = Field(default=0.0, ge=0.0, lt=1.0, description="pixels whose winner is less probable are ignored")
    min_share: float = Field(default=0.0, ge=0.0, lt=1.0, description="refuse where the class covers less of it")
    flip: bool = Field(default=False, description="label with the mean of each view and its mirror image")
    looks: int = Field(default=1, ge=1, description="label with the mean of the first n fixed views")

    @model_validator(mode="after")
    def _fits_its_source(self) -> ReplayTable:
        if self.source == "folder" and self.path is None:
            raise ValueError("source 'folder' needs `path`, a folder with one sub-folder of photos per class")
        if self.source in ("biggan", "diffusion") and self.path is None:
            raise ValueError(f"source {self.source!r} needs `path`, a folder with weights or a published name")
        if self.source == "web" and self.path is None:
            raise ValueError("source 'web' needs `path`, a list of addresses or a folder with one list per class")
        if self.source == "flickr" and self.flickr is None:
            raise ValueError("source 'flickr' needs a table `flickr` with `as_of`, the day up to which it searches")
        if self.source in ("exemplar", "fitted", "flickr") and self.path is not None:
            raise ValueError(f"source {self.source!r} takes no `path`")
        for name, sources in _TABLES_OF.items():
            if getattr(self, name) not in (None, {}) and self.source not in sources:
                raise ValueError(f"source {self.source!r} takes no `{name}`; that goes with {' or '.join(sources)}")
        if self.source == "exemplar" and (odd := sorted(self.model_fields_set & _OF_LABELLING)):
            raise ValueError(f"source 'exemplar' has the data set's own labels, so it takes no `{odd[0]}`")
        if self.labeler == "teacher" and (self.looks > 1 or self.flip):
            raise ValueError("a teacher looks once: leave `looks` and `flip` out")
        if self.zoom > 1 and self.source == "exemplar":
            raise ValueError("source 'exemplar' takes no `zoom`: real images are as far as they are")
        if self.complete and self.source != "exemplar":
            raise ValueError(f"source {self.source!r} takes no `complete`; it is about the labels of exemplars")
        if self.labeler == "given":
            if self.source != "folder":
                raise ValueError(f'source {self.source!r} has no masks: labeler = "given" is for source "folder"')
            if odd := sorted(self.model_fields_set & {"unsure", "flip", "looks", "refine"}):
                raise ValueError(f'labeler "given" takes no `{odd[0]}`: nobody labels')
        if self.label == "seen" and self.labeler not in ("model", "given"):
            raise ValueError(
                f'labeler {self.labeler!r} knows the classes of its own step only; label = "seen" needs "model"'
            )
        if (self.labeler == "teacher") != (self.teacher is not None):
            raise ValueError('labeler = "teacher" and a table `teacher` with its `model` go together')
        return self

    def screens(self) -> ScreenSpec | None:
        """The screens at the door: those given; for photos of other people else the usual ones. None: all are off."""
        screen = self.screen or (ScreenSpec() if self.source in ("flickr", "web") else None)
        return screen if screen is not None and screen.looks else None

    def drawn(self) -> BigGanSpec | DiffusionSpec | FitSpec:
        """How the generator is drawn from (`fitted`: fitted and drawn from)."""
        if self.source == "biggan":
            return self.biggan or BigGanSpec()
        return (self.diffusion or DiffusionSpec()) if self.source == "diffusion" else (self.fit or FitSpec())


class RecipeTable(Table):
    """The whole file."""

    name: str = Field(pattern=r"^[a-z0-9_-]{1,60}$", description="results are remembered under it")
    title: str = Field(default="", description="the heading of table and page")
    threads: int = Field(default=1, ge=1, description="CPU threads of one task; in every key that it can change")
    shard: int = Field(default=64, ge=1, le=4096, description="samples a shard, the unit of work; in every key")
    data: DataTable
    scenario: ScenarioTable
    network: NetworkSpec
    views: ViewSpec = Field(default_factory=ViewSpec)
    replay: dict[str, ReplayTable] = Field(default_factory=dict)
    relabel: RelabelTable = Field(default_factory=RelabelTable)
    knowledge: KnowledgeTable = Field(default_factory=KnowledgeTable)
    flip: bool = Field(default=False, description="evaluate with the mean of the image and its mirror image")
    train: TrainTable = Field(default_factory=TrainTable)
    method: tuple[MethodTable, ...] = Field(default=(), description="rows of the comparison; none: only build")
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="trainer -> its row in the field's comparison; `bench methods` alone reads it"
    )
    compare: CompareTable | None = None
    coarse: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="coarse class -> its classes: told beside the fine ones, in no key"
    )
    run: RunTable = Field(default_factory=RunTable)

    def field_rows(self) -> dict[str, MethodTable]:
        """Trainer -> its row in the field's comparison, as `[methods.NAME]` sets it."""
        return {
            name: MethodTable.model_validate({"trainer": name, **told, "name": name})
            for name, told in self.methods.items()
        }

    @field_validator("coarse")
    @classmethod
    def _one_coarse_class_each(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        disjoint_groups(value)
        return value

    @field_validator("views")
    @classmethod
    def _within_the_picture(cls, value: ViewSpec) -> ViewSpec:
        if value.crop[1] > 1:
            raise ValueError(
                f"crop = {list(value.crop)} reaches beyond the picture; for replay, `zoom` of its source does"
            )
        return value

    @model_validator(mode="after")
    def _names_agree(self) -> RecipeTable:
        names = [method.name for method in self.method]
        if not names and not self.replay:
            raise ValueError("a recipe needs a [[method]] to train, or a [replay.NAME] to build")
        if len(set(names)) != len(names):
            raise ValueError(f"method names must differ, got {names}")
        if "base" in names:
            raise ValueError("a method cannot be called 'base': that is the shared step 0")
        for name, table in self.replay.items():
            on = table.fit.on if table.fit is not None else "step"
            if on != "step" and (on not in self.replay or self.replay[on].source != "folder"):
                photos = [other for other, given in self.replay.items() if given.source == "folder"]
                raise ValueError(f"replay.{name}.fit.on = {on!r} is no replay of photos; " + nearest_hint(on, photos))
        for method in (*self.method, *self.field_rows().values()):
            completed = method.replay in self.replay and self.replay[method.replay].complete
            mode = self.relabel.mode if method.inpaint in (None, True) else method.inpaint
            if completed and mode == "pixels":
                raise ValueError(
                    f'method {method.name!r}: exemplars with complete = true keep labels, and inpaint = "pixels" '
                    "changes images instead; use another mode"
                )
            if method.replay is not None and method.replay not in self.replay:
                raise ValueError(
                    f"method {method.name!r} asks for replay {method.replay!r}; "
                    + nearest_hint(method.replay, self.replay)
                )
        return self


def parse_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> RecipeTable:
    """Read and check a recipe.

    Args:
        path: the TOML file.
        changes: dotted key -> value, laid over the file ("train.seeds" -> [0, 1]).

    Raises:
        RecipeError: unreadable, not TOML, an unknown or misspelt key, a wrong value; names file, line and nearest key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe: {error}", where=str(path), hint="`replaygen recipes ls`") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"not valid TOML: {error}", where=str(path)) from None
    for dotted, value in (changes or {}).items():
        _lay_over(raw, dotted, value)
    return with_board(check_recipe(raw, where=str(path), text=text), path)


def check_recipe(raw: Mapping[str, Any], *, where: str, text: str = "") -> RecipeTable:
    """A recipe from plain tables; `text` is the file they came from, to find the line of what is wrong.

    Raises:
        RecipeError: names the place and the nearest valid key.
    """
    try:
        return RecipeTable.model_validate(raw)
    except ValidationError as error:
        raise _explained(error, where, text) from None


def _lay_over(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *tables, last = dotted.split(".")
    table: Any = raw
    for name in tables:
        if isinstance(table, list):
            table = next((row for row in table if row.get("name") == name), None)
        else:
            table = table.setdefault(name, {})
        if not isinstance(table, dict | list):
            raise RecipeError(f"cannot set {dotted!r}: {name!r} is no table", hint="use the dotted names of the recipe")
    if isinstance(table, list):
        raise RecipeError(f"cannot set {dotted!r}: name the row first, as in method.recall.lr")
    table[last] = value


def _explained(error: ValidationError, path: str, text: str) -> RecipeError:
    problems = error.errors()
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    choice = [one for one in problems if one["type"] == "literal_error" and one["loc"][:-1] == first["loc"][:-1]]
    if choice and str(choice[0]["loc"][-1]).startswith("literal["):  # one of several types: the words say most
        first = {**choice[0], "loc": choice[0]["loc"][:-1]}
    location = [part for part in first["loc"] if part != "function-after"]
    line = line_of(text, location)
    dotted = ".".join(str(part) for part in location)
    where = f"{path}:{line}" if line else path
    if first["type"] == "extra_forbidden":
        hint = nearest_hint(str(location[-1]), valid_keys(location[:-1]))
        return RecipeError(f"unknown key {dotted!r}", where=where, hint=hint)
    if first["type"] == "missing":
        given = [str(problem["loc"][-1]) for problem in unknown]
        more = f" (you wrote {given[0]!r}?)" if given else ""
        return RecipeError(f"missing key {dotted!r}{more}", where=where, hint=f"add {location[-1]} = ...")
    message = first["msg"].removeprefix("Value error, ")
    hint = "docs/recipes.md says what each key takes"
    if first["type"] == "literal_error":
        hint = f"one of {first['ctx']['expected']}"
    return RecipeError(f"{dotted or 'recipe'}: {message}", where=where, hint=hint)


def valid_keys(location: list[Any]) -> list[str]:
    """The keys a recipe may have in the table at `location`."""
    model: Any = RecipeTable
    named = False  # the last part was a table of tables, whose keys are names of the recipe's own
    for part in location:
        if isinstance(part, int) or named:
            named = False
            continue
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            continue
        named = getattr(field.annotation, "__origin__", None) is dict
        model = _inner_model(field.annotation) or model
    return list(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _inner_model(argument)
        if found is not None:
            return found
    return None
