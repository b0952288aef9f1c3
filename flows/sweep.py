"""Many students at once: teacher sizes × students × K × rows × anything, and a leaderboard of quality against cost."""

from __future__ import annotations

from typing import Annotated, Any

import prefect.runtime
from prefect import flow
from pydantic import Field

from flows.grid import grid
from flows.outcome import publish_latest_page
from flows.params import StudentNames, TeacherNames
from flows.points import Through, entries_of
from infra.errors import SomeFailedError
from infra.orchestration.names import run_name
from infra.orchestration.remote_run import leaves_result
from infra.orchestration.run import Stages
from infra.store.artifacts import ArtifactRef
from tasks.report.stage import Leaderboard

TopK = Annotated[int, Field(ge=1, le=256)]
RowCount = Annotated[int, Field(ge=1)]


def _run_name() -> str:
    given = prefect.runtime.flow_run.parameters
    students, teachers, ks = ("+".join(map(str, given[name])) for name in ("students", "teachers", "ks"))
    return run_name(f"sweep {students}-from-{teachers}-k{ks}")


@flow(name="sweep", flow_run_name=_run_name, retries=0, validate_parameters=True)
@leaves_result
def sweep(
    students: StudentNames = ["demo"],  # noqa: B006 (a flow's parameters are JSON)
    teachers: TeacherNames = ["demo"],  # noqa: B006
    ks: Annotated[list[TopK], Field(min_length=1)] = [10],  # noqa: B006
    rows: list[RowCount] | None = None,
    others: dict[str, list[Any]] | None = None,
    shared: dict[str, Any] | None = None,
    through: Through = "this process",
    at_once: Annotated[int, Field(ge=1, le=64)] = 2,
) -> ArtifactRef:
    """Distil every combination, and rank the students by quality and cost.

    What combinations share (augmented rows, SFT, a teacher's scores) is computed once. A combination that fails
    does not stop the others; the same sweep again continues where it was.

    Args:
        students: as `student` of the flow distill
        teachers: as `teacher`
        ks: as `k`
        rows: training rows to keep (augmentation.max_rows); without it the preset's
        others: any other parameters, each with its values, such as {"kd.temperature": [1, 2]}; with "seed",
            combinations are also told by mean and spread over their seeds
        shared: parameters that all combinations have, such as {"agent_model": "openai/gpt-4o", "kd.epochs": 2}
        through: this process (one after the other), or deployments (each student's own, in its work pool)
        at_once: combinations under way at a time, where they go through deployments
    """
    points = grid(students, teachers, ks, rows, others or {}, shared or {})
    entries = entries_of(points, through, at_once)
    board = publish_latest_page(Stages().run(Leaderboard(entries=entries)))
    if failed := [f"{entry.name}: {entry.failed}" for entry in entries if entry.failed]:
        raise SomeFailedError(
            f"{len(failed)} of {len(entries)} combinations failed ({'; '.join(failed)}); the leaderboard has the "
            "others, and the same sweep again continues"
        )
    return board
