"""Which of a generator's classes stands for which of ours: RECALL's rule, given answers, reviewed tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import TypeAdapter, ValidationError

from replaygen.canonical import canonical
from replaygen.classes import nearest_hint
from replaygen.errors import DataError, ModelError, RecipeError
from replaygen.generators import imagenet
from replaygen.generators.imagenet import Entry, Names, normalised

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from replaygen.sample import Image8

    Float2 = npt.NDArray[np.float32]
    """float32 [n, classes]."""

Origin = Literal["given", "name", "measured", "table", "none"]
CHUNK = 64
"""Images held in memory while a class is measured."""


@dataclass(frozen=True)
class Match:
    """What stands for one class of the data set.

    Attributes:
        class_name: the data set's class.
        index: the generator's (or classifier's) class, None where there is no match.
        label: its name there, where it has one.
        confidence: measured: mean probability of the best class, in 0..1, also where it was too low for a match.
        second_index, second_label, second_confidence: the runner-up.
        images: how many images were looked at.
        origin: where the answer is from.
        note: what a person should know: "weak: ...", or why there is no match.
    """

    class_name: str
    index: int | None
    label: str | None = None
    confidence: float | None = None
    second_index: int | None = None
    second_label: str | None = None
    second_confidence: float | None = None
    images: int = 0
    origin: Origin = "none"
    note: str = ""


@dataclass(frozen=True)
class ClassMap:
    """One match for each class, with indices in 0..outputs-1; a ModelError where one is not."""

    matches: tuple[Match, ...]
    outputs: int

    def __post_init__(self) -> None:
        for match in self.matches:
            if match.index is not None and not 0 <= match.index < self.outputs:
                what = f"class {match.class_name!r} is mapped to {match.index}, which is not in 0..{self.outputs - 1}"
                raise ModelError(what, hint="choose a class that is there")

    def __getitem__(self, class_name: str) -> Match:
        """The match of a class; a DataError with the nearest name where the map does not have it."""
        known = {match.class_name: match for match in self.matches}
        if class_name not in known:
            raise DataError(f"the class map has no class {class_name!r}", hint=nearest_hint(class_name, known))
        return known[class_name]

    @property
    def unmatched(self) -> tuple[str, ...]:
        """The classes that nothing stands for."""
        return tuple(match.class_name for match in self.matches if match.index is None)

    def to_json(self) -> bytes:
        """Canonical JSON."""
        return canonical(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> ClassMap:
        """The map that `to_json` wrote. DataError for anything else, ModelError for an index out of range."""
        try:
            return TypeAdapter(ClassMap).validate_json(data, strict=True)
        except ValidationError as error:
            raise DataError(f"not a class map: {error.errors()[0]['msg']}") from None

    def as_text(self) -> str:
        """An aligned table: class, index, name, confidence, runner-up, where the answer is from."""
        whose = "ImageNet " if self.outputs == imagenet.COUNT else ""
        rows = [("class", f"{whose}index", f"{whose}name", "confidence", "runner-up", "from"), *map(_row, self.matches)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (zip(row, "<><><<", widths, strict=True) for row in rows)
        return "\n".join("  ".join(f"{cell:{side}{width}}" for cell, side, width in line).rstrip() for line in lines)


def _row(match: Match) -> tuple[str, str, str, str, str, str]:
    second = ""
    if match.second_confidence is not None:
        second = f"{_short(match.second_label) or match.second_index} {match.second_confidence:.1%}"
    origin = f"{match.images} images" if match.images else match.origin.replace("none", "")
    return (
        match.class_name,
        "-" if match.index is None else str(match.index),
        "no decent match" if match.index is None else _short(match.label),
        "" if match.confidence is None else f"{match.confidence:.1%}",
        second,
        ": ".join(part for part in (origin, match.note) if part),
    )


def _short(label: str | None) -> str:
    return (label or "").split(",")[0]


class Classifier(Protocol):
    """An image classifier."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class, "tabby, tabby cat"."""
        ...

    def __call__(self, images: Sequence[Image8]) -> Float2:
        """Probabilities float32 [n, classes] of images uint8 [H, W, 3]; row i depends on image i alone."""
        ...


def measure(
    images: Mapping[str, Iterable[Image8]], classify: Classifier, *, minimum: float = 0.1, limit: int = 100
) -> ClassMap:
    """RECALL's rule: for each class c, argmax_j of the mean of I(X)_j over images X that contain c.

    Args:
        images: class name -> images uint8 [H, W, 3] that contain the class; read lazily, one class after another.
        classify: I, an ImageNet classifier with softmax.
        minimum: where the best mean probability is below this, the class has no match.
        limit: images of a class that are read.

    Raises:
        ModelError: the classifier gives NaN or infinity.
    """
    first = {name: itertools.islice(found, limit) for name, found in images.items()}
    matches = tuple(_measured(name, found, classify, minimum) for name, found in first.items())
    return ClassMap(matches, len(classify.labels))


