"""Made-up runs whose KD and control differ as a test wants it."""

from __future__ import annotations

from typing import Any

from tasks.evaluate.analysis.analysis import Analysis
from tasks.report.data import ReportData
from tasks.stats.intervals import Interval
from tests.support.analysis_sample import sample_analysis
from tests.support.report_sample import LABELS, N, sample_report, variants


def with_right_answers(both: int, only_kd: int, only_control: int) -> ReportData:
    """So many requests are right with both, with KD alone, with its control alone."""
    rest, given = N - both - only_kd - only_control, variants()
    for name, sides in (("kd", (True, False)), ("sft_control", (False, True))):
        correct = [True] * both + [sides[0]] * only_kd + [sides[1]] * only_control + [False] * rest
        given[name] = given[name].model_copy(update={"correct": correct, "exec_accuracy": sum(correct) / N})
    return sample_report(variants=given)


def compared(metric: str, ours: float, theirs: float, p: float | None) -> dict[str, Any]:
    """What the analysis found of SFT + KD against its control."""
    return {
        "metric": metric,
        "ours_value": ours,
        "theirs_value": theirs,
        "difference": Interval(ours - theirs, ours - theirs - 0.1, ours - theirs + 0.1),
        "p": p,
        "p_adjusted": p,
    }


def analysed(*tests: dict[str, Any]) -> Analysis:
    analysis = sample_analysis(LABELS)
    changes = {test["metric"]: test for test in tests}
    pair = (LABELS["kd"], LABELS["sft_control"])
    compared = [
        one.model_copy(update=changes[one.metric]) if (one.ours, one.theirs) == pair and one.metric in changes else one
        for one in analysis.comparisons
    ]
    return analysis.model_copy(update={"comparisons": compared})
