"""What distillation costs beside fine-tuning, and beside distillation with the teacher at work ("online").

    python -m tests.bench train [--steps 40] [--rounds 2]

The same student on the same rows through the real stage (DeepSpeed, two ranks): SFT, KD from the store, and KD whose
teacher (at least 15 times the student) computes its logits in every step. The three take turns; the best round of
each counts. Tokens are prompt and response, never padding.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.stages import scoring_workspace, training_workspace

STUDENT = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4}
TEACHER = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3}


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="train")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    from infra.services.embedded import embedded_storage
    from infra.store import storage
    from tasks.logits import stage as logits
    from tasks.logits.settings import Scoring
    from tasks.models import resolve
    from tasks.train.settings import Distillation
    from tests.bench._models import demo_rows, random_model

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DISTILFLOW_HOME"] = scratch
        with embedded_storage():
            storage.ensure_bucket()
            student = random_model(Path(scratch), "student", **STUDENT, **HEADS)
            teacher = random_model(Path(scratch), "teacher", **TEACHER, **HEADS)
            rows, scorer = demo_rows(), resolve("demo", "teacher")
            work = scoring_workspace(rows, scorer, 10, scoring := Scoring(engine="transformers"))
            store = logits.score(work, rows, scorer, 10, scoring, lambda event: None)
            settings = Distillation(max_steps=options.steps, global_batch=32, learning_rate=1e-4, temperature=2.0)
            ways = {"sft": rows, "kd": store, "online_kd": store}
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
            for turn in range(options.rounds):
                for way, data in ways.items():
                    os.environ["BENCH_ONLINE_TEACHER"] = str(teacher.path)
                    os.environ["DISTILFLOW_PASS"] = "BENCH_ONLINE_TEACHER"  # engines are told of no other variable
                    found[way].append(_trained(way, student, data, settings, turn))
                    print(way, found[way][-1]["tokens_s"], file=sys.stderr, flush=True)
    speed = {way: max(facts["tokens_s"] for facts in runs) for way, runs in found.items()}
    sizes = [_parameters(STUDENT), _parameters(TEACHER)]
    return {
        **{f"{way}_tokens_s": tokens_s for way, tokens_s in speed.items()},
        "kd_over_sft": round(speed["kd"] / speed["sft"], 3),
        "kd_over_online": round(speed["kd"] / speed["online_kd"], 2),
        "data_wait_share": max(facts["data_wait_share"] for facts in found["kd"]),
        "teacher_over_student": round(sizes[1] / sizes[0], 1),
        "rounds": {way: [facts["tokens_s"] for facts in runs] for way, runs in found.items()},
    }


def _trained(way: str, student: Any, data: Any, settings: Any, turn: int) -> dict[str, Any]:
    """Facts of one training."""
    from infra.store.artifacts import Workspace, facts_of
    from tasks.train import stage
    from tasks.train.settings import TrainingRun

    objective: Any = "sft" if way == "sft" else "kd"
    training = settings.training() if way == "sft" else settings
    made = training_workspace(objective, student, data, training, 0)
    work = Workspace(made.kind, 1000 + turn, {**made.spec, "way": way}, made.inputs)
    before, stage.PROGRAM = stage.PROGRAM, "tests.bench._online" if way == "online_kd" else stage.PROGRAM
    try:
        run = TrainingRun(processes=2, micro_batch=16)
        return facts_of(stage.train(work, objective, student, data, training, run, 0, lambda event: None))
    finally:
        stage.PROGRAM = before


def _parameters(config: dict[str, int]) -> int:
    from tasks.engines.sizes import ModelShape

    return ModelShape.of({**config, **HEADS, "vocab_size": 1216, "tie_word_embeddings": True}).parameters
