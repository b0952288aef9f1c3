"""The leaderboard as a page that needs nothing else, and as Markdown with links for the Prefect UI."""

from __future__ import annotations

from markupsafe import Markup

from tasks.report.leaderboard.entry import Entry
from tasks.report.leaderboard.plots import plots
from tasks.report.leaderboard.ranking import over_seeds, ranked, rows, verdict
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
    return template("leaderboard.html.jinja").render(
        verdict=verdict(entries),
        demo_note=DEMO_NOTE if _is_demo(entries) else "",
        rows=[_on_the_page(row) for row in rows(entries)],
        over_seeds=over_seeds(entries),
        about_seeds=OVER_SEEDS,
        entries=ranked(entries),
        plots=plots(entries),
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
    )


def _on_the_page(row: dict[str, str]) -> dict[str, str]:
    """The interval stands below the accuracy; a report's link, or why there is none, in the outcome's place."""
    accuracy = row["accuracy"] if row["95 % interval"] == "–" else f"{row['accuracy']} ({row['95 % interval']})"
    return {
        name: cell for name, cell in (row | {"accuracy": accuracy}).items() if name not in ("95 % interval", "outcome")
    }


def _is_demo(entries: list[Entry]) -> bool:
    return any(entry.data is not None and entry.data.demo for entry in entries)
