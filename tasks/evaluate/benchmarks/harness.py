"""Any task of lm-eval by its name (GSM8K, MMLU …), on vLLM or the slow reference, in a supervised process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from infra import devices
from infra.devices import Gpus
from infra.errors import ConfigurationError
from infra.needs import Needs
from infra.processes.program import lean_imports
from infra.processes.supervise import Event, run_supervised
from infra.processes.vllm_environment import vllm_environment
from infra.stage import Made, SeveralArtifacts, View
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.evaluate.benchmarks import data_files
from tasks.evaluate.benchmarks.settings import Benchmarks
from tasks.logits.parallel import scoring_parallel
from tasks.logits.settings import Scoring
from tasks.models import ModelSource

KIND = "harness"
STAGE_VERSION = 2
RESULTS, SAMPLES = "results.json", "samples/"
_STALL_TIMEOUT_S = 7200.0  # lm-eval reports nothing while it works


def preflight(options: Benchmarks) -> None:
    """Raise ConfigurationError where lm-eval cannot run or knows no such task, before any model is loaded."""
    _check_installed(options)
    task_manager(options)


def task_manager(options: Benchmarks) -> Any:
    """lm-eval's index of tasks; raises ConfigurationError for a name that is not in it.

    Its own fourteen thousand are left out where the user's folder has all that are asked for: ten seconds less.
    """
    with lean_imports():
        from lm_eval.tasks import TaskManager

    folder = options.harness_task_folder
    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(options.harness) <= set(own.all_subtasks):  # a group may name lm-eval's
            return own
    manager = TaskManager(include_path=folder)
    if unknown := [name for name in options.harness if not manager.match_tasks([name])]:
        count = len(manager.all_tasks)
        raise ConfigurationError(f"lm-eval knows no task {unknown[0]!r}: `lm_eval ls tasks` lists its {count:,}")
    return manager


def _check_installed(options: Benchmarks) -> None:
    if find_spec("lm_eval") is None:
        raise ConfigurationError(
            f"benchmarks.harness asks for {', '.join(options.harness)}, and lm-eval is not installed: "
            "install the extra `eval`"
        )
    if options.harness_task_folder and not Path(options.harness_task_folder).is_dir():
        raise ConfigurationError(f"benchmarks.harness_task_folder: there is no folder {options.harness_task_folder}")


class LmEval(SeveralArtifacts):
    """lm-eval's results of every variant, one variant after the other."""

    kind: ClassVar = "lm_eval"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "lm-eval's tasks"
    on_workers: ClassVar = True

    models: dict[str, ModelSource]
    options: Benchmarks
    scoring: Scoring

    @property
    def is_needed(self) -> bool:
        return bool(self.options.harness)

    def workspaces(self) -> dict[str, Workspace]:
        spec: dict[str, Any] = {**self.options.identity("harness"), "own_tasks": _task_files(self.options)}
        if self.scoring.engine != "vllm":  # the reference's rounding makes other results than vLLM's
            spec["engine"] = self.scoring.engine
        spec |= self.scoring.rounding()
        return {
            f"{name}/{KIND}": Workspace(KIND, STAGE_VERSION, {"model": model.identity(), **spec}, {})
            for name, model in self.models.items()
        }

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return {devices.GPU: devices.gpu_slots(self._most_parallel(devices.here()))}

    def needs(self, offered: Gpus | None) -> Needs | None:
        if offered is None and not self.scoring.tensor_parallel:
            return None
        return Needs.of_engine(self._most_parallel(offered))

    def _most_parallel(self, gpus: Gpus | None) -> int:
        parallel = max(scoring_parallel(self.scoring, model, gpus) for model in self.models.values())
        return parallel * self.scoring.pipeline_parallel

    def make(self, missing: Mapping[str, Workspace], view: View) -> dict[str, ArtifactRef]:
        return run(missing, self.models, self.options, self.scoring, view.follow(describe))

    def show(self, made: Made, view: View) -> str:
        return f"{len(self.options.harness)} tasks by {len(self.models)} variants"


def run(
    works: Mapping[str, Workspace],
    models: Mapping[str, ModelSource],
    options: Benchmarks,
    scoring: Scoring,
    on_event: Callable[[Event], None],
) -> dict[str, ArtifactRef]:
    """Run lm-eval on the variants ("kd/harness") in one supervised process; each is published when it is done.

    `scoring` says which engine, and how vLLM uses the hardware. Raises ConfigurationError for a task that lm-eval does
    not know or whose data cannot be had.
    """
    _check_installed(options)
    outcome = run_supervised(
        KIND,
        [sys.executable, "-m", "tasks.evaluate.benchmarks.harness_program"],
        {
            "options": options.model_dump(mode="json"),
            "scoring": scoring.model_dump(mode="json"),
            "variants": [
                {"key": key, "model": models[key.split("/")[0]].model_dump(), "workspace": work.description()}
                for key, work in works.items()
            ],
        },
        on_event=on_event,
        env=vllm_environment() | ({"HF_ALLOW_CODE_EVAL": "1"} if options.harness_runs_code else {}),
        stall_timeout_s=_STALL_TIMEOUT_S,
    )
    return {key: ArtifactRef.model_validate(ref) for key, ref in outcome["refs"].items()}


def publish(work: Workspace, results: dict[str, Any]) -> ArtifactRef:
    """Results by task, beside the samples that are there already."""
    work.put_json(RESULTS, results)
    documents = sum(task["documents"] for task in results["tasks"].values())
    return work.publish((RESULTS, SAMPLES), {"documents": documents}, results)


def describe(event: Event) -> str:
    """A progress event as a short note."""
    return str(event["variant"])


def _task_files(options: Benchmarks) -> dict[str, Any]:
    """Digests of the user's own task files, by name."""
    if options.harness_task_folder is None:
        return {}
    folder = Path(options.harness_task_folder)
    files = (path for path in sorted(folder.rglob("*")) if path.suffix in {".yaml", ".py", ".json", ".jsonl"})
    return {path.relative_to(folder).as_posix(): data_files.digest(str(path)) for path in files}
