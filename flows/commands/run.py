"""`distilflow run`, `sweep` and `experiment`: the flows themselves, with their parameters as flags.

Imports Prefect, which reads its settings then: imported when one of them is wanted.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter
from prefect.exceptions import CancelledRun, ParameterTypeError

from flows.distill import distill
from flows.experiment import experiment
from flows.outcome import latest
from flows.sweep import sweep
from infra.errors import UsageError
from infra.orchestration.prefect_client import talking_to
from infra.orchestration.remote_run import RunCancelled
from infra.orchestration.view import console, say
from infra.processes.interruption import unwind_on_signals
from infra.services import embedded
from tasks.plan.model import Plan
from tasks.plan.view import plan_table
from tasks.report.console import comparison_table, experiment_table, leaderboard_table


def flow_command(name: str) -> Callable[..., None]:
    """A command that takes the flow's parameters, runs it on embedded services or those that are up, and shows it."""
    flow, show = FLOWS[name]

    def run(*arguments: Any, **flags: Any) -> None:
        _run(flow, signature.bind(*arguments, **flags).arguments, show)

    run.__doc__ = flow.fn.__doc__
    signature = inspect.signature(flow.fn, eval_str=True)
    flags = [_as_flag(parameter) for parameter in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=flags, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return run


def _as_flag(parameter: inspect.Parameter) -> inspect.Parameter:
    """A flow's parameter as a flag: lists take several words, free-form settings are JSON.

    One without a default is an argument.
    """
    annotation, text = parameter.annotation, str(parameter.annotation)
    if "dict[" in text:
        annotation = Annotated[annotation, Parameter(converter=_json, accepts_keys=False, n_tokens=1)]
    elif "list[" in text:
        annotation = Annotated[annotation, Parameter(consume_multiple=True, negative=())]
    needed = parameter.default is inspect.Parameter.empty
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if needed else inspect.Parameter.KEYWORD_ONLY
    return parameter.replace(kind=kind, annotation=annotation)


def _json(_type: Any, tokens: Any) -> Any:
    try:
        return json.loads(tokens[0].value)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error})") from error


def _run(flow: Any, kwargs: dict[str, Any], show: Callable[[Any], None]) -> None:
    unwind_on_signals()
    with (
        embedded.embedded_services() as running,
        talking_to(),
    ):
        password = f" (password: {running.password_file})" if running.password_file else ""
        say(f"[dim]Prefect UI {running.prefect_ui_url}{password} · storage {running.s3_endpoint}[/dim]")
        try:
            outcome = flow(**kwargs)
        except ParameterTypeError as error:
            raise UsageError(" ".join(str(error).split())) from error
        except CancelledRun as error:
            raise RunCancelled(str(error)) from error
        console.print()
        show(outcome)
        ui = "`make up` opens it again, with this run" if running.started else running.prefect_ui_url
        console.print(f"UI       {ui}", soft_wrap=True)


def _show_run(outcome: Any) -> None:
    if isinstance(outcome, Plan):
        console.print(plan_table(outcome))
        return
    console.print(comparison_table(outcome.report))
    console.print(f"report   {latest() / 'report.html'}", soft_wrap=True)
    console.print(f"numbers  {latest() / 'results.json'}", soft_wrap=True)


def _show_sweep(board: Any) -> None:
    console.print(leaderboard_table(board))
    console.print(f"leaderboard  {latest() / 'leaderboard.html'}", soft_wrap=True)


def _show_experiment(page: Any) -> None:
    console.print(experiment_table(page))
    console.print(f"page     {latest() / 'experiment.html'}", soft_wrap=True)
    console.print(f"numbers  {latest() / 'experiment.parquet'}", soft_wrap=True)


FLOWS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "run": (distill, _show_run),
    "sweep": (sweep, _show_sweep),
    "experiment": (experiment, _show_experiment),
}
