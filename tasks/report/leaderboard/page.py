"""The leaderboard as a page that needs nothing else, and as Markdown with links for the Prefect UI."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from tasks.report.comparison import compare
from tasks.report.figures.style import INK, MUTED, STYLE, Plot, colour_of, figure_of, inline_svg
from tasks.report.leaderboard.entry import Entry
from tasks.report.leaderboard.ranking import over_seeds, ranked, rows, verdict
from tasks.report.leaderboard.seeds import Combination, combinations
from tasks.report.page import DEMO_NOTE, TEMPLATES, template
from tasks.text.markdown import markdown_text, table

OVER_SEEDS = (
    "Mean ± standard deviation over the seeds of each combination, and Student’s 95 % interval of the gain: what "
    "another seed would give. The intervals of single runs are over held-out requests."
)


def render_markdown(entries: list[Entry]) -> str:
    """The verdict and the table; each finished run links to its page in the Prefect UI, which holds its report."""
    ranks = rows(entries)
    lines = [f"**{markdown_text(verdict(entries))}**", ""]
    if _is_demo(entries):
        lines += [f"*{DEMO_NOTE}*", ""]
    head, marks, *cells = table(list(ranks[0]), [list(row.values()) for row in ranks])
    lines += [f"{head} report |", f"{marks} --- |"]
    for line, entry in zip(cells, ranked(entries), strict=True):
        link = f"[run]({entry.link})" if entry.link else "–"
        lines.append(f"{line} {link} · `{entry.report.uri}report.html` |" if entry.report else f"{line} {link} |")
    if repeated := over_seeds(entries):
        lines += ["", f"**Over seeds.** {OVER_SEEDS}", ""]
        lines += table(list(repeated[0]), [list(row.values()) for row in repeated])
    lines += ["", "Device time: seconds times ranks of augment, SFT, scoring and KD, as they took when they were made."]
    return "\n".join(lines) + "\n"


def render_page(entries: list[Entry]) -> str:
    """One HTML document: no scripts, no network, light and dark, printable."""
    plot = quality_against_cost(entries)
    return template("leaderboard.html.jinja").render(
        verdict=verdict(entries),
        demo_note=DEMO_NOTE if _is_demo(entries) else "",
        rows=rows(entries),
        over_seeds=over_seeds(entries),
        about_seeds=OVER_SEEDS,
        entries=ranked(entries),
        plot=plot,
        svg=Markup(plot.svg) if plot else "",
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
    )


def _is_demo(entries: list[Entry]) -> bool:
    return any(entry.data is not None and entry.data.demo for entry in entries)


def quality_against_cost(entries: list[Entry]) -> Plot | None:
    """Each student (over its seeds, where there are several) by what it took and how good it is.

    None where nothing was checked. Points are numbered as in the table, and share a label where they lie together.
    """
    import matplotlib as mpl

    repeated = combinations(entries)
    shown = [_over_seeds(one) for one in repeated] if repeated else [_run(one) for one in ranked(entries) if one.data]
    points = [(place, point) for place, point in enumerate(shown, 1) if point]
    if not points:
        return None
    with mpl.rc_context(STYLE):
        figure, (axes,) = figure_of(3.4)
        for _place, (minutes, share, below, above) in points:
            spread = [[below], [above]]
            axes.errorbar(minutes, share, yerr=spread, fmt="o", color=colour_of("kd"), ecolor=MUTED, capsize=3)
        axes.set_xlabel("device time (minutes)")
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
        return Plot("Quality against cost", text, inline_svg(figure, "quality-cost", "accuracy against device time"))


PlotPoint = tuple[float, float, float, float]  # minutes, accuracy in %, and its bar below and above


def _run(entry: Entry) -> PlotPoint | None:
    assert entry.data is not None
    accuracy = {row.name: row for row in compare(entry.data)}["kd"].accuracy
    if accuracy is None:
        return None
    share = 100 * accuracy.estimate
    return entry.device_seconds / 60, share, share - 100 * accuracy.low, 100 * accuracy.high - share


def _over_seeds(combination: Combination) -> PlotPoint | None:
    if (accuracy := combination.accuracy) is None:
        return None
    deviation = 100 * accuracy.deviation
    return combination.device_seconds / 60, 100 * accuracy.mean, deviation, deviation


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
