"""The report itself: one HTML file that needs nothing else, and the same comparison as Markdown for Prefect.

Texts come from models and users, so the template escapes everything (autoescape is on for every file; Jinja's
own choice by extension would leave `.jinja` out) and the page forbids scripts and loads by its content policy.
"""

from __future__ import annotations

import json
import re
import shlex
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from tasks.evaluate.benchmarks.analysis import BenchmarkAnalysis
from tasks.evaluate.benchmarks.people import BesidePeople
from tasks.evaluate.variants import in_order
from tasks.report import benchmarks, examples, paper, quantised, rounds
from tasks.report.analysis_markdown import analysis_markdown
from tasks.report.analysis_view import label_of, taken_cells, view_of
from tasks.report.comparison import (
    CONTROL,
    compare,
    comparison_rows,
    gap_closed,
    nats,
    percent,
    percent_range,
    points,
    points_range,
    verdict,
)
from tasks.report.data import ReportData
from tasks.report.decision import decision, shipped
from tasks.report.differences import unlike
from tasks.report.figures.run import Plot, duration, plots
from tasks.report.paper import published_for
from tasks.report.summary import SPEED, has_speed, summary
from tasks.text.markdown import indented, markdown_text, table

__all__ = ["comparison_rows", "decision", "render_markdown", "render_page", "verdict"]

TEMPLATES = Path(__file__).parent / "templates"
DEMO_NOTE = (
    "Demo models and a rule-based demo LLM: this run shows that the machinery works, and says nothing about Qwen2.5."
)


def render_page(data: ReportData) -> str:
    """The whole report as one HTML document: no scripts, no network, light and dark, printable."""
    compared = {row.name: row for row in compare(data)}
    figures = plots(data)
    return template("page.html.jinja").render(
        data=data,
        decision=decision(data),
        shipped=shipped(data),
        verdict=verdict(data),
        summary=summary(data),
        speed=SPEED if has_speed(data) else "",
        examples=examples.groups(data),
        demo_note=DEMO_NOTE,
        control=CONTROL,
        compared=compared,
        decisive=compared["kd"].against_control if "kd" in compared else None,
        gap_closed=gap_closed(data),
        with_accuracy=any(row.accuracy for row in compared.values()),
        quantised=quantised.rows(data),
        quantised_sentences=quantised.sentences(data),
        quantised_remark=quantised.REMARK,
        left_out=left_out(data),
        scored_by=scored_by(data),
        kl_is_over=kl_is_over(data),
        n=_same_for_all([row.variant.n for row in compared.values()]),
        figures={name: _Figure(plot) for name, plot in figures.items()},
        analysis=view_of(data),
        order=in_order(data.analysis.metrics) if data.analysis else [],
        label=partial(label_of, data),
        slice_figures=[name for name in figures if name.startswith("slices_")],
        taken_cells=taken_cells,
        unlike=unlike,
        round_rows=rounds.rows(data.rounds, data.variants) if data.rounds else [],
        rounds_said=rounds.sentences(data.rounds, data.variants) if data.rounds else [],
        rounds_note=rounds.NOTE,
        published=published_for(data.student),
        paper=paper,
        serve=serve_commands(data),
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
    )


def render_markdown(data: ReportData) -> str:
    """Verdict and comparison table: what the Prefect UI shows beside the run."""
    lines = [f"**{markdown_text(decision(data))}** {markdown_text(verdict(data))}", ""]
    if data.demo:
        lines += [f"*{DEMO_NOTE}*", ""]
    if data.left_out:
        lines += [*(f"- {markdown_text(sentence)}" for sentence in data.left_out), ""]
    facts = [f"{fact.name}: {fact.value}" + (f" ({fact.note})" if fact.note else "") for fact in summary(data)]
    lines += [*(f"- {markdown_text(fact)}" for fact in facts), ""]
    if has_speed(data):
        lines += [SPEED, ""]
    if rows := comparison_rows(data):
        lines += [*table(list(rows[0]), [list(row.values()) for row in rows]), ""]
    if data.quantised:
        lines += _quantised(data)
    if data.benchmarks:
        lines += [*_benchmarks(data, data.benchmarks), ""]
    lines.append(f"Intervals are over held-out requests, for this one training seed. {kl_is_over(data)}")
    if teachers := scored_by(data):
        lines += ["", markdown_text(teachers)]
    if without := left_out(data):
        lines += ["", markdown_text(without)]
    lines += ["", *rounds.markdown(data.rounds, data.variants)] if data.rounds else []
    lines += ["", *analysis_markdown(data)]
    if published := published_for(data.student):
        lines += ["## The paper’s own results, for orientation", ""]
        lines += [f"Not of this run. Source: {paper.SOURCE}. {paper.REMARK}", ""]
        cells = [
            [f"{row.size}, {row.variant}", *("–" if n is None else f"{n:.2f}" for n in row.figures)]
            for row in published
        ]
        lines += [*table(["Qwen2.5-Instruct", *paper.BENCHMARKS], cells), ""]
    if data.reproduce:
        lines += ["## Run this again", "", *indented(data.reproduce), ""]
    if serve := serve_commands(data):
        lines += [f"## Use {markdown_text(label_of(data, shipped(data) or ''))}", "", *indented(serve), ""]
    return "\n".join(lines).rstrip() + "\n"


