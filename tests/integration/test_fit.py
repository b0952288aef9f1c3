"""Rows are chosen by what student and teacher make of them, and student and teacher's scores are of those rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from infra.stage import Made, Unseen
from infra.store.artifacts import ArtifactRef, facts_of
from tasks.fit.choice import choose
from tasks.fit.settings import Fit
from tasks.fit.stage import ChooseRows, Losses, ScoreStudent
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreTeacher
from tasks.logits.store.reader import TopKReader
from tasks.models import resolve
from tasks.rows import KEPT, REJECTED, read_rows
from tasks.train.data.examples import Examples
from tasks.train.settings import Distillation
from tests.support.stages import made
from tests.support.views import Seen

SCORING = Scoring(engine="transformers", max_length=384)


@pytest.fixture(scope="module")
def scores(rows: ArtifactRef) -> dict[str, ArtifactRef]:
    student, teacher = (resolve("demo", role) for role in ("student", "teacher"))
    return {
        "student": made(ScoreStudent(rows=rows, teacher=student, k=1, scoring=SCORING)),
        "teacher": made(ScoreTeacher(rows=rows, teacher=teacher, k=5, scoring=SCORING)),
    }


def _loss(ref: ArtifactRef) -> dict[str, float]:
    return {row.row_id: -float(row.actual_logprobs_R.mean()) for row in TopKReader(ref)}


def test_the_hardest_rows_are_kept_with_both_losses(rows: ArtifactRef, scores: dict[str, ArtifactRef]) -> None:
    chosen = made(ChooseRows(rows=rows, fit=Fit(keep=0.4), **scores))
    student, teacher = _loss(scores["student"]), _loss(scores["teacher"])
    kept, dropped = (list(read_rows(chosen, part)) for part in (KEPT, REJECTED))
    everything = list(read_rows(rows, KEPT))
    assert {row.id for row in kept} | {row.id for row in dropped} == {row.id for row in everything}
    assert len(kept) == chosen.counts["rows"] == round(0.4 * len(everything))
    for row in (*kept, *dropped):
        assert row.scores["student_loss"] == pytest.approx(student[row.id], abs=2e-3)
        assert row.scores["teacher_loss"] == pytest.approx(teacher[row.id], abs=2e-3)
    gaps = [
        sum(row.scores["student_loss"] - row.scores["teacher_loss"] for row in part) / len(part)
        for part in (kept, dropped)
    ]
    assert gaps[0] > gaps[1]
    said = ChooseRows(rows=rows, fit=Fit(keep=0.4), **scores).show(Made(refs={"fit": chosen}), Unseen())
    assert said == f"{len(kept):,} of {len(everything):,} rows, the hardest for this student"
    bins = facts_of(chosen)["bins"]
    assert [one["rows"] for one in bins] == [len(everything) // 10] * 10
    assert sum(one["kept"] for one in bins) == len(kept)


def test_by_chance_as_many_are_kept_to_compare_with(rows: ArtifactRef, scores: dict[str, ArtifactRef]) -> None:
    hard, any_of_them = (
        made(ChooseRows(rows=rows, fit=Fit(keep=0.4, by=by), **scores)) for by in ("difficulty", "chance")
    )
    assert hard.counts["rows"] == any_of_them.counts["rows"]
    ids = [{row.id for row in read_rows(ref, KEPT)} for ref in (hard, any_of_them)]
    assert ids[0] != ids[1]


@pytest.mark.parametrize("improbable", [True, False])
def test_rows_that_the_teacher_finds_improbable_are_warned_of(
    rows: ArtifactRef, monkeypatch: pytest.MonkeyPatch, improbable: bool
) -> None:
    """Those that are kept, and no others."""
    ids = sorted(row.id for row in read_rows(rows, KEPT))
    teacher = np.ones(len(ids))
    teacher[:2] += 50 * improbable
    student = teacher + np.linspace(2, 1, len(ids))
    losses = Losses(np.array([int(row_id[:16], 16) for row_id in ids], np.uint64), student, teacher)
    monkeypatch.setattr(Losses, "of", lambda *_stores: losses)
    kept_N = np.arange(len(ids)) != 1  # of the two that are improbable, the first
    monkeypatch.setattr("tasks.fit.stage.choose", lambda *given: dataclasses.replace(choose(*given), kept_N=kept_N))
    stage = ChooseRows(rows=rows, student=rows, teacher=rows, fit=Fit(keep=0.5 + improbable / 10))
    view = Seen()
    chosen = made(stage)
    stage.show(Made(refs={"fit": chosen}), view)
    marked = {row.id for row in read_rows(chosen, KEPT) if row.verdicts.get("teacher") == "improbable"}
    assert marked == ({ids[0]} if improbable else set())
    assert [text.split(" are ")[0] for text in view.warnings] == ["1 of the rows to train on"] * improbable


def test_the_student_learns_from_the_teachers_scores_of_those_rows_alone(
    rows: ArtifactRef, scores: dict[str, ArtifactRef]
) -> None:
    chosen = made(ChooseRows(rows=rows, fit=Fit(keep=0.3), **scores))
    student = resolve("demo", "student")
    wanted = {row.id for row in read_rows(chosen, KEPT)}
    stream = Examples(scores["teacher"], student, 384, Distillation(), only=chosen)
    assert {example.row_id for example in stream} == wanted
    assert {example.row_id for example in Examples(scores["teacher"], student, 384, Distillation())} > wanted
