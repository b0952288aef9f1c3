"""The training program: run by the DeepSpeed launcher, one process a rank.

    deepspeed --module tasks.train.program FOLDER

reads FOLDER/spec.json (see `tasks.train.stage`), trains, keeps checkpoints in the artifact's workspace, and
uploads the finished model there. SFT and KD differ by loss and batch only. FOLDER is one for all ranks of a machine,
and for them alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import numpy as np
import torch
from deepspeed.monitor.config import TensorBoardConfig
from deepspeed.monitor.tensorboard import TensorBoardMonitor
from transformers import AutoConfig

from infra import memory
from infra.errors import ConfigurationError, OutOfMemoryError
from infra.processes import child
from infra.processes.torch_extensions import build_once
from tasks.engines.sizes import ModelShape
from tasks.train import checkpoints
from tasks.train.data.curriculum import Curriculum
from tasks.train.data.examples import Examples
from tasks.train.data.feed import feeding
from tasks.train.data.mixture import Mixture, Routed, examples_of
from tasks.train.data.order import total_steps
from tasks.train.data.spool import ExampleStore, write_spool
from tasks.train.launch import nodes
from tasks.train.launch.ranks import Rank
from tasks.train.loop import StepPlan, run_steps
from tasks.train.memory import Placement, advice, check_fits, checkpoint_bytes
from tasks.train.model.student import Student
from tasks.train.pace import CheckpointPace
from tasks.train.placement import Demand, choose, describe
from tasks.train.run import TrainingContext
from tasks.train.settings import TrainingRun

T = TypeVar("T")
_PATIENCE = timedelta(days=1)


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Train one model; returns its counts, loss curve and speed (the same on every rank)."""
    run = TrainingContext.of(spec)
    try:
        return _train(run, reporter)
    except Exception as error:
        if run.rank.node > 0:  # the supervisor sees the first node only
            nodes.tell_error(run.work, run.launch, child.explained(error, reporter.folder))
        raise


def _train(run: TrainingContext, reporter: child.Reporter) -> dict[str, Any]:
    checkpoints.load_data_only()
    join(run.rank, reporter.folder, on_gpu=run.on_gpu)
    torch.manual_seed(run.seed)
    if run.rank.is_first and run.precision_note:
        reporter.note(run.precision_note)

    with reporter.loading("DeepSpeed") if run.rank.is_first else contextlib.nullcontext():
        base = _one_rank_first(run.rank, run.source.fetch)
        spool, data_facts = _prepared(run, reporter.folder / "examples")
        run = replace(run, placement=_placement(run, base, spool, reporter))
        _check_memory(run, base, spool)
        plan = _plan(run, len(spool))
        owned = checkpoints.take_over(run.work, run.launch) if run.rank.is_first else None
        student, done, curve = _resumed(run, plan, base, reporter)

    log = _log(run, plan, student, reporter)
    curriculum = Curriculum.of(run.kd, spool, len(run.batch_rows), plan.steps, run.seed)
    by = run.seed, run.rank.number, run.rank.ranks
    started = time.monotonic()
    with (
        checkpoints.Uploads(run.work, run.how.checkpoints_kept, reporter, run.rank, run.launch, owned) as uploads,
        feeding(spool, run.batch_rows, plan.micro_batches, *by, curriculum) as feed,
    ):

        def save(step: int) -> None:
            uploads.save(student.engine, _scratch(reporter), step, curve, run.layout)

        def tell_pace(interval_s: float, cost_s: float) -> None:
            if run.rank.is_first:
                reporter.event("checkpoint_pace", interval_s=round(interval_s, 1), cost_s=round(cost_s, 2))

        def row_ids(step: int) -> list[str]:
            return [spool[place].row_id for place in feed.rows(step)]

        pace = CheckpointPace(
            run.how.checkpoint_every_s, checkpoint_bytes(student.parameters, run.training.lora), tell_pace
        )
        try:
            tokens_s = run_steps(student.engine, feed, plan, done, curve, log, save, pace, row_ids, run.weighted)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError(f"out of memory: {_advice(run, base, spool)}") from error
        elapsed = max(time.monotonic() - started, 1e-9)
        waited, checkpointing = feed.waited_s / elapsed, pace.spent_s / elapsed

    counts = {"steps": plan.steps, "rows": len(spool), "supervised_tokens": spool.supervised_tokens}
    facts = {
        "curve": curve,
        "tokens_s": round(tokens_s),
        "data_wait_share": round(waited, 4),
        "checkpoints": pace.checkpoints,
        "checkpoint_share": round(checkpointing, 4),
        "resumed_at": done,
        "ranks": run.rank.ranks,
        "parameters": student.parameters,
        "precision": run.precision,
    }
    student.export(run.card(data_facts.get("k")) | counts | facts)
    return {"counts": counts, "facts": {**facts, **data_facts}}


