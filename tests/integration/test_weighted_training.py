"""Weights of tokens and a curriculum in the training program: the loss falls, on two ranks, at ZeRO-2 and 3."""

from __future__ import annotations

from typing import Any

import pytest

from infra.store.artifacts import ArtifactReader, ArtifactRef
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreTeacher
from tasks.models import resolve
from tasks.train.settings import Distillation, TrainingRun
from tasks.train.stage import Train
from tests.support.stages import made

KD: dict[str, Any] = {"learning_rate": 2e-3, "max_steps": 30, "global_batch": 16, "max_length": 256}


@pytest.mark.parametrize(
    ("zero_stage", "options"),
    [
        (2, {"weighting": "gap"}),
        (3, {"weighting": "entropy"}),
        (2, {"weighting": "gap", "curriculum": "difficulty"}),
        (2, {"curriculum": "length"}),
    ],
)
def test_the_loss_falls_with_each_option(rows: ArtifactRef, zero_stage: int, options: dict[str, Any]) -> None:
    scoring = Scoring(engine="transformers", max_length=256)
    scores = made(ScoreTeacher(rows=rows, teacher=resolve("demo", "teacher"), k=10, scoring=scoring))
    run = TrainingRun(processes=2, micro_batch=4, zero_stage=zero_stage)
    kd = Distillation(**KD, **options)
    ref = made(Train(name="kd", model=resolve("demo", "student"), data=scores, training=kd, run=run, seed=0))
    curve = ArtifactReader(ref).read_json("curve.json")
    print(options, curve)
    assert [step for step, _loss in curve] == [10, 20, 30]
    if "curriculum" not in options:  # else later steps have harder rows
        assert curve[-1][1] < 0.8 * curve[0][1]
