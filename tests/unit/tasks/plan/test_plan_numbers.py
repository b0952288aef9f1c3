"""The plan's numbers against ones worked out by hand, or measured."""

from __future__ import annotations

import dataclasses
import math

import pytest

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactRef
from tasks.engines.sizes import Size
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.logits.store.format import MAX_ERROR
from tasks.models import load_tokenizer, resolve
from tasks.plan import costs
from tasks.plan.hardware import Hardware, gpu_named, machine
from tasks.plan.lengths import Lengths, guessed, measured
from tasks.plan.model import Plan, StagePlan
from tasks.plan.plan import make_plan
from tasks.plan.sizes import size_of
from tasks.plan.stages import STAGES
from tasks.plan.view import plan_markdown
from tasks.rollout.settings import Rounds
from tasks.rows import Function, Message, Role, Row, ToolCall
from tasks.train.memory import Placement
from tasks.train.settings import Lora, Training
from tests.support.plan_known import GIB, GPU, known

BILLIONS = {"0.5B": 0.494, "1.5B": 1.544, "3B": 3.086, "7B": 7.616, "14B": 14.770, "32B": 32.764, "72B": 72.706}
N = 494_000_000  # about the student's parameters


def _plan(**changed: object) -> Plan:
    return make_plan(known(**changed), lambda known, plan: [])


def _stage(plan: Plan, name: str) -> StagePlan:
    return next(stage for stage in plan.stages if stage.name == name)


@pytest.mark.parametrize(("name", "billions"), BILLIONS.items())
def test_the_built_in_table_has_the_sizes_of_the_real_models(name: str, billions: float) -> None:
    assert size_of(name, None).parameters / 1e9 == pytest.approx(billions, rel=1e-3)
    assert size_of(f"Qwen/Qwen2.5-{name}-Instruct", None) == dataclasses.replace(
        size_of(name, None), name=f"Qwen/Qwen2.5-{name}-Instruct"
    )


def test_an_unknown_model_that_cannot_be_reached_has_no_size() -> None:
    with pytest.raises(ConfigurationError, match="is no Qwen2.5"):
        size_of("someone/model", None)


def test_rows_tokens_and_steps_are_those_of_the_settings() -> None:
    plan = _plan()
    assert (plan.tokens_per_epoch, plan.supervised_tokens_per_epoch) == (100_000, 40_000)
    sft, kd, control = (_stage(plan, name) for name in ("sft", "kd", "sft_control"))
    assert (sft.rows, sft.steps, sft.tokens) == (1000, 30, 300_000)  # 3 epochs of 1000 rows by 100
    assert (kd.steps, kd.tokens) == (control.steps, control.tokens) == (50, 500_000)
    assert _stage(plan, "logits").tokens == 100_000
    assert _stage(plan, "evaluate").tokens == 5 * 100 * 100


def test_hours_come_from_operations_and_the_share_of_the_peak_that_is_used() -> None:
    student, teacher = size_of("0.5B", None), size_of("7B", None)
    plan = _plan()
    start = 60 + 2 * student.parameters / 1e9
    training = 6 * student.parameters * 300_000 / (4 * 50e12)
    assert _stage(plan, "sft").hours * 3600 == pytest.approx(start + training)
    start = 60 + 2 * teacher.parameters / 1e9
    assert _stage(plan, "logits").hours * 3600 == pytest.approx(start + 2 * teacher.parameters * 1e5 / (4 * 50e12))
    assert _stage(plan, "logits").devices == 4
    one = _stage(_plan(scoring=Scoring(tensor_parallel=2, engines=1)), "logits")
    assert one.hours * 3600 == pytest.approx(start + 2 * teacher.parameters * 1e5 / (2 * 50e12))
    assert (one.devices, one.memory_bytes) == (2, _stage(plan, "logits").memory_bytes)
    assert _stage(_plan(scoring=Scoring(tensor_parallel=3)), "logits").devices == 3  # one is left over


