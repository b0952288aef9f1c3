"""Deployed and run as in production: a Prefect server, two pools with a worker each, stages sent to the gpu pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from playwright.sync_api import Locator, Page
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import SCHEDULE_TYPES, IntervalSchedule

from infra.orchestration.remote_run import answer_of
from infra.services import prefect_server
from infra.store import storage
from infra.store.artifacts import artifact_at
from tests.support.browser import logged_in, page
from tests.support.cluster import Cluster, cluster, stage_of
from tests.support.wait import wait_for

TINY: dict[str, Any] = {  # for what is about the way through the pools, not about training
    "augmentation": {"expansions_per_seed": 1, "max_rows": 60},
    "sft": {"max_steps": 3},
    "kd": {"max_steps": 3},
    "scoring": {"engine": "transformers"},
    "evaluation": {"max_rows": 8},
    "run": {"processes": 1},
}
pytestmark = pytest.mark.timeout(1500)  # the first test waits for a sweep through two pools
SHARED = {**TINY, "stages_on": "stage/gpu"}


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("production"), database) as running:
        yield running


@pytest.fixture(scope="module")
def swept(production: Cluster) -> tuple[UUID, list[dict[str, Any]]]:
    """A sweep through the deployments, two side by side: its run, and the results of the two."""
    grid = {"students": ["demo"], "teachers": ["demo"], "ks": [10], "others": {"kd.temperature": [1.0, 2.0]}}
    run = production.run("sweep/teacher-size", **grid, shared=SHARED, at_once=2)
    assert production.wait_for_end(run, 900) == "Completed"
    return run, [answer_of(child.id)["result"] for child in _children(run)]


def test_a_sweep_sends_its_heavy_stages_to_the_gpu_pool_and_computes_what_is_shared_once(
    production: Cluster, swept: tuple[UUID, list[dict[str, Any]]]
) -> None:
    run, results = swept
    stages = production.stages()
    assert Counter(map(stage_of, stages)) == {"sft": 1, "logits": 1, "sft_control": 1, "kd": 2, "evaluate": 2}
    assert {stage.work_pool_name for stage in stages} == {"gpu"}
    names = {child.name for child in _children(run)}
    assert {name.split(" · ")[0] for name in names} == {f"demo-from-demo-k10-kd.temperature={t}" for t in (1.0, 2.0)}
    assert {stage.name for stage in stages if stage_of(stage) == "kd"} == {f"kd · {name}" for name in names}
    assert all(stage.state and stage.state.is_completed() for stage in stages)
    for result in results:
        own = [result["stages"][name] for name in ("kd", "evaluate")]
        assert all(not stage["cached"] and stage["seconds"] > 0 for stage in own)
    assert _batches_written(run) == {"written-00000": 1, "written-00001": 1}
    assert production.engines() == []


@pytest.mark.usefixtures("production")
def test_a_sweep_ranks_what_it_ran_on_a_leaderboard_that_leads_to_the_runs(
    swept: tuple[UUID, list[dict[str, Any]]],
) -> None:
    board = artifact_at(answer_of(swept[0])["result"]["uri"])
    table = json.loads(storage.get(board.uri + "leaderboard.json") or b"")["rows"]
    assert len(table) == 2
    assert {row["outcome"] for row in table} == {"finished"}
    markdown = (storage.get(board.uri + "leaderboard.md") or b"").decode()
    assert markdown.count("/runs/flow-run/") == 2


@pytest.mark.usefixtures("swept")
def test_bootstrap_a_second_time_changes_nothing(production: Cluster) -> None:
    lines = production.bootstrap().splitlines()
    assert lines
    assert not [line for line in lines if line.startswith(("created", "updated"))]


@pytest.mark.usefixtures("swept")
def test_a_schedule_fires_and_its_run_finds_everything_done(production: Cluster) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("distill/demo")
        client.update_deployment(deployment.id, DeploymentUpdate(parameters={**deployment.parameters, **TINY}))
        schedules: list[tuple[SCHEDULE_TYPES, bool]] = [(IntervalSchedule(interval=timedelta(seconds=30)), True)]
        (made,) = client.create_deployment_schedules(deployment.id, schedules)

    def scheduled() -> list[Any]:
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(limit=200)
        return [r for r in runs if r.auto_scheduled and r.state and not r.state.is_scheduled()]

    wait_for(scheduled, 180)
    with get_client(sync_client=True) as client:
        client.delete_deployment_schedule(deployment.id, made.id)
    run = scheduled()[0]
    assert production.wait_for_end(run.id, 180) == "Completed"
    stages = answer_of(run.id)["result"]["stages"]
    assert all(stage["cached"] for stage in stages.values())


def _children(sweep: UUID) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        children = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [str(sweep)]}}), limit=50
        )
    assert len(children) == 2
    return children


def _batches_written(sweep: UUID) -> Counter[str]:
    """How often each batch of rows was written, over all runs of the sweep."""
    ids = [run.id for run in _children(sweep)]
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)), limit=200)
    return Counter(task.name for task in tasks if task.name.startswith("written-"))


@pytest.mark.usefixtures("swept")
def test_plain_prefect_in_the_folder_of_the_home_starts_a_run(production: Cluster) -> None:
    """As the README says it, in a shell in which nothing is set."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    words = [sys.executable, "-m", "prefect", "deployment", "run", "distill/demo", "--param", "student=./none"]
    done = subprocess.run(words, cwd=production.home.parent, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("distill/demo")
    run = next(run for run in _runs_of(deployment.id) if run.parameters["student"] == "./none")
    assert production.wait_for_end(run.id, 120) == "Failed"
    assert "./none" in answer_of(run.id)["error"]


def test_a_failed_combination_does_not_stop_the_others(production: Cluster) -> None:
    before = set(storage.keys("s3://distilflow/leaderboard/"))
    run = production.run("sweep/teacher-size", students=["demo"], teachers=["demo", "./none"], ks=[10], shared=SHARED)
    assert production.wait_for_end(run, 300) == "Failed"
    told = answer_of(run)
    assert told["error"].startswith("1 of 2 combinations failed (demo-from-./none-k10: unknown teacher './none'")
    new = [key for key in storage.keys("s3://distilflow/leaderboard/") if key not in before and "json" in key]
    tables = [json.loads(storage.get(f"s3://distilflow/leaderboard/{key}") or b"") for key in new]
    (rows,) = (table["rows"] for table in tables if "rows" in table)
    assert [row["outcome"].split(":")[0] for row in rows] == ["finished", "failed"]


def test_the_run_form_offers_choices_refuses_wrong_values_and_starts_a_run(production: Cluster) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("distill/qwen2.5-0.5b")
    with page() as form:
        logged_in(form, prefect_server.password(production.home))
        form.goto(f"http://127.0.0.1:{production.port}/deployments/deployment/{deployment.id}/run")
        k = _setting(form, "teacher log-probabilities kept")
        k.locator("input").fill("0")
        form.get_by_role("button", name="Submit").click()
        form.get_by_text("0 is less than the minimum of 1").first.wait_for()
        k.locator("input").fill("5")
        _choose(form, "demo, 14B, 32B, 72B", "72B")
        _choose(form, "demo, 0.5B, 1.5B, 3B, 7B", "7B")
        for opened, kind in (("supervised fine-tuning", "Training"), ("how training is run", "TrainingRun")):
            _setting(form, opened).get_by_role("button", name=kind, exact=True).click()
        rate = _setting(form, "preset: 2e-05; demo: 0.005").last
        rate.locator("input").fill("0.00001")
        _choose(form, "computes activations twice", "true")
        wait_for(lambda: _is_submitted(form))
    (run,) = _runs_of(deployment.id)
    assert run.parameters["k"] == 5
    assert run.parameters["teacher"] == "72B"
    assert run.parameters["student"] == "7B"
    assert run.parameters["sft"] == {"learning_rate": 1e-5, "lora": None}, "only what was typed"
    assert run.parameters["run"] == {"gradient_checkpointing": True}, "the rest is the preset's, of the student chosen"
    assert production.wait_for_end(run.id, 120) == "Failed"  # its models are on the hub, which is not reached here
    assert "student '7B'" in answer_of(run.id)["error"]


def _setting(form: Page, words: str) -> Locator:
    """A setting of the run form, by words of its description."""
    return form.locator(".schema-form-property", has_text=words)


def _choose(form: Page, words: str, choice: str) -> None:
    option = form.locator(".p-select-option").get_by_text(choice, exact=True).first
    while not option.is_visible():  # the first click may only focus it
        _setting(form, words).last.locator(".p-select-button__icon").click()
        form.wait_for_timeout(1000)
    option.click()


def _is_submitted(form: Any) -> bool:
    """Whether the server took it. Where its SQLite is locked it answers 503, and people press the button again."""
    with form.expect_response(lambda answer: answer.url.endswith("/create_flow_run")) as answered:
        form.get_by_role("button", name="Submit").click()
    assert answered.value.status in (201, 503), answered.value.text()
    return bool(answered.value.ok)


def _runs_of(deployment: Any) -> list[Any]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))
