"""A student whose base lies in several shards, among other files: trained, exported whole, the same to both engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from tasks.logits import stage as logits_stage
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import TopKReader
from tasks.models import ModelSource
from tasks.shipped import DEMO
from tasks.train import stage
from tasks.train.settings import Training, TrainingRun
from tests.support.stages import scoring_workspace, training_workspace


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


def test_a_student_from_a_sharded_base_serves_in_vllm_as_in_transformers(
    rows: ArtifactRef, sharded: ModelSource
) -> None:
    training = Training(max_steps=2, global_batch=16, max_length=256)
    work = training_workspace("sft", sharded, rows, training, seed=0)
    run = TrainingRun(processes=1, micro_batch=8)
    trained = stage.train(work, "sft", sharded, rows, training, run, 0, lambda event: None)
    names = set(ArtifactReader(trained).names("model/"))
    assert [name for name in names if name.endswith(".safetensors")] == ["model/model.safetensors"]
    assert not [name for name in names if "index" in name or name.endswith((".bin", ".pt", ".txt"))]

    student, scores = ModelSource(name="sft", artifact=trained), []
    for engine in ("vllm", "transformers"):
        scoring = Scoring(engine=engine, max_length=256, max_error=2**-14)  # type: ignore[arg-type]
        made = scoring_workspace(rows, student, 5, scoring)
        work = Workspace(made.kind, 1000, {**made.spec, "engine": engine}, made.inputs)
        store = logits_stage.score(work, rows, student, 5, scoring, lambda event: None)
        assert store.counts["rows"] == rows.counts["rows"]
        scores.append({row.row_id: row.actual_logprobs_R for row in TopKReader(store)})
    served, reference = scores
    assert served.keys() == reference.keys()
    assert max(abs(served[row_id] - reference[row_id]).max() for row_id in served) < 2e-3
