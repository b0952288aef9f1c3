"""All variants together: what the report says of the held-out rows, as numbers. Pure: tables in, one model out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from tasks.evaluate.analysis.comparisons import compare, intervals
from tasks.evaluate.analysis.inherited import AnswerStyle, Inherited, inherited, styles
from tasks.evaluate.analysis.slices import Regressions, Slice, regressions, slices
from tasks.evaluate.heldout.predictions import calibration_bins, expected_calibration_error
from tasks.stats.intervals import Interval, Numbers
from tasks.stats.significance import Comparison, verdict

if TYPE_CHECKING:
    import pandas as pd

_NOT_STUDENTS = {"base", "teacher"}


class Calibration(Numbers):
    """Expected calibration error, and the bins of its reliability diagram."""

    ece: float
    bins: list[dict[str, float]] = Field(description="low, high, tokens, confidence and accuracy of each bin")


class Analysis(Numbers):
    """By variant where nothing else is said; on the rows that every variant could take."""

    n: int
    metrics: dict[str, dict[str, Interval]]
    calibration: dict[str, Calibration]
    comparisons: list[Comparison]
    verdicts: list[str] = Field(description="a sentence for each comparison, in the same order")
    slices: list[Slice]
    regressions: dict[str, Regressions]
    inherited: dict[str, Inherited]
    styles: dict[str, AnswerStyle]


def analyse(tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> Analysis:
    """`tables` (base among them, and the teacher if it was there) hold the same rows in the same order; `labels` name
    the variants.
    """
    teacher = tables.get("teacher")
    students = [name for name in tables if name not in _NOT_STUDENTS]
    compared = compare(tables, labels)
    return Analysis(
        n=len(tables["base"]),
        metrics={name: intervals(table) for name, table in tables.items()},
        calibration={name: _calibration(table) for name, table in tables.items()},
        comparisons=compared,
        verdicts=[verdict(comparison) for comparison in compared],
        slices=slices(tables),
        regressions={name: regressions(tables[name], tables["base"]) for name in students},
        inherited={name: inherited(tables[name], tables["base"], teacher) for name in students if teacher is not None},
        styles=styles(tables),
    )


def _calibration(table: pd.DataFrame) -> Calibration:
    bins = calibration_bins(table)
    return Calibration(ece=expected_calibration_error(bins), bins=bins)
