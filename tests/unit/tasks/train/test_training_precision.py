"""bf16 with fp32 behind it, for real on one rank: what DeepSpeed holds at every ZeRO stage, and what a resume gives."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from infra import settings
from infra.services.server import free_ports
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.models import ModelSource
from tasks.precision import Known
from tasks.train import checkpoints
from tasks.train.data.feed import Step
from tasks.train.data.order import Example
from tasks.train.data.packing import pack
from tasks.train.launch.ranks import Rank
from tasks.train.loop import StepPlan, _run_step
from tasks.train.memory import Placement
from tasks.train.model.student import Student
from tasks.train.program import join
from tasks.train.run import TrainingContext
from tasks.train.settings import Lora, Training, TrainingRun
from tests.support.families import smallest_qwen2

PLAN = StepPlan(steps=8, global_batch=4, micro_batches=2)
NOWHERE = ArtifactRef(kind="augment", uri="s3://b/a/f/", sha256="0", fingerprint="f")


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    [port] = free_ports(1)
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.items():
            patch.setenv(name, value)
        patch.setenv("TORCH_EXTENSIONS_DIR", settings.torch_extensions_dir())
        patch.setenv("PATH", os.environ["PATH"])
        join(Rank(0, 1, 1), tmp_path_factory.mktemp("ranks"), on_gpu=False)
        yield
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, stored in bf16."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(smallest_qwen2()).bfloat16().save_pretrained(folder)
    return folder


def _context(precision: Known, stage: int, lora: Lora | None = None) -> TrainingContext:
    return TrainingContext(
        training=Training(learning_rate=1e-2, global_batch=PLAN.global_batch, lora=lora),
        kd=None,
        how=TrainingRun(),
        work=Workspace("sft", 1, {}, {}),
        source=ModelSource(name="base"),
        data=NOWHERE,
        turns="last",
        only=None,
        also=(),
        launch="a",
        seed=0,
        rank=Rank(0, 1, 1),
        on_gpu=False,
        precision=precision,
        precision_note=None,
        placement=Placement(zero_stage=stage),
    )


def _steps(student: Student, first: int, last: int) -> list[float]:
    """Mean losses of the steps from `first` to `last` on rows of their own, two micro-batches each."""
    losses = []
    for step in range(first, last + 1):
        ids = torch.randint(0, 70, (4, 12), generator=torch.Generator().manual_seed(step % 3)).tolist()
        rows = [Example(str(n), row, 4) for n, row in enumerate(ids)]
        micro = [pack(rows[:2]), pack(rows[2:])]
        supervised = sum(len(batch.labels_N) for batch in micro)
        fed = Step(micro, [False, False], supervised, 48)
        losses.append(float(_run_step(student.engine, fed)) / supervised)
    return losses


def _dtypes(tensors: Any) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors if torch.is_tensor(tensor) and tensor.numel() > 1}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_of_bf16_weights_all_that_is_summed_up_is_fp32_and_a_resumed_training_is_the_same(
    stage: int, base: Path, tmp_path: Path
) -> None:
    checkpoints.load_data_only()
    run = _context("bfloat16", stage)
    student = Student(run, PLAN, base, universal=False)
    before = _steps(student, 1, 3)
    optimizer: Any = student.engine.optimizer.optimizer
    masters = [weight for group in optimizer.param_groups for weight in group["params"]]
    if stage == 3:  # between steps the optimizer has none of them
        masters = student.engine.optimizer.fp32_partitioned_groups_flat
    assert _dtypes(student.engine.module.parameters()) <= {torch.bfloat16}
    assert _dtypes(masters) == {torch.float32}
    assert _dtypes(value for state in optimizer.state.values() for value in state.values()) == {torch.float32}
    assert student.engine.get_data_types() == (torch.bfloat16, torch.float32)

    student.engine.save_checkpoint(str(tmp_path), tag="t")
    rest = _steps(student, 4, 6)
    resumed = Student(run, PLAN, base, universal=False)
    resumed.load(tmp_path, "t")
    assert _steps(resumed, 4, 6) == rest

    whole = Student(dataclasses.replace(run, precision="float32"), PLAN, base, universal=False)
    assert [*before, *rest] == pytest.approx(_steps(whole, 1, 6), abs=0.05)
    assert rest[-1] < 0.95 * before[0]


@pytest.mark.parametrize("stage", [1, 3])
def test_adapters_beside_bf16_weights_learn_what_they_learn_beside_fp32(stage: int, base: Path) -> None:
    run = _context("bfloat16", stage, Lora(rank=4, alpha=16))
    losses = _steps(Student(run, PLAN, base, universal=False), 1, 6)
    whole = Student(dataclasses.replace(run, precision="float32"), PLAN, base, universal=False)
    assert losses == pytest.approx(_steps(whole, 1, 6), abs=0.05)
    assert losses[-1] < losses[0]
