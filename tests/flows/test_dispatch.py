"""A run that sends its stages elsewhere shows on its own page how they get on, and what it waits for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.runtime import flow_run
from prefect.states import Completed, Pending, Running

from infra.errors import ConfigurationError
from infra.needs import Needs
from infra.orchestration import run as module
from infra.orchestration.dispatch import Dispatched
from infra.orchestration.run import Stages
from infra.orchestration.view import stage_view
from infra.stage import Made
from infra.store.artifacts import ArtifactRef
from tasks.augment.settings import Augmentation
from tasks.augment.stage import Augment
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreTeacher
from tasks.models import ModelSource, resolve
from tasks.train.settings import Training, TrainingRun
from tasks.train.stage import Train
from tests.support.wait import wait_for

pytestmark = [pytest.mark.usefixtures("prefect", "bucket")]


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def pool(client: SyncPrefectClient) -> Iterator[str]:
    """A work pool of one place, and a deployment in it with the same name."""
    name = f"pool-{uuid4().hex}"
    client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=1))
    client.create_deployment(client.create_flow_from_name("elsewhere"), name=name, work_pool_name=name)
    yield name
    client.request("DELETE", "/work_pools/{name}", path_params={"name": name})


def _sent(pool: str, said: list[str], show: Callable[[float, str], None] | None = None) -> tuple[Dispatched, UUID]:
    run = Dispatched(f"elsewhere/{pool}", {"x": uuid4().hex}, str, "kd", said.append, show=show)
    assert not run.is_over()
    assert run._run is not None
    return run, run._run.id


def test_what_a_run_waits_for_is_what_is_missing(client: SyncPrefectClient, pool: str) -> None:
    said: list[str] = []
    run, sent = _sent(pool, said)
    assert said[-1].startswith(f"kd waits: no worker of the pool {pool!r} is online")
    client.request(
        "POST",
        "/work_pools/{work_pool_name}/workers/heartbeat",
        path_params={"work_pool_name": pool},
        json={"name": "a worker"},
    )
    assert not run.is_over()
    assert said[-1] == f"kd waits for a worker of the pool {pool!r} to take it (1 online)", "its place is free"
    _, another = _sent(pool, [])
    client.set_flow_run_state(another, Pending(), force=True)
    assert not run.is_over()
    assert said[-1] == f"kd waits for a free place in the pool {pool!r} (1 of 1 are taken)"
    client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
    assert not run.is_over()
    assert said[-1] == f"kd waits: the pool {pool!r} is paused"
    client.set_flow_run_state(sent, Pending(), force=True)
    assert not run.is_over()
    assert said[-1] == f"kd is starting in the pool {pool!r}"


@pytest.fixture
def kubernetes(client: SyncPrefectClient) -> Iterator[str]:
    """A pool with the shipped template of GPU pods, and a deployment in it with the same name."""
    name = f"kubernetes-{uuid4().hex}"
    template = json.loads(resources.files("infra").joinpath("kubernetes/gpu-pool.json").read_text())
    client.create_work_pool(WorkPoolCreate(name=name, type="kubernetes", base_job_template=template))
    flow_id = client.create_flow_from_name("elsewhere")
    client.create_deployment(flow_id, name=name, work_pool_name=name, job_variables={"cpu_request": "3"})
    yield name
    client.request("DELETE", "/work_pools/{name}", path_params={"name": name})


def _asked(client: SyncPrefectClient, pool: str, needs: Needs | None, **given: Any) -> tuple[Any, list[str]]:
    """The job variables of a run that is sent to a pool, and what people are told."""
    said: list[str] = []
    run = Dispatched(
        f"elsewhere/{pool}", {"x": uuid4().hex}, str, "kd", said.append, needs=lambda: needs, variables=given
    )
    assert not run.is_over()
    assert run._run is not None
    return client.read_flow_run(run._run.id).job_variables, said


NEEDS = Needs(gpus=4, memory=100 * 2**30 + 1, shared_memory=32 * 2**30, cores=16)


def test_a_pod_is_asked_for_what_the_stage_needs_unless_somebody_said_otherwise(
    client: SyncPrefectClient, kubernetes: str
) -> None:
    """The cores are those of the deployment, which its own variables say."""
    needed = {"gpus": 4, "shared_memory": "32Gi", "memory_request": "101Gi"}
    found, said = _asked(client, kubernetes, NEEDS)
    assert found == needed
    assert said[0] == "asks for gpus 4, memory_request 101Gi, shared_memory 32Gi"
    assert _asked(client, kubernetes, NEEDS, gpus=8, image="a/b")[0] == {**needed, "gpus": 8, "image": "a/b"}
    limited = _asked(client, kubernetes, NEEDS, memory_limit="64Gi")[0]
    assert "memory_request" not in limited, "Kubernetes takes no request above the limit"
    assert not _asked(client, kubernetes, None)[0]


def test_a_pool_without_such_variables_is_asked_for_nothing(client: SyncPrefectClient, pool: str) -> None:
    found, said = _asked(client, pool, NEEDS)
    assert not found
    assert not [text for text in said if text.startswith("asks for")]
    with pytest.raises(ConfigurationError, match=f"the work pool {pool!r} of .* has no 'gpus': it has none"):
        _asked(client, pool, NEEDS, gpus=4)


def test_a_pool_that_cannot_say_what_a_stage_needs_computes_nothing(client: SyncPrefectClient, pool: str) -> None:
    run = Dispatched(f"elsewhere/{pool}", {"x": uuid4().hex}, str, "kd", lambda text: None, needs=lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert not run.is_over()


def test_however_often_an_equal_run_was_made_the_next_is_a_new_one(
    client: SyncPrefectClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.orchestration.dispatch._ASKED_AT_ONCE", 2)
    made = set()
    for _ in range(5):
        run = Dispatched(f"elsewhere/{pool}", {"x": pool}, str, "kd", lambda said: None)
        assert not run.is_over()
        assert run._run is not None
        made.add(run._run.id)
        client.set_flow_run_state(run._run.id, Completed(), force=True)
    assert len(made) == 5


def test_the_progress_of_a_run_elsewhere_is_shown_here(client: SyncPrefectClient, pool: str) -> None:
    shown: list[tuple[float, str]] = []
    run, sent = _sent(pool, [], lambda share, text: shown.append((share, text)))
    client.set_flow_run_state(sent, Running(), force=True)
    for key, text in (("rows", "one thing"), ("kd-progress", "distilling · loss 0.31 · about 3 min left")):
        artifact = ArtifactCreate(key=key, type="progress", data=37.5, description=text, flow_run_id=sent)
        client.request("POST", "/artifacts/", json=artifact.model_dump(mode="json", exclude_unset=True))
    run._next_show = 0.0
    assert not run.is_over()
    assert shown == [(37.5, "distilling · loss 0.31 · about 3 min left")]


def _descriptions(client: SyncPrefectClient, run: str) -> list[str]:
    its = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run)]))
    return [artifact.description or "" for artifact in client.read_artifacts(artifact_filter=its)]


def test_a_run_shows_that_an_engine_is_loading_and_what_a_run_elsewhere_says(client: SyncPrefectClient) -> None:
    @flow(name="parent")
    def parent() -> str:
        own = str(flow_run.id)
        with stage_view("logits", "scoring") as view:
            follow = view.follow(lambda _: "")
            follow({"event": "loading", "engine": "vllm"})
            wait_for(lambda: _descriptions(client, own) == ["scoring · vllm is loading"])
            follow({"event": "ready", "engine": "vllm", "seconds": 61.4})
            follow({"event": "progress", "done": 1, "total": 2})
            wait_for(lambda: _descriptions(client, own) == ["scoring · 1 of 2"])
        with stage_view("kd", "in stage/gpu") as view:
            view.pass_on(37.5, "distilling · loss 0.31")
            wait_for(lambda: "in stage/gpu · distilling · loss 0.31" in _descriptions(client, own))
        return own

    run = UUID(parent())

    def logged() -> set[str]:
        of = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
        return {log.message for log in client.read_logs(of)}

    wait_for(lambda: {"logits: vllm is loading", "logits: vllm is ready after 61 s"} <= logged())


def test_the_graph_of_a_run_leads_from_stage_to_stage(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(stage: Any, *_: Any) -> Made:
        digest = uuid4().hex
        ref = ArtifactRef(kind="made", uri=f"s3://b/{digest}/", sha256=digest, fingerprint=digest)
        return Made(refs=dict.fromkeys(stage.workspaces(), ref), seconds=random.random())

    monkeypatch.setattr(module.Stages, "_there", lambda self, stage, deployment: made(stage))
    monkeypatch.setattr(module.Stages, "_here", lambda self, stage: made(stage))

    @flow(name="graph")
    def graph() -> str:
        run = Stages("stage/gpu").run
        base, training = ModelSource(name="base", path="/a/folder"), {"training": Training(), "run": TrainingRun()}
        seeds = ArtifactRef(kind="seeds", uri="s3://b/s/", sha256="s", fingerprint="s")
        rows = run(Augment(seeds=seeds, agent_model="demo", options=Augmentation()))
        tuned = run(Train(name="sft", model=base, data=rows, seed=0, **training))
        topk = run(ScoreTeacher(rows=rows, teacher=resolve("demo", "teacher"), k=10, scoring=Scoring()))
        student = ModelSource(name="sft", artifact=tuned)
        run(Train(name="kd", model=student, data=topk, seed=0, **training))
        return str(flow_run.id)

    run = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(graph())]))
    leads: dict[str, set[str]] = {}

    def all_told() -> bool:
        tasks = client.read_task_runs(flow_run_filter=run)
        stage = {task.id: task.name.split()[0].split("-")[0] for task in tasks}
        leads.update({stage[t.id]: {stage[i.id] for of in t.task_inputs.values() for i in of} for t in tasks})  # type: ignore[union-attr]
        return len(tasks) == 4

    wait_for(all_told)
    assert leads == {"augment": set(), "sft": {"augment"}, "logits": {"augment"}, "kd": {"sft", "logits"}}
