"""The stage around the training program: its identity, its launch under DeepSpeed, its artifact."""

from __future__ import annotations

import json
import time
from importlib import resources
from typing import Any, Literal

from infra import devices
from infra.errors import ConfigurationError, TransientError
from infra.processes.shared_memory import remove_buffers_of, remove_unused_buffers
from infra.processes.supervise import Event, run_supervised
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.models import ModelSource
from tasks.train.launch import local, nodes
from tasks.train.launch.nodes import PROGRAM, Launch
from tasks.train.settings import Training, TrainingRun

STAGE_VERSION = 4
_CPU_RANKS = 2
_POLL_S = 1.0
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
    _refuse_contradictions(run)
    hosts = nodes.read_hosts(run.hostfile) if run.hostfile else None
    node = nodes.this_node(run, hosts) if hosts else 0
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
    if hosts and node:
        return _take_part(work, stage, hosts, node, run, spec, on_event)
    if hosts:
        launch = Launch.on(hosts)
        command = nodes.command(run, hosts, launch, 0, PROGRAM, work)
        nodes.announce(work, launch, spec | {"launch": launch.id})
    else:
        launch = Launch.here(run.processes or devices.gpus() or _CPU_RANKS)
        command = local.command(launch.ranks, launch.port, PROGRAM)
    try:
        result = _supervised(stage, command, launch, spec, run, on_event, f"{work.uri}log.txt")
    except TransientError as error:
        if hosts and (told := nodes.told_error(work, launch.id)):
            raise told from error
        raise
    work.put_json("curve.json", result["facts"]["curve"])
    ref = work.publish(("model/", "curve.json"), result["counts"], result["facts"])
    if not run.keep_checkpoints:
        prefix = f"{work.uri}checkpoint/"
        storage.delete_all(prefix, list(storage.keys(prefix)))
    return ref


def is_led(run: TrainingRun) -> bool:
    """Whether this machine is a node that another one leads: it takes part, and makes no artifact of its own."""
    return run.hostfile is not None and nodes.this_node(run, nodes.read_hosts(run.hostfile)) > 0


def _take_part(
    work: Workspace,
    stage: Stage,
    hosts: nodes.Hosts,
    node: int,
    run: TrainingRun,
    spec: dict[str, Any],
    on_event: Any,
) -> ArtifactRef:
    """What a node that is not the first does where each is started by itself, until the artifact is there."""
    waits_until = time.monotonic() + run.stall_timeout_s
    while time.monotonic() < waits_until:
        if ref := work.find():
            return ref
        if launch := nodes.next_launch(work, node):
            command = nodes.command(run, hosts, launch, node, PROGRAM, work)
            _supervised(stage, command, launch, spec, run, on_event, f"{work.uri}log-{node}.txt")
            waits_until = time.monotonic() + run.stall_timeout_s
        time.sleep(_POLL_S)
    raise TransientError(f"{stage}: {hosts.names[0]}, the first host of {hosts.path}, does not start training")


def _supervised(
    stage: Stage, command: list[str], launch: Launch, spec: dict[str, Any], run: TrainingRun, on_event: Any, log: str
) -> dict[str, Any]:
    remove_unused_buffers()  # of runs that were killed
    try:
        return run_supervised(
            stage,
            command,
            spec | {"launch": launch.id},
            on_event=on_event,
            env=nodes.environment(launch.on_node),
            stall_timeout_s=run.stall_timeout_s,
            timeout_h=run.timeout_h,
            log_uri=log,
        )
    finally:
        remove_buffers_of(launch.port)


def describe(event: Event) -> str:
    """A progress event as a short note."""
    return f"loss {event['loss']:.3f} · {event['tokens_s']:,.0f} tokens/s"


def _refuse_contradictions(run: TrainingRun) -> None:
    least = {"none": 0, "optimizer": 1, "parameters": 3}[run.offload]
    if run.zero_stage < least:
        raise ConfigurationError(
            f"run.offload={run.offload} needs run.zero_stage={least} or more, not {run.zero_stage}"
        )
