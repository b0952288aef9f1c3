"""Chooses rows by difficulty: maths alone.

How hard a row is for a student is how much more the student's loss on its answer is than the teacher's, in nats per
token: what there is to learn from it. (The fitting difficulty of the DistilQwen models asks a judge for it; a loss
costs one prefill.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 10
_LEFT = 0.1  # of an easy bin: without any easy rows a student forgets them
_IMPOSSIBLE = 0.99  # quantile of the teacher's own loss from which a row is marked


@dataclass(frozen=True)
class Choice:
    """Of N rows: which are kept, each one's bin (0 is the easiest), and which the teacher finds improbable too."""

    kept_N: NDArray[np.bool_]
    bin_N: NDArray[np.int64]
    improbable_N: NDArray[np.bool_]


def choose(
    student_N: NDArray[np.float64], teacher_N: NDArray[np.float64], chance_N: NDArray[np.float64], keep: float
) -> Choice:
    """Keep `keep` of the rows: from the easiest bin on, each is thinned to a tenth until no more need go.

    `student_N` and `teacher_N` are losses in nats per token; of a bin, those of the least `chance_N` (0 to 1) stay.
    """
    rows = len(student_N)
    gap_N = student_N - teacher_N
    order = np.lexsort((chance_N, gap_N))
    bin_N = np.empty(rows, np.int64)
    bin_N[order] = np.arange(rows) * BINS // max(rows, 1)
    kept_N = np.ones(rows, bool)
    surplus = rows - round(keep * rows)
    least = min(_LEFT, keep)
    for number in range(BINS):
        of_bin = np.flatnonzero(bin_N == number)
        goes = min(surplus, len(of_bin) - int(np.ceil(least * len(of_bin))))
        kept_N[of_bin[np.argsort(chance_N[of_bin])[len(of_bin) - goes :]]] = False
        surplus -= goes
    return Choice(kept_N, bin_N, _improbable(teacher_N))


def choose_by_chance(chance_N: NDArray[np.float64], keep: float) -> NDArray[np.bool_]:
    """Keep as many rows, whichever they are."""
    kept_N = np.zeros(len(chance_N), bool)
    kept_N[np.argsort(chance_N)[: round(keep * len(chance_N))]] = True
    return kept_N


def _improbable(teacher_N: NDArray[np.float64]) -> NDArray[np.bool_]:
    finite = teacher_N[np.isfinite(teacher_N)]
    if not len(finite):
        return np.ones(len(teacher_N), bool)
    return teacher_N > np.quantile(finite, _IMPOSSIBLE)
