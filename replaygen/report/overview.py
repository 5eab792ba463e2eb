"""One picture of a run for a README: a scene as two methods see it step by step, their curves, and some replay."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.report.colors import METHODS, class_color, colorize
from replaygen.report.curves import Curve, curves, short, spread
from replaygen.report.examples import Scene, examples, scenes, shows
from replaygen.report.files import write_bytes
from replaygen.report.gallery import telling
from replaygen.report.text import plain
from replaygen.runs.results import RunResult, read_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from replaygen.plan import Plan
    from replaygen.runs.replay import ReplaySample
    from replaygen.sample import Image8, Mask8

WIDTH, DPI = 12.0, 100
"""The picture's width in inches, and pixels an inch."""

COLUMNS = 6
"""Steps shown at most: the first, the last and some between."""

STRIP = 10
"""Replay samples in the strip, in two rows."""

INK, SOFT, LINE = "#1b2026", "#5b6570", "#dfe3e7"
LEFT, CELL, HEAD, UNDER, FOOT = 2.0, 1.58, 0.3, 0.28, 2.6
"""Inches: where the steps begin, a cell's width, the lines above and under it, the part below the rows."""


@dataclass(frozen=True)
class Line:
    """One method: its title, its row in the recipe, and its colour."""

    title: str
    method: str
    color: str


@dataclass(frozen=True)
class Overview:
    """What the picture shows.

    Attributes:
        lines: the methods shown step by step, one or two.
        bound: the row that is a dashed line in the chart, or None.
        steps: the columns; learnt: the classes that each of them learns, in words.
        scene: the validation image, None where none was kept.
        strip: replay samples with their class names.
    """

    names: tuple[str, ...]
    lines: tuple[Line, ...]
    bound: Line | None
    steps: tuple[int, ...]
    learnt: tuple[str, ...]
    scene: Scene | None
    strip: tuple[tuple[str, ReplaySample], ...]
    result: RunResult


def overview_png(plan: Plan, path: str | Path) -> Path:
    """Write a PNG, 1200 pixels wide: a scene as finetune and RECALL see it step by step; replay and curves below.

    Where a row was not run the recipe's first two are shown. The scene is the one with most classes of the first step,
    then most classes, in its truth: results have no say.

    Raises:
        ReplaygenError: the place cannot be written.
        StoreError, DataError: an object is damaged.
    """
    seed, scenario = plan.recipe.table.train.seeds[0], plan.opened.scenario
    lines, bound = _lines(plan)
    found = telling(scenes(examples(plan, seed)), scenario.steps[0].new)
    steps = _columns(len(scenario.steps))
    learnt = tuple(_learnt([scenario.names[c] for c in scenario.steps[k].new]) for k in steps)
    return write_bytes(Path(path), draw(Overview(
        scenario.names, lines, bound, steps, learnt, found[0] if found else None, _strip(plan), read_result(plan),
    )))  # fmt: skip


def _lines(plan: Plan) -> tuple[tuple[Line, ...], Line | None]:
    rows = plan.recipe.table.method

    def row(trainer: str) -> list[str]:
        return [one.name for one in rows if one.name == trainer] or [one.name for one in rows if one.trainer == trainer]

    told = [(title, row(trainer)[0]) for trainer, title in (("finetune", "fine-tuning"), ("recall", "RECALL"))
            if row(trainer)]  # fmt: skip
    told = told or [(one.name, one.name) for one in rows[:2]]
    joint = Line("joint training", row("joint")[0], SOFT) if row("joint") else None
    return tuple(Line(title, name, METHODS[i]) for i, (title, name) in enumerate(told)), joint


def _columns(count: int) -> tuple[int, ...]:
    """The steps shown, evenly spread."""
    last = count - 1
    few = min(COLUMNS, count)
    return tuple(dict.fromkeys(round(last * i / max(1, few - 1)) for i in range(few)))


def _learnt(names: Sequence[str]) -> str:
    told = ", ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}"
    return short(plain(told), 20)


