"""Many students at once: teacher sizes × students × K × rows × anything, and a leaderboard of quality against cost."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from typing import Annotated, Any, Literal

import prefect.runtime
from prefect import flow
from prefect.settings import get_current_settings
from pydantic import Field

from flows.distill import distill
from flows.grid import GridPoint, deployment_of, grid
from flows.outcome import Outcome, publish_latest_leaderboard
from flows.params import StudentName, TeacherName
from infra.errors import DistilflowError, SomeFailedError
from infra.orchestration.dispatch import POLL_S, Dispatched
from infra.orchestration.names import child_name, run_name
from infra.orchestration.remote_run import leaves_result, raise_if_cancelled
from infra.orchestration.run import Stages
from infra.orchestration.view import log, say
from infra.store.artifacts import ArtifactRef
from tasks.report.leaderboard.entry import Entry
from tasks.report.stage import Leaderboard, report_data

TopK = Annotated[int, Field(ge=1, le=256)]
RowCount = Annotated[int, Field(ge=1)]


def _run_name() -> str:
    given = prefect.runtime.flow_run.parameters
    students, teachers, ks = ("+".join(map(str, given[name])) for name in ("students", "teachers", "ks"))
    return run_name(f"sweep {students}-from-{teachers}-k{ks}")


@flow(name="sweep", flow_run_name=_run_name, retries=0, validate_parameters=True)
@leaves_result
def sweep(
    students: Annotated[list[StudentName], Field(min_length=1)] = ["demo"],  # noqa: B006 (a flow's parameters are JSON)
    teachers: Annotated[list[TeacherName], Field(min_length=1)] = ["demo"],  # noqa: B006
    ks: Annotated[list[TopK], Field(min_length=1)] = [10],  # noqa: B006
    rows: list[RowCount] | None = None,
    others: dict[str, list[Any]] | None = None,
    shared: dict[str, Any] | None = None,
    through: Literal["this process", "deployments"] = "this process",
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
    if through == "deployments":
        say(f"[dim]{len(points)} combinations, {at_once} at a time[/dim]")
        entries = _through_deployments(points, at_once)
    else:
        say(f"[dim]{len(points)} combinations, one after the other[/dim]")
        entries = [_here(point) for point in points]
    raise_if_cancelled()
    board = publish_latest_leaderboard(Stages().run(Leaderboard(entries=entries)))
    if failed := [f"{entry.name}: {entry.failed}" for entry in entries if entry.failed]:
        raise SomeFailedError(
            f"{len(failed)} of {len(entries)} combinations failed ({'; '.join(failed)}); the leaderboard has the "
            "others, and the same sweep again continues"
        )
    return board


def _here(point: GridPoint) -> Entry:
    say(f"\n[bold]{point.name}[/bold]")
    name = child_name(point.name)
    try:
        return _finished(point, distill.with_options(flow_run_name=lambda: name)(**point.parameters))
    except DistilflowError as error:
        return _failed(point, error)


def _through_deployments(points: list[GridPoint], at_once: int) -> list[Entry]:
    """Sub-runs in their own work pools, `at_once` at a time; all are cancelled when we are."""
    waiting, under_way, entries = deque(points), dict[str, tuple[GridPoint, Dispatched]](), dict[str, Entry]()
    with ExitStack() as stack:
        while waiting or under_way:
            while waiting and len(under_way) < at_once:
                point = waiting.popleft()
                run = Dispatched(deployment_of(point), point.parameters, Outcome, child_name(point.name), log)
                under_way[point.name] = (point, stack.enter_context(run))
            for name, (point, run) in list(under_way.items()):
                try:
                    if run.is_over():
                        entries[name] = _finished(point, run.result())
                except DistilflowError as error:
                    raise_if_cancelled()  # it may have ended with us
                    entries[name] = _failed(point, error)
                if name in entries:
                    del under_way[name]
            time.sleep(POLL_S)
    return [entries[point.name] for point in points]


def _finished(point: GridPoint, outcome: Outcome) -> Entry:
    ui = get_current_settings().ui_url
    link = f"{ui}/runs/flow-run/{outcome.flow_run}" if ui and outcome.flow_run else None
    data = report_data(outcome.report)
    return Entry(name=point.name, combination=point.apart_from_seed, report=outcome.report, data=data, link=link)


def _failed(point: GridPoint, error: DistilflowError) -> Entry:
    log(f"{point.name} failed: {error}")
    say(f"[red]✗ {point.name} failed: {error}[/red]")
    return Entry(name=point.name, failed=str(error))
