"""Each problem is found where it is, and nowhere else; people see it first."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from rich.console import Console

from tasks.augment.settings import Augmentation
from tasks.engines.sizes import Size
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.plan.lengths import Lengths
from tasks.plan.model import Plan
from tasks.plan.plan import make_plan
from tasks.plan.problems import find
from tasks.plan.sizes import QWEN2_5, size_of
from tasks.plan.view import duration, plan_markdown, plan_table, stage_rows
from tasks.text.units import amount, size
from tasks.train.settings import Training, TrainingRun
from tests.support.plan_known import AGENTS, GIB, GPU, known


def _plan(**changed: object) -> Plan:
    return make_plan(known(**changed), find)


def _only(**changed: object) -> tuple[bool, str]:
    (problem,) = _plan(**changed).problems
    return problem.stops, problem.text


def test_a_plan_without_problems_has_none() -> None:
    assert _plan().problems == []


def test_a_training_that_is_too_large_comes_with_advice() -> None:
    small = dataclasses.replace(GPU, memory=5 * GIB)
    plan = _plan(machine=small, run=TrainingRun(micro_batch=8, zero_stage=0), teacher=size_of("1.5B", None))
    stops, text = plan.problems[0].stops, plan.problems[0].text
    assert stops
    assert text.startswith("sft, sft_control, kd: out of memory on devices of 5 GiB: ZeRO-0 on 4 devices takes about")
    assert "set run.zero_stage to 3" in text


def test_fp32_on_gpus_takes_more_memory_and_time_and_is_told_so() -> None:
    half, full = _plan(), _plan(run=TrainingRun(micro_batch=8, precision="fp32"))
    by_name = [{stage.name: stage.memory_bytes or 0 for stage in plan.stages} for plan in (half, full)]
    assert by_name[1]["sft"] > 1.2 * by_name[0]["sft"]
    assert by_name[1]["logits"] == by_name[0]["logits"]
    ((stops, text),) = [(problem.stops, problem.text) for problem in full.problems]
    assert not stops
    assert text.startswith("run.precision=fp32 takes several times the hours")


def test_a_quantised_teacher_needs_no_more_devices_than_its_bits() -> None:
    """72B in 4 bits: 41.6 GB of weights, which one device of 80 GiB holds."""
    told = {**QWEN2_5["72B"], "quantization_config": {"quant_method": "awq", "bits": 4}}
    plans = [
        _plan(teacher=teacher, scoring=Scoring(tensor_parallel=1))
        for teacher in (size_of("72B", None), Size.of("72B", told))
    ]
    stops = [[problem.text for problem in plan.problems if problem.stops] for plan in plans]
    assert stops[0]
    assert not stops[1]


def test_a_teacher_that_is_too_large_is_told_how_many_gpus_hold_it() -> None:
    eight = dataclasses.replace(GPU, devices=8)
    scoring = next(p for p in _plan(teacher=size_of("72B", None), machine=eight).problems if "logits" in p.text)
    assert scoring.stops
    assert scoring.text.endswith("set scoring.tensor_parallel to 4")
    one_each = {"machine": eight, "evaluation": Evaluation(tensor_parallel=1)}
    told = [p.text for p in _plan(teacher=size_of("72B", None), **one_each).problems if "evaluate: " in p.text]
    assert [text.rpartition(": ")[2] for text in told] == ["set evaluation.tensor_parallel to 2"]
    four = Evaluation(tensor_parallel=4)
    assert not [p for p in _plan(teacher=size_of("72B", None), evaluation=four).problems if "evaluate: " in p.text]
    one = dataclasses.replace(GPU, devices=1)
    problems = _plan(teacher=size_of("72B", None), machine=one).problems
    evaluation = next(p for p in problems if p.text.startswith("evaluate: takes"))
    assert evaluation.text.endswith("on 1 of 80 GiB: use more or larger devices, or set evaluation.teacher to topk")
    stored = _plan(teacher=size_of("72B", None), machine=one, evaluation=Evaluation(teacher="topk")).problems
    assert not [problem for problem in stored if problem.text.startswith("evaluate: takes")]


def test_an_evaluation_whose_logits_are_too_large_needs_fewer_rows_at_once() -> None:
    small = dataclasses.replace(GPU, memory=20 * GIB)
    how = Evaluation(batch_rows=320)
    found = _plan(heldout_lengths=Lengths([2000], [40]), machine=small, evaluation=how).problems
    (text,) = [p.text for p in found if p.text.startswith("evaluate: takes")]
    assert text.endswith("lower evaluation.batch_rows")


@pytest.mark.parametrize(
    ("parallel", "words"),
    [(8, "is 8 and there are 4 devices"), (3, "28 attention heads and 4 key/value heads: use 1 or 2 or 4")],
)
def test_a_tensor_parallel_that_cannot_be_stops(parallel: int, words: str) -> None:
    stops, text = _only(scoring=Scoring(tensor_parallel=parallel))
    assert stops
    assert words in text


def test_rows_that_are_left_out_are_counted() -> None:
    stops, text = _only(lengths=Lengths([60] * 3 + [5000], [40] * 4))
    assert not stops
    assert text == (
        "25.0% of the rows are longer than 2,048 tokens and left out: "
        "raise sft.max_length, scoring.max_length, kd.max_length"
    )
    assert _plan(sft=Training(max_length=50)).problems[0].stops


def test_a_teacher_no_larger_than_its_student_is_noticed() -> None:
    stops, text = _only(teacher=size_of("0.5B", None))
    assert not stops
    assert "no larger than the student" in text


def test_a_budget_that_does_not_reach_says_how_far_it_does() -> None:
    stops, text = _only(augmentation=Augmentation(budget_usd=1.5))
    assert not stops
    assert "cost about $6.00" in text
    assert "25% of the seeds" in text
    assert _plan(augmentation=Augmentation(budget_usd=6.0)).problems == []


def test_an_unknown_price_stops_only_a_run_with_a_budget() -> None:
    agents = dataclasses.replace(AGENTS, priced=False)
    assert _only(agents=agents)[0] is False
    stops, text = _only(agents=agents, augmentation=Augmentation(budget_usd=5))
    assert stops
    assert "usd_per_million_tokens" in text
    assert _plan(agents=agents, agents_are_free=True).problems == []


def test_a_disk_that_is_too_small_stops() -> None:
    stops, text = _only(disk_free=10 * GIB)
    assert stops
    assert "where 10 GiB are free" in text


def test_a_micro_batch_that_a_global_batch_cannot_fill() -> None:
    texts = [p.text for p in _plan(run=TrainingRun(micro_batch=32)).problems]
    assert texts[0].startswith("4 ranks × run.micro_batch 32 is more than sft.global_batch 100: a rank gets 25 rows")
    assert len(texts) == 2


def test_more_ranks_than_devices_stop() -> None:
    assert "8 ranks and there are 4 devices" in _plan(run=TrainingRun(processes=8, micro_batch=8)).problems[0].text


def test_idle_devices_are_noticed_where_they_idle_for_long() -> None:
    many: dict[str, Any] = {"rows": 100_000_000, "disk_free": 10**15, "agents": None}
    assert _plan(**many).problems == []
    stops, text = _only(**many, scoring=Scoring(tensor_parallel=2, engines=1))
    assert not stops
    assert text.startswith("logits leaves 2 of 4 devices idle for")
    assert text.endswith("hours: set scoring.engines to 0")


def test_more_engines_than_fit_stop() -> None:
    stops, text = _only(scoring=Scoring(tensor_parallel=2, engines=3))
    assert stops
    assert text == "scoring.engines is 3, each on 2 of 4 devices: at most 2 fit (0 takes as many as fit)"


def test_people_see_problems_first_and_what_is_done() -> None:
    plan = _plan(disk_free=0, augmentation=Augmentation(budget_usd=1.5))
    console = Console(width=120, record=True)
    with console.capture() as captured:
        console.print(plan_table(plan))
    lines = captured.get().splitlines()
    assert lines[0].strip() == "0.5B distilled from 7B · plan for 4 × GPU, nothing spent"
    assert lines[2].startswith("✗ scores, models and checkpoints")
    assert max(map(len, lines)) <= 120
    markdown = plan_markdown(plan)
    assert markdown.index("❌") < markdown.index("⚠️") < markdown.index("| stage |")
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert [row["stage"] for row in stage_rows(plan)][-1] == "all"
    assert stage_rows(plan)[-1]["cost"] == "≥ $6.00"


def test_numbers_are_in_the_unit_that_a_person_would_use() -> None:
    assert [duration(h) for h in (0, 0.001, 0.5, 3.25, 200)] == ["0", "4 s", "30 min", "3.2 h", "8 days"]
    assert [amount(n) for n in (999, 1000, 999_999, 1_234_567)] == ["999", "1 k", "1 M", "1.23 M"]
    assert [size(n) for n in (2048, 5 << 20, 3 << 29, 1 << 40)] == ["2 KiB", "5 MiB", "1.5 GiB", "1 TiB"]


def test_parts_of_the_layers_are_counted_and_a_cpu_has_none() -> None:
    stops, text = _only(scoring=Scoring(tensor_parallel=2, pipeline_parallel=4))
    assert (stops, text) == (
        True,
        "scoring.pipeline_parallel 4 × tensor_parallel 2 are 8 devices for one teacher, and there are 4",
    )
    cpu = dataclasses.replace(GPU, name="cpu")
    said = [one.text for one in _plan(machine=cpu, scoring=Scoring(pipeline_parallel=2)).problems if one.stops]
    assert any(text.startswith("scoring.pipeline_parallel is 2, and vLLM's CPU engine cannot") for text in said)
