"""What a training chooses for itself: it fits, nothing faster does, and what somebody said stands."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.plan.sizes import size_of
from tasks.train.memory import Placement
from tasks.train.placement import Demand, _ways, choose, cost, describe
from tasks.train.settings import LEAST_STAGE, Lora, TrainingRun

GIB = 2**30
STUDENTS = ("0.5B", "1.5B", "3B", "7B")


def _demand(student: str = "7B", ranks: int = 8, gib: float = 79.0, **other: Any) -> Demand:
    """64 rows of 400 tokens, the long ones of 900."""
    told: dict[str, Any] = {"global_batch": 64, "row_tokens": 400.0, "longest": lambda rows: rows * 900, **other}
    return Demand(shape=size_of(student, None).shape, ranks=ranks, memory=int(gib * GIB), **told)


@pytest.mark.parametrize(
    ("student", "ranks", "gib", "wanted"),
    [
        ("0.5B", 8, 79, Placement(zero_stage=2, micro_batch=8)),
        ("7B", 8, 79, Placement(zero_stage=2, micro_batch=4)),
        ("7B", 8, 39, Placement(zero_stage=2, micro_batch=8, gradient_checkpointing=True)),
        ("7B", 8, 22, Placement(zero_stage=3, micro_batch=4, gradient_checkpointing=True)),
        ("7B", 1, 139, Placement(zero_stage=1, micro_batch=4, offload="optimizer")),
    ],
)
def test_the_ways_of_a_qwen(student: str, ranks: int, gib: int, wanted: Placement) -> None:
    assert choose(TrainingRun(), _demand(student, ranks, gib)) == wanted


@given(
    st.sampled_from(STUDENTS),
    st.sampled_from([1, 2, 8, 64]),
    st.integers(4, 180),
    st.sampled_from([16, 64, 1000]),
    st.sampled_from([None, Lora()]),
    st.sampled_from(
        [(), ("zero_stage", 3), ("offload", "optimizer"), ("micro_batch", 5), ("gradient_checkpointing", True)]
    ),
)
def test_what_is_chosen_fits_where_anything_does_and_nothing_that_fits_is_much_faster(
    student: str, ranks: int, gib: int, batch: int, lora: Lora | None, said: tuple[Any, ...]
) -> None:
    run = TrainingRun.model_validate(dict([said]) if said else {})
    demand = _demand(student, ranks, gib, global_batch=batch, lora=lora)
    way, ways = choose(run, demand), list(_ways(run, demand))
    assert way in ways
    assert all(getattr(way, name) == value for name, value in ([said] if said else []))
    assert way.zero_stage >= LEAST_STAGE[way.offload]
    assert said[:1] == ("micro_batch",) or way.micro_batch <= demand.rows
    fitting = [other for other in ways if demand.takes(other) <= demand.memory]
    if fitting:
        assert demand.takes(way) <= demand.memory
        assert cost(way, demand) <= 1.05 * min(cost(other, demand) for other in fitting)
    else:
        assert demand.takes(way) == min(map(demand.takes, ways))


def test_all_that_is_said_stands_whether_it_fits_or_not() -> None:
    said = Placement(zero_stage=0, micro_batch=64)
    assert choose(TrainingRun(**said.model_dump()), _demand(gib=1)) == said


def test_a_cpu_trains_as_it_always_did_while_that_fits() -> None:
    demand = _demand("0.5B", 2, 64, half=False, on_gpu=False)
    before = Placement(zero_stage=2, offload="none", micro_batch=16, gradient_checkpointing=False)
    assert choose(TrainingRun(), demand) == before
    short = choose(TrainingRun(), dataclasses.replace(demand, memory=12 * GIB))
    assert short == before.model_copy(update={"micro_batch": 1})
    assert choose(TrainingRun(), dataclasses.replace(demand, memory=GIB)).offload == "none", "it is the same memory"


def test_a_training_goes_on_at_the_stage_of_its_checkpoint_while_that_fits() -> None:
    """Another stage would begin it anew."""
    demand = _demand("7B")
    assert choose(TrainingRun(), demand).zero_stage == 2
    assert choose(TrainingRun(), demand, stage_before=3).zero_stage == 3
    assert choose(TrainingRun(zero_stage=2), demand, stage_before=3).zero_stage == 2
    small = dataclasses.replace(demand, memory=30 * GIB)
    assert choose(TrainingRun(offload="none"), small, stage_before=1).zero_stage == 3


def test_each_thing_that_saves_memory_costs_time() -> None:
    demand, plain = _demand("7B"), Placement(zero_stage=2, micro_batch=8)
    for saving in (
        {"zero_stage": 3},
        {"micro_batch": 1},
        {"gradient_checkpointing": True},
        {"offload": "optimizer"},
    ):
        less = plain.model_copy(update=saving)
        assert demand.takes(less) < demand.takes(plain)
        assert cost(less, demand) > cost(plain, demand)


def test_people_read_what_was_chosen() -> None:
    assert describe(Placement(zero_stage=2, micro_batch=8)) == "ZeRO-2, 8 rows at once"
    saving = Placement(zero_stage=3, micro_batch=1, offload="parameters", gradient_checkpointing=True)
    assert describe(saving) == "ZeRO-3, 1 rows at once, activations computed twice, parameters in the machine's memory"


def test_the_precision_decides_what_is_taken_and_the_device_what_can_be_done() -> None:
    """bf16 on a CPU is laid out as anything is there; fp32 on GPUs may be offloaded, and takes more."""
    on_cpu = _demand("0.5B", 2, 64, half=True, on_gpu=False)
    assert choose(TrainingRun(), on_cpu) == choose(TrainingRun(), dataclasses.replace(on_cpu, half=False))
    half = _demand("7B", 1, 139)
    full = dataclasses.replace(half, half=False)
    way = choose(TrainingRun(), half)
    assert full.takes(way) > half.takes(way)
    assert choose(TrainingRun(), full).offload != "none"
