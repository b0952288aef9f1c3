"""What every stage's Prefect task has in common: retries that help, and none where they cannot.

One of the few files in `infra` that import Prefect. A stage finds its own finished work by its record, so
Prefect's result cache stays off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from rich.markup import escape

from infra import settings
from infra.errors import is_retryable
from infra.orchestration.view import say

P = ParamSpec("P")
R = TypeVar("R")


def _can_help(_task: Any, run: Any, state: Any) -> bool:
    """Prefect asks while tries are left; people are told what they wait for."""
    try:
        state.result()
    except Exception as error:
        if is_retryable(error):
            say(f"[yellow]! {run.name} failed and is tried again: {escape(str(error).splitlines()[0])}[/yellow]")
            return True
    return False


def stage_task(name: str, task_run_name: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`prefect.task` with what all stages share."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        made: Any = task(
            name=name,
            task_run_name=task_run_name,
            retries=len(settings.retry_delays_s()),
            retry_delay_seconds=settings.retry_delays_s(),
            retry_condition_fn=_can_help,
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        return cast("Callable[P, R]", made(function))

    return decorate
