"""A plan's inputs with round numbers, to be changed field by field."""

from __future__ import annotations

import dataclasses
from typing import Any

from tasks.augment.estimate import Estimate
from tasks.augment.settings import Augmentation
from tasks.evaluate.settings import Evaluation
from tasks.llm.budget import Usage
from tasks.logits.settings import Scoring
from tasks.plan.hardware import Machine
from tasks.plan.known import PlanInputs
from tasks.plan.lengths import Lengths
from tasks.plan.sizes import size_of
from tasks.train.settings import Distillation, Training, TrainingRun

GIB = 2**30
GPU = Machine("GPU", devices=4, tflops=100.0, memory=80 * GIB, bandwidth=1e12, utilisation=0.5)
AGENTS = Estimate(
    seeds=800,
    sample=100,
    paid=False,
    rows=1000,
    usage={"expansion": Usage(800, 0, 80_000, 160_000, 4.0), "selection": Usage(1000, 0, 100_000, 20_000, 2.0)},
)


def known(**changed: Any) -> PlanInputs:
    """1,000 rows of 100 tokens, 40 of them the response: 0.5B from 7B on four GPUs of 50 real TFLOP/s."""
    made = PlanInputs(
        title="0.5B distilled from 7B",
        student=size_of("0.5B", None),
        teacher=size_of("7B", None),
        augmentation=Augmentation(),
        sft=Training(global_batch=100, epochs=3),
        scoring=Scoring(tensor_parallel=2),
        kd=Distillation(global_batch=100, max_steps=50),
        evaluation=Evaluation(),
        run=TrainingRun(micro_batch=8, zero_stage=2, offload="none", gradient_checkpointing=False),
        k=10,
        machine=GPU,
        seeds=800,
        heldout=100,
        rows=1000,
        rows_at_most=True,
        lengths=Lengths([60] * 10, [40] * 10),
        heldout_lengths=Lengths([60] * 10, [40] * 10),
        agents=AGENTS,
        agents_are_free=False,
        done={},
        disk_free=1000 * GIB,
        stores_here=True,
    )
    return dataclasses.replace(made, **changed)
