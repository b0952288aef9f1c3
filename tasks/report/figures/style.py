"""How the report's figures look: matplotlib draws them, the page's style sheet colours them.

Figures are drawn with stand-in colours, which become CSS variables in the SVG, so that one drawing suits a
light screen, a dark screen and paper. Text stays text. Equal data gives equal bytes.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.2  # inches, at 72 units each: narrow, so that the text stays legible at phone width
ROW = 0.42  # inches a horizontal bar takes
# Names beside points, as parts of a figure's height and width.
_LINE, _LETTER, _ASIDE = 0.06, 0.014, 0.015
_TURNS = 0.55  # names of points further right stand on their left

# Stand-ins that matplotlib writes out and `inline_svg` replaces.
INK, MUTED, RULE, WARM, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_SERIES = {
    "base": "#110001",
    "sft": "#110002",
    "sft_control": "#110003",
    "kd": "#110004",
    "teacher": "#110005",
}
_CSS = {INK: "--ink", MUTED: "--muted", RULE: "--rule", WARM: "--warm", PAPER: "--paper"} | {
    colour: f"--{name.replace('_', '-')}" for name, colour in _SERIES.items()
}
STYLE: dict[Any, Any] = {
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


def colour_of(name: str) -> str:
    """A variant's stand-in colour."""
    return _SERIES.get(name, MUTED)


def short(label: str, limit: int = 26) -> str:
    """A label that leaves room for its plot."""
    line = " ".join(label.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def figure_of(height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure `height` inches high with its panels from left to right."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(wspace=0.08), facecolor="none")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    for axes in panels:
        axes.set_facecolor("none")
    return figure, list(panels)


def bars_figure(rows: int) -> tuple[Figure, Axes]:
    """A figure for that many horizontal bars."""
    figure, (axes,) = figure_of(0.75 + ROW * rows)
    return figure, axes


def name_bars(axes: Axes, names: list[str]) -> None:
    """Horizontal bars from the top down, each with its name."""
    lines = ["\n".join(textwrap.wrap(name, 26, max_lines=2, placeholder="…")) for name in names]
    axes.set_yticks(range(len(names)), lines, linespacing=1.15)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def name_points(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """A name beside every point (x, y), higher where it would cover another; nothing is drawn into the axes after."""
    axes.autoscale_view()
    to_axes = axes.transAxes.inverted()
    placed: list[tuple[float, float, float]] = []  # from, to and height of each name
    for x, y, name in sorted(points, key=lambda point: point[1]):
        across, height = map(float, to_axes.transform(axes.transData.transform((x, y))))
        text = short(name, 30)
        wide, is_left = _LETTER * len(text), across > _TURNS
        begins = across - _ASIDE - wide if is_left else across + _ASIDE
        while any(begins < end and start < begins + wide and abs(height - at) < _LINE for start, end, at in placed):
            height += _LINE / 4
        placed.append((begins, begins + wide, height))
        at = begins + wide if is_left else begins
        align = "right" if is_left else "left"
        shown = axes.text(at, height, text, ha=align, va="center", fontsize=9, transform=axes.transAxes)
        shown.set_in_layout(False)


def log_scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers: 0.5, 1, 2, 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_label_text(f"{axis.get_label_text()}, log scale")


def inline_svg(figure: Figure, name: str, description: str) -> str:
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
