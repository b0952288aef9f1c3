"""The report's figures: one function each, from data to a `Plot` with title and caption."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from tasks.report.comparison import compare, percent
from tasks.report.data import ReportData, in_order_of_work
from tasks.report.figures.analysis import inherited, reliability, slice_plots
from tasks.report.figures.mass import mass, mass_by
from tasks.report.figures.rounds import overlap
from tasks.report.figures.style import (
    INK,
    MUTED,
    ROW,
    STYLE,
    WARM,
    Plot,
    bars_figure,
    colour_of,
    figure_of,
    inline_svg,
    log_scale,
    name_bars,
    short,
)

LOG_FROM = 5  # highest over lowest loss from which the end of a curve would be flat on a linear axis
DWARFED = 2  # base's bar over the longest other from which it is cut off
CURVE_POINTS = 120  # longer curves are averaged to this many


def plots(data: ReportData) -> dict[str, Plot]:
    """Every figure for which there is data, by name."""
    # The first use of matplotlib on a machine logs that it builds a font cache; nothing a reader of the run needs.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    import matplotlib

    figures = {
        "accuracy": _accuracy,
        "distance": _distance,
        "curves": _curves,
        "mass": mass,
        "mass_by": mass_by,
        "data_flow": _data_flow,
        "time": _time,
        "overlap": overlap,
        "reliability": reliability,
        "inherited": inherited,
    }
    with matplotlib.rc_context(STYLE):
        drawn = {name: figure(data) for name, figure in figures.items()} | slice_plots(data)
    return {name: plot for name, plot in drawn.items() if plot is not None}


def _accuracy(data: ReportData) -> Plot | None:
    rows = [row for row in compare(data) if row.accuracy]
    if not rows:
        return None
    figure, axes = bars_figure(len(rows))
    for y, row in enumerate(rows):
        assert row.accuracy is not None
        share = row.accuracy
        axes.barh(y, 100 * share.estimate, height=0.62, color=colour_of(row.name))
        axes.hlines(y, 100 * share.low, 100 * share.high, color=INK, linewidth=1.3)
        for end in (share.low, share.high):
            axes.vlines(100 * end, y - 0.13, y + 0.13, color=INK, linewidth=1.3)
        axes.text(100 * share.high + 2, y, percent(share.estimate), va="center")
    name_bars(axes, [row.variant.label for row in rows])
    axes.set(xlim=(0, 118), xticks=range(0, 101, 20), xlabel="held-out requests answered correctly (%)")
    return Plot(
        "Execution accuracy",
        "Share of held-out requests whose answer gives the right result when executed. "
        "Lines: 95 % interval (Wilson) over requests.",
        inline_svg(figure, "accuracy", "Execution accuracy of each variant"),
    )


def _distance(data: ReportData) -> Plot | None:
    distances = [variant.kl_to_teacher for variant in data.variants.values() if variant.kl_to_teacher is not None]
    if len(distances) < max(len(data.variants), 1):
        return None
    figure, panels = figure_of(1.15 + ROW * len(data.variants), columns=2)
    labels = [variant.label for variant in data.variants.values()]
    quantities = (
        ("KL to the teacher", distances),
        ("cross-entropy", [variant.cross_entropy for variant in data.variants.values()]),
    )
    is_cut = False
    for axes, (name, values) in zip(panels, quantities, strict=True):
        longest = _scale_of(values, data.variants)
        for y, (variant, value) in enumerate(zip(data.variants, values, strict=True)):
            finite = math.isfinite(value)
            shown = min(value, 1.3 * longest) if finite else 0
            axes.barh(y, shown, height=0.62, color=colour_of(variant))
            text, cut = f"{value:.2f}" if finite else "diverged", finite and value > longest
            is_cut |= cut
            where = {"x": 1.27 * longest, "ha": "right"} if cut else {"x": shown + 0.03 * longest}
            axes.text(y=y, s=f"{text} →" if cut else text, va="center", fontsize=10, **where)
        name_bars(axes, labels if axes is panels[0] else [""] * len(labels))
        axes.set_title(name, loc="left", fontsize=11)
        axes.set(xlim=(0, 1.3 * longest), xlabel="nats/token")
        axes.locator_params(axis="x", nbins=4)
    return Plot(
        "Distance to the teacher and to the references",
        "Mean over supervised tokens of the held-out rows; shorter is better. "
        "KL says how far a model is from the teacher, cross-entropy how well it predicts the reference responses."
        + (" A bar with an arrow goes on beyond the axis." if is_cut else ""),
        inline_svg(figure, "distance", "KL to the teacher and cross-entropy of each variant"),
    )


def _scale_of(values: list[float], variants: Iterable[str]) -> float:
    """The longest bar that is shown whole: that of base, which nobody trained, only where it dwarfs no other."""
    finite = {name: value for name, value in zip(variants, values, strict=True) if math.isfinite(value)}
    others = max((value for name, value in finite.items() if name != "base"), default=0.0)
    base = finite.get("base", 0.0)
    return (others if 0 < DWARFED * others < base else max(others, base)) or 1.0


def _curves(data: ReportData) -> Plot | None:
    curves = {name: points for name, points in data.curves.items() if points}
    if not curves:
        return None
    figure, (axes,) = figure_of(3.1)
    dashes = {"sft": "-", "sft_control": (0, (4, 1.5)), "kd": "-"}
    averaged = False
    for name, points in curves.items():
        steps, means, lows, highs = _averaged(points)
        averaged |= len(points) > CURVE_POINTS
        label = data.variants[name].label if name in data.variants else name
        axes.plot(
            steps,
            means,
            color=colour_of(name),
            linestyle=dashes.get(name, "-"),
            linewidth=1.7,
            label=short(label),
        )
        axes.fill_between(steps, lows, highs, color=colour_of(name), alpha=0.13, linewidth=0)
    axes.grid(axis="y")
    axes.tick_params(labelcolor=MUTED, length=0, pad=6)
    axes.spines["left"].set_visible(False)
    axes.set(xlabel="optimiser step of each training", ylabel="training loss (nats/token)")
    axes.margins(x=0.01)
    losses = [loss for points in curves.values() for _, loss in points if math.isfinite(loss)]
    if losses and 0 < LOG_FROM * min(losses) < max(losses):
        log_scale(axes, "y")
    axes.legend(loc="upper right", handlelength=2.2)
    return Plot(
        "Training curves",
        "Loss by step. "
        + ("Lines are means of neighbouring steps, bands their range. " if averaged else "")
        + "The KD loss mixes a divergence to the teacher with cross-entropy: "
        "compare its shape with the others, not its level.",
        inline_svg(figure, "curves", "Training loss by step"),
    )


def _data_flow(data: ReportData) -> Plot | None:
    flow = data.data_flow
    if flow is None:
        return None
    changes = [("seeds", flow.seeds, colour_of("sft_control")), ("+ expansion", flow.expanded, colour_of("sft"))]
    changes += [(f"− {agent}", -flow.rejected_by(agent), WARM) for agent in in_order_of_work(flow.rejected)]
    if flow.failed:
        changes.append(("− no usable answer", -flow.failures, WARM))
    if flow.unaccounted:
        changes.append(("not accounted for", -flow.unaccounted, MUTED))
    figure, axes = bars_figure(len(changes) + 1)
    rows, widest = 0, max(flow.seeds + flow.expanded, flow.kept, 1)
    for y, (name, change, colour) in enumerate(changes):
        axes.barh(y, change, left=rows, height=0.62, color=colour)
        text = f"{change:,}" if name == "seeds" else f"{change:+,}".replace("-", "−").replace("+0", "0")
        axes.text(max(rows, rows + change) + 0.015 * widest, y, text, va="center")
        axes.vlines(rows + change, y - 0.31, y + 1.31, color=MUTED, linewidth=0.7)
        rows += change
    axes.barh(len(changes), flow.kept, height=0.62, color=colour_of("kd"))
    axes.text(flow.kept + 0.015 * widest, len(changes), f"{flow.kept:,}", va="center")
    name_bars(axes, [*(name for name, _, _ in changes), "= kept"])
    axes.set(xlim=(0, 1.14 * widest), xlabel="rows")
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return Plot(
        "Data flow",
        "From seeds to training rows: what Expansion added, what each agent rejected, what is kept.",
        inline_svg(figure, "data-flow", "Rows added, rejected and kept by each agent"),
    )


def _time(data: ReportData) -> Plot | None:
    if not data.stages:
        return None
    longest = max(stage.seconds for stage in data.stages)
    unit, seconds = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if longest >= 2 * s or s == 1)
    figure, axes = bars_figure(len(data.stages))
    for y, stage in enumerate(data.stages):
        axes.barh(y, stage.seconds / seconds, height=0.62, color=colour_of("sft_control"))
        text = duration(stage.seconds)
        axes.text((stage.seconds + 0.015 * longest) / seconds, y, text, va="center")
    name_bars(axes, [stage.name for stage in data.stages])
    # Room for the label of the longest bar; one second, so that a run that did nothing has an axis too.
    axes.set(xlim=(0, 1.3 * max(longest, 1) / seconds), xlabel=f"wall-clock time ({unit})")
    axes.locator_params(axis="x", nbins=6)
    return Plot(
        "Time per stage",
        "What each stage took when it was made. A rerun finds it finished and spends nothing on it.",
        inline_svg(figure, "time", "Time per stage"),
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


def _averaged(points: list[tuple[int, float]]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Steps, means, minima and maxima over at most CURVE_POINTS runs of neighbouring points."""
    import numpy as np

    runs = np.array_split(np.asarray(points, float), min(CURVE_POINTS, len(points)))
    columns = [(run[:, 0].mean(), run[:, 1].mean(), run[:, 1].min(), run[:, 1].max()) for run in runs]
    steps, means, lows, highs = (list(column) for column in zip(*columns, strict=True))
    return steps, means, lows, highs
