"""Top-K mass: how much of the teacher's probability the store holds.

The paper rests on "the sum of the probabilities of the top-10 tokens is almost equal to 1"; here it is
measured on the user's own data, by task category and by position, and said when it does not hold.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["CoverageCounter"]

BINS = 20
_WANTED = (0.95, 0.99)
_ALMOST_ONE = _WANTED[0]
_RESOLUTION = 1000
POSITIONS = (0, 1, 4, 16, 64, 256, 1024)  # first position of each group


@dataclass
class _Mean:
    """Mass of some tokens, added up."""

    total: float = 0.0
    tokens: int = 0

    def add(self, mass_R: np.ndarray) -> None:
        self.total += float(mass_R.sum())
        self.tokens += len(mass_R)

    def summary(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "mean": round(self.total / max(self.tokens, 1), 5)}


@dataclass
class CoverageCounter:
    """Adds up the mass of an answer's R tokens at a time; constant memory (percentiles are exact to 1/1000)."""

    k: int
    counts: np.ndarray = field(default_factory=lambda: np.zeros(_RESOLUTION, dtype=np.int64))
    by_category: dict[str, _Mean] = field(default_factory=lambda: defaultdict(_Mean))
    by_position: dict[int, _Mean] = field(default_factory=lambda: defaultdict(_Mean))

    def __post_init__(self) -> None:
        self.total_K = np.zeros(self.k)

    def add(self, logprobs_RK: np.ndarray, category: str) -> None:
        """The log-probs of one answer, best first, from its first token on."""
        if not len(logprobs_RK):
            return
        mass_RK = np.minimum(np.cumsum(np.exp(logprobs_RK.astype(np.float64)), axis=1), 1.0)
        mass_R = mass_RK[:, -1]
        self.total_K += mass_RK.sum(axis=0)
        bins = np.minimum((mass_R * _RESOLUTION).astype(np.int64), _RESOLUTION - 1)
        self.counts += np.bincount(bins, minlength=_RESOLUTION)
        self.by_category[category].add(mass_R)
        for first, last in zip(POSITIONS, [*POSITIONS[1:], None], strict=True):
            if len(mass_R) > first:
                self.by_position[first].add(mass_R[first:last])

    def summary(self) -> dict[str, Any]:
        """Mean (of every smaller K too), percentiles, a histogram, groups; a warning where the assumption fails."""
        tokens = int(self.counts.sum())
        mean_K = self.total_K / max(tokens, 1)
        mean = float(mean_K[-1])
        cumulative = np.cumsum(self.counts)
        percentiles = {
            f"p{p}": round(float(np.searchsorted(cumulative, p / 100 * tokens, side="left") + 0.5) / _RESOLUTION, 4)
            for p in (1, 5, 10, 25, 50)
        }
        k_for = {f"{wanted:g}": _k_for(mean_K, wanted) for wanted in _WANTED}
        return {
            "k": self.k,
            "tokens": tokens,
            "mean": round(mean, 5),
            "percentiles": percentiles,
            "histogram": self.counts.reshape(BINS, -1).sum(axis=1).tolist(),
            "k_for": k_for,
            "by_k": [round(float(mass), 5) for mass in mean_K],
            "by_category": {name: self.by_category[name].summary() for name in sorted(self.by_category)},
            "by_position": {span(first): self.by_position[first].summary() for first in sorted(self.by_position)},
            "warning": self._warning(mean) if mean < _ALMOST_ONE else None,
        }

    def _warning(self, mean: float) -> str:
        worst = min(self.by_category, key=lambda name: self.by_category[name].summary()["mean"], default="")
        of_worst = ""
        if len(self.by_category) > 1:
            of_worst = f" ({self.by_category[worst].summary()['mean']:.1%} in {worst!r}, the least)"
        return (
            f"the teacher's top {self.k} hold {mean:.1%} of its probability on these rows{of_worst}, not almost all "
            f"of it: {_ALMOST_ONE:.0%} needs more than {self.k}, so raise `k`, or set `kd.tail` to bucket, which keeps "
            "the rest as one outcome"
        )


def _k_for(mean_K: np.ndarray, wanted: float) -> int | None:
    """The smallest number of tokens whose mean mass is `wanted`; None where it is more than K."""
    enough = np.flatnonzero(mean_K >= wanted)
    return int(enough[0]) + 1 if len(enough) else None


def span(first: int) -> str:
    """Positions in words: 0, 1–3, 4–15, …"""
    following = next((start for start in POSITIONS if start > first), None)
    if following is None:
        return f"{first}+"
    return str(first) if following == first + 1 else f"{first}–{following - 1}"
