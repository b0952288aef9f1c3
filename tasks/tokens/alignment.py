"""The teacher's scores on the student's tokens.

With one tokenizer, a student trains on the very ids that were scored. Qwen2.5 pads its embedding to 151,936
(0.5B–3B) or 152,064 (7B and up) for one tokenizer of 151,665 tokens, so token→id maps are compared, never sizes.

With two tokenizers, each cuts the same response into tokens of its own. A teacher's distribution moves to the
student's position where both have a token with the same bytes at the same place: there both have read the same
text. Within it, a token moves to the student's token of the same bytes. All else carries no weight, how much
moved is measured, and too little is refused.

R supervised tokens (of teacher or student), K kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from infra.errors import ConfigurationError
from tasks.models import ModelSource
from tasks.tokens.chat import turn_of
from tasks.tokens.rows import TokenisedRow, tokenizer_digests
from tasks.tokens.scored import ScoredRow
from tasks.tokens.vocabulary import Vocabulary, token_map


def check_same_template(teacher: Mapping[str, str], student: ModelSource) -> None:
    """With one tokenizer: refuse a student whose chat template or end of turn is not the one that was scored."""
    mine = tokenizer_digests(student)
    for part, words in (("template", "chat template"), ("end", "end-of-turn token")):
        if mine[part] != teacher[part]:
            raise ConfigurationError(
                f"student {student.name!r} and its teacher have different {words}s: copy the teacher's "
                f"{words} into the student's tokenizer_config.json, or choose models that share one"
            )


def vocabulary_of(source: ModelSource) -> Vocabulary:
    """A model's tokens."""
    return Vocabulary.of(source.text_file("tokenizer.json") or "", turn_of(source))


