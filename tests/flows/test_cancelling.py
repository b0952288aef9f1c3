"""What one run's end means for the others: a cancelled sweep publishes nothing, a shared stage is finished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import prefect.runtime
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import CancelledRun
from prefect.states import Cancelling

from flows import points
from flows import sweep as module
from flows.sweep import sweep
from infra import settings
from infra.errors import ConfigurationError
from infra.orchestration.dispatch import Dispatched
from infra.orchestration.prefect_client import talking_to
from infra.orchestration.remote_run import CANCELLED, set_state
from infra.store import storage

DEPLOYMENT = "stage/nobody"  # which no worker takes
pytestmark = pytest.mark.usefixtures("services")


@pytest.fixture(autouse=True)
def deployed() -> Iterator[None]:
    with talking_to(), get_client(sync_client=True) as client:
        made = client.create_flow_from_name("stage")
        client.create_deployment(made, "nobody", enforce_parameter_schema=False)
        yield


class _CancelledWithTheSweep:
    """A combination that ends because its sweep was cancelled, which the sweep's own process has not heard of."""

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> _CancelledWithTheSweep:
        return self

    def __exit__(self, *_: object) -> None: ...

    def is_over(self) -> bool:
        assert prefect.runtime.flow_run.id
        set_state(UUID(prefect.runtime.flow_run.id), Cancelling())
        return True

    def result(self) -> Any:
        raise ConfigurationError("x of distill/demo was cancelled: start it again, it continues")


def test_a_cancelled_sweep_publishes_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked: list[Any] = []
    monkeypatch.setattr(points, "Dispatched", _CancelledWithTheSweep)
    monkeypatch.setattr(module, "Leaderboard", ranked.append)
    monkeypatch.setattr(module, "publish_latest_page", ranked.append)
    with pytest.raises(CancelledRun, match="it was cancelled and has published nothing"):
        sweep(through="deployments")
    assert ranked == []
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
    assert run.state is not None
    assert (run.state.name, run.state.message) == ("Cancelled", CANCELLED)


def _asks(parameters: dict[str, Any], told: list[str]) -> Dispatched:
    return Dispatched(DEPLOYMENT, parameters, Any, "kd", told.append)


def test_who_joined_a_stage_that_was_cancelled_starts_it_again_and_says_so() -> None:
    parameters, told = {"stage": uuid4().hex}, list[str]()
    with _asks(parameters, told) as second:
        with _asks(parameters, []) as first:
            assert not first.is_over()
            assert not second.is_over()
            assert told[0].startswith("joins kd")
            begun = first._run
            assert begun is not None
        dying = b'{"code": 75, "error": "the engine was killed"}'  # what a stage may say while it is cancelled
        storage.put(f"s3://{settings.bucket()}/dispatched/{begun.id}.json", dying)
        for _ in range(3):
            assert not second.is_over()
        assert second._run is not None
        assert second._run.id != begun.id
        assert "kd, which another run had started, ended as Cancelled: it is started again here" in told
        assert f"runs as kd of {DEPLOYMENT}" in told


def test_of_two_runs_that_ask_at_the_same_moment_one_has_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"stage": uuid4().hex}
    monkeypatch.setattr(SyncPrefectClient, "read_flow_runs", lambda *_, **__: [])  # neither sees the other's yet

    @flow
    def asking() -> tuple[Any, bool]:
        wanted = _asks(parameters, [])
        assert not wanted.is_over()
        assert wanted._run is not None
        return wanted._run.id, wanted._joined

    (one, first), (other, second) = asking(), asking()
    assert one == other
    assert (first, second) == (False, True)
