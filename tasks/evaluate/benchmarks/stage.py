"""The stages of the benchmarks: every variant's answers to each that is asked for, and the verdicts on them.

Artifacts are keyed by variant and benchmark, "kd/alpaca_eval".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from infra import devices
from infra.devices import Gpus
from infra.needs import Needs
from infra.processes import program
from infra.processes.supervise import Event, run_supervised
from infra.processes.vllm_environment import vllm_environment
from infra.stage import Made, SeveralArtifacts, View
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.evaluate.benchmarks import artifacts
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging
from tasks.evaluate.parallel import most_parallel
from tasks.evaluate.settings import Evaluation
from tasks.llm.endpoint import llm_endpoint, provider_slots
from tasks.models import ModelSource

_STALL_TIMEOUT_S = 1800.0


class AnswerBenchmarks(SeveralArtifacts):
    """Every variant's answers to every benchmark with questions of its own; only what is missing is generated."""

    kind: ClassVar = "benchmark_answers"
    makes: ClassVar = (artifacts.ANSWERS_KIND,)
    doing: ClassVar = "answering the benchmarks"
    on_workers: ClassVar = True

    models: dict[str, ModelSource]
    options: Benchmarks
    evaluation: Evaluation

    @property
    def title(self) -> str:
        return "answers"

    @property
    def is_needed(self) -> bool:
        return bool(artifacts.asked_for(self.options))

    def workspaces(self) -> dict[str, Workspace]:
        return {
            f"{name}/{benchmark}": artifacts.answers_workspace(benchmark, model, self.options, self.evaluation)
            for name, model in self.models.items()
            for benchmark in artifacts.asked_for(self.options)
        }

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return {devices.GPU: devices.gpu_slots(self._most_parallel(devices.here()))}

    def needs(self, offered: Gpus | None) -> Needs | None:
        if offered is None and not self.evaluation.tensor_parallel:
            return None
        return Needs.of_engine(self._most_parallel(offered))

    def _most_parallel(self, gpus: Gpus | None) -> int:
        longest = self.evaluation.max_length + self.options.max_new_tokens
        return most_parallel(self.evaluation, self.models.values(), longest, gpus)

    def make(self, missing: Mapping[str, Workspace], view: View) -> dict[str, ArtifactRef]:
        return answer(missing, self.models, self.options, self.evaluation, view.follow(describe))

    def show(self, made: Made, view: View) -> str:
        questions = sum(ref.counts["questions"] for ref in made.refs.values())
        return f"{questions:,} questions answered by {len(self.models)} variants"


class JudgeBenchmarks(SeveralArtifacts):
    """The verdicts on every variant's answers; probes look at those to the held-out rows (`evaluations`).

    Each is made once for a variant and benchmark, whichever run comes first: no judgment is paid twice.
    """

    kind: ClassVar = "benchmark"
    makes: ClassVar = (artifacts.KIND,)
    doing: ClassVar = "judging"

    answers: dict[str, ArtifactRef]
    evaluations: dict[str, ArtifactRef]
    options: Benchmarks
    judging: Judging
    judge_model: str

    @property
    def title(self) -> str:
        return "benchmarks"

    @property
    def is_needed(self) -> bool:
        return bool(self._judged)

    def workspaces(self) -> dict[str, Workspace]:
        return {
            key: artifacts.workspace(_benchmark(key), ref, self.options, self.judging, self.judge_model)
            for key, ref in self._judged.items()
        }

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return provider_slots(self.judge_model, self.judging) if _need_a_judge(missing) else {}

    def make(self, missing: Mapping[str, Workspace], view: View) -> dict[str, ArtifactRef]:
        judge = llm_endpoint(self.judge_model, self.judging, view.note)
        with judge if _need_a_judge(missing) else contextlib.nullcontext() as endpoint:

            def tick(key: str) -> artifacts.Tick:
                return lambda done, total: view.tick(done, total, key)

            return artifacts.score(missing, self._judged, self.options, self.judging, endpoint, tick, view.note)

    def show(self, made: Made, view: View) -> str:
        items, scored = (sum(ref.counts[name] for ref in made.refs.values()) for name in ("items", "scored"))
        if scored < items:
            view.warn(f"{items - scored:,} of {items:,} answers have no verdict: the report says why")
        return f"verdicts on {scored:,} answers"

    @property
    def _judged(self) -> dict[str, ArtifactRef]:
        if not self.options.probes:
            return self.answers
        return self.answers | {f"{name}/{artifacts.PROBES}": ref for name, ref in self.evaluations.items()}


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
    outcome = run_supervised(
        "benchmark_answers",
        program.command("tasks.evaluate.benchmarks.program"),
        spec,
        on_event=on_event,
        env=vllm_environment(),
        stall_timeout_s=_STALL_TIMEOUT_S,
        timeout_h=evaluation.timeout_h,
        log_uri=f"{next(iter(works.values())).uri}log.txt",
    )
    return {key: ArtifactRef.model_validate(ref) for key, ref in outcome["refs"].items()}


def _benchmark(key: str) -> str:
    return key.split("/")[1]


def _need_a_judge(missing: Mapping[str, Workspace]) -> bool:
    return any(_benchmark(key) in artifacts.JUDGED for key in missing)


def describe(event: Event) -> str:
    """A progress event as a short note."""
    return str(event["variant"])
