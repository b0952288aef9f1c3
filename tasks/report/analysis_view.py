"""What the page and the Markdown say of the analysis, as words: rows of cells, sentences, pieces of text. No markup."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tasks.evaluate.analysis.analysis import Analysis
from tasks.evaluate.analysis.comparisons import METRICS
from tasks.evaluate.analysis.draft import DRAFTED, tokens_a_step
from tasks.evaluate.analysis.inherited import Taken
from tasks.evaluate.analysis.slices import Regression, Regressions
from tasks.evaluate.heldout.predictions import perplexity
from tasks.report.comparison import CONTROL, nats, points, points_range
from tasks.report.data import ReportData
from tasks.report.differences import Piece, unlike
from tasks.stats.intervals import Interval
from tasks.stats.significance import Comparison

FEW = 30  # rows below which a slice's figures are marked: its interval is wider than most differences
SHOWN = 4  # regressions of each kind on the page; all that were listed stand in data.json
_SHARES = {"exec_accuracy", "sampled_accuracy", "any_sample_correct", "top1_agreement", "acceptance", "truncated"}


@dataclass(frozen=True)
class Cell:
    """A figure, and its 95 % interval where it has one."""

    value: str
    range: str = ""


@dataclass(frozen=True)
class TableRow:
    """One quantity of every variant, by the variant's name; a variant that has none is left out."""

    name: str
    unit: str
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Pair:
    """Two variants in every metric: (better, worse, other or same; the sentence)."""

    title: str
    sentences: list[tuple[str, str]]


@dataclass(frozen=True)
class Worse:
    """One row on which a student is worse than base: both answers, with the pieces that the other does not have."""

    row: Regression
    base: list[Piece]
    variant: list[Piece]


@dataclass(frozen=True)
class Repeated:
    """How often a student does what its teacher did, against base."""

    student: str
    what: str
    taken: Taken


@dataclass(frozen=True)
class AnalysisView:
    """All of it. `worst_*` are of the student that the report is about, `worst_of`."""

    n: int
    headline: str
    metrics: list[TableRow]
    pairs: list[Pair]
    regressions: list[tuple[str, Regressions]]
    worst_of: str
    worst_answers: list[Worse]
    worst_losses: list[Worse]
    repeated: list[Repeated]
    unrepeated: str
    styles: list[TableRow]


def view_of(data: ReportData) -> AnalysisView | None:
    """The analysis in words, or None where a run has none."""
    analysis = data.analysis
    if analysis is None:
        return None
    subject = "kd" if "kd" in analysis.regressions else next(iter(analysis.regressions), "")
    worst = analysis.regressions.get(subject)
    return AnalysisView(
        n=analysis.n,
        headline=_headline(data),
        metrics=_metrics(analysis),
        pairs=_pairs(analysis),
        regressions=[(label_of(data, name), found) for name, found in analysis.regressions.items()],
        worst_of=label_of(data, subject),
        worst_answers=_worse(worst.worst_answers) if worst else [],
        worst_losses=_worse(worst.worst_losses) if worst else [],
        repeated=_repeated(data, analysis),
        unrepeated=_unrepeated(analysis),
        styles=_styles(analysis),
    )


def label_of(data: ReportData, name: str) -> str:
    """A variant's label, or its name where the report does not know it."""
    return data.variants[name].label if name in data.variants else name


def share_cell(interval: Interval) -> Cell:
    return _cell(interval, lambda value: f"{100 * value:.1f}")


def _metrics(analysis: Analysis) -> list[TableRow]:
    rows = []
    for name, metric in METRICS.items():
        show, unit = _shown(name, metric.unit)
        cells = {variant: _cell(of[name], show) for variant, of in analysis.metrics.items() if name in of}
        if cells:
            rows.append(TableRow(_capital(metric.name), unit, cells))
        if name == "cross_entropy":
            rows.append(
                TableRow("Perplexity", "per token", {v: _perplexity(of[name]) for v, of in analysis.metrics.items()})
            )
        if name == "acceptance" and cells:
            drafted = {variant: _drafted(of[name]) for variant, of in analysis.metrics.items() if name in of}
            rows.append(TableRow("Tokens a step of the teacher", f"{DRAFTED} drafted", drafted))
    errors = {variant: Cell(_percent(found.ece)) for variant, found in analysis.calibration.items()}
    return [*rows, TableRow("Calibration error (ECE)", "%, no interval", errors)]


def _shown(metric: str, unit: str) -> tuple[Callable[[float], str], str]:
    if metric in _SHARES:
        return _percent, "%"
    return (nats, "nats/token") if unit.startswith("nats") else (lambda value: f"{value:.1f}", unit)


