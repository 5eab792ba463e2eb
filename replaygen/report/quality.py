"""How good the generated replay is: a table, curves over the fit, and the images closest to a training image."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from replaygen.report.curves import FAINT, INK, MARKERS, short, spread, stand_in, themed
from replaygen.report.pictures import Thumb, photo
from replaygen.report.text import number, plain
from replaygen.sample import decode_image
from replaygen.store import Record, Shard, Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from replaygen.plan import Plan

LINES = 6
"""Classes in one chart at most."""

CLOSEST = 3
"""Generated images shown a class, of those that come closest to a training image."""

MOST_CLOSEST = 48
"""Of these on a whole page at most."""


@dataclass(frozen=True)
class Close:
    """A generated image beside what it may be a copy of: the training image's id, and d = sqrt(2 - 2 r) of the two."""

    id: str
    image: Thumb
    real: str
    distance: float
    memorised: bool


@dataclass(frozen=True)
class Quality:
    """The numbers of one class of one source; None where there were too few images to say.

    Attributes:
        seed: whose step-0 encoder and labels were used.
        generated, accepted: images made, and those in which the labelling model found the class.
        real: real images of the class in its step, which the others are compared to.
        found: accepted / generated, percent.
        area, real_area: mean share of the class in a picture, percent.
        diversity: mean distance between two generated images over that between two real ones, percent.
        precision, coverage: percent; see `replaygen.generators.quality.Manifolds`.
        kid, deviation, floor: times 1000; what real images score against real ones stays below `floor`.
        memorised: share that are copies of training images, percent; `real_memorised`: the same of training images.
        curve: (iteration, KID times 1000) of the fit's snapshots.
    """

    name: str
    source: str
    seed: int
    generated: int
    accepted: int
    real: int
    found: float | None
    area: float | None
    real_area: float | None
    diversity: float | None
    precision: float | None
    coverage: float | None
    kid: float | None
    deviation: float | None
    floor: float | None
    memorised: float | None
    real_memorised: float | None
    curve: tuple[tuple[int, float], ...] = ()
    closest: tuple[Close, ...] = ()


def qualities(plan: Plan, seed: int) -> list[Quality]:
    """The quality of every generated class of a plan, in plan order; what was not made yet is left out.

    Args:
        seed: whose step-0 encoder and labels were used.

    Raises:
        StoreError, DataError: an object is damaged.
    """
    found, left = [], MOST_CLOSEST
    for slot, key in plan.slots.items():
        source, middle, _ = slot.removeprefix("quality/").partition(f"/seed{seed}/")
        record = plan.store.get(key) if slot.startswith("quality/") and middle else None
        if record is None:
            continue
        told = json.loads(plan.store.read(record.output("quality.json").digest))
        closest = tuple(_closest(plan.store, record, told["pairs"][: min(CLOSEST, left)]))
        left -= len(closest)
        found.append(_quality(source, seed, told, closest))
    return found


def _quality(source: str, seed: int, told: dict[str, Any], closest: tuple[Close, ...]) -> Quality:
    spread_of_real = told["real_diversity"]
    return Quality(
        name=told["class"], source=source, seed=seed,
        generated=told["generated"], accepted=told["accepted"], real=told["real"],
        found=_times(told["found_share"], 100), area=_times(told["area"], 100),
        real_area=_times(told["real_area"], 100),
        diversity=_times(told["diversity"], 100 / spread_of_real) if spread_of_real else None,
        precision=_times(told["precision"], 100), coverage=_times(told["coverage"], 100),
        kid=_times(told["kid"], 1000), deviation=_times(told["kid_std"], 1000), floor=_times(told["kid_floor"], 1000),
        memorised=_times(told["memorised_share"], 100), real_memorised=_times(told["real_memorised_share"], 100),
        curve=tuple((point["iteration"], 1000.0 * point["kid"]) for point in told["curve"]
                    if point["kid"] is not None),
        closest=closest,
    )  # fmt: skip


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _closest(store: Store, record: Record, pairs: Sequence[dict[str, Any]]) -> Iterator[Close]:
    """The pictures of some pairs, from the image shards that the quality was measured on; those gone are left out."""
    wanted = {pair["generated"]: pair for pair in pairs}
    pictures: dict[str, Thumb] = {}
    for made in (store.get(key) for role, key in record.inputs if role == "images" and wanted):
        if made is None or len(pictures) == len(wanted):
            continue
        shard = Shard(
            store.open_object(made.output("images.tar").digest), store.read(made.output("images.index.json").digest)
        )
        for sample in wanted:
            if sample in shard:
                extension = "png" if "png" in shard.extensions(sample) else "jpg"
                pictures[sample] = photo(decode_image(shard.read(sample, extension), where=sample))
    for sample, pair in wanted.items():
        if sample in pictures:
            yield Close(sample, pictures[sample], pair["real"], pair["distance"], pair["memorised"])


