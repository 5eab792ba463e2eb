"""Images with their labels side by side: what a step is given, and what each model sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replaygen.classes import nearest_hint
from replaygen.errors import ReplaygenError
from replaygen.report.colors import class_color
from replaygen.report.examples import Scene, examples, scenes, shows
from replaygen.report.files import write_text
from replaygen.report.pictures import Thumb, overlay, photo
from replaygen.report.sheets import class_name, labels_in
from replaygen.runs.behind import open_shard
from replaygen.sample import decode_mask

if TYPE_CHECKING:
    from replaygen.plan import Plan
    from replaygen.runs import Run
    from replaygen.sample import Image8, Mask8

SIDE = 160
"""Longer side of a picture in a gallery, in pixels."""

LOOKED_AT = 120
"""Images of a step among which those with most classes are chosen."""


@dataclass(frozen=True)
class Cell:
    """One picture: which of the gallery's photos, the label over it (None: the photo alone), and both in words."""

    photo: int
    label: Thumb | None
    alt: str


@dataclass(frozen=True)
class Gallery:
    """Pictures in rows and columns; shows itself in a notebook, `save` writes a page of its own.

    Attributes:
        title, note: what is shown, and what to look for.
        photos: every photograph once.
        columns: a title each, "" for none.
        rows: (title, one cell a column, None where there is no picture).
        legend: (class name, #rrggbb) of every class in the labels.
    """

    title: str
    note: str
    photos: tuple[Thumb, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    legend: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"<Gallery: {self.title or 'pictures'}, {len(self.rows)} rows>"

    def save(self, path: str | Path) -> Path:
        """Write the gallery as one HTML file that asks for nothing outside itself; complete or not at all."""
        from replaygen.report.page import render

        return write_text(Path(path), render("gallery_page.html", gallery=self))

    def _repr_html_(self) -> str:
        from replaygen.report.page import render

        return render("gallery_notebook.html", gallery=self)


Grid = Sequence[tuple[str, Sequence[tuple[int, "Mask8 | None"] | None]]]
"""Rows of (title, cells); a cell is the index of an image and the mask over it, None for the image alone."""


def gallery(
    images: Sequence[Image8], grid: Grid, names: tuple[str, ...], *, columns: Sequence[str] = (), title: str = "",
    note: str = "",
) -> Gallery:  # fmt: skip
    """Draw a gallery.

    Args:
        images: uint8 [H, W, 3], shared by the cells.
        grid: its rows; masks are uint8 [H, W], channels, 255 = ignore.
        names: class names, index = channel.
    """

    def cell(place: tuple[int, Mask8 | None] | None) -> Cell | None:
        if place is None:
            return None
        index, mask = place
        if mask is None:
            return Cell(index, None, "the image alone")
        return Cell(index, overlay(mask, SIDE), labels_in(mask, names))

    masks = [mask for _, cells in grid for place in cells if place for mask in place[1:] if mask is not None]
    return Gallery(
        title, note, tuple(photo(image, SIDE) for image in images), tuple(columns),
        tuple((name, tuple(map(cell, cells))) for name, cells in grid),
        tuple((class_name(names, channel), class_color(channel)) for channel in shows(masks)),
    )  # fmt: skip


# what each model sees


def predictions(run: Run | Plan, method: str | None = None, *, count: int = 4, seed: int | None = None) -> Gallery:
    """Validation images, their truth and what models see in them, kept by every evaluation.

    Which images is decided by their truth (most classes of the first step, then most classes), never by results.

    Args:
        run: a run, or a plan of which some may have run.
        method: a row of the recipe: its models, step by step; default: every row's model after the last step.
        count: images shown, of the 12 that are kept.
        seed: by default the recipe's first.

    Raises:
        ReplaygenError: no such row, or nothing was evaluated yet.
        StoreError, DataError: an object is damaged.
    """
    plan = plan_of(run)
    seed = plan.recipe.table.train.seeds[0] if seed is None else seed
    found = telling(scenes(examples(plan, seed)), plan.opened.scenario.steps[0].new)[:count]
    rows = [row.name for row in plan.recipe.table.method]
    if method is not None and method not in rows:
        raise ReplaygenError(f"no row {method!r}", where=plan.recipe.name, hint=nearest_hint(method, rows))
    if not found:
        raise ReplaygenError("nothing was evaluated yet", where=plan.recipe.name, hint="rg.run(plan) first")
    places = _by_step(found, method) if method is not None else _by_row(found, rows)
    cells = [
        (f"image {i + 1}", [(i, None), (i, scene.true), *_seen(i, scene, places.values())])
        for i, scene in enumerate(found)
    ]
    what = f"{method}, step by step" if method is not None else "after the last step"
    return gallery(
        [scene.image for scene in found], cells, plan.opened.scenario.names, columns=["image", "truth", *places],
        title=f"What the models see: {what}", note="Where a photo is grey, the model says background.",
    )  # fmt: skip


def plan_of(run: Run | Plan) -> Plan:
    """The plan of a run; a plan is its own."""
    from replaygen.plan import Plan

    return run if isinstance(run, Plan) else run.plan


def telling(found: Iterable[Scene], first: Iterable[int]) -> list[Scene]:
    """Scenes in the order of how much can be forgotten in them: most channels of `first`, then most of all."""
    early = set(first)

    def rank(scene: Scene) -> tuple[int, int]:
        there = shows([scene.true])
        return -len(early.intersection(there)), -len(there)

    return sorted(found, key=rank)


Place = tuple[str, int]
"""(row, step); step 0 of a chain is the shared "base"."""


def _by_step(found: Sequence[Scene], method: str) -> dict[str, Place]:
    steps = sorted({step for scene in found for name, step in scene.predictions if name == method})
    places: dict[str, Place] = {f"after step {step}": (method, step) for step in steps}
    return {"after step 0": ("base", 0), **places} if steps and steps[0] == 1 else places


def _by_row(found: Sequence[Scene], rows: Sequence[str]) -> dict[str, Place]:
    last = max(step for scene in found for _, step in scene.predictions)
    there = {place for scene in found for place in scene.predictions}
    return {row: (row, last) for row in rows if (row, last) in there}


def _seen(i: int, scene: Scene, places: Iterable[Place]) -> list[tuple[int, Mask8] | None]:
    return [(i, scene.predictions[place]) if place in scene.predictions else None for place in places]


# what a step is given


def step_images(
    run: Run | Plan, step: int, method: str | None = None, *, count: int = 6, seed: int | None = None
) -> Gallery:  # fmt: skip
    """Training images of a step: all that is there, what their labels tell, and the labels after background inpainting.

    Chosen are those with most old and new classes among the step's first. Needs no run; labels that were not inpainted
    yet, or are not at all, are left out.

    Args:
        method: a row of the recipe that inpaints; default: the first that did.
        seed: by default the recipe's first.

    Raises:
        ScenarioError: no such step.
        StoreError, DataError: an object or a file of the data set is damaged.
    """
    plan = plan_of(run)
    scenario, dataset = plan.opened.scenario, plan.opened.dataset
    at, full, told = scenario.step(step), scenario.full_table(), scenario.step_table(step)
    masks = {image: dataset.mask(image) for image in at.ids[:LOOKED_AT]}

    def rank(image: str) -> int:
        return -len(set(shows([scenario.apply(full, masks[image])])) & set(at.seen))

    chosen = sorted(masks, key=rank)[:count]
    rows: list[tuple[str, list[tuple[int, Mask8 | None] | None]]] = [
        ("the image", [(i, None) for i in range(len(chosen))]),
        ("what is there", [(i, scenario.apply(full, masks[image])) for i, image in enumerate(chosen)]),
        (f"what step {step} is told", [(i, scenario.apply(told, masks[image])) for i, image in enumerate(chosen)]),
    ]
    seed = plan.recipe.table.train.seeds[0] if seed is None else seed
    filled = inpainted(plan, step, chosen, seed=seed, method=method)
    if filled:
        rows.append((
            "background inpainted",
            [(i, filled[image]) if image in filled else None for i, image in enumerate(chosen)],
        ))  # fmt: skip
    new = ", ".join(scenario.names[channel] for channel in at.new)
    return gallery(
        [dataset.image(image) for image in chosen], rows, scenario.names, title=f"Training images of step {step}",
        note=f"Step {step} is to learn: {new}. Where a photo is grey, the label says background.",
    )  # fmt: skip


def inpainted(
    plan: Plan, step: int, ids: Iterable[str], *, seed: int = 0, method: str | None = None
) -> Mapping[str, Mask8]:  # fmt: skip
    """The labels of a step's images after background inpainting, uint8 [H, W] by image; those that were made.

    Args:
        ids: the data set's ids.
        method: a row of the recipe; default: the first that has any.
    """
    from replaygen.datasets import sample_id

    wanted = set(ids)
    found: dict[str, Mask8] = {}
    for slot, key in plan.slots.items():
        kind, _, rest = slot.partition("/")
        if kind != "relabel" or f"/seed{seed}/step{step}/" not in f"/{rest}":
            continue
        if method is not None and not rest.startswith(f"{method}/seed"):
            continue
        record = plan.store.get(key)
        mine = wanted.intersection(record.params.get("ids", ())) - set(found) if record is not None else set()
        if record is None or not mine:
            continue
        shard = open_shard(plan.store, record, "labels")
        found |= {image: decode_mask(shard.read(sample_id(image), "mask.png"), where=image) for image in mine}
    return found
