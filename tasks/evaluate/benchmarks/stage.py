"""The stage around the benchmark program: every variant's answers to every benchmark that is asked for.

Artifacts are keyed by variant and benchmark, "kd/alpaca_eval".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from infra.processes import program
from infra.processes.supervise import Event, run_supervised
from infra.processes.vllm_environment import vllm_environment
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.evaluate.benchmarks import artifacts
from tasks.evaluate.benchmarks.settings import Benchmarks
from tasks.evaluate.settings import Evaluation
from tasks.models import ModelSource

_STALL_TIMEOUT_S = 1800.0


def workspaces(models: Mapping[str, ModelSource], options: Benchmarks, evaluation: Evaluation) -> dict[str, Workspace]:
    """Where each variant's answers to each benchmark lie."""
    return {
        f"{name}/{benchmark}": artifacts.answers_workspace(benchmark, model, options, evaluation)
        for name, model in models.items()
        for benchmark in artifacts.asked_for(options)
    }


def answer(
    works: Mapping[str, Workspace],
    models: Mapping[str, ModelSource],
    options: Benchmarks,
    evaluation: Evaluation,
    on_event: Callable[[Event], None],
) -> dict[str, ArtifactRef]:
    """Let the variants answer in one supervised process; what a killed run published is found and kept."""
    by_variant: dict[str, dict[str, Any]] = {}
    for key, work in works.items():
        variant, benchmark = key.split("/")
        by_variant.setdefault(variant, {})[benchmark] = work.description()
    spec = {
        "options": options.model_dump(mode="json"),
        "evaluation": evaluation.model_dump(mode="json"),
        "variants": [
            {"name": name, "model": models[name].model_dump(), "workspaces": described}
            for name, described in by_variant.items()
        ],
    }
    told = run_supervised(
        "benchmark_answers",
        program.command("tasks.evaluate.benchmarks.program"),
        spec,
        on_event=on_event,
        env=vllm_environment(),
        stall_timeout_s=_STALL_TIMEOUT_S,
        timeout_h=evaluation.timeout_h,
        log_uri=f"{next(iter(works.values())).uri}log.txt",
    )
    return {key: ArtifactRef.model_validate(ref) for key, ref in told["refs"].items()}


def describe(event: Event) -> str:
    """A progress event as a short note."""
    return str(event["variant"])
