"""The page of a run: gather what the store has, render it with escaping on, write it in one piece."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.report.attribution import PhotoSummary, photo_summary
from replaygen.report.colors import METHODS, METHODS_DARK, class_color
from replaygen.report.contents import Contents, contents
from replaygen.report.curves import curves_svg
from replaygen.report.examples import Scene, examples, scenes, shows
from replaygen.report.files import check_folder, write_text
from replaygen.report.fits import FitSamples, fit_samples
from replaygen.report.headline import headline
from replaygen.report.mistakes import NONE, Mistakes, mistakes
from replaygen.report.pictures import Thumb, overlay, photo
from replaygen.report.published import COMPARABILITY, Beside, beside
from replaygen.report.quality import Quality, qualities, quality_charts
from replaygen.report.rejected import PAGE_FLICKR, Rejected, rejected
from replaygen.report.sheets import MOST_FLICKR, Sheet, sheets
from replaygen.report.strips import Group, groups
from replaygen.report.summary import Summary, rejections, summary
from replaygen.report.tables import best_against, confusions, courses, final_rows, finding, heats
from replaygen.report.text import count, duration, number, plain, plural, size
from replaygen.runs.proof import proofs
from replaygen.runs.results import RunResult, read_result

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from replaygen.plan import Plan

SCENE_SIDE = 176
"""Longer side of a validation image on the page, in pixels."""

OPEN_SCENES = 4
"""Scenes shown at once; the others are folded away."""


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    Attributes:
        names: channel names, index = channel.
        photos: of other people, None where none were crawled.
        published: rows of papers that the recipe compares with; coarse: its coarse classes.
        scenes: of `seed`, as are the sheets, the judged labels, and all below.
        mistakes: images behind the matrices; rejected: what did not become replay, None where nothing was refused.
        contents: classes in the replay; picture: the plan as SVG, "" to leave it out.
    """

    result: RunResult
    names: tuple[str, ...]
    seed: int
    scenes: tuple[Scene, ...]
    sheets: tuple[Sheet, ...]
    summary: Summary
    qualities: tuple[Quality, ...] = ()
    fits: tuple[FitSamples, ...] = ()
    photos: PhotoSummary | None = None
    labels: tuple[Group, ...] = ()
    published: tuple[Beside, ...] = ()
    coarse: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mistakes: Mistakes = NONE
    rejected: Rejected | None = None
    contents: tuple[Contents, ...] = ()
    picture: Markup | str = ""


def write_report(plan: Plan, out: Path) -> Path:
    """Write the HTML page of a run, one file that asks for nothing outside itself.

    What was not made yet is left out, so a page can be written while the run goes on.

    Args:
        out: the file, or a folder to put `<recipe>.html` in.

    Raises:
        ReplaygenError: the place cannot be written.
        StoreError, DataError: an object that the page shows is damaged.
    """
    out = Path(out)
    path = out / f"{plan.recipe.name}.html" if out.is_dir() else out
    check_folder(path)
    return write_text(path, page(gather(plan)))


def gather(plan: Plan) -> Report:
    """Read everything that the page shows; pictures and replay of the first seed only."""
    from replaygen.report.planned import plan_picture

    plan = replace(plan)  # with a status of its own: of now, not of before the run
    result = read_result(plan)
    seed = min(result.seeds() or plan.recipe.table.train.seeds)
    labels = tuple(groups(plan, seed))
    flickr = MOST_FLICKR - sum(group.flickr for group in labels)
    refused = rejected(plan, seed, flickr=min(flickr, PAGE_FLICKR))
    flickr -= refused.flickr if refused else 0
    return Report(
        result, plan.opened.scenario.names, seed, tuple(scenes(examples(plan, seed))),
        tuple(sheets(plan, seed, flickr=flickr)), summary(plan), tuple(qualities(plan, seed)),
        tuple(fit_samples(plan)), photo_summary(proofs(plan)), labels,
        beside(plan.recipe.table), plan.recipe.table.coarse, mistakes(plan, seed), refused,
        tuple(contents(plan, seed)), plan_picture(plan),
    )  # fmt: skip


