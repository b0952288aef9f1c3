"""Figures of an experiment: quality against what is varied or what it takes, on rows that no choice saw."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np

from tasks.report.experiment.arms import MEASURES, ArmResult, Measure
from tasks.report.experiment.choice import ABOUT, measure_of, recommended, saturation
from tasks.report.experiment.coverage import coverage_plot
from tasks.report.experiment.question import ExperimentQuestion
from tasks.report.figures.style import (
    INK,
    MUTED,
    STYLE,
    Plot,
    bars_figure,
    colour_of,
    figure_of,
    inline_svg,
    log_scale,
    name_bars,
    name_points,
)

_COSTS = {
    "device_seconds": ("device time (minutes)", 1 / 60),
    "usd": ("API cost (dollars)", 1.0),
    "rows": ("rows trained on", 1.0),
    "store_bytes": ("teacher scores (MB)", 1e-6),
}
_STYLES = ("-", (0, (4, 2)), (0, (1, 2)), (0, (4, 2, 1, 2)))


def plots(question: ExperimentQuestion, arms: Sequence[ArmResult]) -> list[Plot]:
    """All arms beside each other, then quality against each of what the question names."""
    import matplotlib as mpl

    if not arms:
        return []
    measure = measure_of(question, arms)
    with mpl.rc_context(STYLE):
        found = [_beside_each_other(question, arms, measure)]
        found += [plot for axis in question.against if (plot := _against(axis, question, arms, measure))]
        return [*found, plot] if (plot := coverage_plot(arms)) else found


def _beside_each_other(question: ExperimentQuestion, arms: Sequence[ArmResult], measure: Measure) -> Plot:
    figure, axes = bars_figure(len(arms))
    chosen = recommended(question, arms) if question.asks != "trend" else None
    scale = 100 if MEASURES[measure].is_share else 1
    for place, arm in enumerate(arms):
        value = arm.interval(measure, "quoted")
        spread = [[scale * (value.estimate - value.low)], [scale * (value.high - value.estimate)]]
        colour = colour_of("kd" if arm is chosen or chosen is None else "sft_control")
        axes.errorbar(scale * value.estimate, place, xerr=spread, fmt="o", color=colour, ecolor=MUTED, capsize=3)
    name_bars(axes, [arm.name for arm in arms])
    axes.set_xlabel(_label(measure))
    return Plot("All arms", _CAPTION, inline_svg(figure, "arms", "every arm with its interval"))


def _against(axis: str, question: ExperimentQuestion, arms: Sequence[ArmResult], measure: Measure) -> Plot | None:
    """None where the arms do not differ in it (in a cost: by no more than a tenth), or it is no number."""
    values = [_across(arm, axis) for arm in arms]
    if len(set(values)) < 2 or not all(isinstance(value, Real) for value in values):
        return None
    if axis in _COSTS and max(values) <= ABOUT * min(values):
        return None
    label, _ = _COSTS.get(axis, (axis, 1.0))
    scale = 100 if MEASURES[measure].is_share else 1
    figure, (axes,) = figure_of(3.4)
    series = _series(axis, arms)
    for number, (name, members) in enumerate(series.items()):
        members.sort(key=lambda arm: _across(arm, axis))
        across = [_across(arm, axis) for arm in members]
        found = [arm.interval(measure, "quoted") for arm in members]
        spread = np.array([[v.estimate - v.low, v.high - v.estimate] for v in found]).T * scale
        colour, style = colour_of("sft_control" if number % 2 else "kd"), _STYLES[number // 2 % len(_STYLES)]
        joins = style if axis not in _COSTS or axis == "rows" else "none"
        line = axes.errorbar(across, [scale * v.estimate for v in found], spread, fmt="o", color=colour, capsize=3)
        axes.plot(across, [scale * v.estimate for v in found], linestyle=joins, color=colour, linewidth=1)
        line.set_label(name)
    if axis == "rows" and question.asks == "saturation" and (fitted := saturation(question, arms)):
        rows = np.geomspace(min(values), 2 * max(values), 64)
        axes.plot(rows, [scale * fitted.share_right(n) for n in rows], color=INK, linewidth=1, label="fitted")
    axes.set(xlabel=label, ylabel=_label(measure))
    if min(values) > 0 and max(values) / min(values) >= 4:
        log_scale(axes, "x")
    axes.grid(axis="y")
    axes.tick_params(labelcolor=MUTED, length=0, pad=6)
    axes.spines["left"].set_visible(False)
    if axis in _COSTS:
        axes.margins(x=0.08)
        means = [scale * arm.interval(measure, "quoted").estimate for arm in arms]
        name_points(axes, list(zip(values, means, (arm.name for arm in arms), strict=True)))
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend()
    return Plot(f"Against {label}", _CAPTION, inline_svg(figure, f"against-{axis.replace('.', '-')}", f"by {label}"))


def _across(arm: ArmResult, axis: str) -> float:
    if axis in _COSTS:
        return round(arm.cost(axis) * _COSTS[axis][1], 6)
    value: float = arm.place.get(axis, arm.name)
    return value


def _series(axis: str, arms: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    """The arms by what else is varied."""
    found: dict[str, list[ArmResult]] = {}
    for arm in arms:
        others = [f"{key}={value}" for key, value in arm.place.items() if key != axis]
        found.setdefault(", ".join(others) if axis not in _COSTS else "", []).append(arm)
    return found


def _label(measure: Measure) -> str:
    words = MEASURES[measure]
    if measure == "gain":
        return "gain over the control (points)"
    return f"{words.name} (%)" if words.is_share else words.name


_CAPTION = (
    "Mean over seeds on the held-out rows that no choice saw; bars are 95 % intervals over rows and seeds (both "
    "resampled)."
)
