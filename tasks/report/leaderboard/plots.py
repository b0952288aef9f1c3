"""Figures of the leaderboard: how good each student is, against what it took."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.report.comparison import compare
from tasks.report.figures.style import INK, MUTED, STYLE, Plot, colour_of, figure_of, inline_svg
from tasks.report.leaderboard.entry import Entry
from tasks.report.leaderboard.ranking import ranked
from tasks.report.leaderboard.seeds import Combination, combinations

PlotPoint = tuple[float, float, float, float]  # what it took, accuracy in %, and its bar below and above


@dataclass(frozen=True)
class Axis:
    """What quality is shown against; `always`, or only where students differ in it."""

    name: str
    label: str
    of: Callable[[Entry], float]
    always: bool = False


AXES = (
    Axis("cost", "device time (minutes)", lambda entry: entry.device_seconds / 60, always=True),
    Axis("rows", "rows trained on", lambda entry: entry.rows),
)


def plots(entries: list[Entry]) -> dict[str, Plot]:
    """By the name of what quality is shown against."""
    return {axis.name: plot for axis in AXES if (plot := quality_against(axis, entries))}


def quality_against(axis: Axis, entries: list[Entry]) -> Plot | None:
    """Each student (over its seeds, where there are several) by what it took and how good it is.

    None where nothing was checked. Points are numbered as in the table, and share a label where they lie together.
    """
    import matplotlib as mpl

    repeated = combinations(entries)
    runs = [entry for entry in ranked(entries) if entry.data]
    shown = [_over_seeds(axis, one) for one in repeated] if repeated else [_run(axis, one) for one in runs]
    points = [(place, point) for place, point in enumerate(shown, 1) if point]
    if not points or not (axis.always or len({across for _, (across, *_) in points}) > 1):
        return None
    with mpl.rc_context(STYLE):
        figure, (axes,) = figure_of(3.4)
        for _place, (across, share, below, above) in points:
            spread = [[below], [above]]
            axes.errorbar(across, share, yerr=spread, fmt="o", color=colour_of("kd"), ecolor=MUTED, capsize=3)
        axes.set_xlabel(axis.label)
        axes.set_ylabel("execution accuracy (%)")
        axes.grid(axis="y")
        axes.tick_params(labelcolor=MUTED, length=0, pad=6)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.25)
        axes.set_xlim(left=0)
        for (x, y), places in _together(axes, points).items():
            label = ", ".join(f"#{place}" for place in places)
            axes.annotate(label, (x, y), (6, 4), textcoords="offset points", color=INK)
        of = "are standard deviations over seeds" if repeated else "are 95 % intervals over held-out requests"
        text = f"Numbers are places in the table{' over seeds' if repeated else ''}. Bars {of}."
        svg = inline_svg(figure, f"quality-{axis.name}", f"accuracy against {axis.label}")
        return Plot(f"Quality against {axis.name}", text, svg)


def _run(axis: Axis, entry: Entry) -> PlotPoint | None:
    assert entry.data is not None
    accuracy = {row.name: row for row in compare(entry.data)}["kd"].accuracy
    if accuracy is None:
        return None
    share = 100 * accuracy.estimate
    return axis.of(entry), share, share - 100 * accuracy.low, 100 * accuracy.high - share


def _over_seeds(axis: Axis, combination: Combination) -> PlotPoint | None:
    if (accuracy := combination.accuracy) is None:
        return None
    deviation = 100 * accuracy.deviation
    return statistics.mean(map(axis.of, combination.runs)), 100 * accuracy.mean, deviation, deviation


def _together(axes: Any, points: list[tuple[int, PlotPoint]]) -> dict[tuple[float, float], list[int]]:
    """The points' places by where a label stands: the first of those that lie too near for two labels."""
    labels: dict[tuple[float, float], list[int]] = {}
    for place, (x, y, _below, _above) in points:
        across, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        for other, places in labels.items():
            left, down = axes.transAxes.inverted().transform(axes.transData.transform(other))
            if abs(across - left) < 0.12 and abs(up - down) < 0.08:
                places.append(place)
                break
        else:
            labels[x, y] = [place]
    return labels