def test_engines_on_a_cpu_share_its_cores_and_hold_their_weights_each() -> None:
    cpu = dataclasses.replace(GPU, name="cpu")
    one, two = (_stage(_plan(machine=cpu, scoring=Scoring(engines=n)), "logits") for n in (0, 2))
    assert one.hours == two.hours
    assert two.memory_bytes == 2 * (one.memory_bytes or 0)


@pytest.mark.parametrize(("teacher", "devices", "passes"), [("7B", 4, 1), ("72B", 4, 1), ("72B", 2, 2), ("72B", 1, 1)])
def test_the_teacher_scores_the_heldout_rows_once_for_a_group_of_students(
    teacher: str, devices: int, passes: int
) -> None:
    """Of 172 GB on two devices, a tenth is spare, 72B in bf16 takes 145 GB: 9 GB are left to 1.5B of 3.1 GB each.

    On one device it does not fit, and is moved through it for all of them at once.
    """
    gpus, how = dataclasses.replace(GPU, devices=devices), Evaluation(engine="transformers", batch_rows=1)
    size, student = size_of(teacher, None), size_of("1.5B", None)
    plan = _plan(teacher=size, student=student, machine=gpus, evaluation=how)
    answers = sum(costs.generation_seconds(gpus, one, 100, how.max_new_tokens, how) for one in [student] * 4 + [size])
    seconds = 2 * (4 * student.parameters + passes * size.parameters) * 100 * 100 / 50e12
    expected = 20 + 2 * size.parameters / 1e9 + seconds + answers
    assert _stage(plan, "evaluate").hours * 3600 == pytest.approx(expected, rel=1e-9)


def test_stored_scores_of_the_heldout_rows_are_a_stage_and_load_no_teacher_again() -> None:
    how = Evaluation(max_rows=50, teacher="topk")
    plan, full = _plan(evaluation=how), _plan(evaluation=Evaluation(max_rows=50))
    assert [stage.name for stage in plan.stages][-2:] == ["heldout_scores", "evaluate"]
    assert "heldout_scores" not in {stage.name for stage in full.stages}
    assert (_stage(plan, "heldout_scores").rows, _stage(plan, "heldout_scores").tokens) == (50, 5000)
    less = (_stage(full, "evaluate").memory_bytes or 0) - (_stage(plan, "evaluate").memory_bytes or 0)
    assert less * 4 > 2 * size_of("7B", None).parameters


@pytest.mark.parametrize(
    ("lora", "checkpointing", "per_token"), [(None, False, 6), (None, True, 8), (Lora(), False, 4), (Lora(), True, 6)]
)
def test_a_training_computes_so_many_operations_a_parameter_and_token(
    lora: Lora | None, checkpointing: bool, per_token: int
) -> None:
    student, way = size_of("0.5B", None), Placement(gradient_checkpointing=checkpointing)
    found = costs.training_flops(student, Training(lora=lora), way, 1000)
    assert found == per_token * student.parameters * 1000


@pytest.mark.parametrize(("k", "measured"), [(1, 4.34), (2, 6.43), (5, 12.64), (10, 22.73), (20, 42.87), (50, 103.08)])
def test_bytes_of_the_store_are_those_that_were_measured(k: int, measured: float) -> None:
    teacher = dataclasses.replace(size_of("7B", None), vocabulary=262_144)  # that of the measured model
    assert costs.store_bytes(teacher, k, MAX_ERROR, 10_000, 0) / 10_000 == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize(("error", "measured"), [(MAX_ERROR / 2, 24.02), (MAX_ERROR * 2, 21.54)])
def test_a_finer_grid_takes_as_many_bytes_more_as_were_measured(error: float, measured: float) -> None:
    teacher = dataclasses.replace(size_of("7B", None), vocabulary=262_144)
    assert costs.store_bytes(teacher, 10, error, 10_000, 0) / 10_000 == pytest.approx(measured, rel=0.02)


