"""The figures of the analysis: calibration, slices, and what was inherited from the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.evaluate.analysis.slices import Slice
from tasks.report.analysis_view import FEW, label_of, view_of
from tasks.report.comparison import points
from tasks.report.data import ReportData
from tasks.report.figures.style import (
    INK,
    MUTED,
    PAPER,
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
from tasks.stats.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SLICES = 8  # the largest of each kind
_FEW_TOKENS = 20  # below, a bin's share is luck
_APART = 0.17  # of a slice's height, between its variants
_FROM = 5  # largest over smallest loss from which a linear axis would hide the small ones


def reliability(data: ReportData) -> Plot | None:
    """Confidence against how often it was justified, by variant."""
    if data.analysis is None or not any(found.bins for found in data.analysis.calibration.values()):
        return None
    figure, (axes,) = figure_of(3.6)
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (3, 2)), label="as sure as right")
    for name, found in data.analysis.calibration.items():
        known = [b for b in found.bins if b["tokens"] >= _FEW_TOKENS and math.isfinite(b["confidence"])]
        total = sum(b["tokens"] for b in found.bins) or 1
        x, y = [100 * b["confidence"] for b in known], [100 * b["accuracy"] for b in known]
        error = f"{100 * found.ece:.1f} %" if math.isfinite(found.ece) else "not a number"
        axes.plot(x, y, color=colour_of(name), linewidth=1.3, label=f"{short(label_of(data, name))}\nECE {error}")
        sizes = [9 + 150 * b["tokens"] / total for b in known]
        axes.scatter(x, y, s=sizes, color=colour_of(name), linewidth=0, alpha=0.75, zorder=3)
    axes.set_aspect("equal", anchor="W")
    axes.grid()
    axes.tick_params(labelcolor=MUTED, length=0, pad=6)
    axes.set(xlim=(0, 102), ylim=(0, 102), xlabel="confidence in the likeliest token (%)")
    axes.set_ylabel("of these tokens right (%)")
    axes.set(xticks=range(0, 101, 25), yticks=range(0, 101, 25))
    axes.legend(loc="center left", bbox_to_anchor=(1.04, 0.5), labelspacing=0.8, handlelength=1.6, borderaxespad=0)
    return Plot(
        "Calibration",
        "Probability of the likeliest token against how often it is the reference’s token, in bins of confidence with "
        f"at least {_FEW_TOKENS} tokens. Larger dots hold more tokens; below the dashed line a model is surer than it "
        "should be. ECE: the mean distance to that line over tokens.",
        inline_svg(figure, "reliability", "Reliability diagram of each variant"),
    )


def slice_plots(data: ReportData) -> dict[str, Plot]:
    """One dot plot for each way of cutting the held-out rows that gives more than one slice."""
    if data.analysis is None:
        return {}
    kinds: dict[str, list[Slice]] = {}
    for found in data.analysis.slices:
        kinds.setdefault(found.by, []).append(found)
    return {
        f"slices_{number}": _slices(data, by, found)
        for number, (by, found) in enumerate(kinds.items())
        if len(found) > 1
    }


def inherited(data: ReportData) -> Plot | None:
    """What each student repeats of its teacher beyond base."""
    said = view_of(data)
    if said is None or not said.repeated:
        return None
    figure, axes = bars_figure(len(said.repeated))
    names = {label_of(data, name): name for name in data.variants}
    axes.axvline(0, color=MUTED, linewidth=1)
    for y, row in enumerate(said.repeated):
        _dot(axes, y, row.taken.excess, colour_of(names.get(row.student, "")), hollow=row.taken.n < FEW)
    name_bars(axes, [""] * len(said.repeated))
    labels = [f"{short(row.student)}\n{row.what}, n = {row.taken.n:,}" for row in said.repeated]
    axes.set_yticks(range(len(labels)), labels, fontsize=10)
    axes.set_xlabel("beyond base (percentage points)")
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: points(value / 100).removesuffix(".0"))
    return Plot(
        "Taken over from the teacher",
        "Share of the teacher’s own errors (the same wrong result) and refusals that a student repeats, minus what "
        "base did before it was taught; 0 means that nothing was taken over. Lines: 95 % interval, paired by request. "
        f"Hollow: fewer than {FEW} such requests.",
        inline_svg(figure, "inherited", "Errors and refusals of the teacher repeated beyond base"),
    )


def _slices(data: ReportData, by: str, found: Sequence[Slice]) -> Plot:
    checked = all("exec_accuracy" in metrics for of in found for metrics in of.values.values())
    metric, factor = ("exec_accuracy", 100) if checked else ("cross_entropy", 1)
    shown = sorted(found, key=lambda of: -of.n)[:_SLICES] if len(found) > _SLICES else list(found)
    variants = [name for name in data.variants if name != "sft" and all(name in of.values for of in shown)]
    figure, (axes,) = figure_of(1.15 + len(shown) * (0.26 + 0.135 * len(variants)))
    ends: list[float] = []
    for y, of in enumerate(shown):
        for place, name in enumerate(variants):
            value = of.values[name][metric]
            scaled = Interval(*(factor * number for number in (value.estimate, value.low, value.high)))
            ends += [end for end in (scaled.low, scaled.high) if math.isfinite(end)]
            offset = (place - (len(variants) - 1) / 2) * _APART
            _dot(axes, y + offset, scaled, colour_of(name), hollow=of.n < FEW, factor=1)
        if y:
            axes.axhline(y - 0.5, color=MUTED, linewidth=0.4, alpha=0.5)
    name_bars(axes, [""] * len(shown))
    axes.set_yticks(range(len(shown)), [f"{_broken(of.name)}\nn = {of.n:,}{_few(of)}" for of in shown], fontsize=10)
    for label, of in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_color(WARM if of.n < FEW else INK)
        label.set_linespacing(1.25)
    _scale(axes, metric, ends)
    _legend(figure, data, variants)
    left_out = len(found) - len(shown)
    return Plot(
        f"By {by}",
        ("Share of requests answered correctly" if checked else "Cross-entropy (less is better)")
        + " with its 95 % interval."
        + _how(by)
        + (f" {left_out} smaller parts are not shown." if left_out else "")
        + (f" Hollow dots: fewer than {FEW} rows, too few to say much." if any(of.n < FEW for of in shown) else ""),
        inline_svg(figure, f"slices-{by.replace(' ', '-').replace('’', '')}", "Variants by slice of the held-out rows"),
    )


def _how(by: str) -> str:
    return {
        "the teacher’s loss": " The loss is that of a token of the reference, on average, in thirds: how well the "
        "teacher expects these words. It is not how hard a request is: a long answer may be expected token by token, "
        "and one wrong token makes it wrong.",
        "response length": " Length is that of the reference, in thirds.",
    }.get(by, "")


def _few(of: Slice) -> str:
    return ", few" if of.n < FEW else ""


def _broken(name: str) -> str:
    """A slice's name in at most two lines: what stands in brackets goes below."""
    first, bracket, rest = name.partition(" (")
    return f"{short(first, 22)}\n{short(rest.rstrip(')'), 22)}" if bracket else short(name, 22)


def _dot(axes: Axes, y: float, value: Interval, colour: str, *, hollow: bool, factor: float = 100) -> None:
    axes.hlines(y, factor * value.low, factor * value.high, color=colour, linewidth=1.5)
    axes.plot(
        factor * value.estimate,
        y,
        marker="o",
        markersize=5.5,
        color=colour,
        markerfacecolor=PAPER if hollow else colour,
        markeredgewidth=1.3,
        clip_on=False,
    )


def _scale(axes: Axes, metric: str, ends: list[float]) -> None:
    if metric == "exec_accuracy":
        axes.set(xlim=(-3, 103), xticks=range(0, 101, 20), xlabel="held-out requests answered correctly (%)")
        return
    axes.set_xlabel("cross-entropy (nats/token)")
    if ends and 0 < _FROM * min(ends) < max(ends):
        log_scale(axes, "x")


def _legend(figure: Figure, data: ReportData, variants: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], color=colour_of(name), marker="o", markersize=5.5, linewidth=1.5) for name in variants
    ]
    labels = [short(label_of(data, name), 24) for name in variants]
    figure.legend(handles, labels, loc="outside upper left", ncols=2, handlelength=1.6, columnspacing=1.6)
