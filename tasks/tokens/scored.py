"""Rows as a teacher saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.tokens.spans import Span, Supervised

__all__ = ["ScoredRow"]


@dataclass(frozen=True)
class ScoredRow(Supervised):
    """A row as the teacher saw it. R supervised tokens, K kept: entry r describes token `places_R[r]`.

    Log-probs are natural logarithms, best first; −inf where fewer than K tokens are known (always last).
    """

    row_id: str
    ids: Sequence[int]
    response_start: int
    actual_logprobs_R: np.ndarray
    topk_ids_RK: np.ndarray
    logprobs_RK: np.ndarray
    earlier: tuple[Span, ...] = ()
