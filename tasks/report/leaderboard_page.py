"""The leaderboard as a page that needs nothing else, and as Markdown with links for the Prefect UI."""

from __future__ import annotations

from markupsafe import Markup

from tasks.report.comparison import compare, percent
from tasks.report.entry import Entry
from tasks.report.figure_style import INK, MUTED, STYLE, Plot, colour_of, figure_of, inline_svg, short
from tasks.report.leaderboard import over_seeds, ranked, rows, verdict
from tasks.report.markdown import markdown_text
from tasks.report.page import TEMPLATES, template

OVER_SEEDS = (
    "Mean ± standard deviation over the seeds of each combination, and Student’s 95 % interval of the gain: what "
    "another seed would give. The intervals of single runs are over held-out requests."
)


def render_markdown(entries: list[Entry]) -> str:
    """The verdict and the table; each finished run links to its page in the Prefect UI, which holds its report."""
    table = rows(entries)
    columns = [*table[0], "report"]
    lines = [f"**{markdown_text(verdict(entries))}**", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for cells, entry in zip(table, ranked(entries), strict=True):
        link = f"[run]({entry.link})" if entry.link else "–"
        where = f"{link} · `{entry.report.uri}report.html`" if entry.report else link
        lines.append("| " + " | ".join([*map(markdown_text, cells.values()), where]) + " |")
    if repeated := over_seeds(entries):
        lines += ["", f"**Over seeds.** {OVER_SEEDS}", ""]
        lines += ["| " + " | ".join(repeated[0]) + " |", "|" + " --- |" * len(repeated[0])]
        lines += ["| " + " | ".join(map(markdown_text, cells.values())) + " |" for cells in repeated]
    lines += ["", "Device time: seconds times ranks of augment, SFT, scoring and KD, as they took when they were made."]
    return "\n".join(lines) + "\n"


def render_page(entries: list[Entry]) -> str:
    """One HTML document: no scripts, no network, light and dark, printable."""
    plot = quality_against_cost(entries)
    return template("leaderboard.html.jinja").render(
        verdict=verdict(entries),
        rows=rows(entries),
        over_seeds=over_seeds(entries),
        about_seeds=OVER_SEEDS,
        entries=ranked(entries),
        plot=plot,
        svg=Markup(plot.svg) if plot else "",
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
    )


def quality_against_cost(entries: list[Entry]) -> Plot | None:
    """Each student by what it took and how good it is, with its interval; None where nothing was checked."""
    import matplotlib as mpl

    shown = []
    for entry in ranked(entries):
        if entry.data and (accuracy := {row.name: row for row in compare(entry.data)}["kd"].accuracy):
            shown.append((entry, accuracy))
    if not shown:
        return None
    with mpl.rc_context(STYLE):
        figure, (axes,) = figure_of(3.4)
        for entry, accuracy in shown:
            minutes, share = entry.device_seconds / 60, 100 * accuracy.estimate
            spread = [[share - 100 * accuracy.low], [100 * accuracy.high - share]]
            axes.errorbar(minutes, share, yerr=spread, fmt="o", color=colour_of("kd"), ecolor=MUTED, capsize=3)
            axes.annotate(short(entry.name), (minutes, share), (6, 4), textcoords="offset points", color=INK)
        axes.set_xlabel("device time (minutes)")
        axes.set_ylabel("execution accuracy (%)")
        axes.grid(axis="y")
        axes.tick_params(labelcolor=MUTED, length=0, pad=6)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.25)
        axes.set_xlim(left=0)
        best, accuracy = shown[0]
        text = f"Best: {best.name}, {percent(accuracy.estimate)}. Bars are 95 % intervals over held-out requests."
        return Plot("Quality against cost", text, inline_svg(figure, "quality-cost", "accuracy against device time"))
