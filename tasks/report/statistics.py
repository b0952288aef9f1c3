"""Intervals for shares of correct answers, and for the difference between two models on the same requests.

Closed forms: no resampling, so equal data gives equal figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959964  # the 97.5th percentile of the normal distribution


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval, all in the same unit (shares of 1)."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """How much more often one model is right than another. `gained` and `lost` are None when unpaired."""

    interval: Interval
    gained: int | None
    lost: int | None


def wilson(share: float, n: int) -> Interval:
    """95 % interval of a share seen on n requests (Wilson 1927); asymmetric, and inside [0, 1]."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool]) -> Difference:
    """Share right of `ours` minus `theirs` on the same requests, in the same order.

    Only requests on which the two disagree carry information (McNemar 1947). The interval is Bonett and
    Price's (2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data"), which adds one disagreement each way and so stays honest when there are few.
    """
    ours_N, theirs_N = np.asarray(ours, bool), np.asarray(theirs, bool)
    n = len(ours_N)
    gained, lost = int((ours_N & ~theirs_N).sum()), int((~ours_N & theirs_N).sum())
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    interval = Interval((gained - lost) / n, max(-1.0, up - down - half), min(1.0, up - down + half))
    return Difference(interval, gained, lost)


def unpaired_difference(ours: Interval, theirs: Interval) -> Difference:
    """The same from two shares alone, taken as independent: wider (Newcombe 1998, method 10)."""
    estimate = ours.estimate - theirs.estimate
    low = estimate - math.hypot(ours.estimate - ours.low, theirs.high - theirs.estimate)
    high = estimate + math.hypot(ours.high - ours.estimate, theirs.estimate - theirs.low)
    return Difference(Interval(estimate, low, high), None, None)
