"""Top-K mass: how much of the teacher's probability the store holds.

The paper rests on "the sum of the probabilities of the top-10 tokens is almost equal to 1"; here it is
measured on the user's own data, and said when it does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

BINS = 20
_ALMOST_ONE = 0.95
_RESOLUTION = 1000


@dataclass
class Coverage:
    """Adds up the mass of R tokens at a time; constant memory (percentiles are exact to 1/1000)."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(_RESOLUTION, dtype=np.int64))
    total: float = 0.0

    def add(self, logprobs_RK: np.ndarray) -> None:
        mass_R = np.minimum(np.exp(logprobs_RK.astype(np.float64)).sum(axis=1), 1.0)
        self.total += float(mass_R.sum())
        bins = np.minimum((mass_R * _RESOLUTION).astype(np.int64), _RESOLUTION - 1)
        self.counts += np.bincount(bins, minlength=_RESOLUTION)

    def summary(self, k: int) -> dict[str, Any]:
        """Mean, percentiles and a histogram over [0, 1], with a warning where the assumption fails."""
        tokens = int(self.counts.sum())
        mean = self.total / max(tokens, 1)
        cumulative = np.cumsum(self.counts)
        percentiles = {
            f"p{p}": round(float(np.searchsorted(cumulative, p / 100 * tokens, side="left") + 0.5) / _RESOLUTION, 4)
            for p in (1, 5, 10, 25, 50)
        }
        warning = None
        if mean < _ALMOST_ONE:
            warning = (
                f"the teacher's top {k} hold {mean:.1%} of its probability on these rows, not almost all of it: "
                "raise `k`, or set `kd.tail` to bucket"
            )
        return {
            "k": k,
            "tokens": tokens,
            "mean": round(mean, 5),
            "percentiles": percentiles,
            "histogram": self.counts.reshape(BINS, -1).sum(axis=1).tolist(),
            "warning": warning,
        }
