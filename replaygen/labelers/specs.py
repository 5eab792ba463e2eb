"""What a recipe says about labelers. No torch and no numpy here: a plan reads these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from replaygen.classes import nearest_hint
from replaygen.errors import ModelError, RecipeError
from replaygen.generators.folder import read_json
from replaygen.generators.imagenet import Names
from replaygen.learn.specs import file_sha256

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NEEDED = f"a folder with {CONFIG}, {PROCESSOR} and model.safetensors of a semantic-segmentation model"


class TeacherSpec(BaseModel):
    """`[replay.NAME.teacher]`: a segmentation model of `transformers` that labels instead of the learner itself.

    `model` is only where; `identity()` names the files by their sha256, or the hub's commit, instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="a folder with safetensors; with `revision`: a hub name")
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$", description="the hub commit, 40 digits")
    classes: dict[str, str | int] = Field(
        default_factory=dict, description="class -> the teacher's label, by name or index; default: equal names"
    )
    size: int | None = Field(
        default=None, ge=8, le=4096,
        description="side of what the teacher sees, in pixels (the shorter one where its processor keeps the "
        "aspect ratio); default: as in its preprocessor_config.json",
    )  # fmt: skip
    sha256: dict[str, str] = Field(default_factory=dict, description="pins: file name -> sha256")

    @model_validator(mode="after")
    def _pins_are_digests(self) -> TeacherSpec:
        if self.revision is not None and self.sha256:
            raise ValueError("sha256 pins go with a folder; `revision` fixes a hub's files")
        for name, digest in self.sha256.items():
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"sha256.{name!r}: values are 64 hexadecimal digits")
        return self

    def files(self) -> dict[str, Path]:
        """File name -> path of all that decides the teacher: every .json and .safetensors of its folder.

        Empty for a hub's model. No pickle is among them, and none is ever read.

        Raises:
            ModelError: no such folder, or one that lacks something.
        """
        return {} if self.revision is not None else teacher_files(Path(self.model))

    def file_digests(self) -> dict[str, str]:
        """File name -> sha256, the pinned one where there is a pin (checked when the teacher is opened)."""
        return {name: self.sha256.get(name) or file_sha256(path) for name, path in self.files().items()}

    def pinned(self) -> TeacherSpec:
        """This specification with the present sha256 of every file, so that later changes are refused on opening."""
        return self.model_copy(update={"sha256": self.file_digests()}) if self.revision is None else self

    def identity(self) -> dict[str, Any]:
        """What the teacher is, for a task's key: no path.

        Raises:
            ModelError: as in `files`.
        """
        told: dict[str, Any] = {"classes": dict(self.classes), "size": self.size}
        if self.revision is not None:
            return {**told, "model": self.model, "revision": self.revision}
        return {**told, "files": self.file_digests()}

    def check(self, class_names: Sequence[str]) -> None:
        """Refuse a `classes` that names no class of the data set.

        Args:
            class_names: all classes of the scenario, background aside.

        Raises:
            RecipeError: an unknown class, with the nearest name.
        """
        for name in self.classes:
            if name not in class_names:
                raise RecipeError(
                    f"teacher.classes: no class called {name!r}", where=self.model,
                    hint=nearest_hint(name, class_names),
                )  # fmt: skip

    def indices(self, names: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
        """For each of our classes the index of the teacher's label that stands for it.

        Equal names are found whatever their case, spaces and underscores, and in the other of two usual spellings
        (sofa, couch); a label may list synonyms ("tabby, tabby cat").

        Args:
            names: our classes, background aside.
            labels: the teacher's labels in order.

        Raises:
            RecipeError: a class that nothing stands for, an index that is not there, one label for two classes.
        """
        found = tuple(self._index(name, labels) for name in names)
        for place, index in enumerate(found):
            if index in found[:place]:
                raise RecipeError(
                    f"the teacher's label {labels[index]!r} stands for both {names[found.index(index)]!r} and "
                    f"{names[place]!r}", where=self.model, hint="give each class its own label in teacher.classes",
                )  # fmt: skip
        return found

    def _index(self, name: str, labels: Sequence[str]) -> int:
        wanted = self.classes.get(name, name)
        if isinstance(wanted, int):
            if not 0 <= wanted < len(labels):
                raise RecipeError(
                    f"the teacher has no label {wanted}, which stands for {name!r}", where=self.model,
                    hint=f"indices are 0..{len(labels) - 1}",
                )  # fmt: skip
            return wanted
        found = Names(labels).known_as(wanted)
        if len(found) == 1:
            return found[0]
        if found:
            both = " or ".join(f"{index} ({labels[index]})" for index in found[:4])
            raise RecipeError(
                f"the teacher has {len(found)} labels {wanted!r}", where=self.model,
                hint=f"give the index: teacher.classes.{name} = {both}",
            )  # fmt: skip
        words = [word.strip() for label in labels for word in label.split(",")]
        raise RecipeError(
            f"the teacher has no label {wanted!r} for the class {name!r}",
            where=self.model,
            hint=f"{nearest_hint(wanted, words)}; say which label it is in teacher.classes, by name or index",
        )

    def labels(self) -> tuple[str, ...] | None:
        """The labels that a folder's config.json names, in order; None where it names none, and for a hub's model.

        Raises:
            ModelError: no readable config.json, or an `id2label` whose keys are not 0, 1, 2, ...
        """
        if self.revision is not None:
            return None
        named = read_json(Path(self.model) / CONFIG).get("id2label")
        if not named:
            return None
        if not isinstance(named, dict) or set(named) != {str(index) for index in range(len(named))}:
            raise ModelError("id2label must name the labels 0, 1, 2, ... each once", where=self.model)
        return tuple(str(named[str(index)]) for index in range(len(named)))


def teacher_files(folder: Path) -> dict[str, Path]:
    """File name -> path of every .json and .safetensors of a teacher's folder, subfolders aside.

    Raises:
        ModelError: no such folder, or one without configuration, processor or safetensors.
    """
    if not folder.is_dir():
        raise ModelError("no folder with a teacher's weights", where=str(folder), hint=_NEEDED)
    inside = sorted(path for path in folder.iterdir() if path.is_file())
    found = {path.name: path for path in inside if path.suffix in (".json", ".safetensors")}
    if not any(path.suffix == ".safetensors" for path in found.values()):
        pickles = [path.name for path in inside if path.suffix in _PICKLES]
        if pickles:
            raise ModelError(
                f"only pickled weights: {pickles[0]}", where=str(folder),
                hint="pickles can run code and are never read; save the model with safe_serialization=True",
            )  # fmt: skip
        raise ModelError("no .safetensors file in it", where=str(folder), hint=_NEEDED)
    for name in (CONFIG, PROCESSOR):
        if name not in found:
            raise ModelError(f"no {name}", where=str(folder), hint=_NEEDED)
    return found
