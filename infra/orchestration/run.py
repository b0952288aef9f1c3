"""Runs a stage: find → claim → hold → make → show, as a Prefect task, here or on a deployment.

A stage finds its own finished work by its record, so Prefect's result cache stays off.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from rich.markup import escape

from infra import settings
from infra.devices import Gpus
from infra.errors import TransientError, is_retryable
from infra.orchestration import names
from infra.orchestration.dispatch import Dispatched, run_there
from infra.orchestration.limits import held
from infra.orchestration.progress import RunProgress
from infra.orchestration.view import say, stage_view
from infra.stage import Made, Stage, make
from infra.store.artifacts import ArtifactRef

R = TypeVar("R")


class Stages:
    """Runs stages; `made` holds what each came to in this run, by its title.

    `deployment` (such as "stage/gpu") is where those go that need an engine, and are not finished; none: they run here.
    Each asks there for what it needs of the GPUs that are `offered`, unless `variables` of the work pool say otherwise.
    `progress` is told of each, where the run shows a table of them.
    """

    def __init__(
        self,
        deployment: str | None = None,
        offered: Gpus | None = None,
        variables: Mapping[str, Any] | None = None,
        progress: RunProgress | None = None,
    ):
        self.made: dict[str, Made] = {}
        self._deployment = deployment
        self._offered = offered
        self._variables = variables
        self._progress = progress

    def run(self, stage: Stage[R]) -> R:
        """What later stages are given of it. Raises what it raises, after the retries that can help."""
        there = self._deployment if stage.on_workers and self._deployment and not _is_finished(stage) else None

        def attempt(stage: Stage[R]) -> list[ArtifactRef]:
            """Prefect draws the run's graph from what tasks are given and return, a list's elements among it.

            Of a reference alone it would follow the fields too, and join stages that share the word for a kind.
            """
            made = self._there(stage, there) if there else self._here(stage)
            self.made[stage.title] = made
            return list(made.refs.values())

        with self._shown(stage.title):
            _task(stage, f"{stage.title} in {there}" if there else None)(attempt)(stage)
        return stage.result(self.made[stage.title].refs)

    def _there(self, stage: Stage[Any], deployment: str) -> Made:
        run_name, tags = names.stage_name(stage.title), [names.stage_tag(stage.title)]
        with stage_view(stage.title, f"in {deployment}", self._tells(stage.title)) as view:
            wanted = Dispatched(
                deployment,
                parameters_of(stage),
                Made,
                run_name,
                view.note,
                tags,
                view.pass_on,
                lambda: stage.needs(self._offered),
                self._variables,
            )
            made: Made = run_there(wanted)
            view.done(made, f"done in {deployment}")
            return made

    def _here(self, stage: Stage[Any]) -> Made:
        with stage_view(stage.title, stage.doing, self._tells(stage.title)) as view:
            made = make(stage, view, _held)
            view.done(made, stage.show(made, view))
            return made

    def _tells(self, title: str) -> Callable[[str], None] | None:
        return functools.partial(self._progress.tells, title) if self._progress else None

    @contextlib.contextmanager
    def _shown(self, title: str) -> Iterator[None]:
        """In the run's table of its stages, where it has one."""
        if self._progress is None:
            yield
            return
        self._progress.begins(title)
        try:
            yield
        except BaseException:
            self._progress.failed(title)
            raise
        self._progress.done(title, self.made[title])


def parameters_of(stage: Stage[Any]) -> dict[str, Any]:
    """Parameters of the flow `stage` for it: the same for whoever asks."""
    return {"stage": stage.kind, "arguments": stage.model_dump(mode="json")}


def _is_finished(stage: Stage[Any]) -> bool:
    """False too where storage is away and nobody knows: whoever is sent then finds it, or tries again."""
    with contextlib.suppress(TransientError):
        return stage.is_finished()
    return False


@contextlib.contextmanager
def _held(slots: Mapping[str, int], note: Callable[[str], None]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in sorted(slots):  # one order: no two runs deadlock
            stack.enter_context(held(name, slots[name], note))
        yield


def _task(stage: Stage[Any], name: str | None) -> Any:
    """`prefect.task` with what all stages share."""
    return task(
        name=name or stage.kind,
        task_run_name=name or stage.title,
        tags=[] if name else [names.stage_tag(stage.title)],  # where it is made, so that nobody counts it twice
        retries=len(settings.retry_delays_s()),
        retry_delay_seconds=settings.retry_delays_s(),
        retry_condition_fn=_can_help,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def _can_help(_task: Any, run: Any, state: Any) -> bool:
    """Prefect asks while tries are left; people are told what they wait for."""
    try:
        state.result()
    except Exception as error:
        if is_retryable(error):
            say(f"[yellow]! {run.name} failed and is tried again: {escape(str(error).splitlines()[0])}[/yellow]")
            return True
    return False
