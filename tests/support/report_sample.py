"""A made-up run for the report's tests, and to look at: `python -m tests.support.report_sample OUT.html`."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from tasks.evaluate.benchmarks.analysis import BenchmarkAnalysis, BenchmarkResult, analyse
from tasks.evaluate.benchmarks.people import BesidePeople, JudgeAgreement
from tasks.report.data import (
    AgentUse,
    Coverage,
    DataFlow,
    Mass,
    Output,
    ReportData,
    ShownExample,
    StageSummary,
    Variant,
)
from tasks.report.page import render_page
from tasks.stats.agreement import Agreement
from tasks.stats.intervals import Interval
from tests.support.analysis_sample import sample_analysis

N = 640
LABELS = {"base": "base", "sft": "SFT", "sft_control": "SFT control", "kd": "SFT+KD", "teacher": "teacher"}
SKILL = {"base": 0.02, "sft": 0.59, "sft_control": 0.62, "kd": 0.69, "teacher": 0.885}
CROSS_ENTROPY = {"base": 2.61, "sft": 0.441, "sft_control": 0.432, "kd": 0.401, "teacher": 0.352}
KL = {"base": 2.35, "sft": 0.372, "sft_control": 0.361, "kd": 0.231, "teacher": 0.0}


def marks(skills: dict[str, float], seed: int = 17) -> dict[str, list[bool]]:
    """Correctness by variant: harder requests are hard for everyone, with some luck."""
    rng = np.random.default_rng(seed)
    difficulty_N = rng.random(N)
    found = {
        name: (
            0.7 * difficulty_N + 0.3 * rng.random(N) < np.quantile(0.7 * difficulty_N + 0.3 * rng.random(N), skill)
        ).tolist()
        for name, skill in skills.items()
    }
    return found | {"base": [right or row % 80 == 7 for row, right in enumerate(found["base"])]}


def variants(skills: dict[str, float] | None = None) -> dict[str, Variant]:
    correct = marks(SKILL | (skills or {}))
    return {
        name: Variant(
            label=label,
            exec_accuracy=sum(correct[name]) / N,
            cross_entropy=CROSS_ENTROPY[name],
            kl_to_teacher=KL[name],
            n=N,
            correct=correct[name],
            uri=f"s3://distilflow/{name}/9f2c7d51a0b3/",
        )
        for name, label in LABELS.items()
    }


def unmarked_variants(**changes: dict[str, float]) -> dict[str, Variant]:
    """As on users' own data: no answer is executed. `changes` holds other figures by variant."""
    return {
        name: variant.model_copy(update={"exec_accuracy": None, "correct": None} | changes.get(name, {}))
        for name, variant in variants().items()
    }


def benchmarks(note: str = "") -> BenchmarkAnalysis:
    """AlpacaEval of all variants by a judge; `note` is in every text that one can put there."""
    scores = {name: {str(i): float(mark) for i, mark in enumerate(of[:200])} for name, of in marks(SKILL).items()}
    results = {
        name: BenchmarkResult(
            {
                "judged": 200,
                "not_judged": {f"budget reached{note}": 7},
                "win_rate": sum(of.values()) / 200,
                "length_controlled": {"win_rate": 0.4, "low": 0.3, "high": 0.5},
                "position_bias_sentence": "no position bias is detected",
                "cost_usd": 1.0,
            },
            of,
            judge=f"openai/gpt-4o{note}",
        )
        for name, of in scores.items()
    }
    task = {f"exact_match{note}": {"value": 0.5, "standard_error": 0.05}}
    harness = {name: BenchmarkResult({"tasks": {"gsm8k": {"documents": 100, "metrics": task}}}, {}) for name in LABELS}
    found = analyse({"alpaca_eval": results, "harness": harness}, {name: text + note for name, text in LABELS.items()})
    return found.model_copy(update={"people": _beside_people(note)})


def _beside_people(note: str) -> BesidePeople:
    measured = Agreement(
        labels=38,
        questions=38,
        share=Interval(0.8, 0.7, 0.9),
        kappa=Interval(0.6, -0.1, 0.75),
        tau=Interval(1.0, math.nan, math.nan),
        p=0.0001,
    )
    judge = f"openai/gpt-4o{note}"
    one = JudgeAgreement(
        benchmark="alpaca_eval", judge=judge, agreement=measured, sentence=f"{judge} and people agree."
    )
    return BesidePeople(labels=40, matched=38, not_matched={f"no such question{note}": 2}, judges=[one])


