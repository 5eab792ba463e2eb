"""The plan as a picture: one box a stage, in the order of the walk, with what is cached and how long it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from replaygen.errors import ReplaygenError
from replaygen.plan.estimate import read_statistics, seconds_of
from replaygen.report.files import check_folder, write_text
from replaygen.report.layers import Edge, Layout, laid_out
from replaygen.report.text import duration, plain, plural

if TYPE_CHECKING:
    from markupsafe import Markup

    from replaygen.plan import Plan

WALK = {
    "photos": "photos from a folder",
    "class-map": "the generator's classes, matched",
    "biggan": "images from BigGAN",
    "diffusion": "images from a diffusion model",
    "fit-generator": "a generator for a step's images",
    "fitted": "images from the fitted generators",
    "flickr-search": "photos found, their order fixed",
    "url-list": "addresses, their order fixed",
    "fetch": "downloaded, decoded, licensed",
    "looks": "what is seen in each photo",
    "looks-evaluated": "what is seen in test images",
    "select": "which photos are kept, and why",
    "given-base": "a model that was there before",
    "features-current": "what the frozen encoder sees",
    "helper": "decoders that label one step",
    "uncertainty": "how sure the old model is",
    "relabel": "old classes into new labels",
    "remove": "old classes out of new images",
    "exemplars": "images kept of earlier steps",
    "features-replay": "what the frozen encoder sees",
    "given-labels": "masks that came with the images",
    "label": "by the model that learnt them",
    "quality": "generated images, measured",
    "standards": "what labels of real images are",
    "trust": "which labels are kept, and why",
    "erase": "other classes out of images",
    "knowledge": "later classes into its labels",
    "replay": "one set a class, closed",
    "train": "each step from the one before",
    "evaluate": "all seen classes, after each step",
}
"""Every stage in the order of the walk, in a few words; an edge that leads back is one of the step before."""

BOX, TALL, GAP, LANE, ROOM = 204, 66, 44, 26, 20
"""A box's width and height, the room between layers, the width of an edge that passes a layer, room at the sides."""

HEAD = 34
RADIUS = 6
SMALLEST = 0.8
"""How far the picture may shrink to fit, so that it can be read; beyond that what it stands in scrolls."""

ACCENT, TO_RUN = "var(--heat, #2b7bba)", "var(--warm, #c8641b)"

STANDALONE = (
    "svg{color:#1b2026;background:#fff;font-family:system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#e4e7ea;background:#14181c}}"
)


@dataclass
class Box:
    """A stage of a plan.

    Attributes:
        tasks, cached: how many there are, and how many of them stand.
        took: seconds that those took, whoever did them; to_go: seconds expected of the others.
    """

    stage: str
    tasks: int = 0
    cached: int = 0
    took: float = 0.0
    to_go: float = 0.0

    @property
    def said(self) -> str:
        """How long it took and will take, in words."""
        took = duration(self.took) if self.cached else ""
        ahead = f"about {duration(self.to_go)} to go" if self.cached < self.tasks else ""
        return ", ".join(filter(None, (took, ahead)))


def boxes(plan: Plan) -> list[Box]:
    """One box a stage, in the order of the walk; reads the record of every cached task, runs nothing."""
    found: dict[str, Box] = {}
    measured = read_statistics(Path(plan.store.root))
    for key, task in plan.tasks.items():
        box = found.setdefault(task.stage, Box(task.stage))
        box.tasks += 1
        record = plan.store.get(key) if plan.status[key].cached else None
        if record is None:
            box.to_go += seconds_of(task, measured)
        else:
            box.cached += 1
            box.took += record.seconds
    order = walked(found)
    return [found[stage] for stage in order]


def walked(stages: Iterable[str]) -> list[str]:
    """Stages in the order of the walk; those it does not know come last, by name."""
    known = {stage: i for i, stage in enumerate(WALK)}
    return sorted(stages, key=lambda stage: (known.get(stage, len(known)), stage))


