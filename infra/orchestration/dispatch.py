"""Runs of our flows elsewhere: in a work pool, through a deployment, as if they were called here.

A run that is asked for while an equal one is under way joins it. The far side is `infra.orchestration.remote_run`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import prefect.runtime
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
)
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.client.schemas.sorting import ArtifactSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling, Crashed
from pydantic import TypeAdapter

from infra.errors import BY_EXIT_CODE, ConfigurationError, StageFailedError, TransientError
from infra.needs import Needs
from infra.orchestration.job_variables import job_variables
from infra.orchestration.remote_run import SERVER_AWAY_S, answer_of, is_dead, prefect_client, set_state, watched_claims
from infra.store.artifacts import digest_of

POLL_S = 2.0
_SHOW_S = 10.0
_ASKED_AT_ONCE = 200  # equal runs; a server gives no more
_ELSEWHERE = {code: kind for code, kind in BY_EXIT_CODE.items() if kind is not TransientError}  # that was retried there


def run_there(wanted: Dispatched) -> Any:
    """Run a deployment to its end and return its result; raises as `Dispatched.result` does."""
    with wanted as run:
        while not run.is_over():
            time.sleep(POLL_S)
        return run.result()


class Dispatched:
    """A run elsewhere that is wanted here. Leaving the `with` before it is over cancels it.

    `tell` gets a sentence whenever what is waited for changes, `show` its progress: per cent, and its own words.
    The machine that it gets has what it `needs`, as far as the work pool can say so; `variables` of the pool win.
    """

    def __init__(
        self,
        deployment: str,
        parameters: Mapping[str, Any],
        returns: Any,
        name: str,
        tell: Callable[[str], None],
        tags: Sequence[str] = (),
        show: Callable[[float, str], None] | None = None,
        needs: Callable[[], Needs | None] = lambda: None,
        variables: Mapping[str, Any] | None = None,
    ):
        self._deployment = deployment
        self.parameters = dict(parameters)
        self._returns = returns
        self._name = name
        self._tell = tell
        self._tags = list(tags)
        self._show = show
        self._needs = needs
        self._variables = dict(variables or {})
        self._next_show = 0.0
        self._key = digest_of({"deployment": deployment, "parameters": self.parameters})[:32]
        self._run: FlowRun | None = None
        self._joined = False  # another asked for it first
        self._state: State[Any] | None = None
        self._shown = ""
        self._claims = watched_claims()
        self._last_answer = time.monotonic()

    def __enter__(self) -> Dispatched:
        return self

    def __exit__(self, *_: object) -> None:
        if self._run is not None and self._state is None and not self._joined:
            with contextlib.suppress(Exception):  # what interrupts us is what matters
                set_state(self._run.id, Cancelling(message="the run that wanted it was stopped"))

    def is_over(self) -> bool:
        """Start the run, or look how it is. A Prefect server or storage that is away for a while is waited for."""
        try:
            with prefect_client() as client:
                self._look(client)
            self._last_answer = time.monotonic()
        except (httpx.HTTPError, PrefectHTTPStatusError, TransientError) as error:
            if time.monotonic() - self._last_answer > SERVER_AWAY_S:
                raise TransientError(f"the Prefect server is away for {SERVER_AWAY_S:.0f} s ({error})") from error
        return self._state is not None

    def result(self) -> Any:
        """Its result. Raises what it raised, without a further try of ours; TransientError where it died."""
        assert self._run is not None
        assert self._state is not None
        where, answer = f"{self._run.name} of {self._deployment}", answer_of(self._run.id)
        if "error" in answer:
            raise _ELSEWHERE.get(answer["code"], StageFailedError)(answer["error"])
        if self._state.is_completed() and "result" in answer:
            return TypeAdapter(self._returns).validate_python(answer["result"])
        if self._state.is_cancelled():
            raise ConfigurationError(f"{where} was cancelled: start it again, it continues")
        raise TransientError(f"{where} ended as {self._state.name} ({self._state.message}): run again, it continues")

    def _look(self, client: SyncPrefectClient) -> None:
        if self._run is None:
            self._run, self._joined = self._joined_or_started(client)
            self._say(f"{'joins' if self._joined else 'runs as'} {self._run.name} of {self._deployment}")
        run = client.read_flow_run(self._run.id)
        state = run.state
        assert state is not None
        if state.is_running() and is_dead(run.id, self._claims):
            set_state(run.id, Crashed(message="its process is gone"))
            return  # its state tells the next time
        if not state.is_final():
            self._say(_waits_for(client, run))
            self._pass_progress_on(client, run)
        elif self._joined and (state.is_cancelled() or not (state.is_completed() or answer_of(run.id))):
            self._run = None  # it was another's to cancel or to lose; we want it done
            self._say(f"{run.name}, which another run had started, ended as {state.name}: it is started again here")
        else:
            self._state = state

    def _pass_progress_on(self, client: SyncPrefectClient, run: FlowRun) -> None:
        if self._show is None or time.monotonic() < self._next_show:
            return
        self._next_show = time.monotonic() + _SHOW_S
        its = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), type=ArtifactFilterType(any_=["progress"])
        )
        for artifact in client.read_artifacts(artifact_filter=its, sort=ArtifactSort.UPDATED_DESC, limit=1):
            self._show(float(str(artifact.data)), artifact.description or "")

    def _joined_or_started(self, client: SyncPrefectClient) -> tuple[FlowRun, bool]:
        first = 0
        while True:
            keys = [f"{self._key}-{number}" for number in range(first, first + _ASKED_AT_ONCE)]
            equal = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
            runs = client.read_flow_runs(flow_run_filter=equal, limit=_ASKED_AT_ONCE)
            for run in runs:
                if run.state and not run.state.is_final() and not run.state.is_cancelling():
                    return run, True
            if free := next((key for key in keys if key not in {run.idempotency_key for run in runs}), None):
                return self._started(client, free)
            first += _ASKED_AT_ONCE

    def _started(self, client: SyncPrefectClient, key: str) -> tuple[FlowRun, bool]:
        """Of two that ask at the same time, and so with the same key, one starts it."""
        try:
            variables = job_variables(client, self._deployment, self._needs, self._variables)
            if variables:
                self._tell(f"asks for {', '.join(f'{name} {value}' for name, value in variables.items())}")
            started: Any = run_deployment(
                self._deployment,
                parameters=self.parameters,
                flow_run_name=self._name,
                timeout=0,
                tags=self._tags,
                idempotency_key=key,
                job_variables=variables or None,
            )
        except ObjectNotFound as error:
            raise ConfigurationError(
                f"the Prefect server has no deployment {self._deployment!r}: run `make bootstrap`, or choose another"
            ) from error
        except PrefectHTTPStatusError as error:
            if error.response.status_code >= 500:
                raise
            raise ConfigurationError(
                f"the Prefect server refused a run of {self._deployment!r}: {error.response.text[:500]}"
            ) from error
        return started, _is_anothers(client, started)

    def _say(self, text: str) -> None:
        if text != self._shown:
            self._tell(text)
            self._shown = text


def _is_anothers(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a run that asked at the same moment has started it."""
    me, asked_by = prefect.runtime.flow_run.id, run.parent_task_run_id
    return bool(me and asked_by and str(client.read_task_run(asked_by).flow_run_id) != me)


