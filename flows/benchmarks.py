"""The benchmarks of a `distill` run: those that have data, and nothing at all where none has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.stage import placed
from infra.store.artifacts import ArtifactRef
from tasks.evaluate.benchmarks import artifacts, harness
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging
from tasks.evaluate.benchmarks.task import benchmark, benchmark_answers, lm_eval
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.models import ModelSource


def check_benchmarks(options: Benchmarks, judge_model: str) -> None:
    """Refuse benchmarks that could not run, hours before their turn; raises ConfigurationError."""
    if not options.asked:
        return
    artifacts.preflight(options, judge_model)
    if options.harness:
        harness.preflight(options)


def benchmarked(
    models: dict[str, ModelSource],
    evaluations: dict[str, ArtifactRef],
    options: Benchmarks,
    judging: Judging,
    judge_model: str,
    evaluation: Evaluation,
    scoring: Scoring,
    stages_on: str | None,
) -> dict[str, ArtifactRef]:
    """The results by variant and benchmark ("kd/alpaca_eval"); what generates goes where `stages_on` says."""
    answers: dict[str, ArtifactRef] = {}
    results: dict[str, ArtifactRef] = {}
    if artifacts.asked_for(options):
        answers = placed(benchmark_answers, stages_on)(models, options, evaluation)
    if answers or options.probes:
        results |= benchmark(answers, evaluations, options, judging, judge_model)
    if options.harness:
        results |= placed(lm_eval, stages_on)(models, options, scoring)
    return results


def benchmark_settings(options: Benchmarks, judging: Judging, judge_model: str) -> Mapping[str, Any]:
    """What the report says of them."""
    if not options.asked:
        return {}
    told: dict[str, Any] = {"benchmarks": options.model_dump(mode="json", exclude_defaults=True)}
    return told | ({"judge": {"model": judge_model, **judging.identity()}} if artifacts.needs_judge(options) else {})