def join(rank: Rank, folder: Path, *, on_gpu: bool) -> None:
    """Meet the other ranks: by a file in `folder` where all are on this machine, which opens no port to anybody.

    They wait for one another while one downloads a model or a checkpoint, or writes a million examples: longer than
    torch's 10 and DeepSpeed's 30 minutes. A rank that hangs is found by the supervisor, which sees no sign of life.
    """
    build_once()
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        timeout=_PATIENCE,
        verbose=False,
        init_method=f"file://{folder}/rendezvous" if rank.nodes == 1 else None,
        rank=rank.number,
        world_size=rank.ranks,
    )


def _prepared(run: TrainingContext, folder: Path) -> tuple[ExampleStore, dict[str, Any]]:
    """The examples, in files of this machine; facts about them (on the first rank of each node)."""

    def write() -> dict[str, Any]:
        longest = min(run.training.max_length, run.source.context())
        of = run.source, longest, run.kd
        first = examples_of((run.data, *run.routed), *of, run.turns, run.only, run.k)
        examples: Examples | Routed | Mixture = first
        if run.kd and run.also:
            more = (examples_of((part.scores, *part.routed), *of, k=run.k) for part in run.also)
            examples = Mixture([first, *more], run.kd.kd_weight)
        write_spool(folder, examples)
        facts = examples.facts()
        if not (folder / "ids").stat().st_size:
            raise ConfigurationError(f"no row is usable for training: {dict(facts['skipped'])}")
        return facts

    facts = _on_one_rank(run.rank, write)
    return ExampleStore(folder), facts or {}


