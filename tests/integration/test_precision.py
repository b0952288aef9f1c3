"""What GPUs do, on the CPU: training in bf16 over fp32 master weights, vLLM in bf16, loading a rank's part only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config

from infra import settings
from infra.errors import TransientError
from infra.processes.supervise import Event
from infra.services.server import free_ports
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, facts_of
from tasks.logits import stage as logits_stage
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import TopKReader
from tasks.models import resolve
from tasks.train import stage
from tasks.train.settings import Lora, Training, TrainingRun
from tests.bench.parity import difference
from tests.support.processes import named, of_home
from tests.support.stages import scoring_workspace

# little of it: a CPU without bf16 of its own computes in it six times slower
TRAINING = Training(learning_rate=2e-3, max_steps=30, global_batch=4, max_length=256)
RUN = TrainingRun(processes=1, micro_batch=2, zero_stage=2, checkpoint_every_s=1e-3, precision="bf16")


def _train(
    rows: ArtifactRef, training: Training, run: TrainingRun, tag: int, on_event: Any = lambda event: None
) -> ArtifactRef:
    student = resolve("demo", "student")
    made = stage.Train(name="sft", model=student, data=rows, training=training, run=run, seed=0).workspace()
    work = Workspace(made.kind, 1000 + tag, made.spec, made.inputs)
    return stage.train(work, "sft", student, rows, training, run, 0, on_event)


def _curve(ref: ArtifactRef) -> Any:
    return ArtifactReader(ref).read_json("curve.json")


def _weights(ref: ArtifactRef) -> dict[str, torch.Tensor]:
    folder = ArtifactReader(ref).folder("model/")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    return load_file(folder / "model.safetensors")


def _kill_at_step_20(event: Event) -> None:
    if event["event"] == "progress" and event["done"] == 20:
        (rank,) = named(of_home(os.environ["DISTILFLOW_HOME"]), "-m infra.processes.program tasks.train.program")
        rank.kill()


@pytest.mark.timeout(600)  # four starts of a training
def test_in_bf16_the_curve_is_that_of_fp32_within_a_hundredth_of_a_nat_and_a_kill_changes_nothing(
    rows: ArtifactRef,
) -> None:
    whole = _train(rows, TRAINING, RUN, 0)
    full = _train(rows, TRAINING, RUN.model_copy(update={"precision": "fp32"}), 0)
    assert _curve(whole) == [[step, pytest.approx(loss, abs=0.01)] for step, loss in _curve(full)]
    assert _curve(whole) != _curve(full)
    assert _curve(whole)[-1][1] < 0.9 * _curve(whole)[0][1]
    assert facts_of(whole)["precision"] == "bfloat16"

    with pytest.raises(TransientError):
        _train(rows, TRAINING, RUN, 1, _kill_at_step_20)
    events: list[Event] = []
    resumed = _train(rows, TRAINING, RUN, 1, events.append)
    assert next(event["step"] for event in events if event["event"] == "resumed") in (10, 20)
    assert _curve(resumed) == _curve(whole)
    ours, theirs = _weights(resumed), _weights(whole)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16}


def test_adapters_under_zero_3_on_two_ranks_are_merged_into_bf16_weights(rows: ArtifactRef) -> None:
    training = TRAINING.model_copy(update={"lora": Lora(rank=8, alpha=32)})
    made = _train(rows, training, RUN.model_copy(update={"processes": 2, "zero_stage": 3}), 2)
    assert _curve(made)[-1][1] < 0.9 * _curve(made)[0][1]
    assert facts_of(made)["ranks"] == 2
    before, after = load_file(Path(resolve("demo", "student").fetch()) / "model.safetensors"), _weights(made)
    assert before.keys() == after.keys()  # a tied head once
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name].bfloat16())}
    assert moved == {name for name in before if name.endswith("_proj.weight")}


def test_vllm_in_bf16_is_as_near_to_transformers_in_fp32_as_bf16_is(rows: ArtifactRef) -> None:
    teacher, scored = resolve("demo", "teacher"), []
    for scoring in (
        Scoring(engine="vllm", dtype="bfloat16", max_length=256, max_error=2**-14),
        Scoring(engine="transformers", max_length=256, max_error=2**-14),
    ):
        made = scoring_workspace(rows, teacher, 10, scoring)
        work = Workspace(made.kind, 1000, {**made.spec, "engine": scoring.engine}, made.inputs)
        ref = logits_stage.score(work, rows, teacher, 10, scoring, lambda event: None)
        scored.append(sorted(TopKReader(ref), key=lambda row: row.row_id))
    assert [row.row_id for row in scored[0]] == [row.row_id for row in scored[1]]
    found = difference(*scored)
    assert 1e-3 < found.mean < 0.05
    assert np.isfinite(found.largest)


_LOADS = """
import json, sys, deepspeed, torch
from pathlib import Path
from transformers.models.qwen2 import modeling_qwen2
from tasks.train.launch.ranks import Rank
from tasks.train.model.student import load
from tasks.train.program import join

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
join(Rank(rank, 2, 2), folder, on_gpu=False)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
before = status("VmRSS")
zero_3 = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 1}
model = load(folder / "model", torch.bfloat16, zero_3)
peak, parts = status("VmHWM") - before, [p.ds_tensor for p in model.parameters()]
held = sum(part.numel() * part.element_size() for part in parts)
dtypes = sorted({str(part.dtype) for part in parts})
weights = model.model.layers[3].mlp.up_proj.weight
with deepspeed.zero.GatheredParameters(weights):
    print(json.dumps({"peak": peak, "held": held, "dtypes": dtypes, "sum": weights.double().sum().item()}))
"""


def test_under_zero_3_a_rank_loads_its_part_in_the_storage_dtype(tmp_path: Path) -> None:
    """A model of 100 MB in bf16, 200 MB in fp32: what two ranks hold, and what they took at most on the way."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=8192,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    model.save_pretrained(tmp_path / "model")
    stored = sum(2 * p.numel() for p in model.parameters())
    [port] = free_ports(1)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    meeting["TORCH_EXTENSIONS_DIR"] = settings.torch_extensions_dir()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _LOADS, str(rank), str(tmp_path)],
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        (line,) = (line for line in rank.communicate()[0].splitlines() if line.startswith("{"))
        told = json.loads(line)
        assert rank.returncode == 0
        assert told["dtypes"] == ["torch.bfloat16"]
        assert told["held"] == pytest.approx(stored / 2, rel=0.01)
        # its half, one module's whole, the file's pages on the first rank, libraries; a copy in fp32 were 2 on top
        assert told["peak"] < 2.7 * stored
        assert told["sum"] == model.model.layers[3].mlp.up_proj.weight.double().sum().item()
