"""What the report says of benchmarks: figures by variant, tests on common items, and nothing hidden of the judge."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.evaluate.benchmarks.analysis import BenchmarkAnalysis, BenchmarkResult, analyse
from tasks.stats.intervals import wilson

LABELS = {"base": "base", "sft": "SFT", "sft_control": "SFT control", "kd": "SFT+KD", "teacher": "teacher"}


def _alpaca_eval(scores: dict[str, float], **more: Any) -> BenchmarkResult:
    rate = sum(scores.values()) / max(len(scores), 1)
    told = {
        "judged": len(scores),
        "not_judged": {},
        "win_rate": rate,
        "length_controlled": {"win_rate": rate / 2, "low": rate / 4, "high": rate},
        "length_control": "length_controlled_v1",
        "position_bias_sentence": "no position bias is detected: 0 of 9 pairs are decided by the order alone (p = 1)",
        "cost_usd": 0.25,
    }
    return BenchmarkResult({**told, **more} if scores else {"judged": 0, **more}, scores, judge="openai/judge")


def _figures(found: BenchmarkAnalysis, name: str) -> dict[str, float]:
    return next({v: f.value for v, f in m.figures.items()} for m in found.measures if m.name == name)


def test_win_rates_come_with_intervals_and_with_length_control() -> None:
    scores = {str(n): float(n % 4 > 0) for n in range(40)}
    found = analyse({"alpaca_eval": {"kd": _alpaca_eval(scores), "sft_control": _alpaca_eval(scores)}}, LABELS)
    raw, controlled = found.measures
    assert raw.figures["kd"].value == 0.75
    assert raw.figures["kd"].interval == wilson(0.75, 40)
    assert controlled.figures["kd"].value == 0.375
    assert found.cost_usd == 0.5
    assert "AlpacaEval was judged by openai/judge." in found.remarks


def test_variants_are_compared_on_the_items_that_all_have_a_score_of() -> None:
    better = {str(n): 1.0 for n in range(30)}
    worse = {str(n): 0.0 for n in range(10, 40)}
    found = analyse({"alpaca_eval": {"kd": _alpaca_eval(better), "sft_control": _alpaca_eval(worse)}}, LABELS)
    (compared,) = found.comparisons
    assert (compared.n, compared.difference.estimate) == (20, 1.0)
    assert compared.is_significant
    assert found.verdicts[0].startswith("SFT+KD is better than SFT control in AlpacaEval win rate (+100.0 points")


def test_a_prompt_of_ifeval_counts_where_all_its_instructions_are_followed() -> None:
    told = {"prompts": 4, "instructions": 8, **dict.fromkeys(("prompt_strict", "prompt_loose"), 0.25)}
    told |= dict.fromkeys(("instruction_strict", "instruction_loose"), 0.5)
    half = BenchmarkResult(told, {"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.0})
    none = BenchmarkResult(told, {"a": 0.0, "b": 0.5, "c": 0.5, "d": 0.0})
    found = analyse({"ifeval": {"kd": half, "sft": none}}, LABELS)
    assert found.comparisons[0].difference.estimate == 0.25
    assert found.comparisons[0].test == "McNemar’s exact test"
    assert _figures(found, "IFEval, instructions followed, strict") == {"kd": 0.5, "sft": 0.5}


def test_mt_bench_has_its_turns_and_says_what_was_graded_without_a_reference() -> None:
    told = {"judged": 2, "not_judged": {}, "by_turn": {"1": 8.0, "2": 5.0}, "without_reference": 3}
    found = analyse({"mt_bench": {"kd": BenchmarkResult(told, {"1": 6.0, "2": 7.0})}}, LABELS)
    assert [(m.name, m.figures["kd"].value) for m in found.measures] == [
        ("MT-Bench, both turns", pytest.approx(6.5)),
        ("MT-Bench, turn 1", 8.0),
        ("MT-Bench, turn 2", 5.0),
    ]
    assert "MT-Bench graded 3 turns without the reference answers that they should have." in found.remarks
    assert found.comparisons == []  # of one variant


def test_what_was_not_judged_is_told_and_a_variant_of_which_nothing_was_is_left_out() -> None:
    some = _alpaca_eval({"1": 1.0}, not_judged={"budget reached": 8})
    found = analyse({"alpaca_eval": {"kd": some, "sft": _alpaca_eval({}, not_judged={"budget reached": 10})}}, LABELS)
    assert _figures(found, "AlpacaEval 2.0, win rate").keys() == {"kd"}
    assert "AlpacaEval, SFT+KD: not judged: 8 × budget reached." in found.remarks
    assert "AlpacaEval, SFT: not judged: 10 × budget reached." in found.remarks


def test_probes_and_lm_eval_keep_their_own_intervals() -> None:
    probe = {"judged": 10, "rate": 0.2, "low": 0.1, "high": 0.4, "not_judged": {"budget reached": 1}}
    task = {"documents": 5, "metrics": {"acc": {"value": 0.5, "standard_error": 0.1}}}
    results = {
        "probes": {"kd": BenchmarkResult({"probes": {"bias": probe}, "cost_usd": 0.0}, {})},
        "harness": {"kd": BenchmarkResult({"tasks": {"own": task}}, {})},
    }
    bias, accuracy = analyse(results, LABELS).measures
    assert (bias.name, bias.unit, bias.figures["kd"].n) == ("Probe: bias", "%", 10)
    assert (accuracy.name, accuracy.unit) == ("lm-eval, own: acc", "")
    interval = accuracy.figures["kd"].interval
    assert interval is not None
    assert (interval.low, interval.high) == (pytest.approx(0.304, abs=1e-3), pytest.approx(0.696, abs=1e-3))
