"""The stage around the training program: its identity, its launch under DeepSpeed, its artifact."""

from __future__ import annotations

import json
import os
import socket
import sys
from importlib import resources
from typing import Any, Literal

from infra import devices, settings
from infra.artifacts import ArtifactRef, Workspace
from infra.models import ModelSource
from infra.processes import Event, run_supervised
from infra.shared_memory import remove_buffers_of, remove_unused_buffers
from tasks.train.settings import Training, TrainingRun

STAGE_VERSION = 2
PROGRAM = "tasks.train.program"
_CPU_RANKS = 2
Stage = Literal["sft", "kd", "sft_control"]


def workspace(stage: Stage, model: ModelSource, data: ArtifactRef, training: Training, seed: int) -> Workspace:
    """A model trained from `model` on `data` (rows, or a top-K store for kd)."""
    spec = {"model": model.identity(), "training": training.model_dump(), "seed": seed}
    return Workspace(stage, STAGE_VERSION, spec, {"data": data})


def train(
    work: Workspace,
    stage: Stage,
    model: ModelSource,
    data: ArtifactRef,
    training: Training,
    run: TrainingRun,
    seed: int,
    on_event: Any,
) -> ArtifactRef:
    """Train under the DeepSpeed launcher in supervised processes; resumes from the last checkpoint."""
    ranks = run.processes or devices.gpus() or _CPU_RANKS
    zero = resources.files("infra").joinpath(f"deepspeed/zero{run.zero_stage}.json").read_text()
    spec = {
        "objective": "kd" if stage == "kd" else "sft",
        "model": model.model_dump(),
        "data": data.model_dump(),
        "training": training.model_dump(),
        "run": run.model_dump(),
        "workspace": work.description(),
        "deepspeed": json.loads(zero),
        "seed": seed,
    }
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
    port = _free_port()
    launcher += ["--master_port", str(port), "--no_local_rank", "--module", PROGRAM]
    threads = max(1, (os.cpu_count() or 1) // ranks)
    remove_unused_buffers()  # of runs that were killed
    try:
        result = run_supervised(
            stage,
            launcher,
            spec,
            on_event=on_event,
            env={
                "OMP_NUM_THREADS": str(threads),
                "TOKENIZERS_PARALLELISM": "false",
                "TORCH_EXTENSIONS_DIR": settings.torch_extensions_dir(),
            },
            stall_timeout_s=run.stall_timeout_s,
            timeout_h=run.timeout_h,
            log_uri=f"{work.uri}log.txt",
        )
    finally:
        remove_buffers_of(port)
    work.put_json("curve.json", result["facts"]["curve"])
    return work.publish(("model/", "curve.json"), result["counts"], result["facts"])


def describe(event: Event) -> str:
    """A progress event as a short note."""
    return f"loss {event['loss']:.3f} · {event['tokens_s']:,.0f} tokens/s"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
