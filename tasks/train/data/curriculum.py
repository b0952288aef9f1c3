"""From easy to hard: a step's rows are drawn from the easiest ones, of which there are more with every step.

Competence-based curriculum learning (Platanios et al., 1903.09848, section 3): at step t a batch is drawn uniformly
from the share c(t) = min(1, √(t (1 − c₀²) / T + c₀²)) of the rows, the easiest first, with c₀ = 0.01. From step T on,
training goes on as without a curriculum. A step's rows depend on the seed and the step alone, so a resumed run sees the
same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.train.data.spool import ExampleStore
from tasks.train.settings import Distillation

_AT_FIRST = 0.01


def competence(step: int, steps: int) -> float:
    """c(t): the share of the rows that step t (from 0 on) draws from; 1 from step `steps` on."""
    return min(1.0, math.sqrt(step * (1 - _AT_FIRST**2) / steps + _AT_FIRST**2))


class Curriculum:
    """The rows of the first `steps` steps, of parts that lie one after the other."""

    def __init__(self, difficulty_N: NDArray[np.floating], sizes: Sequence[int], steps: int, seed: int):
        """`difficulty_N` of all rows, part after part of `sizes` rows each."""
        self.steps = steps
        self._seed = seed
        ends = np.cumsum(sizes)
        self._easiest_first = [
            end - size + np.argsort(difficulty_N[end - size : end], kind="stable")
            for end, size in zip(ends, sizes, strict=True)
        ]

    @staticmethod
    def of(kd: Distillation | None, spool: ExampleStore, parts: int, steps: int, seed: int) -> Curriculum | None:
        """Of a training of so many steps, where one is asked for."""
        if kd is None or kd.curriculum == "none":
            return None
        hard = spool.lengths if kd.curriculum == "length" else spool.difficulty
        return Curriculum(hard, [*map(spool.rows_of, range(parts))], math.ceil(kd.curriculum_share * steps), seed)

    def rows(self, step: int, of_parts: Sequence[int]) -> list[int]:
        """Places of the rows of step t, so many of each part; of more than the pool has, each comes as often."""
        places: list[int] = []
        for part, (ranked, wanted) in enumerate(zip(self._easiest_first, of_parts, strict=True)):
            share = competence(step, self.steps)
            pool = ranked[: max(math.ceil(share * len(ranked)), min(wanted, len(ranked)))]
            chance = np.random.default_rng([self._seed, step, part, 1])
            drawn = [chance.permutation(pool) for _ in range(-(-wanted // len(pool)))]
            places += np.concatenate(drawn)[:wanted].tolist() if drawn else []
        return places
