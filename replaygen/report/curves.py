"""Curves of mIoU over steps, as SVG that takes its colours from the page it stands in."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from replaygen.report.colors import METHODS
from replaygen.report.text import deviation_of, mean_of, plain
from replaygen.runs.results import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#010203", "#010204"
"""Stand-ins while drawing; `themed` puts the page's colours in their place."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TITLES = {"all": "all classes", "old": "old classes", "new": "new classes"}


@dataclass(frozen=True)
class Curve:
    """One method's line: steps, means and standard deviations (0 for one seed) in percent."""

    method: str
    steps: tuple[int, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]


def curves(result: RunResult, metric: str) -> list[Curve]:
    """One curve a method, of "all", "old" or "new" mIoU over seeds; steps without a value are left out."""
    found = []
    for method in result.methods():
        values: dict[int, list[float | None]] = {}
        for seed in result.seeds():
            for step in result.of(method, seed):
                values.setdefault(step.step, []).append(step.metrics.get(metric))
        points = [(step, mean_of(told), deviation_of(told) or 0.0) for step, told in sorted(values.items())]
        known = [(step, mean, deviation) for step, mean, deviation in points if mean is not None]
        if known:
            steps, means, deviations = zip(*known, strict=True)
            found.append(Curve(method, steps, means, deviations))
    return found


def curves_svg(result: RunResult, metrics: Sequence[str] = ("all", "old", "new")) -> str:
    """mIoU over steps, one panel a metric, one line a method with its name at the end.

    The same result gives the same text. Text and axes take the colour of the text around (`currentColor`), lines the
    CSS variables `--series-1` and on, or a dark enough default where the page sets none. A method with a single point
    (joint training) is a marker with a dashed line across. Bands are ± one standard deviation over seeds.

    Args:
        metrics: of "all", "old", "new".

    Returns:
        an `<svg>` element; it asks for nothing outside itself.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "replaygen " + " ".join(metrics), "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.2 * len(metrics), 3.1))
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        last = len(result.step_names) - 1
        for panel, metric in zip(panels, metrics, strict=True):
            _draw(panel, curves(result, metric), result.methods(), last, TITLES.get(metric, plain(metric)))
        left, right = (0.08, 0.98) if len(metrics) == 1 else (0.03, 0.99)
        figure.subplots_adjust(left=left, right=right, bottom=0.15, top=0.9, wspace=0.15)
        written = io.BytesIO()
        empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(written, format="svg", transparent=True, metadata=empty)
    label = "mIoU over steps: " + ", ".join(TITLES.get(metric, plain(metric)) for metric in metrics)
    return themed(written.getvalue(), prefix="-".join(metrics), label=label)


def _draw(panel: Axes, lines: list[Curve], methods: tuple[str, ...], last: int, title: str) -> None:
    colors = {method: stand_in(i) for i, method in enumerate(methods)}
    top = max((mean + deviation for line in lines for mean, deviation in zip(line.means, line.deviations, strict=True)),
              default=1.0)  # fmt: skip
    ceiling = min(100.0, top * 1.08 + 1)
    for i, method in enumerate(methods):
        for line in lines:
            if line.method == method:
                _line(panel, line, colors[method], MARKERS[i % len(MARKERS)], last)
    ends = [(line.means[-1], line.method) for line in lines]
    for height, (value, method) in zip(spread([end[0] for end in ends], ceiling * 0.066), ends, strict=True):
        panel.text(last + 0.06 * max(1, last), height, f"{short(plain(method))} {value:.1f}", color=colors[method],
                   fontsize=9.5, va="center", parse_math=False)  # fmt: skip
    panel.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold", pad=8)
    panel.set_xlim(-0.08 * max(1, last), last + 0.58 * max(1, last))
    panel.set_ylim(0, ceiling)
    panel.set_xticks(range(last + 1), [str(step) for step in range(last + 1)])
    panel.set_xlabel("step", fontsize=9.5, color=INK, x=last * 0.65 / max(1, 1.66 * last))
    panel.tick_params(labelsize=9.5, colors=INK, length=0, pad=5)
    panel.grid(axis="y", color=FAINT, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.set_facecolor("none")
    for spine in panel.spines.values():
        spine.set_visible(False)


def _line(panel: Axes, line: Curve, color: str, marker: str, last: int) -> None:
    low = [mean - deviation for mean, deviation in zip(line.means, line.deviations, strict=True)]
    high = [mean + deviation for mean, deviation in zip(line.means, line.deviations, strict=True)]
    if any(line.deviations):
        panel.fill_between(line.steps, low, high, color=color, alpha=0.13, linewidth=0)
    if len(line.steps) == 1:
        panel.plot([0, last], [line.means[0]] * 2, color=color, linewidth=1, linestyle=(0, (4, 3)))
    panel.plot(line.steps, line.means, color=color, linewidth=2, marker=marker, markersize=5, clip_on=False,
               solid_capstyle="round")  # fmt: skip


def short(name: str, most: int = 18) -> str:
    """A name cut to fit beside a line's end."""
    return name if len(name) <= most else name[: most - 1] + "…"


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Heights for labels at the given values: in the same order, at least `gap` apart, moved as little as needed."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[int]] = []
    centres: list[float] = []
    for i in order:
        groups.append([i])
        centres.append(values[i])
        while len(groups) > 1 and centres[-1] - centres[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            upper = groups.pop()
            centres.pop()
            groups[-1] += upper
            centres[-1] = sum(values[j] for j in groups[-1]) / len(groups[-1])
    heights = [0.0] * len(values)
    for group, centre in zip(groups, centres, strict=True):
        start = max(gap / 2, centre - gap * (len(group) - 1) / 2)
        for place, i in enumerate(group):
            heights[i] = start + gap * place
    return heights


def stand_in(index: int) -> str:
    """The colour a method is drawn with before the page's own is put in its place."""
    return f"#0102{0x10 + index % len(METHODS):02x}"


def themed(svg: bytes, *, prefix: str, label: str) -> str:
    """Own ids, page colours, no namespaces prefixes, no metadata: fit to stand inside HTML beside others."""
    root = ElementTree.fromstring(svg)
    colors = {INK: "currentColor", FAINT: "var(--chart-grid, #d8dce0)"}
    colors |= {stand_in(i): f"var(--series-{i + 1}, {color})" for i, color in enumerate(METHODS)}
    for element in root.iter():
        for child in [child for child in element if _local(child.tag) == "metadata"]:
            element.remove(child)
        element.tag = _local(element.tag)
        element.attrib = {_local(name): _rewritten(_local(name), value, prefix, colors)
                          for name, value in element.attrib.items()}  # fmt: skip
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _rewritten(name: str, value: str, prefix: str, colors: dict[str, str]) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return "#" + f"{prefix}-{value.removeprefix('#')}"
    for color, variable in colors.items():
        value = value.replace(color, variable)
    return value.replace("url(#", f"url(#{prefix}-").replace("DejaVu Sans", "inherit")


def _local(tag: Any) -> str:
    return str(tag).rsplit("}", 1)[-1]
