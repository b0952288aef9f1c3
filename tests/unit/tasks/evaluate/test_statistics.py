"""Intervals against published values, and their coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.evaluate.statistics import paired_difference, unpaired_difference, wilson


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
