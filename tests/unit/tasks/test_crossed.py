"""Intervals over rows and seeds, both a draw."""

import math

import numpy as np
import pytest

from tasks.stats.crossed import over_rows_and_seeds
from tasks.stats.intervals import PerRow

ROWS, SEEDS = 120, 4


def _seen(rng: np.random.Generator, of_rows: float, of_seeds: float, noise: float) -> list[PerRow]:
    """Losses whose true mean is 1."""
    rows, seeds = rng.normal(0, of_rows, ROWS), rng.normal(0, of_seeds, SEEDS)
    return [PerRow.of(1 + rows + seed + rng.normal(0, noise, ROWS)) for seed in seeds]


@pytest.mark.parametrize(("of_rows", "of_seeds", "least"), [(1.0, 0.0, 0.89), (0.5, 0.3, 0.75)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(of_rows: float, of_seeds: float, least: float) -> None:
    """Four seeds are few: where they differ much, it is too narrow, as every resampling of four is."""
    rng = np.random.default_rng(0)
    found = [over_rows_and_seeds(_seen(rng, of_rows, of_seeds, 0.3)) for _ in range(300)]
    assert least <= np.mean([one.low <= 1 <= one.high for one in found]) <= 1
    of_rows_alone = [over_rows_and_seeds(_seen(np.random.default_rng(n), of_rows, 0, 0.3)[:1]) for n in range(20)]
    if of_seeds:
        assert np.mean([one.high - one.low for one in found]) > np.mean([o.high - o.low for o in of_rows_alone])


def test_a_difference_is_paired_by_row_and_seed() -> None:
    rng = np.random.default_rng(1)
    baseline = _seen(rng, 2.0, 0.5, 0.1)
    ours = [PerRow(one.sums + 0.1, one.counts) for one in baseline]
    difference = over_rows_and_seeds(ours, baseline)
    assert difference.estimate == pytest.approx(0.1)
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.1))


def test_a_ratio_is_that_of_sums_in_each_seed_and_the_mean_over_seeds() -> None:
    one, two = PerRow.of([1.0, 3.0], [1, 1]), PerRow.of([2.0, 10.0], [2, 4])
    assert over_rows_and_seeds([one, two]).estimate == pytest.approx((2 + 2) / 2)


def test_a_diverged_seed_makes_it_no_number() -> None:
    found = over_rows_and_seeds([PerRow.of([1.0, 2.0]), PerRow.of([math.nan, 2.0])])
    assert all(map(math.isnan, (found.estimate, found.low, found.high)))
