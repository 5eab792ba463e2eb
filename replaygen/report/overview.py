"""One picture of a run for a README: a few validation scenes as the methods see them, and a strip of replay."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.report.colors import class_color, colorize
from replaygen.report.examples import Scene, examples, scenes, shows
from replaygen.report.files import write_bytes
from replaygen.report.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from replaygen.plan import Plan
    from replaygen.runs.replay import ReplaySample
    from replaygen.sample import Image8, Mask8

WIDTH, DPI = 12.0, 100
"""The picture's width in inches, and pixels an inch."""

STRIP = 8
"""Replay samples in the strip."""


@dataclass(frozen=True)
class Overview:
    """What the picture shows.

    Attributes:
        columns: (title, method) left to right, behind image and truth.
        strip: replay samples with their class names.
    """

    names: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    scenes: tuple[Scene, ...]
    strip: tuple[tuple[str, ReplaySample], ...]


def overview_png(plan: Plan, path: str | Path) -> Path:
    """Write a PNG, 1200 pixels wide: image, truth, finetune, RECALL and joint after the last step; replay below.

    Columns whose row was not run are left out; where none of the three is there, the recipe's first three rows are
    shown. The scenes are the first three that have all columns, with most classes in the truth: results have no say.

    Raises:
        ReplaygenError: the place cannot be written.
        StoreError, DataError: an object is damaged.
    """
    seed = plan.recipe.table.train.seeds[0]
    columns = _columns(plan)
    found = scenes(examples(plan, seed))
    return write_bytes(Path(path), draw(Overview(
        plan.opened.scenario.names, columns, choose(found, [method for _, method in columns]), _strip(plan),
    )))  # fmt: skip


def _columns(plan: Plan) -> tuple[tuple[str, str], ...]:
    rows = plan.recipe.table.method
    chosen = []
    for trainer, title in (("finetune", "finetune"), ("recall", "RECALL"), ("joint", "joint training")):
        named = [row.name for row in rows if row.name == trainer] or [
            row.name for row in rows if row.trainer == trainer
        ]
        chosen += [(title, name) for name in named[:1]]
    return tuple(chosen) or tuple((row.name, row.name) for row in rows[:3])


def choose(found: Sequence[Scene], methods: Sequence[str], count: int = 3) -> tuple[Scene, ...]:
    """Scenes that most methods have seen, most classes in the truth first, otherwise in the order given."""
    order = sorted(found, key=lambda scene: (-sum(_last(scene, name) is not None for name in methods),
                                             -len(shows([scene.true]))))  # fmt: skip
    return tuple(order[:count])


def _last(scene: Scene, method: str) -> Mask8 | None:
    steps = [step for name, step in scene.predictions if name == method]
    return scene.predictions[method, max(steps)] if steps else None


def _strip(plan: Plan) -> tuple[tuple[str, ReplaySample], ...]:
    """A few samples of each class; none of other people's photos, which a picture cannot credit."""
    from replaygen.runs.replay import ReplaySet, replay_sets

    sets: dict[str, ReplaySet] = {}
    for found in replay_sets(plan).values():
        sets.setdefault(str(found.manifest["class"]), found)
    share = max(1, STRIP // max(1, len(sets)))
    taken: list[tuple[str, ReplaySample]] = []
    for name, found in sets.items():
        own = (sample for sample in found if sample.about.get("source") not in ("flickr", "web"))
        taken += [(name, sample) for sample, _ in zip(own, range(share), strict=False)]
    return tuple(taken[:STRIP])


def draw(overview: Overview) -> bytes:
    """The picture as PNG bytes; the same overview gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = 2 + len(overview.columns)
    shapes = [scene.image.shape[0] / scene.image.shape[1] for scene in overview.scenes]
    rows = [WIDTH / across * min(1.2, max(0.5, shape)) * 0.97 for shape in shapes]
    strip_row = [WIDTH / STRIP * 0.95] if overview.strip else []
    legend = 0.3 + 0.27 * ((len(_channels(overview)) - 1) // 9)
    height = 0.35 + sum(rows) + (0.5 + strip_row[0] if strip_row else 0.0) + legend + 0.15
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    top = 1 - 0.35 / height
    for scene, row in zip(overview.scenes, rows, strict=True):
        cells: list[Mask8 | None] = [None, scene.true, *(_last(scene, method) for _, method in overview.columns)]
        titles = ["image", "truth", *(title for title, _ in overview.columns)] if top > 1 - 0.36 / height else []
        for i, mask in enumerate(cells):
            place = _axes(figure, (i + 0.02) / across, top - row / height, 0.96 / across, row * 0.97 / height)
            if i == 0 or mask is not None:
                _show(place, scene.image, mask)
            if titles:
                place.set_title(plain(titles[i]), fontsize=12, color="#1b2026", pad=6, parse_math=False)
        top -= row / height
    if overview.strip:
        top -= 0.5 / height
        figure.text(
            0.02 / across, top + 0.14 / height, "replay of old classes, with its labels", fontsize=12, color="#1b2026"
        )
        for i, (_, sample) in enumerate(overview.strip):
            place = _axes(figure, (i + 0.02) / STRIP, top - strip_row[0] / height, 0.96 / STRIP, strip_row[0] / height)
            _show(place, _square(sample.image), _square(sample.mask))
    _legend(figure, overview, height)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _axes(figure: Any, left: float, bottom: float, width: float, height: float) -> Axes:
    place: Axes = figure.add_axes((left, bottom, width, height))
    place.set_axis_off()
    return place


def _show(place: Axes, image: Image8, mask: Mask8 | None) -> None:
    smooth = "nearest" if max(image.shape[:2]) <= 64 else "antialiased"
    place.imshow(image, interpolation=smooth)
    if mask is not None:
        colors = colorize(mask)
        colors[..., 3] = (colors[..., 3] * 0.68).astype("uint8")
        place.imshow(colors, interpolation="nearest")


def _square(array: Image8) -> Image8:
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side]


def _channels(overview: Overview) -> list[int]:
    masks = [scene.true for scene in overview.scenes] + [sample.mask for _, sample in overview.strip]
    masks += [mask for scene in overview.scenes for _, method in overview.columns
              if (mask := _last(scene, method)) is not None]  # fmt: skip
    return shows(masks)


def _legend(figure: Any, overview: Overview, height: float) -> None:
    from matplotlib.patches import Patch

    names = overview.names
    marks = [Patch(facecolor=class_color(channel), label=plain(names[channel]).lstrip("_") or "?")
             for channel in _channels(overview) if channel < len(names)]  # fmt: skip
    if marks:
        legend = figure.legend(
            handles=marks, loc="lower left", bbox_to_anchor=(0.0, 0.06 / height), ncols=min(10, len(marks)),
            frameon=False, fontsize=11, handlelength=1, handleheight=1, columnspacing=1.4,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
