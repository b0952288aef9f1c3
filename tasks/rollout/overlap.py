"""How far a student and its teacher agree, from the stores of both over the same rows. Maths alone.

R tokens of a row, K kept. The teacher's top K and the student's own are all that is known of either, so a divergence
is over the tokens that both kept and one bucket for all others: never more than the one over the vocabulary, but for
the stores' rounding (the log-sum inequality).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.logits.coverage import POSITIONS, span
from tasks.tokens.scored import ScoredRow

NUMBERS = ("agreement", "shared", "kl", "own_kl", "entropy")
_LEAST = -100.0  # nats: −inf adds up to nothing
_REST = 1 / 128  # of probability: what rounding may take from all that is kept
_PAIRS_AT_ONCE = 1 << 22


@dataclass
class Overlap:
    """Adds up rows; constant memory. By position of a token in its answer, and over all:

    agreement  share of tokens before which both find the same one likeliest
    shared     share of the teacher's top K that is in the student's: what rises where rounds succeed (2604.13016)
    kl         KL(teacher ‖ student) in nats, at least
    own_kl     mean of log q − log p of the tokens that are there, in nats: where the student drew them at temperature 1
               from all tokens, an unbiased estimate of KL(student ‖ teacher)
    entropy    of the student, in nats, at least
    """

    sums_GN: np.ndarray = field(default_factory=lambda: np.zeros((len(POSITIONS), len(NUMBERS))))
    tokens_G: np.ndarray = field(default_factory=lambda: np.zeros(len(POSITIONS), np.int64))
    rows: int = 0
    unlike: int = 0  # rows that the two cut into different tokens

    def add(self, teacher: ScoredRow, student: ScoredRow) -> None:
        """One row; nothing of it where its supervised tokens are not the same."""
        if not np.array_equal(_labels(teacher), _labels(student)):
            self.unlike += 1
            return
        self.rows += 1
        numbers_RN = compared(teacher, student)
        for _span, part in teacher.parts():
            answer_RN = numbers_RN[part]
            group_R = np.searchsorted(POSITIONS, np.arange(len(answer_RN)), side="right") - 1
            np.add.at(self.sums_GN, group_R, answer_RN)
            self.tokens_G += np.bincount(group_R, minlength=len(POSITIONS))

    @property
    def tokens(self) -> int:
        return int(self.tokens_G.sum())

    def summary(self) -> dict[str, Any]:
        """Means over all tokens, and by position with how many tokens there are."""
        by_position = {
            span(first): _means(self.sums_GN[group], int(self.tokens_G[group]))
            for group, first in enumerate(POSITIONS)
            if self.tokens_G[group]
        }
        return _means(self.sums_GN.sum(axis=0), self.tokens) | {"by_position": by_position}


def compared(teacher: ScoredRow, student: ScoredRow) -> np.ndarray:
    """What `Overlap` says of each supervised token, in the order of NUMBERS: (R, N)."""
    is_same_R = teacher.topk_ids_RK[:, 0] == student.topk_ids_RK[:, 0]
    shared_RK, ours_RK = _shared(teacher, student)
    gap_R = _actual(student) - _actual(teacher)
    kl_R = _divergence(np.where(shared_RK, teacher.logprobs_RK, -np.inf), ours_RK)
    columns = is_same_R, shared_RK.mean(axis=1), kl_R, gap_R, _entropy(student.logprobs_RK)
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def pairs(
    teacher: Iterable[ScoredRow], student: Iterable[ScoredRow], *, in_order: bool
) -> Iterator[tuple[ScoredRow, ScoredRow]]:
    """The rows that both have, in the teacher's order.

    `in_order` says that both cut the same rows into the same tokens, so that stores are in one order and few rows are
    in memory at a time; else the student's all are.
    """
    waiting: dict[str, ScoredRow] = {}
    ours = iter(student)
    for theirs in teacher:
        while theirs.row_id not in waiting and (row := next(ours, None)) is not None:
            waiting[row.row_id] = row
            if in_order and _place(row) > _place(theirs):
                break
        if (row := waiting.pop(theirs.row_id, None)) is not None:
            yield theirs, row


def _place(row: ScoredRow) -> tuple[int, str]:
    """In a store (`tasks.logits.shards.plan`)."""
    return len(row.ids), row.row_id


def _labels(row: ScoredRow) -> np.ndarray:
    return np.asarray(row.ids)[row.places_R]


def _actual(row: ScoredRow) -> np.ndarray:
    return np.maximum(row.actual_logprobs_R.astype(np.float64), _LEAST)


def _shared(teacher: ScoredRow, student: ScoredRow) -> tuple[np.ndarray, np.ndarray]:
    """Which of the teacher's top K the student kept too, and its log-probs of these (else −inf): (R, K) each."""
    theirs_RK, ours_RK = teacher.topk_ids_RK, student.topk_ids_RK
    shared_RK = np.zeros(theirs_RK.shape, bool)
    logprobs_RK = np.full(theirs_RK.shape, -np.inf)
    at_once = max(1, _PAIRS_AT_ONCE // (theirs_RK.shape[1] * ours_RK.shape[1]))
    for first in range(0, len(theirs_RK), at_once):
        some = slice(first, first + at_once)
        is_same_RKK = theirs_RK[some, :, None] == ours_RK[some, None, :]
        is_same_RKK &= np.isfinite(teacher.logprobs_RK[some, :, None]) & np.isfinite(student.logprobs_RK[some, None, :])
        shared_RK[some] = is_same_RKK.any(axis=2)
        found_RK = np.take_along_axis(student.logprobs_RK[some], is_same_RKK.argmax(axis=2), axis=1)
        logprobs_RK[some] = np.where(shared_RK[some], found_RK, -np.inf)
    return shared_RK, logprobs_RK


def _divergence(teacher_RK: np.ndarray, student_RK: np.ndarray) -> np.ndarray:
    """KL over tokens that are finite in both and one bucket for the rest: (R,), nats."""
    known_RK = np.isfinite(teacher_RK)
    p_RK, q_RK = np.exp(teacher_RK, dtype=np.float64), np.exp(student_RK, dtype=np.float64)
    gap_RK = np.subtract(teacher_RK, student_RK, out=np.zeros(teacher_RK.shape), where=known_RK)
    rest_R = np.maximum(1 - p_RK.sum(axis=1), 0.0)
    left_R = np.maximum(1 - q_RK.sum(axis=1), _REST)
    of_rest_R = rest_R * np.log(np.maximum(rest_R, np.finfo(np.float64).tiny) / left_R)
    return np.maximum((p_RK * gap_RK).sum(axis=1) + of_rest_R, 0.0)


def _entropy(logprobs_RK: np.ndarray) -> np.ndarray:
    """Of K tokens and one bucket for the rest: (R,), nats."""
    p_RK = np.exp(logprobs_RK, dtype=np.float64)
    rest_R = np.maximum(1 - p_RK.sum(axis=1), 0.0)
    of_top_R = (p_RK * np.maximum(logprobs_RK, _LEAST)).sum(axis=1)
    return np.maximum(-of_top_R - rest_R * np.log(np.maximum(rest_R, np.finfo(np.float64).tiny)), 0.0)


def _means(sums_N: np.ndarray, tokens: int) -> dict[str, Any]:
    means = (round(float(total) / max(tokens, 1), 6) for total in sums_N)
    return {"tokens": tokens, **dict(zip(NUMBERS, means, strict=True))}
