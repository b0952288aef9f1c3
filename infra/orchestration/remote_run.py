"""The far side of `infra.orchestration.dispatch`: what a run does so that another can wait for it.

It leaves its result or its error in storage (`dispatched/<flow run>.json`), so nothing depends on Prefect's result
persistence. While it lives it holds a claim there: that is how a killed run is told from a long one, whatever state
Prefect shows for it. And it ends with the run that wanted it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast, get_type_hints
from uuid import UUID

import httpx
import prefect.runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling
from pydantic import TypeAdapter
from rich.console import Console

from infra import settings
from infra.errors import DistilflowError, TransientError
from infra.store import storage
from infra.store.claims import RUNS, Claims, claim_of_run

P = ParamSpec("P")
R = TypeVar("R")
SERVER_AWAY_S = 600.0
_PARENT_POLL_S = 5.0
_STALE_S = 150.0  # longer than storage may be away
_GRACE_S = 45.0
CANCELLED = "it was cancelled and has published nothing; what is finished is kept: start it again, it continues"


class RunCancelled(DistilflowError):
    """This run was cancelled: it publishes nothing."""

    exit_code = 130


def leaves_result(function: Callable[P, R]) -> Callable[P, R]:
    """Let a flow be waited for by `run_there`: it leaves its result or error in storage, and ends with its parent."""

    @functools.wraps(function)
    def flow(*args: P.args, **kwargs: P.kwargs) -> R:
        run_id = prefect.runtime.flow_run.id
        if not run_id:  # called as a plain function
            return function(*args, **kwargs)
        own_process(run_id)
        storage.ensure_bucket()
        with Claims(_folder()) as claims, _ends_with_its_parent():
            claims.seize(claim_of_run(run_id))  # whoever had this run before is dead, or Prefect would not run it
            try:
                result = function(*args, **kwargs)
            except RunCancelled as error:  # told as a state: Prefect would show a run that fails now as being cancelled
                cancelled: Any = Cancelled(message=str(error))
                return cast("R", cancelled)
            except DistilflowError as error:
                _answer(run_id, {"code": error.exit_code, "error": str(error)})
                raise
            _answer(run_id, {"result": TypeAdapter(Any).dump_python(result, mode="json")})
            return result

    # resolved here: Prefect would look the names up in this module
    flow.__annotations__ = get_type_hints(function, include_extras=True)
    flow.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return flow


def answer_of(run_id: UUID) -> dict[str, Any]:
    """What a run left: `result`, or `error` and its exit `code`; nothing where it did not get that far."""
    answer = storage.get(_folder() + f"{run_id}.json")
    left: dict[str, Any] = json.loads(answer) if answer else {}
    return left


def watched_claims() -> Claims:
    """For `is_dead`; it remembers since when an owner has been silent."""
    return Claims(_folder(), stale_s=_STALE_S)


def is_dead(run_id: UUID, watched: Claims) -> bool:
    """Whether the run's process is gone without a word, whatever Prefect shows."""
    return watched.abandoned(claim_of_run(str(run_id)))


@contextlib.contextmanager
def _ends_with_its_parent() -> Iterator[None]:
    """Cancel this run when the run that wanted it is over or gone."""
    parent, me = prefect.runtime.flow_run.parent_flow_run_id, prefect.runtime.flow_run.id
    if not parent:
        yield
        return
    over = threading.Event()
    watched = watched_claims()

    def watch() -> None:
        while not over.wait(_PARENT_POLL_S):
            with contextlib.suppress(httpx.HTTPError, PrefectHTTPStatusError, TransientError):
                if not _is_gone(UUID(parent), watched):
                    continue
                set_state(UUID(me), Cancelling(message="the run that wanted it is gone"))
                if not over.wait(_GRACE_S):
                    os.kill(os.getpid(), signal.SIGTERM)  # no worker was there to do it
                return

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
    try:
        yield
    finally:
        over.set()


def _is_gone(parent: UUID, watched: Claims) -> bool:
    with prefect_client() as client:
        try:
            state = client.read_flow_run(parent).state
        except ObjectNotFound:
            return True
    if state is None or state.is_final() or state.is_cancelling():
        return True
    return is_dead(parent, watched)


def raise_if_cancelled() -> None:
    """Raise RunCancelled where this run is being cancelled, or was. A Prefect server that is away is waited for."""
    me, began = prefect.runtime.flow_run.id, time.monotonic()
    if not me:
        return
    while True:
        try:
            with prefect_client() as client:
                state = client.read_flow_run(UUID(me)).state
            break
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            if time.monotonic() - began > SERVER_AWAY_S:
                raise TransientError(f"the Prefect server is away for {SERVER_AWAY_S:.0f} s ({error})") from error
            time.sleep(_PARENT_POLL_S)
    if state is not None and (state.is_cancelling() or state.is_cancelled()):
        raise RunCancelled(CANCELLED)


def set_state(run_id: UUID, state: Any) -> None:
    """Propose a state for a flow run; the server leaves a run that has ended as it is."""
    with prefect_client() as client:
        client.set_flow_run_state(run_id, state)


def own_process(run_id: str) -> None:
    """What a flow's own process needs so that its run ends in the right state.

    A run that ends in the moment it is cancelled would be shown as being cancelled for ever. And a run whose worker
    dies would be shown as crashed as soon as it logs anything, since rich then raises SystemExit: its end is up to the
    guardian, and its state to the next worker.
    """
    if os.environ.get("PREFECT__FLOW_RUN_ID") == run_id:
        atexit.register(_settle, run_id)
        Console.on_broken_pipe = _carry_on  # type: ignore[method-assign]


def _carry_on(self: Console) -> None:
    """Nobody reads our output any more."""


def _settle(run_id: str) -> None:
    with contextlib.suppress(Exception), prefect_client() as client:
        state = client.read_flow_run(UUID(run_id)).state
        if state is not None and state.is_cancelling():
            client.set_flow_run_state(UUID(run_id), Cancelled(message="Cancelled; what is finished is kept."))


def prefect_client() -> SyncPrefectClient:
    """A client of the server that this process works with; use it in a `with`."""
    return get_client(sync_client=True)


def _answer(run_id: str, content: dict[str, Any]) -> None:
    storage.put(_folder() + f"{run_id}.json", json.dumps(content).encode())


def _folder() -> str:
    return f"s3://{settings.bucket()}/{RUNS}"