def kl_is_over(data: ReportData) -> str:
    """What of the teacher's distribution its distances are over, in a sentence."""
    if data.variants and all(variant.kl_to_teacher is None for variant in data.variants.values()):
        return f"KL to the teacher is not known: an API model scores no given text. {teacher_use(data)}".rstrip()
    if data.compared_with_top is None:
        return "KL to the teacher is over the whole vocabulary."
    return (
        f"KL to the teacher is over its top {data.compared_with_top} and tail (one bucket for all other tokens), "
        "from stored scores: a lower bound of the KL over the vocabulary. The acceptance of a draft is one too."
    )


def scored_by(data: ReportData) -> str:
    """How many rows each of several teachers scored, in a sentence; empty where there is one."""
    each = ", ".join(f"{rows:,} by {teacher}" for teacher, rows in data.scored_by.items())
    return f"Rows scored: {each}. Students are compared with {data.teacher}." if each else ""


def teacher_use(data: ReportData) -> str:
    """What a teacher behind an API was asked and cost, in a sentence; empty for any other."""
    if (use := data.teacher_use) is None:
        return ""
    without = sum(use.left_out.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(use.left_out.items()))
    return (
        f"The student is trained on {use.answers:,} answers that {data.teacher} wrote to the prompts, asked "
        f"{use.requests:,} times for ${use.cost_usd:,.2f} ({use.prompt_tokens:,} and {use.completion_tokens:,} tokens)"
        + (f"; {without:,} prompts are left out ({reasons})" if without else "")
        + "."
    )


def left_out(data: ReportData) -> str:
    """Which held-out requests no number is over, in a sentence; empty where all are. One left out is so for all."""
    by_reason: dict[tuple[str, int], list[str]] = {}
    for variant in data.variants.values():
        for reason, rows in variant.left_out.items():
            by_reason.setdefault((reason, rows), []).append(variant.label)
    reasons = [
        f"{rows:,} {reason}" + ("" if len(labels) == len(data.variants) else f" ({', '.join(labels)})")
        for (reason, rows), labels in by_reason.items()
    ]
    return f"Held-out requests left out for every variant: {'; '.join(reasons)}." if reasons else ""


def serve_commands(data: ReportData) -> str:
    """How the student to ship is put to use; empty where there is none, or the report does not know where it lies."""
    uri = next((stage.uri for stage in data.stages if stage.name == shipped(data)), None)
    if uri is None:
        return ""
    return f"distilflow publish student --artifact {shlex.quote(uri)}\nvllm serve student/model"


def _quantised(data: ReportData) -> list[str]:
    rows = quantised.rows(data)
    return [
        "## Quantised students",
        "",
        *(f"- {markdown_text(text)}" for text in quantised.sentences(data)),
        "",
        *table(list(rows[0]), [list(row.values()) for row in rows]),
        "",
        quantised.REMARK,
        "",
    ]


def _benchmarks(data: ReportData, found: BenchmarkAnalysis) -> list[str]:
    rows = benchmarks.rows(found, {name: variant.label for name, variant in data.variants.items()})
    return [
        "## Benchmarks",
        "",
        *(table(list(rows[0]), [list(row.values()) for row in rows]) if rows else []),
        "",
        *(f"- {markdown_text(text)}" for text in (*found.verdicts, *found.remarks)),
        *(_people(found.people) if found.people else ()),
    ]


def _people(beside: BesidePeople) -> list[str]:
    rows = benchmarks.people_rows(beside)
    return [
        "",
        "### The judge beside people",
        "",
        *(table(list(rows[0]), [list(row.values()) for row in rows]) if rows else []),
        "",
        *(f"- {markdown_text(text)}" for text in beside.sentences),
    ]


class _Figure:
    """A plot as the template takes it: its SVG is ours, its words are not."""

    def __init__(self, plot: Plot) -> None:
        self.title, self.caption, self.svg = plot.title, plot.caption, Markup(plot.svg)


@cache
def template(name: str) -> Template:
    """One of our pages, to be filled; whatever is put in is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "percent_range": percent_range,
        "points": points,
        "points_range": points_range,
        "nats": nats,
        "duration": duration,
        "json": _json,
        "setting": _setting,
        "sections": _sections,
        "stacked": _stacked,
        "count": "{:,}".format,
        "usd": _usd,
        "benchmark_number": lambda figure, unit: benchmarks.number(unit, figure.value),
        "people_rows": benchmarks.people_rows,
        "benchmark_range": lambda figure, unit: benchmarks.range_of(unit, figure),
    }
    return environment.get_template(name)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _setting(value: Any) -> str:
    if value is None or value == "":
        return "–"
    return ("on" if value else "off") if isinstance(value, bool) else value if isinstance(value, str) else _json(value)


def _stacked(cell: str) -> Markup:
    """A cell with what is in brackets below it, in small."""
    value, bracket, rest = cell.partition(" (")
    return Markup("{} <small>{}</small>" if bracket else "{}").format(value, rest.removesuffix(")"))


def _sections(page: Markup) -> list[tuple[str, Markup]]:
    """Id and title of every section, as they stand on the page; both are ours."""
    found = re.findall(r'<section id="([\w-]+)">\s*<h2>([^<]+)</h2>', page)
    return [(id_, Markup(title)) for id_, title in found]


def _usd(cost: float) -> str:
    return "–" if cost == 0 else f"${cost:,.2f}" if cost >= 1 else f"${cost:.4f}"


def _same_for_all(numbers: list[int]) -> int | None:
    return numbers[0] if len(set(numbers)) == 1 else None
