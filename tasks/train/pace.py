"""How often a checkpoint is written: as often as its cost allows. Maths alone.

A 7B student's holds 105 GB (weights, fp32 master weights, two moments): every 30 s, most of the time would go into it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.03  # of the time, at most
LEAST_S, MOST_S = 30.0, 1800.0  # between two: what a kill may cost is bounded too
WRITE_BYTES_S = 2e9  # of a node's disk, before the first is measured


def interval_s(cost_s: float, every_s: float | None = None) -> float:
    """Seconds between two checkpoints for which training stands still so long each; `every_s` where it was given."""
    return every_s if every_s is not None else min(max(cost_s / SHARE, LEAST_S), MOST_S)


class CheckpointPace:
    """Says when a checkpoint is due, and learns from each what the next one costs."""

    def __init__(self, every_s: float | None, expected_bytes: float, tell: Callable[[float, float], None]):
        """`tell(interval, cost)` hears, in seconds, what was chosen, and when it changed by a fifth."""
        self._every_s = every_s
        self._tell = tell
        self._last = time.monotonic()
        self._told = 0.0
        self.spent_s, self.checkpoints = 0.0, 0
        self._learn(expected_bytes / WRITE_BYTES_S)

    def due(self) -> bool:
        return time.monotonic() - self._last > self.interval_s

    def saved(self, cost_s: float) -> None:
        """A checkpoint took training so long."""
        self._last = time.monotonic()
        self.spent_s, self.checkpoints = self.spent_s + cost_s, self.checkpoints + 1
        self._learn(cost_s)

    def _learn(self, cost_s: float) -> None:
        self.interval_s = interval_s(cost_s, self._every_s)
        if abs(self.interval_s - self._told) > 0.2 * self._told:
            self._told = self.interval_s
            self._tell(self.interval_s, cost_s)
