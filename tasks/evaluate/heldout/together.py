"""Variants side by side on batches of held-out rows: the teacher is asked once, then each is compared with it.

What is scored is kept in each variant's workspace, in pieces: after a kill at most the batch in flight and
`KEEP_EVERY_S` are computed again, for whichever variants are scored together then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.store import storage
from infra.store.artifacts import Workspace
from tasks.evaluate.heldout.scoring import batches, logits_of, vocabulary_size
from tasks.evaluate.heldout.teachers import RowScore, TeacherView
from tasks.tokens.alignment import Alignment
from tasks.tokens.rows import TokenisedRow

KEEP_EVERY_S = 30.0
SCORES = "scores/"  # beside a variant's answers, until both are its artifact


class KeptScores:
    """The scores of a variant's rows; those of a run that was killed are found. `seconds` is what they took."""

    def __init__(self, work: Workspace):
        self._work = work
        self._new: dict[str, RowScore] = {}
        self.seconds = 0.0
        self.row_ids: set[str] = set()
        for piece in self._pieces():
            self.seconds += piece["seconds"]
            self.row_ids |= piece["rows"].keys()
        self._kept_seconds = self.seconds

    def add(self, scores: Mapping[str, RowScore]) -> None:
        self._new |= scores
        self.row_ids |= scores.keys()

    def keep(self) -> None:
        """Put what is new into the workspace."""
        if self._new:
            seconds = self.seconds - self._kept_seconds
            # named by how many rows are there, so that a rerun writes over nothing
            self._work.put_json(f"{SCORES}{len(self.row_ids):09}.json", {"seconds": seconds, "rows": self._new})
            self._new, self._kept_seconds = {}, self.seconds

    def read(self) -> dict[str, RowScore]:
        """All that were kept."""
        return {row_id: RowScore(*score) for piece in self._pieces() for row_id, score in piece["rows"].items()}

    def delete(self) -> None:
        storage.delete_all(self._work.uri, self._names())

    def _pieces(self) -> Iterable[dict[str, Any]]:
        return map(self._work.get_json, self._names())

    def _names(self) -> list[str]:
        return sorted(name for name in storage.keys(self._work.uri) if name.startswith(SCORES))


@dataclass(frozen=True)
class Candidate:
    """A variant to score. `tokens` are the rows that it and the teacher can take, by row id.

    `model` is None where it is the teacher itself; `alignment` where it has the teacher's tokenizer.
    """

    model: Any | None
    tokens: Mapping[str, TokenisedRow]
    alignment: Alignment | None
    kept: KeptScores
    advance: Callable[[int], None]

    def lacks(self, row_ids: Sequence[str]) -> list[TokenisedRow]:
        return [self.tokens[row] for row in row_ids if row in self.tokens and row not in self.kept.row_ids]

    def score(self, rows: Sequence[TokenisedRow], view: TeacherView, at_most: int) -> None:
        """In as many batches of its own as its vocabulary needs: one where that is the teacher's."""
        if self.model is None:
            self.kept.add({row.row_id: view.itself(row.row_id) for row in rows})
        else:
            for batch in batches(rows, at_most, vocabulary_size(self.model)):
                logits_BTV = logits_of(self.model, batch)
                scores = (view.score(row, logits_BTV[b], self.alignment) for b, row in enumerate(batch))
                self.kept.add({row.row_id: score for row, score in zip(batch, scores, strict=True)})
        self.advance(len(rows))


def score_together(candidates: Sequence[Candidate], teacher: Iterable[TeacherView], at_most: int) -> None:
    """Score what each candidate lacks, and keep it. A batch that nobody lacks costs nothing."""
    kept_at = time.monotonic()
    for view in teacher:
        started = time.monotonic()
        lacking = [(candidate, rows) for candidate in candidates if (rows := candidate.lacks(view.row_ids))]
        for candidate, rows in lacking:
            candidate.score(rows, view, at_most)
        now = time.monotonic()
        for candidate, _rows in lacking:  # the teacher's part is everybody's
            candidate.kept.seconds += (now - started) / len(lacking)
        if now - kept_at >= KEEP_EVERY_S:
            _keep(candidates)
            kept_at = time.monotonic()
    _keep(candidates)


def _keep(candidates: Sequence[Candidate]) -> None:
    for candidate in candidates:
        candidate.kept.keep()
