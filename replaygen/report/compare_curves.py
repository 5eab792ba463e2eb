"""The curves of several runs in one chart: a run has a colour, a method its marker and its way of drawing the line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from replaygen.report.curves import FAINT, INK, MARKERS, TITLES, Curve, curves, short, spread, stand_in, themed
from replaygen.report.text import plain
from replaygen.runs.results import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 12
"""Lines in a chart, those that end highest; more cannot be told apart."""

STYLES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (7, 2, 2, 2)), (0, (1, 1)), (0, (9, 3)))


def together_svg(runs: Sequence[tuple[str, RunResult]], metric: str) -> str:
    """mIoU over steps of every row of several runs, each named at its line's end.

    The same runs give the same text; colours and text are those of the page it stands in, as in `curves_svg`.

    Args:
        runs: (what the run is called, its result); its place decides the colour.
        metric: "all", "old" or "new".
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(method for _, result in runs for method in result.methods()))
    lines = [(i, letter, line) for i, (letter, result) in enumerate(runs) for line in curves(result, metric)]
    lines.sort(key=lambda one: -one[2].means[-1])
    left_out = len(lines) - len(lines[:MOST_LINES])
    lines = sorted(lines[:MOST_LINES], key=lambda one: one[0])
    last = max((len(result.step_names) for _, result in runs), default=1) - 1
    with mpl.rc_context({"svg.hashsalt": f"replaygen together {metric}", "svg.fonttype": "none"}):
        figure = Figure(figsize=(5.2, 4.0))
        FigureCanvasSVG(figure)
        panel = figure.subplots()
        for i, _, line in lines:
            place = methods.index(line.method)
            _line(panel, line, stand_in(i), place, last)
        _ends(panel, lines, last, metric)
        figure.subplots_adjust(left=0.07, right=0.98, bottom=0.11, top=0.92)
        written = io.BytesIO()
        empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(written, format="svg", transparent=True, metadata=empty)
    label = f"mIoU over steps, {TITLES.get(metric, plain(metric))}: runs " + ", ".join(letter for letter, _ in runs)
    label += f"; {left_out} lower lines are left out" if left_out else ""
    return themed(written.getvalue(), prefix=f"together-{metric}", label=label)


def _line(panel: Axes, line: Curve, color: str, place: int, last: int) -> None:
    marker, style = MARKERS[place % len(MARKERS)], STYLES[place % len(STYLES)]
    if any(line.deviations):
        low = [mean - deviation for mean, deviation in zip(line.means, line.deviations, strict=True)]
        high = [mean + deviation for mean, deviation in zip(line.means, line.deviations, strict=True)]
        panel.fill_between(line.steps, low, high, color=color, alpha=0.1, linewidth=0)
    if len(line.steps) == 1:
        panel.plot([0, last], [line.means[0]] * 2, color=color, linewidth=1, linestyle=(0, (4, 3)))
    panel.plot(line.steps, line.means, color=color, linewidth=1.8, linestyle=style, marker=marker, markersize=5,
               clip_on=False)  # fmt: skip


def _ends(panel: Axes, lines: Sequence[tuple[int, str, Curve]], last: int, metric: str) -> None:
    """Names and values at the lines' ends, the axes and the title."""
    top = max((mean + deviation for _, _, line in lines for mean, deviation in
               zip(line.means, line.deviations, strict=True)), default=1.0)  # fmt: skip
    ceiling = min(100.0, top * 1.08 + 1)
    heights = spread([line.means[-1] for _, _, line in lines], ceiling * 0.052)
    for height, (i, letter, line) in zip(heights, lines, strict=True):
        said = f"{letter} {short(plain(line.method), 16)} {line.means[-1]:.1f}"
        panel.text(last + 0.05 * max(1, last), height, said, color=stand_in(i), fontsize=9.5, va="center",
                   parse_math=False)  # fmt: skip
    panel.set_title(TITLES.get(metric, plain(metric)), loc="left", fontsize=11, color=INK, fontweight="bold", pad=8)
    panel.set_xlim(-0.06 * max(1, last), last + 0.6 * max(1, last))
    panel.set_ylim(0, ceiling)
    panel.set_xticks(range(last + 1), [str(step) for step in range(last + 1)])
    panel.set_xlabel("step", fontsize=9.5, color=INK, x=last * 0.62 / max(1, 1.66 * last))
    panel.tick_params(labelsize=9.5, colors=INK, length=0, pad=5)
    panel.grid(axis="y", color=FAINT, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.set_facecolor("none")
    for spine in panel.spines.values():
        spine.set_visible(False)