def _plan(run: TrainingContext, examples: int) -> StepPlan:
    training = run.training
    return StepPlan(
        steps=total_steps(examples, training.epochs, training.global_batch, training.max_steps),
        global_batch=training.global_batch,
        micro_batches=-(-training.global_batch // (run.rank.ranks * run.placement.micro_batch)),
    )


def _resumed(
    run: TrainingContext, plan: StepPlan, base: Path, reporter: child.Reporter
) -> tuple[Student, int, list[list[float]]]:
    """The student as the last checkpoint left it: steps done, their loss curve."""
    scratch = _scratch(reporter)
    torch.distributed.barrier()  # the first rank has found out which checkpoint that is
    _on_one_rank(run.rank, lambda: checkpoints.download(run.work, scratch, run.layout, run.rank))
    state = checkpoints.found(scratch)
    student = Student(run, plan, base, universal=bool(state and state["universal"]))
    if state is None:
        return student, 0, []
    done, curve = 0, []
    if state["usable"]:
        student.load(scratch, state["tag"])
        done, curve = state["step"], state["curve"]
    if run.rank.is_first:
        reporter.event("resumed", step=done, lost=state["step"] - done)
    return student, done, curve


def _log(
    run: TrainingContext, plan: StepPlan, student: Student, reporter: child.Reporter
) -> Callable[[int, float, float], None]:
    """What is done with a loss: progress on each node, TensorBoard on the first rank.

    The monitor is DeepSpeed's own; we choose the numbers, since a rank knows its losses only.
    """
    monitor = None
    if run.how.tensorboard is not None:
        name = f"{run.work.kind}-{run.work.fingerprint[:8]}"
        monitor = TensorBoardMonitor(TensorBoardConfig(enabled=True, output_path=run.how.tensorboard, job_name=name))

    def log(step: int, loss: float, tokens_s: float) -> None:
        if run.rank.leads_node:
            reporter.progress(step, plan.steps, loss=loss, tokens_s=tokens_s)
        if monitor is not None:
            scalars = {"loss": loss, "tokens_s": tokens_s, **student.scalars()}
            monitor.write_events([(f"train/{key}", value, step) for key, value in scalars.items()])

    return log


def _placement(run: TrainingContext, base: Path, spool: ExampleStore, reporter: child.Reporter) -> Placement:
    """What the first rank chooses for all of them, where `run.how` leaves something open."""
    chosen: list[Placement | None] = [None]
    if run.rank.is_first:
        way = Placement.model_validate({name: value for name, value in _said(run.how) if value != "auto"})
        if (shape := _shape(base)) is not None:
            demand = Demand(
                shape=shape,
                ranks=run.rank.ranks,
                memory=_device_memory(run),
                global_batch=run.training.global_batch,
                row_tokens=float(spool.lengths.mean()),
                longest=lambda rows: _tokens_at_once(spool, rows),
                lora=run.training.lora,
                half=run.half,
                on_gpu=run.on_gpu,
            )
            way = choose(run.how, demand, checkpoints.stage_of_last(run.work))
        usual = way == Placement() and not run.on_gpu
        if "auto" in dict(_said(run.how)).values() and not usual:
            reporter.note(f"{describe(way)}: chosen for {run.rank.ranks} ranks of {_device_memory(run) >> 30} GiB")
        chosen[0] = way
    device = torch.device("cuda", run.rank.number % run.rank.on_node) if run.on_gpu else torch.device("cpu")
    torch.distributed.broadcast_object_list(chosen, src=0, device=device)
    assert chosen[0] is not None
    return chosen[0]


def _said(how: TrainingRun) -> list[tuple[str, Any]]:
    return [(name, getattr(how, name)) for name in Placement.model_fields]


def _check_memory(run: TrainingContext, base: Path, spool: ExampleStore) -> None:
    """Refuse what cannot fit, before weights are loaded. On a CPU, ranks share the memory, offloaded or not."""
    if (shape := _shape(base)) is None:
        return
    way = run.placement if run.on_gpu else run.placement.model_copy(update={"offload": "none"})
    tokens, memory = _tokens_at_once(spool, way.micro_batch), _device_memory(run)
    check_fits(shape, way, run.rank.ranks, tokens, run.training.lora, memory, half=run.half)


def _device_memory(run: TrainingContext) -> int:
    """Bytes that a rank has."""
    if run.on_gpu:
        return int(torch.cuda.get_device_properties(run.rank.number % run.rank.on_node).total_memory)
    return memory.total() // run.rank.on_node


def _advice(run: TrainingContext, base: Path, spool: ExampleStore) -> str:
    if (shape := _shape(base)) is None:
        return "use a smaller run.micro_batch, a higher run.zero_stage or a larger device"
    tokens = _tokens_at_once(spool, run.placement.micro_batch)
    return advice(shape, run.placement, run.rank.ranks, tokens, run.training.lora, half=run.half)


def _shape(base: Path) -> ModelShape | None:
    """None for a model whose config has names of its own: it is trained without an estimate."""
    try:
        return ModelShape.of(AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config().to_dict())
    except KeyError:
        return None


def _tokens_at_once(spool: ExampleStore, rows: int) -> int:
    return int(np.sort(spool.lengths)[-rows:].sum())


def _scratch(reporter: child.Reporter) -> Path:
    return reporter.folder / "checkpoint"


def _one_rank_first(rank: Rank, work: Callable[[], T]) -> T:
    """The first rank of this machine does it (downloads), the others then find it done."""
    if rank.leads_node:
        result = work()
        torch.distributed.barrier()
        return result
    torch.distributed.barrier()
    return work()


def _on_one_rank(rank: Rank, work: Callable[[], T]) -> T | None:
    """The first rank of this machine does it, the others wait and get None."""
    result = work() if rank.leads_node else None
    torch.distributed.barrier()
    return result


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]), writes=int(os.environ["LOCAL_RANK"]) == 0)
