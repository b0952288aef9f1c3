"""The training loop: the same steps whatever the number of ranks and micro-batches.

Every rank knows the whole global batch, so the normaliser, the supervised tokens over all micro-batches and
ranks, needs no communication.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from infra.errors import ConfigurationError
from tasks.train.data.feed import BatchLoader, Step, moved
from tasks.train.pace import CheckpointPace
from tasks.train.settings import Training

LOG_EVERY = 10
_SPIKE = 10.0  # a loss this many times the lowest so far, and this many nats, is no noise


@dataclass(frozen=True)
class StepPlan:
    """What all ranks agree on before the first step."""

    steps: int
    global_batch: int
    micro_batches: int


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
    feed: BatchLoader,
    plan: StepPlan,
    first_step: int,
    curve: list[list[float]],
    on_log: Callable[[int, float, float], None],
    save: Callable[[int], None],
    pace: CheckpointPace,
    row_ids: Callable[[int], list[str]],
    weighted: bool = False,
) -> float:
    """Train from `first_step` to the end; tokens a second.

    Appends [step, mean loss in nats per supervised token] to `curve`, calls `on_log(step, loss, tokens_s)` and, when a
    checkpoint is due by the first rank's `pace`, `save(step)` on every rank. Raises ConfigurationError, with the rows
    of the step (`row_ids(step)`), where a loss is no number or far above what it was. With `weighted`, the mean over
    tokens is a weighted one (`DistillationLoss.weighting`, `MicroBatch.weight_N`).
    """
    started = time.monotonic()
    tokens = 0
    losses: list[Tensor] = []
    supervised: list[int] = []
    for step in range(first_step + 1, plan.steps + 1):
        fed = feed.step(step)
        losses.append(_run_step(engine, _weighed(engine, fed) if weighted else fed))
        supervised.append(fed.supervised_tokens)
        tokens += fed.tokens
        if step % LOG_EVERY and step < plan.steps:
            continue
        sums = _summed_over_ranks(torch.stack(losses)).tolist()
        _refuse_divergence(step - len(sums), [s / n for s, n in zip(sums, supervised, strict=True)], curve, row_ids)
        loss = sum(sums) / sum(supervised)
        losses, supervised = [], []
        curve.append([step, round(loss, 5)])
        on_log(step, loss, tokens / (time.monotonic() - started))
        if _rank_0_says(pace.due(), engine.device) and step < plan.steps:
            began = time.monotonic()
            save(step)
            pace.saved(time.monotonic() - began)
    return tokens / max(time.monotonic() - started, 1e-9)


def _run_step(engine: Any, fed: Step) -> Tensor:
    """One optimizer step; this rank's summed loss, still on the device."""
    scale = torch.distributed.get_world_size() * len(fed.micro_batches) / fed.supervised_tokens
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for micro, idle in zip(fed.micro_batches, fed.idle, strict=True):
        batch = moved(micro, engine.device)
        loss = engine(*batch.inputs)
        loss = loss * 0.0 if idle else loss  # every rank takes part in every micro-batch
        total += loss.detach()
        # DeepSpeed averages over ranks and micro-batches; we want the mean over supervised tokens
        engine.backward(loss * scale)
        engine.step()
    return total


def _weighed(engine: Any, fed: Step) -> Step:
    """The step with what each token counts in its loss: 1 on average over all supervised tokens of the global batch.

    Weights of tokens come of a forward pass before, in which nothing is learned; those of rows multiply them.
    """
    measures = engine.module.loss.weighting != "none"
    batches = [moved(micro, engine.device) for micro in fed.micro_batches]
    found: list[Tensor] = []
    for batch in batches:
        weight_N = torch.ones(len(batch.labels_N), device=engine.device) if batch.weight_N is None else batch.weight_N
        if measures:
            with torch.no_grad():
                weight_N = weight_N * engine(*batch.inputs, measure=True)
        found.append(weight_N)
    mine = [weight_N.double().sum() for weight_N, idle in zip(found, fed.idle, strict=True) if not idle]
    total = _summed_over_ranks(sum(mine, torch.zeros((), dtype=torch.float64, device=engine.device)))
    # where no token is to count at all, each counts the same
    even = [torch.where(total > 0, weight_N * (fed.supervised_tokens / total), 1.0).to(weight_N) for weight_N in found]
    return replace(fed, micro_batches=[replace(batch, weight_N=of) for batch, of in zip(batches, even, strict=True)])


def _refuse_divergence(
    before: int, losses: Sequence[float], curve: list[list[float]], row_ids: Callable[[int], list[str]]
) -> None:
    """`losses` are those of the steps after `before`."""
    lowest = min((loss for _step, loss in curve), default=math.inf)
    for step, loss in enumerate(losses, before + 1):
        if not math.isfinite(loss) or loss > _SPIKE * lowest + _SPIKE:
            rows = ", ".join(row_ids(step)[:8])
            was = "" if math.isinf(lowest) else f" (it was {lowest:.3g})"
            raise ConfigurationError(
                f"the loss is {loss:.3g} at step {step}{was}: lower the learning rate; the step's rows: {rows} …"
            )


def _summed_over_ranks(values: Tensor) -> Tensor:
    torch.distributed.all_reduce(values)
    return values


def _rank_0_says(flag: bool, device: Any) -> bool:
    """One clock decides for all."""
    decision = torch.tensor([int(flag)], device=device)
    torch.distributed.broadcast(decision, src=0)
    return bool(decision)