def remap(ids_RK: np.ndarray, logprobs_RK: np.ndarray, map_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Teacher ids as student ids; those that the student does not have: log-probability −inf, id 0."""
    mapped_RK = map_V.take(ids_RK, mode="clip")
    known_RK = (ids_RK < len(map_V)) & (mapped_RK >= 0)
    logprobs_RK = np.where(known_RK, logprobs_RK, -np.inf).astype(np.float32)
    return np.where(known_RK, mapped_RK, 0).astype(np.int32), logprobs_RK


def known_tokens(vocabulary: Vocabulary, size: int) -> np.ndarray:
    """The map of one tokenizer to itself: tokens that exist and that the student's output (`size` ids) has."""
    ids = np.arange(len(vocabulary.text))
    exists = np.array([text is not None for text in vocabulary.text])
    exists[[*vocabulary.control.values(), vocabulary.end]] = True
    return np.where(exists & (ids < size), ids, -1)


def scored_answers(student: TokenisedRow, scored: ScoredRow) -> TokenisedRow:
    """The student's row with those of its answers supervised that the teacher scored: templates differ in which."""
    turns = {span.turn for span in scored.earlier}
    return replace(student, earlier=tuple(span for span in student.earlier if span.turn in turns))


@dataclass
class Alignment:
    """Moves scored rows from the teacher's tokens to the student's, and measures what did not move."""

    teacher: Vocabulary
    student: Vocabulary
    positions: int = 0
    aligned: int = 0
    teacher_mass: float = 0.0
    moved_mass: float = 0.0
    rows_with_other_text: int = 0
    _map: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._map = token_map(self.teacher, self.student)

    def move(self, scored: ScoredRow, student: TokenisedRow) -> tuple[np.ndarray, np.ndarray]:
        """Top-K ids and log-probs for each supervised token of `student`; −inf where nothing was moved.

        Each answer of `student` is one that was scored: see `scored_answers`.
        """
        teacher_at_R, student_at_R = self._same_places(scored, student)
        shape = (student.supervised_tokens, scored.topk_ids_RK.shape[1])
        ids_RK, logprobs_RK = np.zeros(shape, np.int32), np.full(shape, -np.inf, np.float32)
        moved = self.in_student_tokens(scored.topk_ids_RK[teacher_at_R], scored.logprobs_RK[teacher_at_R])
        ids_RK[student_at_R], logprobs_RK[student_at_R] = moved
        self.positions += student.supervised_tokens
        self.aligned += len(student_at_R)
        self.teacher_mass += float(np.exp(scored.logprobs_RK.astype(np.float64)).sum())
        self.moved_mass += float(np.exp(moved[1].astype(np.float64)).sum())
        return ids_RK, logprobs_RK

    def in_student_tokens(self, ids_RK: np.ndarray, logprobs_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored entries under the student's ids; −inf where it has no token of the same bytes."""
        return remap(ids_RK, logprobs_RK, self._map)

    def summary(self) -> dict[str, Any]:
        """Shares of the student's positions that have a teacher, and of the teacher's stored mass that moved."""
        return {
            "positions": round(self.aligned / max(self.positions, 1), 4),
            "mass": round(self.moved_mass / self.teacher_mass, 4) if self.teacher_mass else 0.0,
            "rows_with_other_text": self.rows_with_other_text,
        }

    def check(self, wanted: float) -> None:
        """Refuse to train where less than the share `wanted` of positions or of mass moved."""
        summary = self.summary()
        positions, mass = summary["positions"], summary["mass"]
        if min(positions, mass) < wanted:
            other = f" ({self.rows_with_other_text} rows have another text)" if self.rows_with_other_text else ""
            raise ConfigurationError(
                f"the tokenizers of teacher and student cut these rows too differently: {positions:.0%} of the "
                f"student's positions get a distribution of the teacher, and {mass:.0%} of its mass moves{other}; "
                f"`kd.min_alignment` asks for {wanted:.0%}: choose models with closer tokenizers, or lower it"
            )

    def _same_places(self, scored: ScoredRow, student: TokenisedRow) -> tuple[np.ndarray, np.ndarray]:
        """`same_spans` of all answers, as places among the R of teacher and student."""
        teacher_R, student_R = (np.asarray(row.ids)[row.places_R] for row in (scored, student))
        theirs = {span.turn: part for span, part in scored.parts()}
        other_text = self.rows_with_other_text
        found = []
        for span, part in student.parts():
            teacher_part = theirs[span.turn]
            teacher_at, student_at = self.same_spans(teacher_R[teacher_part], student_R[part])
            found.append((teacher_at + teacher_part.start, student_at + part.start))
        self.rows_with_other_text = min(self.rows_with_other_text, other_text + 1)
        teacher_at_R, student_at_R = (np.concatenate(places) for places in zip(*found, strict=True))
        return teacher_at_R, student_at_R

    def same_spans(self, teacher_R: np.ndarray, student_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the response's ids of teacher and student with a token at the same bytes of the same text."""
        ours, text = self.teacher.response_spans(teacher_R)
        theirs, student_text = self.student.response_spans(student_R)
        if text != student_text:
            self.rows_with_other_text += 1
            none = np.empty(0, dtype=np.intp)
            return none, none
        within = [np.flatnonzero(spans[:, 0] < spans[:, 1]) for spans in (ours, theirs)]
        places = len(text) + 1, len(text) + 1, int(max(ours[:, 2].max(initial=0), theirs[:, 2].max(initial=0))) + 1
        keys = [
            np.ravel_multi_index(tuple(spans[at].T), places) for spans, at in zip((ours, theirs), within, strict=True)
        ]
        _same, teacher_at, student_at = np.intersect1d(*keys, return_indices=True)
        ends = teacher_R[-1:] == self.teacher.end, student_R[-1:] == self.student.end  # in [False], or [] of no tokens
        last = [[len(teacher_R) - 1], [len(student_R) - 1]] if all(map(np.any, ends)) else [[], []]
        return (
            np.append(within[0][teacher_at], last[0]).astype(np.intp),
            np.append(within[1][student_at], last[1]).astype(np.intp),
        )

    def same_tokens(self, teacher_size: int, student_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the tokens that both have, of teacher and of student, within outputs of these sizes."""
        teacher_ids = np.flatnonzero(self._map[:teacher_size] >= 0)
        fits = self._map[teacher_ids] < student_size
        return teacher_ids[fits], self._map[teacher_ids[fits]]
