"""The training loop: the same steps whatever the number of ranks and micro-batches.

Every rank knows the whole global batch, so the normaliser, the supervised tokens over all micro-batches and
ranks, needs no communication.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infra.errors import ConfigurationError
from tasks.train.data import Example, collate, deal, global_batch_indices
from tasks.train.settings import Training

LOG_EVERY = 10


@dataclass(frozen=True)
class Plan:
    """What all ranks agree on before the first step."""

    steps: int
    global_batch: int
    micro_batches: int
    seed: int
    pad_id: int
    checkpoint_every_s: float


def rate_at(step: int, steps: int, training: Training) -> float:
    """The learning rate's factor in [0, 1]: linear warm-up, then the schedule down to 0."""
    warmup = math.ceil(training.warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    passed = (step - warmup) / max(steps - warmup, 1)
    if training.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(passed, 1)))
    return 1.0 if training.schedule == "constant" else max(1 - passed, 0.0)


def run_steps(
    engine: Any,
    examples: Sequence[Example],
    plan: Plan,
    first_step: int,
    curve: list[list[float]],
    on_log: Callable[[int, float, float], None],
    save: Callable[[int], None],
) -> float:
    """Train from `first_step` to the end; tokens a second.

    Appends [step, mean loss in nats per supervised token] to `curve`, calls `on_log(step, loss, tokens_s)` and,
    when a checkpoint is due, `save(step)` on every rank. A loss that is no number ends the run.
    """
    started = last_checkpoint = time.monotonic()
    tokens = loss_tokens = 0
    loss_sum = 0.0
    for step in range(first_step + 1, plan.steps + 1):
        batch = [examples[i] for i in global_batch_indices(len(examples), plan.global_batch, step - 1, plan.seed)]
        loss_sum += _run_step(engine, batch, plan)
        loss_tokens += sum(example.supervised_tokens for example in batch)
        tokens += sum(len(example.ids) for example in batch)
        if step % LOG_EVERY and step < plan.steps:
            continue
        loss = _sum_over_ranks(loss_sum, engine.device) / loss_tokens
        loss_sum, loss_tokens = 0.0, 0
        curve.append([step, round(loss, 5)])
        if not math.isfinite(loss):
            rows = ", ".join(example.row_id for example in batch[:8])
            raise ConfigurationError(f"the loss is {loss} at step {step}: lower the learning rate; rows: {rows} …")
        on_log(step, loss, tokens / (time.monotonic() - started))
        due = time.monotonic() - last_checkpoint > plan.checkpoint_every_s
        if _rank_0_says(due, engine.device) and step < plan.steps:
            save(step)
            last_checkpoint = time.monotonic()
    return tokens / max(time.monotonic() - started, 1e-9)


def _run_step(engine: Any, batch: Sequence[Example], plan: Plan) -> float:
    """One optimizer step; this rank's summed loss."""
    ranks = torch.distributed.get_world_size()
    supervised = sum(example.supervised_tokens for example in batch)
    loss_sum = 0.0
    for micro in deal(batch, torch.distributed.get_rank(), ranks, plan.micro_batches):
        loss = engine(*_tensors(micro or batch[:1], plan.pad_id, engine.device))
        loss = loss if micro else loss * 0.0  # every rank takes part in every micro-batch
        loss_sum += float(loss.detach())
        # DeepSpeed averages over ranks and micro-batches; we want the mean over supervised tokens
        engine.backward(loss * (ranks * plan.micro_batches / supervised))
        engine.step()
    return loss_sum


def _tensors(examples: Sequence[Example], pad_id: int, device: Any) -> list[Tensor | None]:
    batch = collate(examples, pad_id)
    fields = (
        batch.input_ids_BT,
        batch.attention_mask_BT,
        batch.positions_N,
        batch.labels_N,
        batch.teacher_ids_NK,
        batch.teacher_logprobs_NK,
    )
    return [None if tensor is None else tensor.to(device) for tensor in fields]


def _sum_over_ranks(value: float, device: Any) -> float:
    total = torch.tensor([value], dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    torch.distributed.all_reduce(total)
    return float(total)


def _rank_0_says(flag: bool, device: Any) -> bool:
    """One clock decides for all."""
    decision = torch.tensor([int(flag)], device=device)
    torch.distributed.broadcast(decision, src=0)
    return bool(decision)
