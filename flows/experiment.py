"""One question of the method (which K, which teacher, …), answered by runs of all its arms over several seeds."""

from __future__ import annotations

from typing import Annotated, Any

import prefect.runtime
from prefect import flow
from pydantic import Field

from flows.experiments import Name, experiment_named
from flows.outcome import publish_latest_page
from flows.params import StudentName, TeacherName
from flows.points import Through, entries_of
from infra.errors import SomeFailedError
from infra.orchestration.names import run_name
from infra.orchestration.remote_run import leaves_result
from infra.orchestration.run import Stages
from infra.orchestration.view import say
from infra.store.artifacts import ArtifactRef
from tasks.report.experiment.stage import ExperimentPage


def _run_name() -> str:
    return run_name("experiment {name} {student}-from-{teacher}".format(**prefect.runtime.flow_run.parameters))


@flow(name="experiment", flow_run_name=_run_name, retries=0, validate_parameters=True)
@leaves_result
def experiment(
    name: Name,
    student: StudentName = "demo",
    teacher: TeacherName = "demo",
    repeats: Annotated[int | None, Field(ge=1, le=32)] = None,
    shared: dict[str, Any] | None = None,
    through: Through = "this process",
    at_once: Annotated[int, Field(ge=1, le=64)] = 2,
) -> ArtifactRef:
    """Answer one question of the method on your data: all its arms over several seeds, and what they recommend.

    What arms share is computed once, also with your other runs. An arm that fails does not stop the others; the same
    experiment again continues where it was.

    Args:
        name: which question
        student: as `student` of the flow distill, where the question is not about students
        teacher: as `teacher`, where it is not about teachers
        repeats: seeds of every arm (default: 3)
        shared: parameters that all runs have, such as {"seeds": "s3://…", "agent_model": "openai/gpt-4o"}
        through: this process (one run after the other), or deployments (each student's own, in its work pool)
        at_once: runs under way at a time, where they go through deployments
    """
    asked = experiment_named(name, student, teacher)
    if repeats is not None:
        asked = asked.model_copy(update={"repeats": repeats})
    runs = asked.runs(shared or {})
    points = list({point.name: point for _, point in runs.values()}.values())
    seeds = "1 seed" if asked.repeats == 1 else f"{asked.repeats} seeds"
    say(f"[bold]{asked.question.title}[/bold]: {len(asked.all_arms)} arms, {seeds}")
    entries = {entry.name: entry for entry in entries_of(points, through, at_once)}
    found = []
    for (_, seed), (arm, point) in runs.items():
        entry = entries[point.name]
        found.append(asked.arm_run(arm, seed, report=entry.report, link=entry.link, failed=entry.failed))
    page = publish_latest_page(Stages().run(ExperimentPage(question=asked.question, runs=found)))
    if failed := [f"{entry.name}: {entry.failed}" for entry in entries.values() if entry.failed]:
        raise SomeFailedError(
            f"{len(failed)} of {len(entries)} runs failed ({'; '.join(failed)}); the page has the others, and the same "
            "experiment again continues"
        )
    return page