def _perplexity(of: Interval) -> Cell:
    return _cell(Interval(*(perplexity(end) for end in (of.estimate, of.low, of.high))), lambda value: f"{value:,.2f}")


def _drafted(of: Interval) -> Cell:
    ends = (tokens_a_step(end, DRAFTED) for end in (of.estimate, of.low, of.high))
    return _cell(Interval(*ends), lambda value: f"{value:.2f}")


def _cell(interval: Interval, show: Callable[[float], str]) -> Cell:
    if not all(map(math.isfinite, (interval.estimate, interval.low, interval.high))):
        return Cell(show(interval.estimate) if math.isfinite(interval.estimate) else "not a number")
    return Cell(show(interval.estimate), f"{show(interval.low)} – {show(interval.high)}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if math.isfinite(share) else "not a number"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pairs(analysis: Analysis) -> list[Pair]:
    """By the two variants, in the order of the plan: SFT+KD against its control first."""
    by_pair: dict[str, list[tuple[str, str]]] = {}
    for comparison, sentence in zip(analysis.comparisons, analysis.verdicts, strict=True):
        title = f"{comparison.ours} against {comparison.theirs}"
        by_pair.setdefault(title, []).append((_outcome(comparison), sentence))
    return [Pair(title, sentences) for title, sentences in by_pair.items()]


def _outcome(comparison: Comparison) -> str:
    if not comparison.is_significant:
        return "same"
    if comparison.better == "neither":
        return "other"
    return "better" if (comparison.difference.estimate > 0) == (comparison.better == "higher") else "worse"


def _headline(data: ReportData) -> str:
    if not {"kd", CONTROL} <= data.variants.keys():
        return ""
    return (
        f"The first sentence of this report is about one comparison that was planned before any result was seen, "
        f"{label_of(data, 'kd')} against {label_of(data, CONTROL)}; it goes by that comparison’s own 95 % interval, "
        "uncorrected. The sentences here speak of all comparisons, so their tests are corrected (Holm) for how many "
        "are made in each metric, and may be stricter."
    )


def _worse(found: list[Regression]) -> list[Worse]:
    return [Worse(row, unlike(row.base, row.variant), unlike(row.variant, row.base)) for row in found[:SHOWN]]


def _repeated(data: ReportData, analysis: Analysis) -> list[Repeated]:
    kinds = ("errors", "refusals")
    return [
        Repeated(label_of(data, name), kind, taken)
        for kind in kinds
        for name, found in analysis.inherited.items()
        if (taken := getattr(found, kind)) is not None
    ]


def _unrepeated(analysis: Analysis) -> str:
    """What could not be looked at, and why."""
    found = analysis.inherited.values()
    if not found:
        return "The teacher answers no held-out request here, so nothing is known of it."
    said = []
    if not any(of.errors for of in found):
        judged = any("exec_accuracy" in of for of in analysis.metrics.values())
        said.append("The teacher made no errors here." if judged else "No answer was checked, so errors are not known.")
    if not any(of.refusals for of in found):
        said.append("The teacher refused no request.")
    return " ".join(said)


def _styles(analysis: Analysis) -> list[TableRow]:
    def row(name: str, unit: str, show: Callable[[float], str], field: str) -> TableRow:
        values = {variant: getattr(style, field) for variant, style in analysis.styles.items()}
        return TableRow(
            name,
            unit,
            {v: Cell(show(value) if math.isfinite(value) else "–") for v, value in values.items() if value is not None},
        )

    def ratio(value: float) -> str:
        return f"{value:.2f}"

    return [
        row("Length", "characters, mean", "{:,.0f}".format, "characters"),
        row("Length, teacher = 1", "ratio", ratio, "to_teacher"),
        row("Length, base = 1", "ratio", ratio, "to_base"),
        row("Different words (distinct-1)", "% of all words", _percent, "distinct_1"),
        row("Different pairs of words (distinct-2)", "% of all pairs", _percent, "distinct_2"),
        row("With Markdown", "% of answers", _percent, "markdown"),
        row("With a list", "% of answers", _percent, "lists"),
        row("With a code block", "% of answers", _percent, "code"),
        row("Refusals", "% of answers", _percent, "refusals"),
    ]


def taken_cells(taken: Taken) -> tuple[Cell, Cell, Cell]:
    """Student, base and what the student does beyond base (in points)."""
    excess = Cell(points(taken.excess.estimate), points_range(taken.excess))
    return share_cell(taken.student), share_cell(taken.base), excess
