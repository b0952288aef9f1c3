"""Examples, their order, and which of them make a micro-batch.

The order depends on the seed alone, so a resumed run, or one on another number of ranks, sees the same rows
in the same step.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tasks.tokens.spans import Span, Supervised


@dataclass(frozen=True)
class Example(Supervised):
    """A tokenised row, with the teacher's top K for each supervised token where there is a teacher.

    `ids` T tokens; `teacher_ids_RK` int32 and `teacher_logprobs_RK` float32 for the R supervised tokens.
    """

    row_id: str
    ids: Sequence[int] | np.ndarray
    response_start: int
    teacher_ids_RK: np.ndarray | None = None
    teacher_logprobs_RK: np.ndarray | None = None
    earlier: tuple[Span, ...] = ()


def total_steps(examples: int, epochs: float, global_batch: int, max_steps: int | None) -> int:
    return max_steps or max(1, round(epochs * examples / global_batch))


def global_batch_indices(examples: int, global_batch: int, step: int, seed: int) -> list[int]:
    """The rows of a step: a slice of the endless stream of shuffled epochs, so each row comes once an epoch."""
    first = step * global_batch
    indices: list[int] = []
    for epoch in range(first // examples, (first + global_batch - 1) // examples + 1):
        order = _order(examples, epoch, seed)
        start, end = max(first - epoch * examples, 0), min(first + global_batch - epoch * examples, examples)
        indices.extend(order[start:end].tolist())
    return indices


@lru_cache(maxsize=2)
def _order(examples: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def assign_micro_batches(lengths: Sequence[int], rank: int, ranks: int, micro_batches: int) -> list[list[int]]:
    """Which rows of a batch make this rank's micro-batches, as even in tokens as they come. Some may be empty.

    The longest row goes first, each to the bin with the fewest tokens; bins of like load are at the same place
    on every rank, so that ranks wait little for each other.
    """
    bins: list[tuple[int, int, list[int]]] = [(0, number, []) for number in range(ranks * micro_batches)]
    heapq.heapify(bins)
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        tokens, number, rows = heapq.heappop(bins)
        heapq.heappush(bins, (tokens + lengths[row], number, [*rows, row]))
    by_load = sorted(bins, key=lambda entry: (-entry[0], entry[1]))
    return [rows for _tokens, _number, rows in by_load[rank::ranks]]