def ways(plan: Plan) -> tuple[set[Edge], set[Edge]]:
    """(stage, stage made from it): forward in the walk, and back to what an earlier step's model is needed for."""
    pairs = {
        (plan.tasks[source].stage, task.stage)
        for task in plan.tasks.values() for _, source in task.inputs if source in plan.tasks
    }  # fmt: skip
    place = {stage: i for i, stage in enumerate(walked({stage for pair in pairs for stage in pair}))}
    back = {(start, end) for start, end in pairs if place[start] > place[end]}
    return {(start, end) for start, end in pairs if place[start] < place[end]}, back


def plan_picture(plan: Plan, *, timed: bool = True) -> Markup:
    """The plan as SVG: it scales, asks for nothing outside itself, has no script and no ids.

    Text takes the colour of the text around, bars the page's `--heat` and `--warm` or a default, so that it is right on
    light and on dark ground. Edges that follow from others are left out; dashed ones lead back, to what
    an earlier step's model makes. What it stands in should scroll sideways: it does not shrink beyond reading.

    Args:
        timed: say above it how long what is to run will take.

    Returns:
        an `<svg>` element, escaped.
    """
    from markupsafe import Markup

    return Markup(_drawn(plan, "", timed=timed))


def write_picture(plan: Plan, out: Path) -> Path:
    """Write the picture to a file, `.svg` or `.html`, complete or not at all.

    Raises:
        ReplaygenError: another ending, or a place that cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in (".svg", ".html"):
        raise ReplaygenError(
            "a picture of a plan is SVG, in a file or in a page", where=str(out), hint="end its name in .svg or .html"
        )
    check_folder(out)
    if out.suffix.lower() == ".svg":
        return write_text(out, _drawn(plan, f"<style>{STANDALONE}</style>") + "\n")
    from replaygen.report.page import render

    return write_text(out, render("planned.html", name=plan.recipe.name, picture=plan_picture(plan)))


def _drawn(plan: Plan, style: str, *, timed: bool = True) -> str:
    shown = boxes(plan)
    forward, back = ways(plan)
    layout = laid_out([box.stage for box in shown], forward)
    at, width, height = _places(layout)
    right = width - ROOM / 2 if back else width
    parts = [_edge(path, at) for path in layout.paths.values()]
    parts += _returns(back, layout, at, right)
    parts += [_box(box, *at[place]) for box in shown for place in [_place(layout, box.stage)]]
    told = _told(plan, shown, timed=timed)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="rg-plan" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="width:100%;min-width:{SMALLEST * width:.0f}px;max-width:{width:.0f}px" font-size="13" '
        f'fill="currentColor">'
        f"<title>{_text(f'The plan of {plan.recipe.name}')}</title><desc>{_text(_words(told, shown))}</desc>{style}"
        f'<text x="{ROOM}" y="20">{_text(told)}</text>{"".join(parts)}</svg>'
    )


def _told(plan: Plan, shown: Sequence[Box], *, timed: bool) -> str:
    tasks, cached = sum(box.tasks for box in shown), sum(box.cached for box in shown)
    told = f"{plural(tasks, 'task')}: {cached} cached, {tasks - cached} to run"
    return told if cached == tasks or not timed else f"{told}, about {duration(plan.estimate.seconds)}"


def _words(told: str, shown: Sequence[Box]) -> str:
    """The picture for those who do not see it."""
    parts = [f"{box.stage}: {plural(box.tasks, 'task')}, {box.cached} cached, {box.said or 'nothing yet'}"
             for box in shown]  # fmt: skip
    return f"{told}. In the order of the walk: {'; '.join(parts)}."


def _place(layout: Layout, stage: str) -> tuple[int, int]:
    return next((i, row.index(stage)) for i, row in enumerate(layout.layers) if stage in row)


def _places(layout: Layout) -> tuple[Mapping[tuple[int, int], tuple[float, float]], float, float]:
    """(layer, place) -> its left upper corner, and the picture's width and height; every layer stands in the middle."""
    wide = [sum(BOX if name else LANE for name in row) + ROOM * (len(row) - 1) for row in layout.layers]
    width = max(wide, default=BOX) + 3 * ROOM
    at = {}
    for i, row in enumerate(layout.layers):
        x = (width - ROOM - wide[i]) / 2
        for j, name in enumerate(row):
            at[i, j] = (x, HEAD + i * (TALL + GAP))
            x += (BOX if name else LANE) + ROOM
    return at, width, HEAD + len(layout.layers) * (TALL + GAP) - GAP + ROOM


