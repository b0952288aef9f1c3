"""What runs are called tells what they do, and what whoever started them called them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow

from flows.distill import distill
from flows.sweep import sweep
from infra.errors import DistilflowError
from infra.orchestration import names
from infra.orchestration.dispatch import Dispatched

pytestmark = [pytest.mark.usefixtures("prefect", "bucket")]
NOBODY = "./none"  # a teacher that is not there: the run ends as soon as it has its name


def _run(of: Any, parameters: dict[str, Any], name: str | None = None, run: FlowRun | None = None) -> FlowRun:
    """A run as a worker does it, and what the server shows of it."""
    with get_client(sync_client=True) as client:
        run = run or client.create_flow_run(of, name=name, parameters=parameters)
        with contextlib.suppress(DistilflowError):
            run_flow(of, flow_run=run, parameters=parameters)
        return client.read_flow_run(run.id)


def test_a_run_keeps_the_name_that_somebody_typed() -> None:
    run = _run(distill, {"student": "demo", "teacher": NOBODY, "k": 4}, "for the paper")
    assert run.name == "demo-from-./none-k4 · for the paper"


def test_a_run_that_begins_again_keeps_its_name() -> None:
    first = _run(distill, {"student": "demo", "teacher": NOBODY}, "tuesday")
    assert first.name == "demo-from-./none-k10 · tuesday"
    assert _run(distill, {"student": "demo", "teacher": NOBODY}, run=first).name == first.name


def test_runs_of_the_same_settings_differ_by_name() -> None:
    assert _run(distill, {"teacher": NOBODY}).name != _run(distill, {"teacher": NOBODY}).name


def test_a_sweep_and_its_combinations_say_what_they_are() -> None:
    parameters = {"students": ["demo"], "teachers": [NOBODY, "./nobody"], "ks": [4], "others": {"seed": [1]}}
    swept = _run(sweep, parameters, "tuesday")
    assert swept.name == "sweep demo-from-./none+./nobody-k4 · tuesday"
    with get_client(sync_client=True) as client:
        only = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [str(swept.id)]}})
        children = client.read_flow_runs(flow_run_filter=only)
    assert {run.name for run in children} == {
        "demo-from-./none-k4-seed=1 · tuesday",
        "demo-from-./nobody-k4-seed=1 · tuesday",
    }


@pytest.fixture
def deployed() -> Iterator[str]:
    """A deployment that nobody takes runs of."""
    with get_client(sync_client=True) as client:
        made = client.create_deployment(client.create_flow_from_name("elsewhere"), name=f"of-{uuid4().hex}")
        yield f"elsewhere/{client.read_deployment(made).name}"
        client.delete_deployment(made)


def test_a_stage_elsewhere_says_of_which_run_it_is_and_has_a_tag_to_be_found_by(deployed: str) -> None:
    asked: list[UUID] = []

    @flow(name="parent", flow_run_name=lambda: names.run_name("0.5B-from-14B-k10"))
    def parent() -> None:
        name, tags = names.stage_name("kd"), [names.stage_tag("kd")]
        with (
            Dispatched(deployed, {"x": 1}, str, name, lambda _: None, tags) as one,
            Dispatched(deployed, {"x": 1}, str, "another's", lambda _: None) as other,
        ):
            for wanted in (one, other):
                assert not wanted.is_over()
                assert wanted._run is not None
                asked.append(wanted._run.id)

    _run(parent, {}, "tuesday")
    assert asked[0] == asked[1], "who wants the same joins"
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(asked[0])
    assert run.name == "kd · 0.5B-from-14B-k10 · tuesday"
    assert run.tags == ["stage:kd"]
