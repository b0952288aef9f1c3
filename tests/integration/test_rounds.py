"""On-policy rounds as they are run: the student answers, both score that, the student learns; and over kills."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.stage import Made, Stage, Unseen
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, facts_of
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreTeacher
from tasks.logits.store.reader import SHARDS, TopKReader
from tasks.models import ModelSource, resolve
from tasks.rollout.checks import STOPS, CompareRollouts, ScoreOwn
from tasks.rollout.settings import Rounds
from tasks.rollout.stage import Rollout, ScoreRollouts
from tasks.rows import databases_by_input
from tasks.tokens.written import read_written
from tasks.train.settings import Distillation, Part, TrainingRun
from tasks.train.stage import Train
from tests.support.stages import made
from tests.support.wait import wait_for

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
    own: dict[str, Any] = {"rows": answers, "k": 5, "scoring": SCORING, "of": "rollouts", "round": 1}
    looked: dict[str, Any] = {"rollouts": answers, "teacher": scores, "before": None, "rounds": ROUNDS, "round": 1}
    itself = made(CompareRollouts(student=made(ScoreOwn(teacher=student, **own)), **looked))
    assert itself.counts == {"answers": answers.counts["rows"], "tokens": scores.counts["tokens"], STOPS: 0}
    facts = facts_of(itself)
    assert (facts["agreement"], facts["shared"], facts["kl"], facts["own_kl"]) == (1, 1, 0, 0)  # it is its own teacher
    assert facts["entropy"] > 0
    another = made(CompareRollouts(student=made(ScoreOwn(teacher=resolve("demo", "student"), **own)), **looked))
    assert another.counts[STOPS] == 1  # an untrained student, as if these answers were its own
    assert facts_of(another)["kl"] > 0.5
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


STAGE = """
import sys
from infra.stage import Unseen, kinds, make
from tasks.rollout import stage
from tasks.train import stage

make(kinds()[sys.argv[1]].model_validate_json(sys.argv[2]), Unseen())
"""


def _killed(stage: Stage[Any], when: Callable[[], bool]) -> None:
    """The stage in a process of its own, which is killed at that moment."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE, stage.kind, stage.model_dump_json()], cwd=Path(__file__).parents[2]
    )
    try:
        wait_for(when, 180, [process], every_s=0.02)
    finally:
        process.kill()
        process.wait()


def _written(work: Workspace, prefix: str) -> dict[str, Any]:
    bucket, key = storage.split_uri(work.uri + prefix)
    listed = storage.client().list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", [])
    return {entry["Key"]: (entry["LastModified"], entry["ETag"]) for entry in listed}


def test_killed_in_the_second_rounds_scoring_and_in_its_training_it_goes_on_and_nothing_is_scored_twice(
    rows: ArtifactRef,
) -> None:
    teacher = resolve("demo", "teacher")
    seeds = ArtifactReader(rows).record.inputs["seeds"]
    how = ROUNDS.model_copy(update={"prompts": 64})
    answers = made(Rollout(model=teacher, rows=rows, seeds=seeds, rounds=how, round=2, max_length=384, seed=0))
    small = SCORING.model_copy(update={"tokens_per_shard": 500})
    scoring = ScoreRollouts(rows=answers, teacher=teacher, k=5, scoring=small, round=2)
    work = scoring.workspace()
    _killed(scoring, lambda: len(_written(work, SHARDS)) >= 2)
    finished = _written(work, SHARDS)
    assert work.find() is None
    scores = made(scoring)
    after = _written(work, SHARDS)
    assert {name: after[name] for name in finished} == finished
    assert facts_of(scores)["shards_found"] >= len(finished) >= 2
    assert len(after) == scores.counts["shards"] > len(finished)
    scored = [row.row_id for row in TopKReader(scores)]
    assert sorted(scored) == sorted(one.tokens.row_id for one in read_written(answers))

    given = made(ScoreTeacher(rows=rows, teacher=teacher, k=5, scoring=SCORING))
    training = ROUNDS.model_copy(update={"steps": 40}).distillation(Distillation(global_batch=8, max_length=384))
    of_round = Train(
        name="kd_round",
        model=ModelSource(name="round_1", path=str(resolve("demo", "student").fetch())),
        data=given,
        training=training,
        run=TrainingRun(processes=1, checkpoint_every_s=1e-3),
        seed=0,
        also=(Part(scores=scores, share=0.5),),
        round=2,
    )
    place = of_round.workspace()
    _killed(of_round, lambda: b"step-" in (storage.get(f"{place.uri}checkpoint/latest.json") or b""))
    assert place.find() is None
    trained = made(of_round)
    assert trained.counts["steps"] == 40
    assert facts_of(trained)["resumed_at"] > 0