def _strip(plan: Plan) -> tuple[tuple[str, ReplaySample], ...]:
    """A few samples of each class; none of other people's photos, which a picture cannot credit."""
    from replaygen.runs.replay import ReplaySet, replay_sets

    sets: dict[str, ReplaySet] = {}
    for found in replay_sets(plan).values():
        sets.setdefault(str(found.manifest["class"]), found)
    share = max(1, -(-STRIP // max(1, len(sets))))
    taken: list[tuple[int, str, ReplaySample]] = []
    for name, found in sets.items():
        own = (sample for sample in found if sample.about.get("source") not in ("flickr", "web"))
        taken += [(turn, name, sample) for turn, sample in zip(range(share), own, strict=False)]
    taken.sort(key=lambda one: one[0])
    return tuple((name, sample) for _, name, sample in taken[:STRIP])


def draw(overview: Overview) -> bytes:
    """The picture as PNG bytes; the same overview gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cell = CELL * (min(1.2, max(0.5, _shape(overview.scene))) if overview.scene else 1.0)
    rows = max(2, len(overview.lines)) if overview.scene else 0
    height = (0.55 if rows else 0.0) + rows * (HEAD + cell + UNDER) + FOOT + 0.4
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    sheet = Sheet(figure, height)
    top = height
    if overview.scene is not None:
        top = _steps(sheet, overview, overview.scene, cell, rows)
    _replay(sheet, overview, top)
    _chart(sheet.axes(7.3, top - FOOT + 0.45, 3.3, FOOT - 0.95), overview)
    sheet.text(7.0, top - 0.28, "mIoU over all classes seen, after each step", weight="bold")
    _legend(figure, overview, height)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


@dataclass(frozen=True)
class Sheet:
    """The figure in inches from its lower left corner."""

    figure: Any
    height: float

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Axes at a place."""
        at = (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        place: Axes = self.figure.add_axes(at)
        return place

    def picture(self, left: float, bottom: float, side: tuple[float, float], image: Image8, mask: Mask8 | None) -> None:
        """An image, grey and dark under its label where it has one."""
        place = self.axes(left, bottom, *side)
        place.set_axis_off()
        smooth = "nearest" if max(image.shape[:2]) <= 64 else "antialiased"
        place.imshow(image if mask is None else _faded(image), interpolation=smooth)
        if mask is not None:
            colors = colorize(mask)
            colors[..., 3] = (colors[..., 3] * 0.9).astype("uint8")
            place.imshow(colors, interpolation="nearest")

    def text(self, left: float, bottom: float, text: str, **how: Any) -> None:
        """Words; no mathematics is read into them."""
        how = {"fontsize": 11, "color": INK, **how}
        self.figure.text(left / WIDTH, bottom / self.height, plain(text), parse_math=False, **how)


def _steps(sheet: Sheet, overview: Overview, scene: Scene, cell: float, rows: int) -> float:
    """Image and truth, then a row a method; returns the height of its lower end."""
    top = sheet.height - 0.55
    places = [LEFT + i * (CELL + 0.07) for i in range(len(overview.steps))]
    for i, (left, step) in enumerate(zip(places, overview.steps, strict=True)):
        sheet.text(left, top + 0.24, f"step {step}", weight="bold")
        sheet.text(left, top + 0.05, f"learns {overview.learnt[i]}", color=SOFT, fontsize=9.5)
    for row in range(rows):
        bottom = top - HEAD - cell
        sheet.text(0.05, bottom - 0.19, ("image", "truth")[row] if row < 2 else "", color=SOFT, fontsize=9.5)
        if row < 2:
            sheet.picture(0.05, bottom, (CELL, cell), scene.image, scene.true if row else None)
        if row < len(overview.lines):
            line = overview.lines[row]
            sheet.text(LEFT, top - HEAD + 0.08, line.title, weight="bold", color=line.color, fontsize=12)
            for left, step in zip(places, overview.steps, strict=True):
                _seen(sheet, overview, scene, line, step, (left, bottom, cell))
        top = bottom - UNDER
    return top


def _seen(
    sheet: Sheet, overview: Overview, scene: Scene, line: Line, step: int, at: tuple[float, float, float]
) -> None:  # fmt: skip
    left, bottom, cell = at
    shared = scene.predictions.get(("base", step)) if step == 0 else None
    mask = scene.predictions.get((line.method, step), shared)
    if mask is None:
        return
    sheet.picture(left, bottom, (CELL, cell), scene.image, mask)
    value = {k: mean for one in curves(overview.result, "all") if one.method == line.method
             for k, mean in zip(one.steps, one.means, strict=True)}.get(step)  # fmt: skip
    if value is not None:
        sheet.text(left, bottom - 0.19, f"mIoU {value:.0f}", color=line.color, fontsize=9.5)


def _replay(sheet: Sheet, overview: Overview, top: float) -> None:
    if not overview.strip:
        return
    sheet.text(0.05, top - 0.28, "replay of old classes, with the labels that the networks gave it", weight="bold")
    across = STRIP // 2
    side = min(1.06, 6.4 / across - 0.06)
    for i, (_, sample) in enumerate(overview.strip):
        left, bottom = 0.05 + (i % across) * (side + 0.06), top - 0.4 - side - (i // across) * (side + 0.06)
        sheet.picture(left, bottom, (side, side), _square(sample.image), _square(sample.mask))


def _chart(panel: Axes, overview: Overview) -> None:
    lines = [*overview.lines, *([overview.bound] if overview.bound else [])]
    told = {one.method: one for one in curves(overview.result, "all")}
    shown = [(line, told[line.method]) for line in lines if line.method in told]
    last = len(overview.result.step_names) - 1
    for line, curve in shown:
        _course(panel, line, curve, last)
    heights = spread([curve.means[-1] for _, curve in shown], 9.0)
    for (line, curve), place in zip(shown, heights, strict=True):
        panel.text(last * 1.03 + 0.05, place, f"{line.title} {curve.means[-1]:.0f}", color=line.color, fontsize=10,
                   va="center", parse_math=False)  # fmt: skip
    panel.set_xlim(-0.05 * max(1, last), last if last else 1)
    panel.set_ylim(0, 100)
    panel.set_xticks(range(0, last + 1, max(1, last // 6)))
    panel.set_yticks([0, 25, 50, 75, 100])
    panel.tick_params(labelsize=9.5, colors=SOFT, length=0, pad=4)
    panel.grid(axis="y", color=LINE, linewidth=0.8)
    panel.set_axisbelow(True)
    for spine in panel.spines.values():
        spine.set_visible(False)


def _course(panel: Axes, line: Line, curve: Curve, last: int) -> None:
    if len(curve.steps) == 1:
        panel.plot([0, last], [curve.means[0]] * 2, color=line.color, linewidth=1.4, linestyle=(0, (4, 3)))
    else:
        panel.plot(curve.steps, curve.means, color=line.color, linewidth=2.4, marker="o", markersize=5, clip_on=False)


def _shape(scene: Scene) -> float:
    height, width = scene.image.shape[:2]
    return float(height / width)


def _faded(image: Image8) -> Image8:
    """The image in dark grey, uint8 [H, W, 3], so that only a label is in colour."""
    import numpy as np

    grey = image @ np.array([0.299, 0.587, 0.114]) * 0.65
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)


def _square(array: Image8) -> Image8:
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side]


def _channels(overview: Overview) -> list[int]:
    masks = [sample.mask for _, sample in overview.strip]
    if overview.scene is not None:
        masks += [overview.scene.true]
        masks += [mask for (name, _), mask in overview.scene.predictions.items()
                  if name in ("base", *(line.method for line in overview.lines))]  # fmt: skip
    return shows(masks)


def _legend(figure: Any, overview: Overview, height: float) -> None:
    from matplotlib.patches import Patch

    names = overview.names
    marks = [Patch(facecolor=class_color(channel), label=short(plain(names[channel]).lstrip("_") or "?"))
             for channel in _channels(overview)[:20] if channel < len(names)]  # fmt: skip
    if marks:
        legend = figure.legend(
            handles=marks, loc="lower left", bbox_to_anchor=(0.0, 0.02 / height), ncols=min(10, len(marks)),
            frameon=False, fontsize=10, handlelength=1, handleheight=1, columnspacing=1.4,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