def test_scoring_needs_weights_cache_and_the_logits_of_a_step() -> None:
    """72B over 4 GPUs: 135.4 GiB of weights; logits as measured in vllm#52054: 7.5 GiB at 8192 x 152k."""
    teacher = size_of("72B", None)
    found = costs.scoring_memory(GPU, teacher, Scoring(tensor_parallel=4, max_batched_tokens=8192))
    weights, logits = 2 * teacher.parameters / 4, 7.5 * GIB
    cache = 8192 * 80 * 2 * 1024 * 2 / 4
    assert found == pytest.approx(weights + logits + cache + GIB, rel=0.02)
    half = costs.scoring_memory(GPU, teacher, Scoring(tensor_parallel=8, max_batched_tokens=8192))
    assert found / 2 < half < found


def test_agents_are_as_slow_as_the_slowest_of_writing_litellm_and_limits() -> None:
    def seconds(requests_a_minute: int | None, tokens_a_minute: int | None) -> float:
        return costs.agents_seconds(9000, 64_000, 600_000, 50.0, 64, 1, (requests_a_minute, tokens_a_minute))

    assert seconds(None, None) == 30  # 300 requests a second
    assert costs.agents_seconds(90, 64_000, 600_000, 50.0, 64, 1, (None, None)) == 20  # 64 at once, 50 tokens a second
    assert seconds(900, None) == 600
    assert seconds(900, 30_000) == 1200


def test_money_is_the_agents_and_the_devices_hours() -> None:
    plan = _plan()
    assert plan.usd == 6.0
    assert {agent.agent: agent.usd for agent in plan.agents} == {"expansion": 4.0, "selection": 2.0}
    priced = _plan(machine=dataclasses.replace(GPU, usd_per_device_hour=3.0))
    assert priced.usd == pytest.approx(6.0 + 3.0 * priced.device_hours)
    sft, logits = _stage(priced, "sft"), _stage(priced, "logits")
    assert priced.device_hours > 4 * sft.hours + 4 * logits.hours


def test_a_judge_is_asked_for_five_variants_and_may_cost_all_their_budgets() -> None:
    plan = _plan(judge_requests={"alpaca_eval": 1610, "mt_bench": 160}, judge_budget_usd=2.0)
    assert plan.judge_requests == {"alpaca_eval": 8050, "mt_bench": 800}
    assert plan.judge_usd_at_most == 20.0
    line = "8,850 requests (8,050 for alpaca_eval, 800 for mt_bench), for at most $20.00"
    assert f"**the judge**: {line}" in plan_markdown(plan)
    assert "the judge" not in plan_markdown(_plan())


def test_benchmarks_are_a_stage_of_hours_where_they_are_asked_for() -> None:
    """805 answers of 2,048 tokens, 256 at once: 4 batches. 256 tokens take 2 operations a parameter
    at 50 TFLOP/s (more than reading the weights at 0.6 TB/s), and each layer's launch; each model starts in a minute
    and comes from disk at 1 GB/s."""
    assert "benchmarks" not in {stage.name for stage in _plan().stages}
    asked = {"benchmark_answers": 805, "benchmark_tokens": 2048}
    stage = _stage(_plan(**asked), "benchmarks")
    assert (stage.rows, stage.tokens) == (805, 5 * 805 * 2048)
    seconds = 0.0
    for size in [size_of("0.5B", None)] * 4 + [size_of("7B", None)]:
        operations = 2 * size.parameters
        seconds += 60 + operations / 1e9 + 4 * 2048 * (256 * operations / 50e12 + size.shape.layers * 1e-4)
    assert stage.hours == pytest.approx(seconds / 3600)
    done = {"answers": ArtifactRef(kind="x", uri="s3://x/", sha256="", fingerprint="")}
    assert _stage(_plan(**asked, done=done), "benchmarks").hours == 0
    assert "lm-eval's tasks are not in it" in plan_markdown(_plan(harness=True))


