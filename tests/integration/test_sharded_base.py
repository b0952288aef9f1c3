"""A student whose base lies in several shards, among other files: trained, exported whole, and loaded by vLLM."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from infra.artifacts import ArtifactReader, ArtifactRef
from infra.models import DEMO, ModelSource
from tasks.logits import stage as logits_stage
from tasks.logits.settings import Scoring
from tasks.train import stage
from tasks.train.settings import Training, TrainingRun


@pytest.fixture
def sharded(tmp_path: Path) -> ModelSource:
    """The demo's student as the hub has larger ones, in a folder that was worked in."""
    folder = tmp_path / "sharded"
    shutil.copytree(DEMO / "student", folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(DEMO / "student").save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    for name in ("pytorch_model.bin", "optimizer.pt", "notes-secret.txt"):
        (folder / name).write_text("nobody else's business")
    return ModelSource(name="sharded", path=str(folder))


def test_a_student_from_a_sharded_base_is_one_that_vllm_loads(rows: ArtifactRef, sharded: ModelSource) -> None:
    training = Training(max_steps=2, global_batch=16, max_length=256)
    work = stage.workspace("sft", sharded, rows, training, seed=0)
    run = TrainingRun(processes=1, micro_batch=8)
    trained = stage.train(work, "sft", sharded, rows, training, run, 0, lambda event: None)
    names = set(ArtifactReader(trained).names("model/"))
    assert [name for name in names if name.endswith(".safetensors")] == ["model/model.safetensors"]
    assert not [name for name in names if "index" in name or name.endswith((".bin", ".pt", ".txt"))]

    student, scoring = ModelSource(name="sft", artifact=trained), Scoring(engine="vllm", max_length=256)
    store = logits_stage.score(
        logits_stage.workspace(rows, student, 4, scoring), rows, student, 4, scoring, lambda event: None
    )
    assert store.counts["rows"] == rows.counts["rows"]