def _edge(path: Sequence[tuple[int, int]], at: Mapping[tuple[int, int], tuple[float, float]]) -> str:
    """A curve from a box's lower side to another's upper side, through the lanes between, with a head."""
    x, y = at[path[0]][0] + BOX / 2, at[path[0]][1] + TALL
    drawn = f"M{x:.1f} {y:.1f}"
    for place in path[1:]:
        last = place == path[-1]
        ahead = at[place][0] + (BOX if last else LANE) / 2
        top = at[place][1] - (RADIUS if last else 0)
        drawn += f"C{x:.1f} {y + GAP / 2:.1f} {ahead:.1f} {top - GAP / 2:.1f} {ahead:.1f} {top:.1f}"
        x, y = ahead, top
        if not last:
            y = at[place][1] + TALL
            drawn += f"V{y:.1f}"
    return (
        f'<path d="{drawn}" fill="none" stroke="currentColor" stroke-opacity=".45" stroke-width="1.5"/>'
        f"{_head(x, y + RADIUS, 'currentColor', '.55')}"
    )


def _returns(
    back: Iterable[Edge], layout: Layout, at: Mapping[tuple[int, int], tuple[float, float]], right: float
) -> list[str]:
    """Dashed ways up the right side, from a box to the boxes above that need it of the step before."""
    parts = []
    line = f'fill="none" stroke="{ACCENT}" stroke-width="1.5" stroke-dasharray="4 3"'
    for start in sorted({start for start, _ in back}):
        ends = sorted((_place(layout, end) for first, end in back if first == start), key=lambda place: at[place][1])
        x, y = at[_place(layout, start)]
        side = y + TALL / 2
        for end in ends:
            into, top = at[end][0] + BOX * 0.78, at[end][1]
            parts.append(f'<path d="M{right:.1f} {side:.1f}V{top - 14:.1f}H{into:.1f}V{top - RADIUS:.1f}" {line}/>')
            parts.append(_head(into, top, ACCENT, "1"))
        parts.append(f'<path d="M{x + BOX:.1f} {side:.1f}H{right:.1f}" {line}/>')
        told = "for the next step" if start == "train" else ""
        parts.append(f'<text x="{right - 6:.1f}" y="{side - 6:.1f}" text-anchor="end" font-size="11" '
                     f'fill-opacity=".75">{told}</text>')  # fmt: skip
    return parts


def _head(x: float, y: float, color: str, opacity: str) -> str:
    return f'<path d="M{x:.1f} {y:.1f}l-4 -7h8z" fill="{color}" fill-opacity="{opacity}"/>'


def _box(box: Box, x: float, y: float) -> str:
    """Name and tasks, a few words, a bar of what is cached, and the time."""
    share = box.cached / box.tasks
    inner = BOX - 24
    bar = f'<rect x="12" y="40" width="{inner}" height="4" rx="2"'
    tasks = f"{box.tasks}" if share == 1 else f"{box.cached} of {box.tasks}"
    return (
        f'<g transform="translate({x:.1f} {y:.1f})">'
        f'<rect width="{BOX}" height="{TALL}" rx="6" style="fill:var(--ground,Canvas)"/>'
        f'<rect width="{BOX}" height="{TALL}" rx="6" fill-opacity=".05" stroke="currentColor" stroke-opacity=".3"/>'
        f'<text x="12" y="19" font-weight="600">{_text(box.stage)}</text>'
        f'<text x="{BOX - 12}" y="19" text-anchor="end" font-size="12">{tasks}</text>'
        f'<text x="12" y="34" font-size="11" fill-opacity=".75">{_text(WALK.get(box.stage, ""))}</text>'
        f'{bar} fill="{TO_RUN if share < 1 else "currentColor"}" fill-opacity=".{"45" if share < 1 else "15"}"/>'
        + (f'{bar.replace(f"{inner}", f"{inner * share:.1f}", 1)} fill="{ACCENT}"/>' if share else "")
        + f'<text x="12" y="58" font-size="11" fill-opacity=".75">{_text(box.said)}</text></g>'
    )


def _text(text: str) -> str:
    return escape(plain(text))
