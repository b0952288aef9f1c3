"""What variants are compared with, batch by batch: the teacher's logits, or what was stored of its scores.

A teacher is asked about a batch once, whatever variants are compared with it. Its batches follow from the rows and
from it alone, so that a variant's numbers do not depend on which others are scored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.evaluate.heldout.groups import POSITIONS_AT_ONCE
from tasks.evaluate.heldout.metrics import (
    acceptance,
    by_confidence,
    kl_to_teacher,
    on_same_tokens,
    stored_acceptance,
    stored_kl_to_teacher,
    top1_agreement,
    topk_kl_to_teacher,
)
from tasks.evaluate.heldout.scoring import batches, logits_of, loss_and_calibration, vocabulary_size
from tasks.tokens.alignment import Alignment
from tasks.tokens.rows import TokenisedRow
from tasks.tokens.scored import ScoredRow


class RowScore(NamedTuple):
    """Sums over a row's response; distances are over `kl_tokens` positions, calibration is (3, C) as in `metrics`.

    `accepted` are the tokens that the teacher is expected to keep of a draft; NaN where it has another tokenizer.
    """

    nll: float
    kl_tokens: int
    kl_to_teacher: float
    topk_kl: float
    top1_agreed: int
    calibration: list[list[float]]
    accepted: float = math.nan


class TeacherView(Protocol):
    """What the teacher makes of a batch of rows."""

    @property
    def row_ids(self) -> list[str]: ...

    def score(self, row: TokenisedRow, logits_TV: Tensor, alignment: Alignment | None) -> RowScore:
        """A variant's numbers; with `alignment`, distances are over what both tokenizers have."""

    def itself(self, row_id: str) -> RowScore:
        """The teacher's own numbers."""


def loaded_teacher(model: Any, rows: Iterable[TokenisedRow], at_most: int, k: int) -> Iterator[TeacherView]:
    """`rows` (in the teacher's tokens) by length: compared over the whole vocabulary."""
    by_length = sorted(rows, key=lambda row: (len(row.ids), row.row_id))
    return (_Logits(model, batch, k) for batch in batches(by_length, at_most, vocabulary_size(model)))


def stored_teacher(store: Iterable[ScoredRow], at_most: int, vocabulary: int) -> Iterator[TeacherView]:
    """The rows of a store, which are by length too: compared over its top K and one bucket for all else.

    `vocabulary` is that of the largest variant.
    """
    return (_Stored({row.row_id: row for row in batch}) for batch in batches(store, at_most, vocabulary))


def no_teacher(rows: Iterable[TokenisedRow], at_most: int, vocabulary: int) -> Iterator[TeacherView]:
    """`rows` by length, compared with nothing: of an API model nobody has the distribution over given texts."""
    by_length = sorted(rows, key=lambda row: (len(row.ids), row.row_id))
    return (_Nothing([row.row_id for row in batch]) for batch in batches(by_length, at_most, vocabulary))


@dataclass(frozen=True)
class _Nothing:
    """No teacher: a variant's own numbers alone."""

    row_ids: list[str]

    @torch.inference_mode()
    def score(self, row: TokenisedRow, logits_TV: Tensor, alignment: Alignment | None) -> RowScore:
        nll, calibration = loss_and_calibration(row, logits_TV)
        return RowScore(nll, 0, 0.0, 0.0, 0, calibration)

    def itself(self, row_id: str) -> RowScore:
        raise AssertionError("there is no teacher")


