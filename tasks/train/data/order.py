"""Examples, their order, and which of them make a micro-batch.

The order depends on the seed alone, so a resumed run, or one on another number of ranks, sees the same rows
in the same step.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tasks.tokens.spans import Span, Supervised

_WHOLE = 1e-9  # 0.3 of 10 rows are 3


@dataclass(frozen=True)
class Example(Supervised):
    """A tokenised row, with the teacher's top K for each supervised token where there is a teacher.

    `ids` T tokens; `teacher_ids_RK` int32 and `teacher_logprobs_RK` float32 for the R supervised tokens. `part` is the
    place of its store among those that are trained on, `kd_weight` its weight of the divergence where they differ,
    `weight` that of its whole loss; `difficulty` is the teacher's own mean loss on its answers, in nats a token.
    """

    row_id: str
    ids: Sequence[int] | np.ndarray
    response_start: int
    teacher_ids_RK: np.ndarray | None = None
    teacher_logprobs_RK: np.ndarray | None = None
    earlier: tuple[Span, ...] = ()
    part: int = 0
    kd_weight: float | None = None
    weight: float | None = None
    difficulty: float = 0.0


def total_steps(examples: int, epochs: float, global_batch: int, max_steps: int | None) -> int:
    return max_steps or max(1, round(epochs * examples / global_batch))


def rows_of_parts(global_batch: int, shares: Sequence[float]) -> list[int]:
    """How many rows of a global batch come from each part: as near to `shares`, which sum to 1, as whole rows are.

    The largest remainders are rounded up. The same in every step, so that a step's rows are known without those before.
    """
    wanted = [global_batch * share for share in shares]
    rows = [math.floor(number + _WHOLE) for number in wanted]
    by_remainder = sorted(range(len(shares)), key=lambda part: rows[part] - wanted[part])
    for part in by_remainder[: global_batch - sum(rows)]:
        rows[part] += 1
    return rows


def mixed_batch_indices(sizes: Sequence[int], rows: Sequence[int], step: int, seed: int) -> list[int]:
    """The rows of a step where each part gives its own number of `rows`; parts lie one after the other."""
    indices: list[int] = []
    first = 0
    for part, (size, wanted) in enumerate(zip(sizes, rows, strict=True)):
        indices.extend(first + index for index in global_batch_indices(size, wanted, step, seed, part))
        first += size
    return indices


def global_batch_indices(examples: int, global_batch: int, step: int, seed: int, part: int = 0) -> list[int]:
    """The rows of a step: a slice of the endless stream of shuffled epochs, so each row comes once an epoch."""
    if not global_batch:
        return []
    first = step * global_batch
    indices: list[int] = []
    for epoch in range(first // examples, (first + global_batch - 1) // examples + 1):
        order = _order(examples, epoch, seed, part)
        start, end = max(first - epoch * examples, 0), min(first + global_batch - epoch * examples, examples)
        indices.extend(order[start:end].tolist())
    return indices


@lru_cache(maxsize=8)
def _order(examples: int, epoch: int, seed: int, part: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, part] if part else [seed, epoch]).permutation(examples)


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
