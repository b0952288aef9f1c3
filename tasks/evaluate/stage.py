"""The stage around the evaluation program: one artifact a variant, so that only what changed is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.processes import program
from infra.processes.supervise import Event, run_supervised
from infra.processes.vllm_environment import vllm_environment
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.evaluate.settings import Evaluation
from tasks.models import ModelSource

KIND = "evaluate"
STAGE_VERSION = 5
FILES = ("metrics.json", "predictions.parquet")


def workspace(model: ModelSource, teacher: ModelSource, seeds: ArtifactRef, evaluation: Evaluation) -> Workspace:
    """One model's numbers on the held-out rows of `seeds`."""
    spec = {"model": model.identity(), "teacher": teacher.identity(), "evaluation": evaluation.identity()}
    return Workspace(KIND, STAGE_VERSION, spec, {"seeds": seeds})


def evaluate(
    works: Mapping[str, Workspace],
    models: Mapping[str, ModelSource],
    teacher: ModelSource,
    seeds: ArtifactRef,
    evaluation: Evaluation,
    on_event: Any,
) -> dict[str, ArtifactRef]:
    """Evaluate the given variants in one supervised process; a variant that a killed run finished is kept."""
    missing = {name: work for name, work in works.items() if not all(work.has(file) for file in FILES)}
    if missing:
        spec = {
            "teacher": teacher.model_dump(),
            "heldout": seeds.model_dump(),
            "evaluation": evaluation.model_dump(),
            "variants": [
                {"name": name, "model": models[name].model_dump(), "workspace": work.description()}
                for name, work in missing.items()
            ],
        }
        run_supervised(
            KIND,
            program.command("tasks.evaluate.heldout.program"),
            spec,
            on_event=on_event,
            env=vllm_environment(),
            stall_timeout_s=1800.0,
            timeout_h=evaluation.timeout_h,
            log_uri=f"{next(iter(missing.values())).uri}log.txt",
        )
    refs = {}
    for name, work in works.items():
        metrics = work.get_json("metrics.json")
        refs[name] = work.publish(FILES, {"rows": metrics["n"]}, metrics, seconds=metrics["seconds"])
    return refs


def describe(event: Event) -> str:
    """A progress event as a short note."""
    return str(event["variant"])