@dataclass(frozen=True)
class _Logits:
    """Computed when they are first asked for, and once."""

    model: Any
    batch: Sequence[TokenisedRow]
    k: int

    @property
    def row_ids(self) -> list[str]:
        return [row.row_id for row in self.batch]

    @functools.cached_property
    def rows(self) -> dict[str, tuple[TokenisedRow, Tensor]]:
        logits_BTV = logits_of(self.model, self.batch)
        return {row.row_id: (row, logits_BTV[b]) for b, row in enumerate(self.batch)}

    @torch.inference_mode()
    def score(self, row: TokenisedRow, logits_TV: Tensor, alignment: Alignment | None) -> RowScore:
        nll, calibration = loss_and_calibration(row, logits_TV)
        kl = topk_kl = accepted = 0.0
        positions = agreed = 0
        for ours_RV, theirs_RV in self._pairs(row, logits_TV, alignment):
            positions += len(ours_RV)
            kl += float(kl_to_teacher(theirs_RV, ours_RV).sum())
            topk_kl += float(topk_kl_to_teacher(theirs_RV, ours_RV, self.k).sum())
            agreed += int(top1_agreement(theirs_RV, ours_RV).sum())
            accepted += float(acceptance(theirs_RV, ours_RV).sum())
        return RowScore(nll, positions, kl, topk_kl, agreed, calibration, _of_a_draft(accepted, alignment))

    def itself(self, row_id: str) -> RowScore:
        row, logits_TV = self.rows[row_id]
        return self.score(row, logits_TV, None)

    def _pairs(
        self, row: TokenisedRow, logits_TV: Tensor, alignment: Alignment | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Log-probs of model and teacher at the same places over the same tokens, a few positions at a time."""
        teacher_row, teacher_TV = self.rows[row.row_id]
        theirs, ours = _places(teacher_row, row, alignment)
        if alignment is not None:
            shared = alignment.same_tokens(teacher_TV.shape[1], logits_TV.shape[1])
            teacher_ids_W, ids_W = (torch.from_numpy(ids).to(logits_TV.device) for ids in shared)
        for first in range(0, len(ours), POSITIONS_AT_ONCE):
            some = slice(first, first + POSITIONS_AT_ONCE)
            ours_RV = _before(ours[some], logits_TV)
            theirs_RV = _before(theirs[some], teacher_TV).to(ours_RV.device)
            if alignment is not None:
                ours_RV, theirs_RV = ours_RV[:, ids_W], theirs_RV[:, teacher_ids_W]
            theirs_RV, ours_RV = on_same_tokens(theirs_RV, ours_RV)
            yield ours_RV, theirs_RV


@dataclass(frozen=True)
class _Stored:
    """By row id; of each row the response alone was scored."""

    rows: dict[str, ScoredRow]

    @property
    def row_ids(self) -> list[str]:
        return list(self.rows)

    @torch.inference_mode()
    def score(self, row: TokenisedRow, logits_TV: Tensor, alignment: Alignment | None) -> RowScore:
        nll, calibration = loss_and_calibration(row, logits_TV)
        scored = self.rows[row.row_id]
        theirs, ours = _places(scored, row, alignment)
        at_R = theirs - scored.response_start
        ids_RK, logprobs_RK = scored.topk_ids_RK[at_R], scored.logprobs_RK[at_R]
        if alignment is not None:
            ids_RK, logprobs_RK = alignment.in_student_tokens(ids_RK, logprobs_RK)
        kl, agreed, accepted = 0.0, 0, 0.0
        for first in range(0, len(ours), POSITIONS_AT_ONCE):
            some = slice(first, first + POSITIONS_AT_ONCE)
            ours_RV = _before(ours[some], logits_TV).log_softmax(dim=1)
            theirs_RK = torch.from_numpy(logprobs_RK[some]).to(ours_RV.device)
            tokens_RK = torch.from_numpy(ids_RK[some].astype(np.int64)).to(ours_RV.device)
            kl += float(stored_kl_to_teacher(tokens_RK, theirs_RK, ours_RV).sum())
            accepted += float(stored_acceptance(tokens_RK, theirs_RK, ours_RV).sum())
            best = theirs_RK.max(dim=1, keepdim=True)
            is_same_R1 = tokens_RK.gather(1, best.indices) == ours_RV.argmax(dim=1, keepdim=True)
            agreed += int((is_same_R1 & torch.isfinite(best.values)).sum())
        return RowScore(nll, len(ours), kl, kl, agreed, calibration, _of_a_draft(accepted, alignment))

    def itself(self, row_id: str) -> RowScore:
        scored = self.rows[row_id]
        is_best_R = scored.topk_ids_RK[:, 0] == np.asarray(scored.ids)[scored.places_R]
        best_R = torch.from_numpy(scored.logprobs_RK[:, 0])
        nll = -float(scored.actual_logprobs_R.sum(dtype=np.float64))
        tokens = scored.supervised_tokens
        binned = by_confidence(best_R, torch.from_numpy(is_best_R)).tolist()
        return RowScore(nll, tokens, 0.0, 0.0, tokens, binned, float(tokens))


def _of_a_draft(accepted: float, alignment: Alignment | None) -> float:
    """Where tokens differ no draft is taken as it is."""
    return accepted if alignment is None else math.nan


def _places(
    teacher: TokenisedRow | ScoredRow, row: TokenisedRow, alignment: Alignment | None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the response, in the rows of teacher and variant, before which both have read the same text."""
    theirs_R, ours_R = (np.asarray(of.ids)[of.response_start :] for of in (teacher, row))
    if alignment is None:
        theirs = ours = np.arange(len(ours_R))
    else:
        theirs, ours = alignment.same_spans(theirs_R, ours_R)
    return theirs + teacher.response_start, ours + row.response_start


def _before(places_R: np.ndarray, logits_TV: Tensor) -> Tensor:
    """The fp32 logits that predict the tokens at these places: (R, V)."""
    return logits_TV[torch.from_numpy(places_R - 1).to(logits_TV.device)].float()
