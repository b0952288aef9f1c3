"""The experiment as a page that needs nothing else, as Markdown for the Prefect UI, and as a table for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from tasks.report.comparison import nats, percent
from tasks.report.copies import report_file
from tasks.report.experiment.arms import MEASURES, ArmResult, ArmRun, Part, can_measure, rows_of
from tasks.report.experiment.choice import measure_of, recommended, shown, verdict
from tasks.report.experiment.plots import plots
from tasks.report.experiment.question import ExperimentQuestion
from tasks.report.figures.run import duration
from tasks.report.page import DEMO_NOTE, TEMPLATES, template
from tasks.text.markdown import markdown_text, table

HOW = (
    "Held-out rows are divided in two by their ids: the arm is chosen on one half, and every figure here is of the "
    "other. Values are means over seeds with 95 % intervals over rows and seeds (both resampled); differences are "
    "paired by row and seed, and not corrected for how many arms there are."
)
_PARTS: tuple[Part, Part] = ("choosing", "quoted")


def render_markdown(
    question: ExperimentQuestion, runs: Sequence[ArmRun], arms: Sequence[ArmResult], *, demo: bool
) -> str:
    """The verdict and the table."""
    lines = [f"**{markdown_text(verdict(question, arms, _failed(runs)))}**", "", markdown_text(question.question), ""]
    if demo:
        lines += [f"*{DEMO_NOTE}*", ""]
    if arms:
        shown_rows = rows(question, arms)
        lines += table(list(shown_rows[0]), [list(row.values()) for row in shown_rows])
    lines += ["", HOW, *(f"- failed: {markdown_text(line)}" for line in failures(runs))]
    return "\n".join(lines) + "\n"


def render_page(question: ExperimentQuestion, runs: Sequence[ArmRun], arms: Sequence[ArmResult], *, demo: bool) -> str:
    """One HTML document: no scripts, no network, light and dark, printable."""
    headline, _, details = verdict(question, arms, _failed(runs)).partition(". ")
    return template("experiment.html.jinja").render(
        question=question,
        headline=f"{headline.removesuffix('.')}.",
        details=details,
        demo_note=DEMO_NOTE if demo else "",
        rows=rows(question, arms),
        how=HOW,
        runs=[(run, report_file(run_name(run)) if run.report else "") for run in runs if run.report or run.link],
        failures=failures(runs),
        plots=plots(question, arms),
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
    )


def rows(question: ExperimentQuestion, arms: Sequence[ArmResult]) -> list[dict[str, str]]:
    """The arms as text, one dict each with the same columns; what all arms took alike is not among them."""
    if not arms:
        return []
    measure = measure_of(question, arms)
    chosen = recommended(question, arms) if question.asks != "trend" else arms[0]
    found = []
    took = _took(arms)
    for place, arm in enumerate(arms):
        seeds, is_chosen = len(arm.tables), arm is chosen
        kl = nats(arm.interval("kl_to_teacher", "quoted").estimate) if arm.has("kl_to_teacher") else "–"
        against = shown(arm.against(chosen, measure, "quoted"), measure, difference=True)
        found.append(
            {
                "arm": f"{arm.name} ←" if is_chosen and question.asks != "trend" else arm.name,
                "seeds": str(seeds),
                MEASURES[measure].name: shown(arm.interval(measure, "quoted"), measure),
                f"against {chosen.name}": "–" if is_chosen else against,
                "cross-entropy": nats(arm.interval("cross_entropy", "quoted").estimate),
                "KL to teacher": kl,
            }
            | {name: cells[place] for name, cells in took.items()}
        )
    return found


def _took(arms: Sequence[ArmResult]) -> dict[str, list[str]]:
    """What the arms took, by column, of every arm; without columns that tell none from another."""
    columns = {
        "rows": [f"{arm.cost('rows'):,.0f}" for arm in arms],
        "left out by agents": [_share(arm.share("left_out")) for arm in arms],
        "drifted": [_share(arm.share("drift")) for arm in arms],
        "device time": [duration(arm.cost("device_seconds")) for arm in arms],
        "teacher scores": [f"{arm.cost('store_bytes') / 1e6:,.2f} MB" for arm in arms],
        "API cost": [f"${arm.cost('usd'):,.2f}" for arm in arms],
    }
    return {name: cells for name, cells in columns.items() if len(set(cells)) > 1}


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def measurements(arms: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Every arm, seed, part and measure in a row of its own."""
    found = []
    for arm in arms:
        for seed, (tables, taken) in enumerate(zip(arm.tables, arm.taken, strict=True)):
            for part in _PARTS:
                for measure in MEASURES:
                    if can_measure(tables, arm.variant, measure):
                        value = arm.values(measure, part)[seed].value
                        place = {key: str(value) for key, value in arm.place.items()}
                        found.append(
                            {"arm": arm.name, "variant": arm.variant, "seed": seed, "part": part, "measure": measure}
                            | {"value": value, "held_out_rows": len(rows_of(part, arm.row_ids))}
                            | vars(taken)
                            | place
                        )
    return found


def run_name(run: ArmRun) -> str:
    """What its report is called beside the page."""
    return f"{run.arm}, seed {run.seed}"


def failures(runs: Sequence[ArmRun]) -> list[str]:
    return [f"{run_name(run)}: {run.failed}" for run in runs if run.failed]


def _failed(runs: Sequence[ArmRun]) -> int:
    return len(failures(runs))