def test_what_is_done_costs_nothing() -> None:
    done = {name: ArtifactRef(kind=name, uri="s3://x/", sha256="", fingerprint="") for name in STAGES}
    plan = _plan(done=done, machine=dataclasses.replace(GPU, usd_per_device_hour=3.0), rows_at_most=False)
    assert (plan.hours, plan.device_hours, plan.usd, plan.disk_bytes) == (0, 0, 0, 0)
    assert plan.agents == []
    part = _plan(done={name: done[name] for name in ("augment", "sft")})
    assert [stage.name for stage in part.stages if stage.done] == ["augment", "sft"]
    assert part.hours == pytest.approx(sum(_stage(part, name).hours for name in STAGES[2:]))


def test_the_disk_holds_the_store_models_and_checkpoints() -> None:
    parameters = size_of("0.5B", None).parameters
    plan = _plan()
    # three models in bf16, each with a kept checkpoint of 14 bytes a parameter beside it, and one being written
    assert plan.disk_bytes == plan.store_bytes + 3 * 2 * parameters + 3 * 14 * parameters + 14 * parameters
    assert _plan(stores_here=False).disk_bytes == 14 * parameters


def test_rows_that_are_too_long_are_left_out_of_what_they_do_not_fit() -> None:
    lengths = Lengths([60] * 8 + [3000] * 2, [40] * 10)
    plan = _plan(lengths=lengths, scoring=Scoring(max_length=4096))
    assert _stage(plan, "sft").rows == 800
    assert _stage(plan, "logits").rows == 1000
    assert lengths.fitting(2048).long_row == 100
    assert Lengths([60], [40], unusable=1).fitting(2048).share == 0.5


def test_guessed_tokens_are_four_bytes_each_in_any_language() -> None:
    english = Row(instruction="a" * 400, response="b" * 80)
    chinese = Row(instruction="学" * 133, response="习" * 27)
    lengths = guessed([english, chinese], "all")
    assert lengths.others == [130, 130]
    assert lengths.supervised == [21, 21]
    assert lengths.guessed


def test_all_answers_of_a_conversation_are_supervised_tokens_unless_the_last_alone_is() -> None:
    said: list[tuple[Role, str]] = [("user", "a" * 40), ("assistant", "b" * 80), ("user", "c" * 40), ("assistant", " ")]
    talk = Row(instruction="d" * 40, response="e" * 40, history=tuple(Message(role=r, content=c) for r, c in said))
    tokenizer = load_tokenizer(resolve("demo", "student"))
    every, last = (measured([talk], tokenizer, turns) for turns in ("all", "last"))
    earlier = len(tokenizer.encode("b" * 80)) + 1  # and the end of its turn
    assert every.supervised == [last.supervised[0] + earlier]
    assert every.others == [last.others[0] - earlier]
    assert guessed([talk], "all").supervised == [32]
    assert guessed([talk], "last").supervised == [11]
    assert (guessed([talk], "all").others, guessed([talk], "last").others) == ([60], [80])


def test_what_tools_are_called_with_is_supervised_and_what_they_answer_is_not() -> None:
    call = ToolCall(id="call00001", function=Function(name="name", arguments='{"a": "' + "b" * 67 + '"}'))
    tool_turns = (
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="c" * 40, tool_call_id=call.id, name="name"),
    )
    row = Row(instruction="d" * 40, response="e" * 40, tools="f" * 40, tool_turns=tool_turns)
    assert (guessed([row], "all").supervised, guessed([row], "all").others) == ([32], [60])
    assert (guessed([row], "last").supervised, guessed([row], "last").others) == ([11], [80])


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100 80GB PCIe", "A100-80"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_a_gpu_is_known_by_the_name_that_its_driver_gives(driver: str, name: str) -> None:
    assert gpu_named(driver) == name


