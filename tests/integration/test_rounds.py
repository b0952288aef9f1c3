"""One on-policy round as it is run: the student answers, the teacher scores, the student learns from both stores."""

from __future__ import annotations

import math

from infra.stage import Made, Unseen
from infra.store.artifacts import ArtifactReader, ArtifactRef, facts_of
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreTeacher
from tasks.logits.store.reader import TopKReader
from tasks.models import resolve
from tasks.rollout.settings import Rounds
from tasks.rollout.stage import Rollout, ScoreRollouts
from tasks.rows import databases_by_input
from tasks.tokens.written import read_written
from tasks.train.settings import Distillation, Part, TrainingRun
from tasks.train.stage import Train
from tests.support.stages import made

SCORING = Scoring(engine="transformers", max_length=384)
ROUNDS = Rounds(rounds=1, steps=3, prompts=24, engine="transformers", max_new_tokens=48, batch_rows=24)


def test_a_round_from_prompts_to_the_next_student(rows: ArtifactRef) -> None:
    student, teacher = resolve("demo", "teacher"), resolve("demo", "teacher")  # one whose answers have an end
    seeds = ArtifactReader(rows).record.inputs["seeds"]
    rollout = Rollout(model=student, rows=rows, seeds=seeds, rounds=ROUNDS, round=1, max_length=384, seed=0)
    answers = made(rollout)
    assert answers.counts["prompts"] == 24
    assert answers.counts["rows"] + answers.counts["rejected"] == 24
    assert answers.counts["right"] > 0
    said = rollout.show(Made(refs={"rollout_1": answers}), Unseen())
    assert said.startswith(f"{answers.counts['rows']:,} answers to 24 prompts, ")
    assert set(databases_by_input(one.row for one in read_written(answers)).values())

    scores = made(ScoreRollouts(rows=answers, teacher=teacher, k=5, scoring=SCORING, round=1))
    ids = {one.tokens.row_id: list(one.tokens.ids) for one in read_written(answers)}
    assert {row.row_id: list(row.ids) for row in TopKReader(scores)} == ids
    given = made(ScoreTeacher(rows=rows, teacher=teacher, k=5, scoring=SCORING))
    training = ROUNDS.distillation(Distillation(global_batch=8, max_length=384))
    of_round = Train(
        name="kd_round",
        model=resolve("demo", "student"),
        data=given,
        training=training,
        run=TrainingRun(processes=1),
        seed=0,
        also=(Part(scores=scores, share=0.5),),
        round=1,
    )
    trained = made(of_round)
    assert trained.kind == "kd_round"
    assert trained.counts["steps"] == 3
    assert trained.counts["rows"] == answers.counts["rows"] + rows.counts["rows"]
    assert all(math.isfinite(loss) for _step, loss in facts_of(trained)["curve"])
