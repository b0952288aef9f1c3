"""Rows as a teacher saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScoredRow:
    """A row as the teacher saw it. R response tokens, K kept: entry r describes token `response_start` + r.

    Log-probs are natural logarithms, best first; −inf where fewer than K tokens are known (always last).
    """

    row_id: str
    ids: Sequence[int]
    response_start: int
    actual_logprobs_R: np.ndarray
    topk_ids_RK: np.ndarray
    logprobs_RK: np.ndarray