def sample_report(**changes: object) -> ReportData:
    rng = np.random.default_rng(17)

    def curve(start: float, end: float, steps: int = 600) -> list[tuple[int, float]]:
        return [
            (step, float((end + (start - end) * np.exp(-step / 90)) * rng.lognormal(0, 0.09)))
            for step in range(1, steps + 1)
        ]

    seconds = {
        "seeds": 0.4,
        "augment": 71,
        "sft": 84,
        "logits": 58,
        "sft_control": 81,
        "kd": 92,
        "evaluate": 47,
    }
    counts = {
        "seeds": {"rows": 400},
        "augment": {"rows": 1500, "requests": 3120},
        "sft": {"steps": 600},
        "logits": {"rows": 1500, "tokens": 61_244},
        "sft_control": {"steps": 600},
        "kd": {"steps": 600},
        "evaluate": {"requests": N},
    }
    request = "Which customers from Leeds spent more than 200 since March? Name and total, highest first."
    schema = (
        "CREATE TABLE customers (id INTEGER, name TEXT, city TEXT);\n"
        "CREATE TABLE orders (id INTEGER, customer_id INTEGER, total REAL, placed TEXT);"
    )
    right = (
        "SELECT c.name, SUM(o.total) AS total FROM customers c JOIN orders o ON o.customer_id = c.id "
        "WHERE c.city = 'Leeds' AND o.placed >= '2026-03-01' "
        "GROUP BY c.id HAVING SUM(o.total) > 200 ORDER BY total DESC;"
    )
    outputs = {
        "base": Output(text="customers customers name name SELECT (", correct=False),
        "sft": Output(
            text="SELECT name, total FROM customers WHERE city = 'Leeds' ORDER BY total DESC;", correct=False
        ),
        "sft_control": Output(text=right.replace(" HAVING SUM(o.total) > 200", ""), correct=False),
        "kd": Output(text=right, correct=True),
        "teacher": Output(text=right.replace("AS total", "AS spent").replace("BY total", "BY spent"), correct=True),
    }
    fields: dict[str, object] = {
        "title": "SQL completion, demo",
        "student": "demo-student (0.62M)",
        "teacher": "demo-teacher (1.77M)",
        "k": 10,
        "seed": 17,
        "demo": True,
        "variants": variants(),
        "stages": [
            StageSummary(
                name=name,
                seconds=taken,
                uri=f"s3://distilflow/{name}/4be1{i}0c9d7e21f5a6b/",
                fingerprint=f"4be1{i}0c9d7e21f5a6b" * 4,
                counts=counts[name],
                facts={"world_size": 2} if name in ("sft", "kd") else {},
            )
            for i, (name, taken) in enumerate(seconds.items())
        ],
        "curves": {"sft": curve(4.2, 0.42), "sft_control": curve(0.44, 0.37), "kd": curve(0.62, 0.31)},
        "coverage": Coverage(
            k=10,
            mean=0.962,
            by_category={
                "Open-ended writing with a long name": Mass(tokens=1200, mean=0.884),
                "sql-join": Mass(tokens=3400, mean=0.991),
                "Reasoning": Mass(tokens=2400, mean=0.972),
            },
            by_position={"1": Mass(tokens=1500, mean=0.81), "2–4": Mass(tokens=4400, mean=0.95)},
            percentiles={"p1": 0.613, "p5": 0.792, "p10": 0.874, "p50": 0.991},
            histogram=[
                0,
                0,
                0,
                3,
                8,
                20,
                41,
                60,
                90,
                120,
                200,
                310,
                420,
                600,
                800,
                1150,
                1900,
                3100,
                6422,
                46_000,
            ],
            tokens=61_244,
            warning="For 10 % of the tokens the top 10 hold less than 0.874 of the probability: try a larger K.",
        ),
        "data_flow": DataFlow(
            seeds=400,
            expanded=1600,
            kept=1500,
            rejected={
                "expansion": {"near-duplicate of a seed": 61, "not valid JSON": 12},
                "rewriting": {"response does not execute": 44},
                "selection": {"low informativeness": 190, "category is full": 103},
                "verification": {"result differs from the reference": 84},
            },
            failed={"rewriting": {"no answer (timeout)": 6}},
            drift=0.031,
            usage={
                "expansion": AgentUse(requests=400, prompt_tokens=204_551, completion_tokens=188_120),
                "rewriting": AgentUse(requests=2720, prompt_tokens=1_000_000, completion_tokens=200_000, cost_usd=1.25),
            },
            agent_model="demo LLM (by rule)",
        ),
        "examples": [
            ShownExample(instruction=request, input=schema, reference=right, outputs=outputs),
            ShownExample(
                instruction="How many orders are there?",
                reference="SELECT COUNT(*) FROM orders;",
                outputs={
                    name: Output(
                        text="SELECT COUNT(*) FROM orders;" if name != "base" else "SELECT",
                        correct=name != "base",
                    )
                    for name in LABELS
                },
            ),
        ],
        "benchmarks": benchmarks(),
        "analysis": sample_analysis(LABELS),
        "settings": {
            "k": 10,
            "kd": {"temperature": 2.0, "alpha": 0.1, "divergence": "forward_kl"},
            "sft": {"steps": 600},
        },
        "versions": {"distilflow": "0.1.0", "torch": "2.13.0", "vllm": "0.32.0", "deepspeed": "0.19.8"},
        "reproduce": "distilflow run --student 0.5B --teacher 72B --k 10 --seed 17",
    }
    return ReportData.model_validate(fields | changes)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render_page(sample_report()), encoding="utf-8")
