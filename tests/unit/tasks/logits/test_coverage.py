"""The report on top-K mass: exact where it can be checked by hand, and loud where the paper's assumption fails."""

import numpy as np
import pytest

from tasks.logits.coverage import CoverageCounter


def _logprobs(*mass: list[float]) -> np.ndarray:
    return np.log(np.array(mass, dtype=np.float32))


def test_the_mass_is_measured_and_warned_of_where_it_is_not_almost_one() -> None:
    coverage = CoverageCounter(2)
    coverage.add(_logprobs([0.5, 0.4], [0.6, 0.3]), "maths")
    coverage.add(_logprobs([0.25, 0.25]), "poetry")
    summary = coverage.summary()
    assert (summary["k"], summary["tokens"]) == (2, 3)
    assert summary["mean"] == pytest.approx((0.9 + 0.9 + 0.5) / 3, abs=1e-4)
    assert sum(summary["histogram"]) == 3
    assert summary["percentiles"]["p1"] == pytest.approx(0.5, abs=1e-2)
    for words in ("76.7%", "50.0% in 'poetry'", "raise `k`", "bucket"):
        assert words in summary["warning"]
    sure = CoverageCounter(2)
    sure.add(_logprobs([0.99, 0.009]), "maths")
    assert sure.summary()["warning"] is None


def test_mass_by_category_and_by_position_in_the_response() -> None:
    coverage = CoverageCounter(1)
    coverage.add(_logprobs(*[[0.1 * (1 + index)] for index in range(5)]), "a")
    coverage.add(_logprobs([0.9]), "b")
    coverage.add(np.empty((0, 1), np.float32), "c")
    summary = coverage.summary()
    assert summary["by_category"]["a"] == {"tokens": 5, "mean": pytest.approx(0.3, abs=1e-4)}
    assert list(summary["by_category"]) == ["a", "b"]
    assert list(summary["by_position"]) == ["0", "1–3", "4–15"]
    assert summary["by_position"]["0"] == {"tokens": 2, "mean": pytest.approx(0.5, abs=1e-4)}
    assert summary["by_position"]["1–3"] == {"tokens": 3, "mean": pytest.approx(0.3, abs=1e-4)}


def test_the_k_that_would_be_needed_or_more_than_there_is() -> None:
    coverage = CoverageCounter(3)
    coverage.add(_logprobs([0.9, 0.06, 0.01], [0.9, 0.06, 0.01]), "a")
    assert coverage.summary()["k_for"] == {"0.95": 2, "0.99": None}


def test_the_mean_mass_of_every_smaller_k_is_told() -> None:
    coverage = CoverageCounter(3)
    coverage.add(_logprobs([0.5, 0.25, 0.125], [0.75, 0.125, 0.125]), "a")
    assert coverage.summary()["by_k"] == [0.625, 0.8125, 0.9375]


def test_entries_that_are_not_known_hold_no_mass() -> None:
    coverage = CoverageCounter(2)
    coverage.add(np.array([[np.log(0.5), -np.inf]], np.float32), "a")
    assert coverage.summary()["mean"] == pytest.approx(0.5, abs=1e-5)