def _waits_for(client: SyncPrefectClient, run: FlowRun) -> str:
    """In words: a dead worker, a full pool and a long queue look alike in the UI."""
    state, pool = run.state, run.work_pool_name
    assert state is not None
    if not (state.is_scheduled() or state.is_pending()):
        return f"{run.name} is {str(state.name).lower()}"
    if pool is None:
        return f"{run.name} waits; its deployment has no work pool"
    place = {"work_pool_name": pool}
    workers = client.request("POST", "/work_pools/{work_pool_name}/workers/filter", path_params=place, json={}).json()
    online = [worker for worker in workers if worker["status"] == WorkerStatus.ONLINE.value]
    if not online:
        return f"{run.name} waits: no worker of the pool {pool!r} is online (start one: distilflow worker {pool})"
    if state.is_pending():
        return f"{run.name} is starting in the pool {pool!r}"
    known = client.request("GET", "/work_pools/{name}", path_params={"name": pool}).json()
    places, taken = known["concurrency_limit"], known["active_slots"]
    if known["is_paused"]:
        return f"{run.name} waits: the pool {pool!r} is paused"
    if places is not None and taken >= places:
        return f"{run.name} waits for a free place in the pool {pool!r} ({taken} of {places} are taken)"
    return f"{run.name} waits for a worker of the pool {pool!r} to take it ({len(online)} online)"
