"""The analysis as Markdown: the same words and figures as on the page, without its drawings and answers."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.evaluate.variants import in_order
from tasks.report.analysis_view import FEW, AnalysisView, Cell, TableRow, label_of, share_cell, taken_cells, view_of
from tasks.report.comparison import nats
from tasks.report.data import ReportData
from tasks.stats.intervals import Interval
from tasks.text.markdown import markdown_text, table

_MARKS = {"better": "▲", "worse": "▼", "same": "=", "other": "◆"}


def analysis_markdown(data: ReportData) -> list[str]:
    """Lines; none where a run has no analysis."""
    said = view_of(data)
    if said is None or data.analysis is None:
        return []
    order = in_order(data.analysis.metrics)
    labels = [label_of(data, name) for name in order]
    return [
        "## Every metric",
        "",
        *_across(said.metrics, order, labels),
        "",
        *_sentences(said),
        *_slices(data, order, labels),
        *_regressions(said),
        "## What was inherited from the teacher",
        "",
        *([markdown_text(said.unrepeated), ""] if said.unrepeated else []),
        *_repeated(said),
        *_across(said.styles, order, labels),
        "",
    ]


def _across(rows: Sequence[TableRow], order: Sequence[str], labels: Sequence[str]) -> list[str]:
    cells = [[f"{row.name}, {row.unit}", *(_text(row.cells.get(name)) for name in order)] for row in rows]
    return table(["", *labels], cells)


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"{cell.value} ({cell.range})" if cell.range else cell.value


def _sentences(said: AnalysisView) -> list[str]:
    lines = ["## Who is better, in words", ""]
    if said.headline:
        lines += [markdown_text(said.headline), ""]
    for pair in said.pairs:
        lines += [f"**{markdown_text(pair.title)}**", ""]
        lines += [f"- {_MARKS[outcome]} {markdown_text(sentence)}" for outcome, sentence in pair.sentences]
        lines.append("")
    return lines


def _slices(data: ReportData, order: Sequence[str], labels: Sequence[str]) -> list[str]:
    assert data.analysis is not None
    rows = []
    for found in data.analysis.slices:
        few = ", few" if found.n < FEW else ""
        values = [found.values.get(name, {}) for name in order]
        rows.append([f"{found.by}: {found.name}", f"{found.n:,}{few}", *map(_slice_value, values)])
    if not rows:
        return []
    note = "Share answered correctly in %, or cross-entropy in nats/token where no answer was checked."
    return ["## By slice", "", note, "", *table(["slice", "n", *labels], rows), ""]


def _slice_value(metrics: dict[str, Interval]) -> str:
    if "exec_accuracy" in metrics:
        return share_cell(metrics["exec_accuracy"]).value
    return nats(metrics["cross_entropy"].estimate) if "cross_entropy" in metrics else "–"


def _regressions(said: AnalysisView) -> list[str]:
    if not said.regressions:
        return []
    rows = [
        [name, "not checked" if found.answers is None else f"{found.answers:,}", f"{found.losses:,}", f"{found.n:,}"]
        for name, found in said.regressions
    ]
    columns = ["student", "right with base, wrong now", "loss on the reference grew", "requests"]
    return ["## Worse than base", "", *table(columns, rows), ""]


def _repeated(said: AnalysisView) -> list[str]:
    rows = []
    for row in said.repeated:
        student, base, excess = map(_text, taken_cells(row.taken))
        rows.append([row.student, f"{row.taken.n:,} {row.what}", student, base, excess])
    columns = ["student", "teacher’s", "repeated, %", "by base, %", "beyond base, points"]
    return [*table(columns, rows), ""] if rows else []
