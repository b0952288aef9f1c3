"""Experts under ZeRO-3: loaded, split, trained and put together again as by one rank."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from tasks.models import ModelSource
from tasks.shipped import DEMO
from tasks.train import stage
from tasks.train.settings import Training, TrainingRun
from tests.support.families import DISTILLED, tiny_config
from tests.support.stages import training_workspace

TRAINING = Training(learning_rate=1e-3, max_steps=3, global_batch=16, max_length=256)


def test_experts_under_zero_3_are_those_of_one_rank(rows: ArtifactRef, tmp_path: Path) -> None:
    source = _source("Qwen3 MoE", tmp_path / "base")
    split, whole = _trained(source, rows, 2, 3), _trained(source, rows, 1, 0)
    assert split.keys() == whole.keys() == load_file(tmp_path / "base" / "model.safetensors").keys()
    for part, tensor in whole.items():
        torch.testing.assert_close(split[part], tensor, rtol=1e-3, atol=2e-4, msg=part)


def _source(name: str, folder: Path) -> ModelSource:
    """A random model of the family with the demo's tokenizer."""
    shutil.copytree(DEMO / "student", folder)
    (folder / "model.safetensors").unlink()
    family, others = DISTILLED[name]
    vocabulary = {"vocab_size": ModelSource(name="demo", path=str(DEMO / "student")).config()["vocab_size"]}
    config: Any = tiny_config(family, **{**others, **vocabulary, "max_position_embeddings": 512})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return ModelSource(name=name, path=str(folder))


def _trained(source: ModelSource, rows: ArtifactRef, processes: int, zero_stage: int) -> dict[str, torch.Tensor]:
    run = TrainingRun(processes=processes, zero_stage=zero_stage, micro_batch=8)
    made = training_workspace("sft", source, rows, TRAINING, seed=0)
    work = Workspace(made.kind, 1000 + zero_stage, made.spec, made.inputs)
    ref = stage.train(work, "sft", source, rows, TRAINING, run, 0, lambda event: None)
    return load_file(ArtifactReader(ref).folder("model/") / "model.safetensors")