def test_a_gpu_in_no_table_is_refused_with_the_ones_that_are() -> None:
    with pytest.raises(ConfigurationError, match="name the nearest of L4, .* as hardware.device"):
        gpu_named("NVIDIA GeForce GTX 1060")


def test_a_cpus_ranks_share_its_cores_and_its_memory() -> None:
    two, four = (machine(Hardware(device="cpu", devices=devices)) for devices in (2, 4))
    assert two.is_cpu
    assert two.devices * two.tflops == pytest.approx(four.devices * four.tflops)
    assert math.isclose(two.devices * two.memory, four.devices * four.memory, rel_tol=1e-6)
    assert machine(Hardware(device="H100", devices=8, utilisation=0.5)).flops_s == 989e12 / 2


def test_a_model_of_another_head_size_has_its_own_cache() -> None:
    config = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 100,
    }
    assert Size.of("mine", config).kv_width == 64


def test_a_student_that_is_given_half_of_the_rows_scores_them_all_before() -> None:
    whole, half = _plan(), _plan(keep=0.5)
    assert [stage.name for stage in half.stages if stage.name not in STAGES] == ["student_scores"]
    assert _stage(half, "student_scores").rows == _stage(half, "logits").rows == _stage(whole, "logits").rows
    assert _stage(half, "sft").rows == _stage(whole, "sft").rows / 2
    assert 0 < (_stage(half, "student_scores").hours or 0) < (_stage(half, "logits").hours or 0)


def test_every_round_writes_answers_scores_them_and_trains_and_kd_goes_on_for_as_long() -> None:
    plain, rounds = _plan(), _plan(rounds=Rounds(rounds=2, steps=30, prompts=400, n=3))
    added = [stage.name for stage in rounds.stages if stage.name not in STAGES]
    assert added == [
        "kd_continued",
        *(f"{what}_{number}" for number in (1, 2) for what in ("rollout", "logits", "own", "round")),
    ]
    assert (_stage(rounds, "round_1").steps, _stage(rounds, "kd_continued").steps) == (30, 60)
    assert _stage(rounds, "rollout_2").rows == _stage(rounds, "logits_2").rows == 3 * 400
    assert _stage(rounds, "rollout_2").tokens == 3 * 400 * 40  # the answers of the sample have 40 tokens
    assert (_stage(rounds, "rollout_1").hours, _stage(rounds, "rollout_1").devices) > (0.0, 0)
    assert _stage(rounds, "evaluate").hours > _stage(plain, "evaluate").hours
    parameters = size_of("0.5B", None).parameters
    models = 3 * (2 + 14) * parameters  # kd_continued and two rounds, each with a kept checkpoint
    assert rounds.disk_bytes == pytest.approx(plain.disk_bytes + models + 2 * 2 * 1.2 * plain.store_bytes, rel=1e-9)
    assert (_stage(rounds, "own_1").tokens, _stage(rounds, "own_1").rows) == (1200 * 100, 1200)
    assert 0 < (_stage(rounds, "own_1").hours or 0) < (_stage(rounds, "logits_1").hours or 0)
    assert "the student's answers are as long as the rows' own" in rounds.assumptions
    assert "all 2 rounds are done, which end early where they do not help" in rounds.assumptions
    assert rounds.judge_requests == plain.judge_requests == {}


def test_rows_that_rounds_are_checked_on_are_trained_on_by_nothing_and_scored_after_each() -> None:
    plan = _plan(rounds=Rounds(rounds=2, validation_rows=200))
    assert (_stage(plan, "sft").rows, _stage(plan, "logits").rows, _stage(plan, "rollout_1").rows) == (800, 1000, 800)
    assert [_stage(plan, f"validation_scores_{number}").rows for number in range(3)] == [200] * 3
    assert _stage(_plan(rounds=Rounds(validation_rows=200)), "sft").rows == 1000
