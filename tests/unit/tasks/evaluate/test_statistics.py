"""Intervals against published values, and their coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.stats.intervals import (
    Interval,
    PerRow,
    bootstrapped,
    bootstrapped_difference,
    over_seeds,
    paired_difference,
    unpaired_difference,
    wilson,
)


def test_wilson_matches_newcombes_published_example() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I: 81 of 263.
    interval = wilson(81 / 263, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


def test_wilson_stays_inside_the_unit_interval() -> None:
    assert wilson(0.0, 10).low == 0
    assert wilson(1.0, 10).high == pytest.approx(1)


def test_unpaired_difference_matches_newcombes_published_example() -> None:
    # Newcombe 1998, "Interval estimation for the difference between independent proportions", 56/70 − 48/80.
    difference = unpaired_difference(wilson(56 / 70, 70), wilson(48 / 80, 80)).interval
    assert (round(difference.low, 4), round(difference.high, 4)) == (0.0524, 0.3339)


def test_paired_difference_counts_what_was_gained_and_lost() -> None:
    difference = paired_difference([True, True, True, False], [True, False, False, True])
    assert (difference.gained, difference.lost) == (2, 1)
    assert difference.interval.estimate == 0.25


def test_five_disagreements_all_one_way_are_not_yet_significant() -> None:
    # McNemar's exact test: 2 · 0.5⁵ = 0.0625 and 2 · 0.5⁷ = 0.016. A percentile bootstrap would say yes to both.
    assert not paired_difference([True] * 100, [False] * 5 + [True] * 95).interval.excludes_zero
    assert paired_difference([True] * 100, [False] * 7 + [True] * 93).interval.excludes_zero


def test_swapping_the_models_mirrors_the_interval() -> None:
    ours, theirs = [True] * 60 + [False] * 40, [True] * 50 + [False] * 45 + [True] * 5
    forward, back = paired_difference(ours, theirs).interval, paired_difference(theirs, ours).interval
    assert forward.low == pytest.approx(-back.high)
    assert forward.high == pytest.approx(-back.low)


@pytest.mark.parametrize(("only_ours", "only_theirs", "n"), [(0.14, 0.08, 640), (0.05, 0.05, 500), (0.2, 0.02, 200)])
def test_95_percent_of_paired_intervals_contain_the_truth(only_ours: float, only_theirs: float, n: int) -> None:
    rng = np.random.default_rng(17)
    runs, inside = 3000, 0
    for _ in range(runs):
        draw_N = rng.random(n)
        ours_N = draw_N < only_ours
        theirs_N = (draw_N >= only_ours) & (draw_N < only_ours + only_theirs)
        interval = paired_difference(ours_N.tolist(), theirs_N.tolist()).interval
        inside += interval.low <= only_ours - only_theirs <= interval.high
    assert 0.93 <= inside / runs <= 0.97


def test_pairing_narrows_the_interval_of_models_that_agree() -> None:
    ours, theirs = [True] * 70 + [False] * 30, [True] * 65 + [False] * 35
    paired = paired_difference(ours, theirs).interval
    unpaired = unpaired_difference(wilson(0.70, 100), wilson(0.65, 100)).interval
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)
    assert math.isclose(paired.estimate, unpaired.estimate)


def test_a_bootstrapped_mean_of_normal_values_has_students_interval() -> None:
    # For normal data the studentised bootstrap approximates Student's t, whose interval is exact.
    values_N = np.random.default_rng(3).normal(5, 2, 400)
    half = 1.9659 * values_N.std(ddof=1) / math.sqrt(400)
    interval = bootstrapped(PerRow.of(values_N))
    assert interval.estimate == pytest.approx(values_N.mean())
    assert interval.low == pytest.approx(values_N.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values_N.mean() + half, abs=0.15 * half)


def test_the_interval_of_skewed_losses_reaches_further_up_than_down() -> None:
    interval = bootstrapped(PerRow.of(np.random.default_rng(0).lognormal(0, 1, 60)))
    assert interval.high - interval.estimate > 1.2 * (interval.estimate - interval.low)


def test_tokens_weigh_rows() -> None:
    assert bootstrapped(PerRow.of([1.0, 30.0], [1, 10])).estimate == pytest.approx(31 / 11)


def test_equal_rows_have_no_spread_and_one_row_no_interval() -> None:
    assert bootstrapped(PerRow.of([2.0, 4.0, 6.0], [1, 2, 3])) == Interval(2.0, 2.0, 2.0)
    assert bootstrapped(PerRow.of([2.0])) == Interval(2.0, -math.inf, math.inf)
    assert math.isnan(bootstrapped(PerRow.of([2.0, math.nan])).low)


def test_pairing_rows_narrows_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(1)
    theirs_N = rng.lognormal(0, 1, 200)
    ours_N = theirs_N - 0.1 + rng.normal(0, 0.05, 200)
    paired = bootstrapped_difference(PerRow.of(ours_N), PerRow.of(theirs_N))
    assert paired.estimate == pytest.approx(-0.1, abs=0.02)
    assert paired.high - paired.low < 0.1 * (bootstrapped(PerRow.of(ours_N)).high - bootstrapped(PerRow.of(ours_N)).low)
    assert bootstrapped_difference(PerRow.of(ours_N), PerRow.of(ours_N)) == Interval(0.0, 0.0, 0.0)


def test_a_difference_on_equal_counts_is_the_mean_of_the_rows_differences() -> None:
    rng = np.random.default_rng(7)
    ours_N, theirs_N = rng.lognormal(0, 1, 50), rng.lognormal(0, 1, 50)
    found = bootstrapped_difference(PerRow.of(ours_N), PerRow.of(theirs_N))
    expected = bootstrapped(PerRow.of(ours_N - theirs_N))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def _losses(rng: np.random.Generator, n: int) -> PerRow:
    tokens_N = rng.integers(5, 60, n).astype(float)
    return PerRow.of(rng.lognormal(0, 0.5, n) * tokens_N, tokens_N)


@pytest.mark.parametrize("n", [40, 150])
def test_95_percent_of_intervals_of_skewed_losses_contain_the_truth(n: int) -> None:
    rng, truth, runs = np.random.default_rng(5), math.exp(0.125), 1200
    found = [bootstrapped(_losses(rng, n)) for _ in range(runs)]
    assert 0.93 <= np.mean([interval.low <= truth <= interval.high for interval in found]) <= 0.97


def test_95_percent_of_intervals_of_a_paired_difference_contain_the_truth() -> None:
    rng, runs, inside = np.random.default_rng(6), 1200, 0
    for _ in range(runs):
        theirs = _losses(rng, 80)
        change_N = rng.exponential(0.3, 80) - 0.5  # −0.2 on average
        ours = PerRow.of(theirs.sums + change_N * theirs.counts, theirs.counts)
        interval = bootstrapped_difference(ours, theirs)
        inside += interval.low <= -0.2 <= interval.high
    assert 0.93 <= inside / runs <= 0.97


def test_95_percent_of_wilson_intervals_contain_the_truth() -> None:
    # over all true shares: at a single one coverage jumps with n, as counts are whole (Brown et al. 2001)
    rng = np.random.default_rng(8)
    truths = rng.uniform(0.02, 0.98, 4000)
    found = [wilson(count / 40, 40) for count in rng.binomial(40, truths)]
    inside = [interval.low <= truth <= interval.high for interval, truth in zip(found, truths, strict=True)]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_95_percent_of_intervals_over_five_seeds_contain_the_truth() -> None:
    values = np.random.default_rng(9).normal(0.6, 0.02, (3000, 5))
    found = [over_seeds(of_run.tolist()).interval for of_run in values]
    assert 0.93 <= np.mean([interval.low <= 0.6 <= interval.high for interval in found if interval]) <= 0.97


def test_over_seeds_is_students_interval() -> None:
    # t(0.975, 2) = 4.302653; standard deviation of 1, 2, 3 is 1
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.interval is not None
    assert found.interval.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert (found.mean, found.deviation, found.runs) == (2.0, 1.0, 3)
    assert over_seeds([0.4]).interval is None