def _measured(name: str, images: Iterable[Image8], classify: Classifier, minimum: float) -> Match:
    import numpy as np

    rest, count = iter(images), 0
    total = np.zeros(len(classify.labels))
    while part := list(itertools.islice(rest, CHUNK)):
        for row in classify(part):
            total += row  # one by one and in order, so that CHUNK does not change the last bits
        count += len(part)
    if not count:
        return Match(name, None, note="there are no images of the class")
    if not np.isfinite(total).all():
        raise ModelError("the classifier gives NaN or infinity", where=f"images of class {name!r}")
    mean = total / count
    best, *others = (int(index) for index in np.argsort(-mean, kind="stable")[:2])
    match = Match(name, best, classify.labels[best], float(mean[best]), images=count, origin="measured")
    for second in others:
        label, confidence = classify.labels[second], float(mean[second])
        match = replace(match, second_index=second, second_label=label, second_confidence=confidence)
    if mean[best] < minimum:
        return replace(match, index=None, label=None, note=f"none measured, nearest {best} {_short(match.label)}")
    return match


def resolve(
    class_names: Sequence[str],
    *,
    given: Mapping[str, int | str],
    generator_names: Sequence[str] | None,
    generator_count: int,
    table: Mapping[str, Entry] | None = None,
    measured: ClassMap | None = None,
) -> ClassMap:
    """What stands for each class, of a generator with `generator_count` classes.

    The first that has an answer: `given`; a generator's class of the same name; `measured`; `table`, where the
    generator has ImageNet's classes. A generator of 1000 classes without names is taken to have ImageNet's. Where the
    table says otherwise of a class than an equal name does (ADE20K's "tank" holds water), the name does not count.

    Args:
        class_names: all classes of the data set, without background.
        given: class -> the generator's index, or a name or synonym of its own.
        generator_names: its classes in order; None where it has no names.
        generator_count: how many classes it has.
        table: the reviewed table of the data set, see `imagenet.table_for`.
        measured: what `measure` found; indices of a classifier with other classes are found again by their names.

    Returns:
        indices into the generator's classes, in the order of `class_names`; None where nothing stands for a class.

    Raises:
        RecipeError: `given` names a class that the data set or the generator does not have.
        ModelError: a measured or reviewed class that the generator does not have.
    """
    if generator_names is None and generator_count == imagenet.COUNT:
        generator_names = imagenet.class_names()
    names = None if generator_names is None else Names(generator_names)
    if names is not None and len(names.names) != generator_count:
        raise ModelError(f"the generator has {generator_count} classes but {len(names.names)} names")
    for name in given:
        if name not in class_names:
            raise RecipeError(f"the data set has no class {name!r} to map", hint=nearest_hint(name, class_names))
    reviewed = {normalised(name): entry for name, entry in (table or {}).items() if generator_count == imagenet.COUNT}
    found = {match.class_name: match for match in (measured.matches if measured is not None else ())}
    if measured is not None and measured.outputs != generator_count:  # its indices are of other classes
        found = {name: replace(match, second_index=None) for name, match in found.items()}
    matches = []
    for name in class_names:
        entry, match = reviewed.get(normalised(name)), found.get(name)
        same = names.called(name) if names is not None else None
        if name in given:
            matches.append(_given(name, given[name], names, generator_count))
        elif names is not None and same is not None and (entry is None or entry.index == same):
            matches.append(Match(name, same, names.names[same], origin="name"))
        elif measured is not None and match is not None and match.index is not None:
            matches.append(_translated(match, measured.outputs, names, generator_count))
        else:
            matches.append(_reviewed(name, entry, names, match))
    return ClassMap(tuple(matches), generator_count)


def _given(name: str, answer: int | str, names: Names | None, count: int) -> Match:
    where, hint = f"class {name!r}", f"give an index in 0..{count - 1}"
    if isinstance(answer, bool) or (isinstance(answer, int) and not 0 <= answer < count):
        raise RecipeError(f"the generator has no class {answer}", where=where, hint=hint)
    if isinstance(answer, str):
        if names is None:
            raise RecipeError(f"the generator's classes have no names, {answer!r} is none", where=where, hint=hint)
        answer = names.find(answer, where=where)
    return Match(name, answer, names.names[answer] if names is not None else None, origin="given")


def _translated(match: Match, outputs: int, names: Names | None, count: int) -> Match:
    known = names.known_as(match.label or "") if names is not None else ()
    if names is not None and len(known) == 1:
        return replace(match, index=known[0], label=names.names[known[0]])
    if outputs != count:
        raise ModelError(
            f"class {match.class_name!r} was measured as {match.index} ({match.label}) of {outputs} classes, but the "
            f"generator's are 0..{count - 1} and not exactly one of them is called so",
            hint="use a classifier of its classes, or give the class by hand",
        )
    nameless = not match.label or match.label.removeprefix("LABEL_").isdecimal()
    if names is not None and not nameless and not names.agrees(match.index or 0, match.label or ""):
        return replace(match, index=None, note=f"the classifier's {match.label!r} is no class of the generator")
    return match


def _reviewed(name: str, entry: Entry | None, names: Names | None, measured: Match | None) -> Match:
    missing = measured or Match(name, None, note="no class of that name")
    if entry is None:
        return missing
    notes = [measured.note if measured else "", ": ".join(part for part in (entry.quality, entry.note) if part)]
    if entry.index is None or entry.name is None:
        return replace(missing, note="; ".join(filter(None, notes)))
    if names is None or not names.agrees(entry.index, entry.name):
        return replace(missing, note=f"ImageNet's {entry.index} ({entry.name}) is another class in the generator")
    return Match(name, entry.index, names.names[entry.index], origin="table", note="; ".join(filter(None, notes[::-1])))
