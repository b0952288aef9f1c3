"""Whether two variants differ on the same rows: exact paired tests, corrected for how many are made, and in words."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.stats.intervals import Interval, Numbers, PerRow

ALPHA = 0.05
_PERMUTATIONS = 9_999  # the smallest p is 0.0001
_VALUES_AT_ONCE = 1 << 23  # 64 MiB

Better = Literal["higher", "lower", "neither"]


class Comparison(Numbers):
    """Variant `ours` against `theirs` in one metric, on the rows that both answered."""

    metric: str = Field(description="key of the metric, such as cross_entropy")
    name: str = Field(description="the metric in words")
    better: Better
    unit: str = Field(description="'points' for shares, else what the figures are in")
    ours: str
    theirs: str
    ours_value: float | None
    theirs_value: float | None
    n: int
    difference: Interval = Field(description="ours minus theirs, with its own 95 % interval")
    test: str
    p: float | None = Field(description="of this comparison alone; None where a value is not a number")
    p_adjusted: float | None = Field(description="after Holm's correction over all comparisons in this metric")
    family: int = Field(description="comparisons that the correction is over")

    @property
    def is_significant(self) -> bool:
        return self.p_adjusted is not None and self.p_adjusted < ALPHA


def mcnemar(gained: int, lost: int) -> float:
    """Exact p of McNemar's test: rows right with one model alone fall to either with equal chance."""
    from scipy.special import bdtr  # scipy.stats takes a second to import

    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def paired_permutation(ours: PerRow, theirs: PerRow) -> float:
    """p that a difference as large, either way, comes about when each row's two values are swapped at random.

    All 2^n swaps where they are few (exact), else 9,999 of them from a fixed seed, counting the one that was
    seen (Phipson and Smyth 2010), so that p is never 0. NaN where a value is not a number.
    """
    columns = np.stack([ours.sums, ours.counts, theirs.sums, theirs.counts], axis=1)
    rows = len(columns)
    seen = float(_distance(columns.sum(0)[None])[0])
    if not math.isfinite(seen):
        return math.nan
    if 2**rows <= _PERMUTATIONS:
        swaps = (np.arange(2**rows)[:, None] >> np.arange(rows)) & 1
        return _as_far(columns, swaps.astype(np.float64), seen) / len(swaps)
    size = max(min(_PERMUTATIONS, _VALUES_AT_ONCE // rows), 1)
    as_far = sum(
        _as_far(columns, _swaps(start, min(size, _PERMUTATIONS - start), rows), seen)
        for start in range(0, _PERMUTATIONS, size)
    )
    return (as_far + 1) / (_PERMUTATIONS + 1)


@functools.lru_cache(maxsize=1)  # one metric after the other is tested on the same rows
def _swaps(start: int, size: int, rows: int) -> NDArray[np.float64]:
    return np.random.default_rng([start, rows]).integers(0, 2, (size, rows), dtype=np.int8).astype(np.float64)


def _as_far(columns: NDArray[np.float64], swaps: NDArray[np.float64], seen: float) -> int:
    """In how many of these swaps of rows (1: swapped) the two differ by at least as much."""
    moved = swaps @ (columns[:, 2:] - columns[:, :2])
    sums = columns.sum(0) + np.concatenate([moved, -moved], axis=1)
    return int((_distance(sums) >= seen * (1 - 1e-9)).sum())


def _distance(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """|Σ ours / Σ counts − Σ theirs / Σ counts| of each row of (ours, counts, theirs, counts)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3])


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p values, in the same order: claims made below α are all true with probability 1 − α (Holm 1979)."""
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    adjusted, so_far = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = so_far
    return adjusted


def verdict(comparison: Comparison) -> str:
    """One sentence, which claims a difference only where the corrected test does."""
    c = comparison
    if c.p is None or c.p_adjusted is None:
        return f"{c.ours} and {c.theirs} cannot be compared in {c.name}: a value is not a number."
    corrected = f", {p_words(c.p_adjusted)} corrected over {c.family} comparisons" if c.family > 1 else ""
    figures = (
        f"{_signed(c.difference.estimate, c.unit)} {c.unit}, 95 % interval {_signed(c.difference.low, c.unit)} to "
        f"{_signed(c.difference.high, c.unit)}; {c.test}, {p_words(c.p)}{corrected}, n = {c.n:,}"
    )
    if not c.is_significant:
        return f"No significant difference between {c.ours} and {c.theirs} in {c.name} ({figures})."
    above = c.difference.estimate > 0
    if c.better == "neither":
        return f"{c.ours} is {'above' if above else 'below'} {c.theirs} in {c.name} ({figures})."
    quality = "better" if above == (c.better == "higher") else "worse"
    return f"{c.ours} is {quality} than {c.theirs} in {c.name} ({figures})."


def p_words(value: float) -> str:
    """A p value as texts give it."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _signed(value: float, unit: str) -> str:
    text = f"{100 * value:+.1f}" if unit == "points" else f"{value:+.3f}"
    return text.replace("-", "−")