def page(report: Report) -> str:
    """The page as HTML text; the same report gives the same text."""
    from markupsafe import Markup

    result = report.result
    rows = final_rows(result, report.coarse)
    charts = [Markup(curves_svg(result, [metric])) for metric in _metrics(result)]
    quality = [Markup(chart) for chart in quality_charts(report.qualities)]
    strips = [_strip(scene, report) for scene in report.scenes]
    published = {one.method: one.published for one in report.published}
    return render(
        "report.html", report=report, result=result, rows=rows, finding=finding(rows), charts=charts,
        heats=heats(result), confusions=confusions(result), strips=strips, open_scenes=OPEN_SCENES,
        legend=_legend(report), columns=_columns(report), rejections=rejections(report.summary.stages),
        seeds=result.seeds(), images=max((step.images for step in result.steps), default=0),
        qualities=report.qualities, fits=report.fits, quality_charts=quality,
        photos=report.photos, labels=report.labels, attribution=_attribution(report.summary),
        coarse=report.coarse, courses=courses(result), against=best_against(result), comparability=COMPARABILITY,
        published=published, headline=headline(rows, published), mistakes=report.mistakes,
        rejected=report.rejected, contents=report.contents,
        picture=report.picture,
        counted=any(step.metrics.get("background_counted") for step in result.steps),
    )  # fmt: skip


def _metrics(result: RunResult) -> list[str]:
    told = ["all", "old", "new"]
    return [name for name in told if any(step.metrics.get(name) is not None for step in result.steps)]


@dataclass(frozen=True)
class Strip:
    """A scene on the page: image, truth, and a row of predictions a method."""

    id: str
    image: Thumb
    true: Thumb
    classes: str
    rows: tuple[tuple[str, tuple[Thumb | None, ...]], ...]


def _strip(scene: Scene, report: Report) -> Strip:
    drawn = {place: overlay(mask, SCENE_SIDE) for place, mask in scene.predictions.items()}
    rows = []
    for method in report.result.methods():
        cells = []
        chain = any(step > 0 and (name, step - 1) in drawn for name, step in drawn if name == method)
        chain = chain or (method, 1) in drawn
        for step in _columns(report):
            shared = drawn.get(("base", step)) if chain else None
            cells.append(drawn.get((method, step), shared))
        if any(cells):
            rows.append((method, tuple(cells)))
    classes = ", ".join(plain(_name(report.names, channel)) for channel in shows([scene.true]))
    return Strip(
        scene.id, photo(scene.image, SCENE_SIDE), overlay(scene.true, SCENE_SIDE), classes or "background only",
        tuple(rows),
    )  # fmt: skip


def _columns(report: Report) -> list[int]:
    return sorted({step for scene in report.scenes for _, step in scene.predictions})


def _attribution(told: Summary) -> str:
    """What to type for a file that names who made every photo."""
    return f"replaygen crawl attribution {told.command.removeprefix('replaygen run ')} --out ATTRIBUTION.md"


def _legend(report: Report) -> list[tuple[str, str]]:
    masks = [mask for scene in report.scenes for mask in (scene.true, *scene.predictions.values())]
    return [(_name(report.names, channel), class_color(channel)) for channel in shows(masks)]


def _name(names: tuple[str, ...], channel: int) -> str:
    return names[channel] if channel < len(names) else f"channel {channel}"


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; every text is stripped of control characters and escaped."""
    return environment().get_template(template).render(**values)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates, with autoescape on, unknown names an error, and `plain` over every text that is printed."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("replaygen.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_printed,
    )  # fmt: skip
    made.filters |= {"number": number, "duration": duration, "size": size, "plural": plural, "count": count}
    script = _asset(made, "page.js")
    made.globals |= {
        "style": _asset(made, "page.css"), "sheet_style": _asset(made, "sheet.css"), "script": script,
        "labels_style": _asset(made, "labels.css"),
        "script_sha": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "series": _series(METHODS), "series_dark": _series(METHODS_DARK),
    }  # fmt: skip
    return made


def _printed(value: Any) -> Any:
    return plain(value) if type(value) is str else value


def _asset(made: Environment, name: str) -> Markup:
    from markupsafe import Markup

    assert made.loader is not None
    return Markup(made.loader.get_source(made, name)[0])


def _series(colors: tuple[str, ...]) -> Mapping[str, str]:
    return {f"--series-{i}": color for i, color in enumerate(colors, start=1)}
