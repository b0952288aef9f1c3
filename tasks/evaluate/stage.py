"""The stage around the evaluation program: one artifact a variant, so that only what changed is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Self

from pydantic import model_validator

from infra import devices
from infra.devices import Gpus
from infra.needs import Needs
from infra.processes import program
from infra.processes.supervise import Event, run_supervised
from infra.processes.vllm_environment import vllm_environment
from infra.stage import Made, SeveralArtifacts, View, skipped_note
from infra.store.artifacts import ArtifactRef, Workspace, facts_of
from tasks.evaluate.parallel import evaluation_gpus
from tasks.evaluate.settings import Evaluation
from tasks.models import ModelSource

KIND = "evaluate"
STAGE_VERSION = 5
FILES = ("metrics.json", "predictions.parquet")


class Evaluate(SeveralArtifacts):
    """Numbers of each variant on the held-out rows of `seeds`, an artifact each: only what changed is evaluated.

    Without a `teacher` whose scores of them can be had, there is no distance to it.
    """

    kind: ClassVar = "evaluate"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "evaluating"
    on_workers: ClassVar = True

    models: dict[str, ModelSource]
    teacher: ModelSource | None
    seeds: ArtifactRef
    evaluation: Evaluation  # whose `top_k` is known
    teacher_scores: ArtifactRef | None = None  # of the held-out rows, with `evaluation.teacher` topk

    @model_validator(mode="after")
    def _scores_where_they_are_compared_with(self) -> Self:
        if (self.evaluation.teacher == "topk") != (self.teacher_scores is not None):
            raise ValueError("evaluation.teacher topk, and nothing else, takes the teacher's scores of held-out rows")
        return self

    def workspaces(self) -> dict[str, Workspace]:
        by_all = {"teacher": self.teacher and self.teacher.identity(), "evaluation": self.evaluation.identity()}
        inputs = {"seeds": self.seeds} | ({"teacher_scores": self.teacher_scores} if self.teacher_scores else {})
        return {
            name: Workspace(KIND, STAGE_VERSION, {"model": model.identity(), **by_all}, inputs)
            for name, model in self.models.items()
        }

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return {devices.GPU: devices.gpu_slots(devices.gpus())}

    def needs(self, offered: Gpus | None) -> Needs | None:
        if offered is None:
            asked = self.evaluation.tensor_parallel * (self.evaluation.engines or 1)
            return Needs.of_engine(asked) if asked else None
        return Needs.of_engine(evaluation_gpus(self.evaluation, self.models.values(), self.teacher, offered))

    def make(self, missing: Mapping[str, Workspace], view: View) -> dict[str, ArtifactRef]:
        on_event, scores = view.follow(describe), self.teacher_scores
        return evaluate(missing, self.models, self.teacher, self.seeds, self.evaluation, on_event, scores)

    def show(self, made: Made, view: View) -> str:
        most: dict[str, int] = {}  # for each reason, the rows of the variant that it took most from
        for ref in made.refs.values():
            for reason, rows in facts_of(ref)["skipped"].items():
                most[reason] = max(rows, most.get(reason, 0))
        rows = f"{len(made.refs)} variants on {made.shown.counts['rows']:,} held-out rows"
        return f"{rows}, {len(made.new)} of them new{skipped_note(most)}"


def evaluate(
    works: Mapping[str, Workspace],
    models: Mapping[str, ModelSource],
    teacher: ModelSource | None,
    seeds: ArtifactRef,
    evaluation: Evaluation,
    on_event: Callable[[Event], None],
    teacher_scores: ArtifactRef | None = None,
) -> dict[str, ArtifactRef]:
    """Evaluate the given variants in one supervised process; what a killed run finished of them is kept."""
    missing = {work.uri: (name, work) for name, work in works.items() if not all(work.has(file) for file in FILES)}
    if missing:  # variants of the same weights have one workspace
        spec = {
            "teacher": teacher and teacher.model_dump(),
            "heldout": seeds.model_dump(),
            "evaluation": evaluation.model_dump(),
            "teacher_scores": teacher_scores and teacher_scores.model_dump(),
            "variants": [
                {"name": name, "model": models[name].model_dump(), "workspace": work.description()}
                for name, work in missing.values()
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
            log_uri=f"{next(iter(missing))}log.txt",
        )
    refs = {}
    for name, work in works.items():
        metrics = work.get_json("metrics.json")
        refs[name] = work.publish(FILES, {"rows": metrics["n"]}, metrics, seconds=metrics["seconds"])
    return refs


def describe(event: Event) -> str:
    """A progress event as a short note."""
    by = f" by {event['engines']} engines" if event.get("engines", 1) > 1 else ""
    return f"{event.get('variant', 'answers')}{by}"
