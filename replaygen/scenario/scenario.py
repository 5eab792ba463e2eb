"""A scenario: a data set's classes cut into steps, and the one place where its masks become channels.

Channels: 0 = background (or "other", where the data set has no background), 1..C = the classes in learning order,
255 = ignore.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from replaygen.canonical import digest_of
from replaygen.classes import ClassList, nearest_hint
from replaygen.errors import ScenarioError
from replaygen.sample import IGNORE
from replaygen.scenario.cut import Holdout, cut_images, hold_out
from replaygen.scenario.tasks import parse_task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Table = npt.NDArray[np.uint8]
    """uint8 [256]: the channel of each raw mask value."""


@dataclass(frozen=True)
class Step:
    """One step. `new`, `old` and `seen` are channels, ascending, never 0; `ids` are images in the split's order."""

    index: int
    new: tuple[int, ...]
    old: tuple[int, ...]
    ids: tuple[str, ...]

    @property
    def seen(self) -> tuple[int, ...]:
        """All channels learnt once this step is done."""
        return self.old + self.new


@dataclass(frozen=True)
class Scenario:
    """Steps, class names by channel and the tables from mask values to channels. Pure data; read no pixels to make it.

    Attributes:
        task: such as `15-1`.
        setting: `sequential`, `disjoint`, `overlapped` or `partitioned`.
        names: class name by channel; names[0] is "background", or "other" where the data set has no background.
        raw: raw class id of channels 1..C.
        background: the data set's raw background id, or None.
        score_background: False where pixels of the raw background are left out of evaluation.
        steps: the steps in order.
        split: the split the steps are cut from.
        holdout: (m, r) or None.
        holdout_ids: images kept out of every step, in the split's order; for choosing hyper-parameters.
        data: digest of the data set.
    """

    task: str
    setting: str
    names: tuple[str, ...]
    raw: tuple[int, ...]
    background: int | None
    score_background: bool
    steps: tuple[Step, ...]
    split: str = "train"
    holdout: Holdout | None = None
    holdout_ids: tuple[str, ...] = ()
    data: str = ""

    @property
    def channels(self) -> int:
        """How many channels there are after the last step, channel 0 included."""
        return len(self.names)

    def step(self, k: int) -> Step:
        """Step k; a ScenarioError where there is none."""
        if not 0 <= k < len(self.steps):
            raise ScenarioError(f"task {self.task!r} has no step {k}", hint=f"its steps are 0..{len(self.steps) - 1}")
        return self.steps[k]

    def visible(self, k: int) -> tuple[int, ...]:
        """The channels that step k's own masks can be trusted for: its new ones, or all seen ones for `sequential`."""
        step = self.step(k)
        return step.seen if self.setting == "sequential" else step.new

    def step_table(self, k: int) -> Table:
        """uint8 [256] for step k's training masks: the visible classes keep a channel, all else is 0, 255 stays."""
        return self._table(self.visible(k), hidden=0)

    def eval_table(self, k: int, protocol: Literal["background", "ignore"] = "background") -> Table:
        """uint8 [256] for evaluation after step k: seen classes keep a channel, classes of later steps become 0, or 255
        with the protocol `ignore`. Classes outside the scenario are 0; so is the raw background, unless the data set
        leaves it out of evaluation (255)."""
        if protocol not in ("background", "ignore"):
            raise ScenarioError(f"no protocol called {protocol!r}", hint="known: background, ignore")
        table = self._table(self.step(k).seen, hidden=0 if protocol == "background" else IGNORE)
        if self.background is not None and not self.score_background:
            table[self.background] = IGNORE
        return table

    def full_table(self) -> Table:
        """uint8 [256] with every class of the scenario, for joint training."""
        return self._table(range(1, self.channels), hidden=0)

    def apply(self, table: Table, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Channels [H, W] uint8 of a raw mask [H, W] uint8.

        Raises:
            ScenarioError: the mask is not uint8.
        """
        if mask.dtype.name != "uint8":
            raise ScenarioError(f"mask has dtype {mask.dtype}, expected uint8", hint="read masks through the data set")
        mapped: npt.NDArray[np.uint8] = table[mask]
        return mapped

    def _table(self, keep: Collection[int], *, hidden: int) -> Table:
        import numpy as np

        table = np.zeros(256, dtype=np.uint8)
        for channel, raw in enumerate(self.raw, start=1):
            table[raw] = channel if channel in keep else hidden
        table[IGNORE] = IGNORE
        return table

    @cached_property
    def digest(self) -> str:
        """sha256 of everything above: equal scenarios of equal data have equal digests."""
        return digest_of(
            {
                "task": [len(step.new) for step in self.steps],
                "setting": self.setting,
                "names": self.names,
                "raw": self.raw,
                "background": self.background,
                "score_background": self.score_background,
                "steps": [step.ids for step in self.steps],
                "split": self.split,
                "holdout_ids": self.holdout_ids,
                "data": self.data,
            }
        )


class Dataset(Protocol):
    """What a scenario needs of a data set; `replaygen.datasets.SegmentationDataset` has it."""

    @property
    def classes(self) -> ClassList: ...
    @property
    def background(self) -> int | None: ...
    @property
    def score_background(self) -> bool: ...
    @property
    def digest(self) -> str: ...
    def split(self, name: str, /) -> tuple[str, ...]: ...
    def present(self, ids: Sequence[str], /) -> Mapping[str, Collection[int]]: ...


def make_scenario(
    dataset: Dataset,
    task: str,
    setting: str,
    classes: Sequence[str] | None = None,
    split: str = "train",
    holdout: Holdout | None = None,
    shares: Sequence[float] | None = None,
) -> Scenario:
    """Cut a data set into steps.

    Args:
        dataset: the data set; its masks are scanned once and remembered.
        task: `FIRST-EVERY` such as `15-1`, or the size of each step.
        setting: `overlapped` (an image has a class of the step), `disjoint` (and none of a later step; labels hold the
            step's classes only), `sequential` (the same images; labels hold all seen classes), `partitioned` (every
            image belongs to exactly one step, in contiguous blocks of the split).
        classes: names in learning order; the data set's order by default. Classes left out count as background.
        split: the split to cut.
        holdout: (m, r) keeps the images with sha256(id) mod m == r out of every step.
        shares: `partitioned` only: the blocks' lengths in proportion; equal by default.

    Raises:
        ScenarioError: the task does not fit, an unknown class or setting, a step without images, or a class that no
            image of its step has.
        DataError: no such split; unreadable masks.
    """
    ids = dataset.split(split)
    return build_scenario(
        dataset.classes,
        dataset.background,
        ids,
        dataset.present(ids),
        task=task,
        setting=setting,
        order=classes,
        split=split,
        holdout=holdout,
        shares=shares,
        score_background=dataset.score_background,
        data=dataset.digest,
    )


def build_scenario(
    classes: ClassList,
    background: int | None,
    ids: Sequence[str],
    present: Mapping[str, Collection[int]],
    *,
    task: str,
    setting: str,
    order: Sequence[str] | None = None,
    split: str = "train",
    holdout: Holdout | None = None,
    shares: Sequence[float] | None = None,
    score_background: bool = True,
    data: str = "",
) -> Scenario:
    """`make_scenario` from a list of ids and their classes (raw ids), without a data set."""
    names, raw = _order(classes, background, order)
    ground = _ground_name(classes, background)
    if ground in names or len(names) >= IGNORE:
        raise ScenarioError(
            f"class {ground!r} would share its name with channel 0" if ground in names else f"{len(names)} classes",
            hint="rename the class" if ground in names else "254 fit an 8-bit mask",
        )
    unknown = [key for key in ids if key not in present]
    if unknown:
        raise ScenarioError(f"the classes of image {unknown[0]!r} are not known", hint="give those of every id")
    sizes = parse_task(task, len(raw))
    kept, held = hold_out(ids, holdout)
    ends = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    new_raw = [raw[start:end] for start, end in itertools.pairwise(ends)]
    images = cut_images(setting, kept, present, new_raw, shares)
    _check_images(images, present, new_raw, classes, setting)
    steps = tuple(
        Step(k, tuple(range(ends[k] + 1, ends[k + 1] + 1)), tuple(range(1, ends[k] + 1)), images[k])
        for k in range(len(sizes))
    )
    return Scenario(
        task=task,
        setting=setting,
        names=(ground, *names),
        raw=raw,
        background=background,
        score_background=score_background,
        steps=steps,
        split=split,
        holdout=None if holdout is None else (holdout[0], holdout[1]),
        holdout_ids=held,
        data=data,
    )


def _ground_name(classes: ClassList, background: int | None) -> str:
    """Channel 0's name: "background" if the data set has and scores one, else "other"."""
    named = next((info.name for info in classes if info.id == background), "other")
    return "other" if named == "other" else "background"


def _order(
    classes: ClassList, background: int | None, order: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    objects = {info.name: info.id for info in classes if info.id != background}
    names = tuple(objects) if order is None else tuple(order)
    for name in names:
        if name not in objects:
            ground = any(info.name == name for info in classes)
            raise ScenarioError(
                f"{name!r} is the background, which is no class to learn" if ground else f"no class called {name!r}",
                hint="leave it out" if ground else nearest_hint(name, objects),
            )
        if names.count(name) > 1:
            raise ScenarioError(f"class {name!r} is listed twice", hint="list each class once, in learning order")
    return names, tuple(objects[name] for name in names)


def _check_images(
    images: Sequence[Sequence[str]],
    present: Mapping[str, Collection[int]],
    new_raw: Sequence[Sequence[int]],
    classes: ClassList,
    setting: str,
) -> None:
    names = {info.id: info.name for info in classes}
    anywhere = {number for found in present.values() for number in found}
    empty = [names[number] for raw in new_raw for number in raw if number not in anywhere]
    if empty:
        raise ScenarioError(f"no image has {', '.join(empty[:8])}", hint="leave the class out, or take another split")
    for k, (ids, raw) in enumerate(zip(images, new_raw, strict=True)):
        shown = set().union(*(present[key] for key in ids)) if ids else set()
        missing = [names[number] for number in raw if number not in shown]
        if missing:
            raise ScenarioError(
                f"step {k} has no image with {', '.join(missing[:8])}",
                where=f"setting {setting!r}, {len(ids)} images in the step",
                hint="leave the class out, move it to another step, or use the setting 'overlapped'",
            )
