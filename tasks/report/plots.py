"""The report's figures: matplotlib draws them, the page's style sheet colours them.

Figures are drawn with stand-in colours, which become CSS variables in the SVG, so that one drawing suits a
light screen, a dark screen and paper. Text stays text. Equal data gives equal bytes.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from tasks.report.comparison import compare, percent
from tasks.report.data import ReportData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.2  # inches, at 72 units each: narrow, so that the text stays legible at phone width
ROW = 0.42  # inches a horizontal bar takes
LOG_FROM = 5  # highest over lowest loss from which the end of a curve would be flat on a linear axis
CURVE_POINTS = 120  # longer curves are averaged to this many

# Stand-ins that matplotlib writes out and `_inline` replaces.
INK, MUTED, RULE, WARM = "#010101", "#020202", "#030303", "#040404"
_SERIES = {
    "base": "#110001",
    "sft": "#110002",
    "sft_control": "#110003",
    "kd": "#110004",
    "teacher": "#110005",
}
_CSS = {INK: "--ink", MUTED: "--muted", RULE: "--rule", WARM: "--warm"} | {
    colour: f"--{name.replace('_', '-')}" for name, colour in _SERIES.items()
}
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "distilflow",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
}


@dataclass(frozen=True)
class Plot:
    """A figure ready for the page: `svg` is trusted markup, title and caption are text."""

    title: str
    caption: str
    svg: str


def plots(data: ReportData) -> dict[str, Plot]:
    """Every figure for which there is data, by name."""
    # The first use of matplotlib on a machine logs that it builds a font cache; nothing a reader of the run needs.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    import matplotlib

    figures = {
        "accuracy": _accuracy,
        "distance": _distance,
        "curves": _curves,
        "mass": _mass,
        "data_flow": _data_flow,
        "time": _time,
    }
    with matplotlib.rc_context(_RC):
        drawn = {name: figure(data) for name, figure in figures.items()}
    return {name: plot for name, plot in drawn.items() if plot is not None}


def _accuracy(data: ReportData) -> Plot | None:
    rows = [row for row in compare(data) if row.accuracy]
    if not rows:
        return None
    figure, axes = _bars_figure(len(rows))
    for y, row in enumerate(rows):
        assert row.accuracy is not None
        share = row.accuracy
        axes.barh(y, 100 * share.estimate, height=0.62, color=_colour(row.name))
        axes.hlines(y, 100 * share.low, 100 * share.high, color=INK, linewidth=1.3)
        for end in (share.low, share.high):
            axes.vlines(100 * end, y - 0.13, y + 0.13, color=INK, linewidth=1.3)
        axes.text(100 * share.high + 2, y, percent(share.estimate), va="center")
    _name_bars(axes, [row.variant.label for row in rows])
    axes.set(xlim=(0, 118), xticks=range(0, 101, 20), xlabel="held-out requests answered correctly (%)")
    return Plot(
        "Execution accuracy",
        "Share of held-out requests whose answer gives the right result when executed. "
        "Lines: 95 % interval (Wilson) over requests.",
        _inline(figure, "accuracy", "Execution accuracy of each variant"),
    )


def _distance(data: ReportData) -> Plot | None:
    if not data.variants:
        return None
    figure, panels = _figure(1.15 + ROW * len(data.variants), columns=2)
    labels = [variant.label for variant in data.variants.values()]
    quantities = (
        ("KL to the teacher", [variant.kl_to_teacher for variant in data.variants.values()]),
        ("cross-entropy", [variant.cross_entropy for variant in data.variants.values()]),
    )
    for axes, (name, values) in zip(panels, quantities, strict=True):
        longest = max((value for value in values if math.isfinite(value)), default=0) or 1.0
        for y, (variant, value) in enumerate(zip(data.variants, values, strict=True)):
            finite = math.isfinite(value)
            axes.barh(y, value if finite else 0, height=0.62, color=_colour(variant))
            text = f"{value:.2f}" if finite else "diverged"
            axes.text((value if finite else 0) + 0.03 * longest, y, text, va="center", fontsize=10)
        _name_bars(axes, labels if axes is panels[0] else [""] * len(labels))
        axes.set_title(name, loc="left", fontsize=11)
        axes.set(xlim=(0, 1.3 * longest), xlabel="nats/token")
        axes.locator_params(axis="x", nbins=4)
    return Plot(
        "Distance to the teacher and to the references",
        "Mean over supervised tokens of the held-out rows; shorter is better. "
        "KL says how far a model is from the teacher, cross-entropy how well it predicts the reference responses.",
        _inline(figure, "distance", "KL to the teacher and cross-entropy of each variant"),
    )


def _curves(data: ReportData) -> Plot | None:
    curves = {name: points for name, points in data.curves.items() if points}
    if not curves:
        return None
    figure, (axes,) = _figure(3.1)
    dashes = {"sft": "-", "sft_control": (0, (4, 1.5)), "kd": "-"}
    averaged = False
    for name, points in curves.items():
        steps, means, lows, highs = _averaged(points)
        averaged |= len(points) > CURVE_POINTS
        label = data.variants[name].label if name in data.variants else name
        axes.plot(
            steps,
            means,
            color=_colour(name),
            linestyle=dashes.get(name, "-"),
            linewidth=1.7,
            label=_short(label),
        )
        axes.fill_between(steps, lows, highs, color=_colour(name), alpha=0.13, linewidth=0)
    axes.grid(axis="y")
    axes.tick_params(labelcolor=MUTED, length=0, pad=6)
    axes.spines["left"].set_visible(False)
    axes.set(xlabel="optimiser step of each training", ylabel="training loss (nats/token)")
    axes.margins(x=0.01)
    losses = [loss for points in curves.values() for _, loss in points if math.isfinite(loss)]
    if losses and 0 < LOG_FROM * min(losses) < max(losses):
        _log_scale(axes)
    axes.legend(loc="upper right", handlelength=2.2)
    return Plot(
        "Training curves",
        "Loss by step. "
        + ("Lines are means of neighbouring steps, bands their range. " if averaged else "")
        + "The KD loss mixes a divergence to the teacher with cross-entropy: "
        "compare its shape with the others, not its level.",
        _inline(figure, "curves", "Training loss by step"),
    )


def _mass(data: ReportData) -> Plot | None:
    coverage = data.coverage
    if coverage is None:
        return None
    figure, (axes,) = _figure(2.9)
    bins = len(coverage.histogram)
    total = sum(coverage.histogram) or 1
    axes.bar(
        [(i + 0.5) / bins for i in range(bins)],
        [100 * count / total for count in coverage.histogram],
        width=0.88 / bins,
        color=_colour("kd"),
    )
    axes.axvline(coverage.mean, color=INK, linewidth=1.2, linestyle=(0, (3, 2)))
    left = coverage.mean > 0.5
    axes.annotate(
        f"mean {coverage.mean:.3f}",
        (coverage.mean, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
    )
    axes.grid(axis="y")
    axes.tick_params(labelcolor=MUTED, length=0, pad=6)
    axes.spines["left"].set_visible(False)
    axes.set(
        xlim=(0, 1),
        xlabel=f"probability held by the teacher’s top {coverage.k}",
        ylabel="supervised tokens (%)",
    )
    percentiles = ", ".join(f"{name} {value:.3f}" for name, value in coverage.percentiles.items())
    return Plot(
        f"Top-{coverage.k} mass",
        f"How much of the teacher’s probability its top {coverage.k} tokens hold, over {coverage.tokens:,} supervised "
        "tokens. The method rests on this being almost 1." + (f" Percentiles: {percentiles}." if percentiles else ""),
        _inline(figure, "mass", f"Histogram of the probability held by the top {coverage.k} tokens"),
    )


def _data_flow(data: ReportData) -> Plot | None:
    flow = data.data_flow
    if flow is None:
        return None
    changes = [("seeds", flow.seeds, _colour("sft_control")), ("+ expansion", flow.expanded, _colour("sft"))]
    changes += [(f"− {agent}", -flow.rejected_by(agent), WARM) for agent in flow.rejected]
    if flow.failed:
        changes.append(("− failed requests", -flow.failed, WARM))
    if flow.unaccounted:
        changes.append(("not accounted for", -flow.unaccounted, MUTED))
    figure, axes = _bars_figure(len(changes) + 1)
    rows, widest = 0, max(flow.seeds + flow.expanded, flow.kept, 1)
    for y, (name, change, colour) in enumerate(changes):
        axes.barh(y, change, left=rows, height=0.62, color=colour)
        text = f"{change:,}" if name == "seeds" else f"{change:+,}".replace("-", "−").replace("+0", "0")
        axes.text(max(rows, rows + change) + 0.015 * widest, y, text, va="center")
        axes.vlines(rows + change, y - 0.31, y + 1.31, color=MUTED, linewidth=0.7)
        rows += change
    axes.barh(len(changes), flow.kept, height=0.62, color=_colour("kd"))
    axes.text(flow.kept + 0.015 * widest, len(changes), f"{flow.kept:,}", va="center")
    _name_bars(axes, [*(name for name, _, _ in changes), "= kept"])
    axes.set(xlim=(0, 1.14 * widest), xlabel="rows")
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return Plot(
        "Data flow",
        "From seeds to training rows: what Expansion added, what each agent rejected, what is kept.",
        _inline(figure, "data-flow", "Rows added, rejected and kept by each agent"),
    )


def _time(data: ReportData) -> Plot | None:
    if not data.stages:
        return None
    longest = max(stage.seconds for stage in data.stages)
    unit, seconds = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if longest >= 2 * s or s == 1)
    figure, axes = _bars_figure(len(data.stages))
    for y, stage in enumerate(data.stages):
        axes.barh(y, stage.seconds / seconds, height=0.62, color=_colour("sft_control"))
        text = duration(stage.seconds)
        axes.text((stage.seconds + 0.015 * longest) / seconds, y, text, va="center")
    _name_bars(axes, [stage.name for stage in data.stages])
    # Room for the label of the longest bar; one second, so that a run that did nothing has an axis too.
    axes.set(xlim=(0, 1.3 * max(longest, 1) / seconds), xlabel=f"wall-clock time ({unit})")
    axes.locator_params(axis="x", nbins=6)
    return Plot(
        "Time per stage",
        "What each stage took when it was made. A rerun finds it finished and spends nothing on it.",
        _inline(figure, "time", "Time per stage"),
    )


def duration(seconds: float) -> str:
    """0.4 s, 42 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _log_scale(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers: 0.5, 1, 2, 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.set_ylabel(f"{axes.get_ylabel()}, log scale")


def _averaged(points: list[tuple[int, float]]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Steps, means, minima and maxima over at most CURVE_POINTS runs of neighbouring points."""
    import numpy as np

    runs = np.array_split(np.asarray(points, float), min(CURVE_POINTS, len(points)))
    columns = [(run[:, 0].mean(), run[:, 1].mean(), run[:, 1].min(), run[:, 1].max()) for run in runs]
    steps, means, lows, highs = (list(column) for column in zip(*columns, strict=True))
    return steps, means, lows, highs


def _colour(name: str) -> str:
    return _SERIES.get(name, MUTED)


def _short(label: str, limit: int = 26) -> str:
    """A label that leaves room for its plot."""
    line = " ".join(label.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _figure(height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(wspace=0.08), facecolor="none")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    for axes in panels:
        axes.set_facecolor("none")
    return figure, list(panels)


def _bars_figure(rows: int) -> tuple[Figure, Axes]:
    figure, (axes,) = _figure(0.75 + ROW * rows)
    return figure, axes


def _name_bars(axes: Axes, names: list[str]) -> None:
    """Horizontal bars from the top down, each with its name."""
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _inline(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element that can stand in a page beside others."""
    buffer = StringIO()
    no_metadata: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=no_metadata)
    drawing = buffer.getvalue()
    view_box = re.search(r'viewBox="([\d. ]+)"', drawing)
    assert view_box, "matplotlib wrote an SVG without a viewBox"
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 :]
    for colour, variable in _CSS.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--sans)", body)
    # Ids are unique within a figure only.
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", body)
    return f'<svg viewBox="{view_box[1]}" role="img" aria-label="{description}">{body.strip()}'
