"""Paired tests against exact values, the correction, and the words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.stats.intervals import Interval, PerRow
from tasks.stats.significance import Comparison, holm, mcnemar, paired_permutation, verdict


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(5, 0, 0.0625), (7, 0, 0.015625), (9, 3, 598 / 4096), (4, 4, 1.0), (0, 0, 1.0)]
)
def test_mcnemar_is_twice_the_binomial_tail(gained: int, lost: int, p: float) -> None:
    # 9 to 3: 2 · (C(12,0) + C(12,1) + C(12,2) + C(12,3)) / 2¹² = 598 / 4096
    assert mcnemar(gained, lost) == pytest.approx(p)
    assert mcnemar(lost, gained) == pytest.approx(p)


def test_few_rows_are_permuted_exactly() -> None:
    # Differences 1, 2, 3, −4 sum to 2; of the 16 signings, |sum| ≥ 2 in all but those that sum to 0: 14 of 16.
    ours, theirs = PerRow.of([1.0, 2.0, 3.0, 0.0]), PerRow.of([0.0, 0.0, 0.0, 4.0])
    assert paired_permutation(ours, theirs) == 14 / 16
    assert paired_permutation(PerRow.of([1.0] * 6), PerRow.of([0.0] * 6)) == 2 / 64


def test_many_rows_agree_with_scipys_permutation_test() -> None:
    from scipy.stats import permutation_test

    rng = np.random.default_rng(2)
    ours_N = rng.lognormal(0, 1, 150)
    theirs_N = ours_N + rng.normal(0.05, 0.4, 150)
    found = permutation_test(
        (ours_N - theirs_N,), np.mean, permutation_type="samples", n_resamples=9999, rng=1, vectorized=True
    )
    assert paired_permutation(PerRow.of(ours_N), PerRow.of(theirs_N)) == pytest.approx(found.pvalue, abs=0.02)


def test_rows_of_other_token_counts_are_swapped_with_their_counts() -> None:
    # Swapping all rows turns the difference round, so both models are as far apart as before.
    ours, theirs = PerRow.of([2.0, 9.0], [1, 3]), PerRow.of([4.0, 5.0], [2, 4])
    # |11/4 − 9/6| = 1.25 as seen and mirrored; one row swapped: |13/5 − 7/5| = 1.2 and mirrored
    assert paired_permutation(ours, theirs) == 2 / 4


def test_equal_models_do_not_differ_and_a_diverged_one_is_not_tested() -> None:
    same = PerRow.of(np.arange(40.0))
    assert paired_permutation(same, same) == 1.0
    assert math.isnan(paired_permutation(same, PerRow.of([math.nan] * 40)))


def test_five_percent_of_tests_on_equal_models_are_significant() -> None:
    rng, runs = np.random.default_rng(4), 400
    ps = []
    for _ in range(runs):
        shared_N = rng.lognormal(0, 1, 30)
        ps.append(
            paired_permutation(PerRow.of(shared_N + rng.normal(size=30)), PerRow.of(shared_N + rng.normal(size=30)))
        )
    assert 0.025 <= np.mean(np.asarray(ps) < 0.05) <= 0.08


def test_holm_matches_the_worked_example() -> None:
    # Holm 1979 as worked by hand: 4 · 0.005, 3 · 0.01, 2 · 0.03, then 0.04 raised to what stands before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(ps: list[float]) -> None:
    adjusted = holm(ps)
    assert all(after >= before and after <= 1 for before, after in zip(ps, adjusted, strict=True))
    by_p = [after for _before, after in sorted(zip(ps, adjusted, strict=True))]
    assert by_p == sorted(by_p)


def _comparison(**changes: object) -> Comparison:
    fields: dict[str, object] = {
        "metric": "cross_entropy",
        "name": "cross-entropy",
        "better": "lower",
        "unit": "nats a token",
        "ours": "SFT + KD",
        "theirs": "SFT",
        "ours_value": 0.4,
        "theirs_value": 0.5,
        "n": 1640,
        "difference": Interval(-0.1, -0.15, -0.05),
        "test": "paired permutation test",
        "p": 0.002,
        "p_adjusted": 0.01,
        "family": 5,
    }
    return Comparison.model_validate(fields | changes)


def test_the_verdict_knows_which_direction_is_good() -> None:
    assert verdict(_comparison()) == (
        "SFT + KD is better than SFT in cross-entropy (−0.100 nats a token, 95 % interval −0.150 to −0.050; "
        "paired permutation test, p = 0.002, p = 0.010 corrected over 5 comparisons, n = 1,640)."
    )
    assert "is worse than" in verdict(_comparison(difference=Interval(0.1, 0.05, 0.15)))
    assert "is worse than" in verdict(_comparison(better="higher", unit="points"))
    assert "SFT + KD is below SFT in answer length" in verdict(_comparison(better="neither", name="answer length"))


def test_no_difference_is_said_in_words_also_where_only_the_correction_says_so() -> None:
    words = verdict(_comparison(p=0.03, p_adjusted=0.09))
    assert words.startswith("No significant difference between SFT + KD and SFT in cross-entropy")
    assert "better" not in words
    assert "cannot be compared" in verdict(_comparison(p=None, p_adjusted=None))
