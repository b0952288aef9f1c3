"""The runs of a sweep or an experiment: one after the other here, or several at a time through deployments."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal

from prefect.settings import get_current_settings

from flows.distill import distill
from flows.grid import GridPoint, deployment_of
from flows.outcome import Outcome
from infra.errors import DistilflowError
from infra.orchestration.dispatch import POLL_S, Dispatched
from infra.orchestration.names import child_name
from infra.orchestration.remote_run import raise_if_cancelled
from infra.orchestration.view import log, say
from tasks.report.leaderboard.entry import Entry
from tasks.report.stage import report_data

Through = Literal["this process", "deployments"]


def entries_of(points: Sequence[GridPoint], through: Through, at_once: int) -> list[Entry]:
    """What each of them came to, in their order. One that fails does not stop the others."""
    if through == "deployments":
        say(f"[dim]{len(points)} combinations, {at_once} at a time[/dim]")
        entries = _through_deployments(points, at_once)
    else:
        say(f"[dim]{len(points)} combinations, one after the other[/dim]")
        entries = [_here(point) for point in points]
    raise_if_cancelled()
    return entries


def _here(point: GridPoint) -> Entry:
    say(f"\n[bold]{point.name}[/bold]")
    name = child_name(point.name)
    try:
        return _finished(point, distill.with_options(flow_run_name=lambda: name)(**point.parameters))
    except DistilflowError as error:
        return _failed(point, error)


def _through_deployments(points: Sequence[GridPoint], at_once: int) -> list[Entry]:
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
