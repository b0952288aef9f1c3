"""The stage that chooses rows for a student, from what student and teacher make of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from infra.stage import Made, OneArtifact, View
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, facts_of
from tasks.fit.choice import BINS, Choice, choose, choose_by_chance
from tasks.fit.settings import Fit
from tasks.logits.stage import ScoreTeacher
from tasks.logits.store.reader import TopKReader
from tasks.rows import CONVERSATIONS, KEPT, REJECTED, Row, from_parquet, to_parquet

KIND = "fit"
STAGE_VERSION = 1
EASY, BY_CHANCE = "easy for this student", "left out by chance"


class ScoreStudent(ScoreTeacher):
    """What the untrained student makes of every row: scored as the teacher's, of which only the loss is used."""

    kind: ClassVar = "student_scores"
    doing: ClassVar = "scoring with the untrained student"


class ChooseRows(OneArtifact):
    """The rows that this student is trained on: kept and left out, each with both losses.

    `student` and `teacher` are stores of scores of the same rows; where several teachers scored them, `routed` has the
    others' stores. A row that either could not score stays.
    """

    kind: ClassVar = "fit"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "choosing rows for the student"

    rows: ArtifactRef
    student: ArtifactRef
    teacher: ArtifactRef
    fit: Fit
    routed: tuple[ArtifactRef, ...] = ()

    def workspace(self) -> Workspace:
        inputs = {"rows": self.rows, "student": self.student, "teacher": self.teacher}
        inputs |= {f"routed_{number}": scores for number, scores in enumerate(self.routed, 1)}
        return Workspace(KIND, STAGE_VERSION, self.fit.model_dump(), inputs)

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        losses = Losses.of(self.student, self.teacher, *self.routed)
        choice = choose(losses.student_N, losses.teacher_N, losses.chance_N, self.fit.keep)
        kept_N = choice.kept_N if self.fit.by == "difficulty" else choose_by_chance(losses.chance_N, self.fit.keep)
        counts = {"seeds": 0, "expanded": 0, "rows": 0, "rejected": 0, "failed": 0, "unscored": 0, "improbable": 0}
        reason = EASY if self.fit.by == "difficulty" else BY_CHANCE
        for index, (_name, data) in enumerate(ArtifactReader(self.rows).stream(KEPT)):
            kept: list[Row] = []
            dropped: list[Row] = []
            for row in from_parquet(data):
                place = losses.place(row.id)
                counts["unscored"] += place is None
                counts["improbable"] += bool(place is not None and kept_N[place] and choice.improbable_N[place])
                (kept if place is None or kept_N[place] else dropped).append(losses.noted(row, place, choice))
            work.put(f"{KEPT}{index:05}.parquet", to_parquet(kept))
            if dropped:
                extra = {
                    name: [text] * len(dropped) for name, text in (("agent", KIND), ("reason", reason), ("detail", ""))
                }
                work.put(f"{REJECTED}{index:05}.parquet", to_parquet(dropped, extra))
            counts["rows"] += len(kept)
            counts["rejected"] += len(dropped)
        counts["seeds"] = counts["rows"] + counts["rejected"]
        counts[CONVERSATIONS] = self.rows.counts.get(CONVERSATIONS, 0)
        return work.publish((KEPT, REJECTED), counts, {"bins": list(_bins(losses, choice, kept_N))})

    def show(self, made: Made, view: View) -> str:
        counts = made.shown.counts
        view.table(
            "difficulty", facts_of(made.shown)["bins"], "rows by how hard they are for the student, easiest first"
        )
        if counts["improbable"]:
            view.warn(
                f"{counts['improbable']:,} of the rows to train on are improbable for the teacher itself: "
                "their answers may be wrong (verdict 'teacher')"
            )
        by = "the hardest for this student" if self.fit.by == "difficulty" else "chosen by chance"
        return f"{counts['rows']:,} of {counts['seeds']:,} rows, {by}"


@dataclass(frozen=True)
class Losses:
    """Of the N rows that both could score, in the order of `keys_N`: the loss of each, in nats per token.

    `keys_N` are the first 64 bits of the rows' ids; `chance_N` is decided by the rest of them.
    """

    keys_N: NDArray[np.uint64]
    student_N: NDArray[np.float64]
    teacher_N: NDArray[np.float64]

    @staticmethod
    def of(student: ArtifactRef, *teachers: ArtifactRef) -> Losses:
        """Totals over the teacher's tokens: two tokenizers cut one text into different numbers of them."""
        ours, theirs = _read(student), _read(*teachers)
        keys_N, our_places, their_places = np.intersect1d(ours[0], theirs[0], assume_unique=True, return_indices=True)
        tokens_N = theirs[2][their_places]
        return Losses(keys_N, ours[1][our_places] / tokens_N, theirs[1][their_places] / tokens_N)

    @property
    def chance_N(self) -> NDArray[np.float64]:
        """A number from 0 to 1 that a row has in every run."""
        mixed = (self.keys_N * np.uint64(0x9E3779B97F4A7C15)) ^ (self.keys_N >> np.uint64(29))
        return mixed.astype(np.float64) / 2.0**64

    def place(self, row_id: str) -> int | None:
        key = np.uint64(int(row_id[:16], 16))
        place = int(np.searchsorted(self.keys_N, key))
        return place if place < len(self.keys_N) and self.keys_N[place] == key else None

    def noted(self, row: Row, place: int | None, choice: Choice) -> Row:
        """The row with both losses among its scores, and with a word where the teacher finds it improbable."""
        if place is None:
            return row
        losses = {"student_loss": self.student_N[place], "teacher_loss": self.teacher_N[place]}
        verdict = {"teacher": "improbable"} if choice.improbable_N[place] else {}
        scores = {name: round(float(loss), 4) for name, loss in losses.items()}
        return row.model_copy(update={"scores": {**row.scores, **scores}, "verdicts": {**row.verdicts, **verdict}})


def _read(*stores: ArtifactRef) -> tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.int64]]:
    """Keys in order, the total loss of each row's answers in nats, and how many tokens they have."""
    keys, nats, tokens = [], [], []
    for scored in itertools.chain.from_iterable(map(TopKReader, stores)):
        keys.append(int(scored.row_id[:16], 16))
        nats.append(
            -float(np.maximum(scored.actual_logprobs_R, -100.0).sum(dtype=np.float64))
        )  # −inf is no number to sort
        tokens.append(len(scored.actual_logprobs_R))
    order = np.argsort(np.array(keys, np.uint64))
    return np.array(keys, np.uint64)[order], np.array(nats, np.float64)[order], np.array(tokens, np.int64)[order]


def _bins(losses: Losses, choice: Choice, kept_N: NDArray[np.bool_]) -> Iterator[Mapping[str, Any]]:
    for number in range(BINS):
        of_bin = choice.bin_N == number
        if of_bin.any():
            yield {
                "bin": number + 1,
                "student loss": round(float(losses.student_N[of_bin].mean()), 3),
                "teacher loss": round(float(losses.teacher_N[of_bin].mean()), 3),
                "rows": int(of_bin.sum()),
                "kept": int(kept_N[of_bin].sum()),
            }
