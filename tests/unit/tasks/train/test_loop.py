"""The loop: what is logged, when it saves, and that it stops where a loss is no number, with the rows it came from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infra.errors import ConfigurationError
from tasks.train.loop import StepPlan, run_steps
from tasks.train.pace import LEAST_S, MOST_S, SHARE, CheckpointPace, interval_s

PLAN = StepPlan(steps=30, global_batch=4, micro_batches=2)
TOKENS = 5  # supervised ones in a step


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Engine:
    """Says the loss of each step, in the step's micro-batches."""

    device = torch.device("cpu")

    def __init__(self, losses: list[float]):
        self.losses = [loss * TOKENS / PLAN.micro_batches for loss in losses for _ in range(PLAN.micro_batches)]
        self.backwards: list[float] = []

    def __call__(self, *_: Any) -> torch.Tensor:
        return torch.tensor(self.losses.pop(0), dtype=torch.float64)

    def backward(self, loss: torch.Tensor) -> None:
        self.backwards.append(float(loss))

    def step(self) -> None:
        pass


class Feed:
    def step(self, step: int) -> Any:
        micro: Any = SimpleNamespace(inputs=())
        batches = [micro] * PLAN.micro_batches
        return SimpleNamespace(micro_batches=batches, idle=[False] * len(batches), supervised_tokens=TOKENS, tokens=9)


def _trained(
    losses: list[float], monkeypatch: pytest.MonkeyPatch, every_s: float = 1e9, first: int = 0
) -> tuple[list[list[float]], list[int], Engine]:
    """The curve, the steps after which it saved, the engine."""
    monkeypatch.setattr("tasks.train.loop.moved", lambda batch, device: batch)
    curve, saved, engine = [], [], Engine(losses)  # type: ignore[var-annotated]
    feed: Any = Feed()
    run_steps(
        engine,
        feed,
        PLAN,
        first,
        curve,
        lambda *_: None,
        saved.append,
        CheckpointPace(every_s, 0, lambda *_: None),
        lambda step: [f"row-{step}-{n}" for n in (1, 2)],
    )
    return curve, saved, engine


def test_the_curve_is_the_mean_over_supervised_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    curve, saved, engine = _trained([1.0] * 10 + [3.0] * 5 + [1.0] * 5 + [0.5] * 10, monkeypatch)
    assert curve == [[10, 1.0], [20, 2.0], [30, 0.5]]
    assert saved == []
    # DeepSpeed divides by micro-batches and ranks: what is left is the loss per supervised token
    assert sum(engine.backwards[:2]) / PLAN.micro_batches == pytest.approx(1.0)


def test_checkpoints_come_when_due_and_not_after_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _trained([1.0] * 30, monkeypatch, 0.0)[1] == [10, 20]
    curve, saved, _ = _trained([1.0] * 10, monkeypatch, 0.0, first=20)
    assert (curve, saved) == ([[30, 1.0]], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 25.0])
def test_a_loss_that_is_no_number_or_a_spike_stops_with_the_steps_rows(
    bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [1.0] * 16 + [bad] + [1.0] * 13
    with pytest.raises(ConfigurationError, match=r"at step 17 \(it was 1\): .*learning rate.*row-17-1, row-17-2"):
        _trained(losses, monkeypatch)


def test_a_noisy_loss_is_no_spike(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _trained([1.0] * 16 + [19.0] + [1.0] * 13, monkeypatch)[0][1] == [20, 2.8]


@pytest.mark.parametrize("cost_s", [0.0, 0.5, 1.0, 5.0, 40.0, 54.0, 300.0])
def test_checkpoints_take_a_small_share_of_the_time_and_are_never_rarer_than_a_bound(cost_s: float) -> None:
    chosen = interval_s(cost_s)
    assert LEAST_S <= chosen <= MOST_S
    assert chosen == MOST_S or cost_s / (chosen + cost_s) <= SHARE
    assert interval_s(cost_s, 7.0) == 7.0


def test_the_pace_follows_what_checkpoints_cost_and_says_so() -> None:
    told: list[tuple[float, float]] = []
    pace = CheckpointPace(None, 105e9, lambda *said: told.append(said))
    assert told == [pytest.approx((1750, 52.5))]
    pace.saved(50.0)  # as expected: nothing new
    pace.saved(3.0)
    assert told[1:] == [pytest.approx((100, 3.0))]
    assert not pace.due()
