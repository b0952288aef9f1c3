"""What share of a training goes into checkpoints: one every 30 s as it was, and at the pace that their cost sets.

    python -m tests.bench checkpoints [--steps 100]

A random student of 113 million parameters through the real stage (DeepSpeed, two ranks, ZeRO-2, storage here).
The last line also has the plan's pace for 7B on eight GPUs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.stages import training_workspace

STUDENT = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 16}
HEADS = {"num_attention_heads": 12, "num_key_value_heads": 12}
WAYS = {"every_30_s": 30.0, "by_cost": None}


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="checkpoints")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args(arguments)
    from infra.services.embedded import embedded_storage
    from infra.store import storage
    from infra.store.artifacts import Workspace, facts_of
    from tasks.plan.sizes import size_of
    from tasks.train import stage
    from tasks.train.memory import checkpoint_bytes
    from tasks.train.pace import WRITE_BYTES_S, interval_s
    from tasks.train.settings import Training, TrainingRun
    from tests.bench._models import demo_rows, random_model

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DISTILFLOW_HOME"] = scratch
        with embedded_storage():
            storage.ensure_bucket()
            student, rows = random_model(Path(scratch), "student", **STUDENT, **HEADS), demo_rows()
            training = Training(max_steps=options.steps, global_batch=4, learning_rate=1e-5)
            for number, (way, every_s) in enumerate(WAYS.items()):
                made = training_workspace("sft", student, rows, training, 0)
                work = Workspace(made.kind, 1000 + number, made.spec, made.inputs)
                how = TrainingRun(processes=2, micro_batch=2, checkpoint_every_s=every_s)
                facts = facts_of(stage.train(work, "sft", student, rows, training, how, 0, _tell))
                found[way] = {name: facts[name] for name in ("parameters", "checkpoints", "checkpoint_share")}
                print(way, found[way], file=sys.stderr, flush=True)
    held = checkpoint_bytes(size_of("7B", None).parameters, None)
    return {**found, "plan_7b": {"gigabytes": round(held / 1e9, 1), "every_s": round(interval_s(held / WRITE_BYTES_S))}}


def _tell(event: Any) -> None:
    if event["event"] == "checkpoint_pace":
        print(event, file=sys.stderr, flush=True)
