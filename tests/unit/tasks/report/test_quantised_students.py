"""What the report says of a quantised student: a loss beyond noise is told, and nothing else is called one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tasks.report import quantised
from tasks.report.data import QuantisedStudent, ReportData, Variant
from tasks.report.page import render_markdown, render_page
from tasks.stats.intervals import Interval
from tests.support.report_sample import sample_report, unmarked_variants, variants


def _student(**changes: Any) -> QuantisedStudent:
    numbers: dict[str, Any] = {
        "variant": "kd_q4_k_m",
        "student": "kd",
        "format": "q4_k_m",
        "size": 400_000_000,
        "student_size": 1_000_000_000,
        "quantised": 22,
        "fell_back": 3,
        "agreed": 60,
        "tokens": 61,
        "cross_entropy": Interval(0.02, -0.01, 0.05),
        "kl_to_teacher": Interval(0.01, 0.005, 0.02),
    }
    return QuantisedStudent(**numbers | changes)


def _report(of: dict[str, Variant], correct: list[bool] | None, **changes: Any) -> ReportData:
    theirs = of["kd"]
    ours = {"label": "SFT+KD, Q4_K_M", "correct": correct, "exec_accuracy": sum(correct) / 640 if correct else None}
    found = {**of, "kd_q4_k_m": theirs.model_copy(update=ours)}
    return sample_report(variants=found, quantised=[_student(**changes)])


def _forgetting(every: int) -> list[bool]:
    """The student's own marks, but for each so many-th request."""
    return [right and row % every > 0 for row, right in enumerate(variants()["kd"].correct or ())]


def test_a_student_that_answers_less_at_four_bits_is_not_to_be_shipped() -> None:
    data = _report(variants(), _forgetting(5))
    (sentence,) = quantised.sentences(data)
    assert sentence.startswith("At 4 bits (Q4_K_M; 3 of 22 matrices in more) SFT+KD loses 1")
    assert "points of execution accuracy, 95 % interval −" in sentence
    assert sentence.endswith("do not ship that.")
    assert sentence in render_page(data)
    page = render_markdown(data)
    assert "do not ship that" in page
    assert "400.0 MB (40%)" in page
    assert "3 of 22" in page


def test_a_difference_within_noise_is_not_called_a_loss() -> None:
    (sentence,) = quantised.sentences(_report(variants(), _forgetting(320)))
    assert "loses nothing beyond noise" in sentence
    assert "ship" not in sentence


@pytest.mark.parametrize(
    ("entropy", "said"),
    [
        (Interval(0.02, 0.01, 0.03), "loses beyond noise: +0.020 (+0.010 to +0.030) nats a token"),
        (Interval(0.02, -0.01, 0.05), "loses nothing beyond noise: +0.020 (−0.010 to +0.050) nats a token"),
        (Interval(math.nan, math.nan, math.nan), "not a number. Do not ship that."),
    ],
)
def test_where_no_answer_is_run_cross_entropy_decides(entropy: Interval, said: str) -> None:
    (sentence,) = quantised.sentences(_report(unmarked_variants(), None, cross_entropy=entropy))
    assert said in sentence
    assert ("do not ship" in sentence.lower()) == (not entropy.low <= 0)


def test_a_report_without_quantised_students_says_nothing_of_them() -> None:
    assert "Quantised" not in render_page(sample_report()) + render_markdown(sample_report())