def quality_charts(found: Sequence[Quality]) -> list[str]:
    """KID over the iterations of a fit: an `<svg>` for each source, a line a class, six classes in one at most."""
    charts: list[str] = []
    for source in dict.fromkeys(quality.source for quality in found):
        drawn = [quality for quality in found if quality.source == source and quality.curve]
        parts = -(-len(drawn) // LINES)
        for part in range(parts):
            lines = drawn[part * len(drawn) // parts : (part + 1) * len(drawn) // parts]
            charts.append(_chart(lines, len(charts)))
    return charts


def _chart(lines: Sequence[Quality], index: int) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": f"replaygen quality {index}", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.2, 3.1))
        FigureCanvasSVG(figure)
        _draw(figure.subplots(), lines)
        figure.subplots_adjust(left=0.1, right=0.98, bottom=0.15, top=0.9)
        written = io.BytesIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    names = ", ".join(plain(line.name) for line in lines)
    return themed(written.getvalue(), prefix=f"quality-{index}", label=f"KID over iterations of the fit: {names}")


def _draw(panel: Axes, lines: Sequence[Quality]) -> None:
    values = [value for line in lines for _, value in line.curve]
    last = max(iteration for line in lines for iteration, _ in line.curve)
    low, high = min(0.0, *values), max(*values, 1e-6)
    room = 0.08 * (high - low)
    ends = [line.curve[-1][1] - low for line in lines]
    for i, (line, height) in enumerate(zip(lines, spread(ends, 0.066 * (high - low + 2 * room)), strict=True)):
        iterations, scores = zip(*line.curve, strict=True)
        panel.plot(iterations, scores, color=stand_in(i), linewidth=2, marker=MARKERS[i % len(MARKERS)], markersize=5,
                   clip_on=False, solid_capstyle="round")  # fmt: skip
        panel.text(last * 1.04, low + height, f"{short(plain(line.name), 14)} {number(scores[-1])}", color=stand_in(i),
                   fontsize=9.5, va="center", parse_math=False)  # fmt: skip
    floors = [line.floor for line in lines if line.floor is not None]
    if floors:
        panel.plot([0, last], [sum(floors) / len(floors)] * 2, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    panel.set_title(f"KID × 1000, {short(plain(lines[0].source), 24)}", loc="left", fontsize=11, color=INK,
                    fontweight="bold", pad=8, parse_math=False)  # fmt: skip
    panel.set_xlim(0, last * 1.5)
    panel.set_ylim(low - room, high + room)
    panel.set_xticks([0, last / 2, last], ["0", f"{last / 2:.0f}", str(last)])
    panel.set_xlabel("iteration", fontsize=9.5, color=INK, x=0.33)
    panel.tick_params(labelsize=9.5, colors=INK, length=0, pad=5)
    panel.grid(axis="y", color=FAINT, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.set_facecolor("none")
    for spine in panel.spines.values():
        spine.set_visible(False)


COLUMNS = (
    "class", "source", "generated", "accepted", "found %", "diversity %", "precision %", "coverage %", "KID x 1000",
    "floor",
    "memorised %",
)  # fmt: skip


def cells(quality: Quality) -> tuple[str, ...]:
    """What stands in `COLUMNS`."""
    percent = (quality.found, quality.diversity, quality.precision, quality.coverage)
    return (
        plain(quality.name), plain(quality.source), str(quality.generated), str(quality.accepted),
        *(number(value, 0) for value in percent), number(quality.kid), number(quality.floor), number(quality.memorised),
    )  # fmt: skip


def quality_rows(found: Iterable[Quality]) -> list[dict[str, Any]]:
    """Plain data with stable keys, without the pictures."""
    rows = [asdict(quality) for quality in found]
    for row in rows:
        row["closest"] = [{key: value for key, value in close.items() if key != "image"} for close in row["closest"]]
    return rows


def quality_text(found: Iterable[Quality]) -> str:
    """An aligned table for the terminal, with a column of seeds where there are several; "" where there is nothing."""
    found = list(found)
    if not found:
        return ""
    table = [COLUMNS, *map(cells, found)]
    if len({quality.seed for quality in found}) > 1:
        seeds = ["seed", *(str(quality.seed) for quality in found)]
        table = [(*row[:2], seed, *row[2:]) for row, seed in zip(table, seeds, strict=True)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in table]  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)
