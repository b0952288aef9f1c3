"""A real worker of a real server: what becomes of runs and their processes when either is ended."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from tests.support.own_server import OwnServer, own_server
from tests.support.processes import named, of_home, words
from tests.support.wait import wait_for

_PREFECT_YAML = """
pull: # no code is fetched, and without a step `prefect deploy` wants a file
- prefect.deployments.steps.set_working_directory: {directory: "."}
deployments:
- {name: engine, entrypoint: tests.support.own_flows.engine, work_pool: {name: cpu}, concurrency_limit: 1}
- {name: failing, entrypoint: tests.support.own_flows.failing, work_pool: {name: cpu}}
- {name: late, entrypoint: tests.support.own_flows.late, work_pool: {name: cpu}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[OwnServer]:
    root = tmp_path_factory.mktemp("root")
    (root / "prefect.yaml").write_text(_PREFECT_YAML)
    with own_server(tmp_path_factory.mktemp("worker"), database) as running:
        code = "from pathlib import Path; from infra.orchestration.bootstrap import bootstrap; "
        code += f"bootstrap(None, {{}}, False, False, root=Path({str(root)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, env=_env(running), stdout=subprocess.DEVNULL)
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left(server: OwnServer) -> Iterator[None]:
    yield
    for process in _ours(server):  # of a test that failed
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _env(server: OwnServer) -> dict[str, str]:
    here = str(Path(__file__).parents[2])
    s3 = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}  # not used
    return {**server.env, **s3, "PYTHONPATH": here, "DISTILFLOW_BUCKET": "of-the-worker", "DISTILFLOW_CONSOLE": "1"}


def _worker(server: OwnServer) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "flows.commands.main", "worker", "cpu"]
    env = {**_env(server), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    return process


def _run(mark: str, deployment: str = "engine/engine") -> UUID:
    with get_client(sync_client=True) as client:
        parameters = {"mark": mark} if deployment.startswith("engine") else {}
        found = client.read_deployment_by_name(deployment)
        return client.create_flow_run_from_deployment(found.id, parameters=parameters).id


def _read(run: UUID) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run)


def _state(run: UUID) -> str:
    return str(_read(run).state_name)


def _started(server: OwnServer, mark: str) -> int:
    """Wait for the engine; the flow's pid."""
    wait_for(lambda: (server.home / f"{mark}.starts").exists(), 120)
    return int((server.home / f"{mark}.pid").read_text())


def _ours(server: OwnServer) -> list[psutil.Process]:
    """Processes of this home except the server's: workers, flows, engines."""
    servers = named(of_home(server.home), "server start", "uvicorn")
    return [process for process in of_home(server.home) if process not in servers]


def _of(server: OwnServer, mark: str) -> list[psutil.Process]:
    return named(_ours(server), mark)


def _stop(worker: subprocess.Popen[str]) -> tuple[str, str]:
    worker.send_signal(signal.SIGTERM)
    return worker.communicate(timeout=90)


def test_cancel_ends_the_whole_tree_and_the_worker_goes_on(server: OwnServer) -> None:
    worker = _worker(server)
    try:
        run = _run("cancelled")
        pid = _started(server, "cancelled")
        assert len(_of(server, "cancelled")) >= 2
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Cancelling())
        took = wait_for(lambda: not psutil.pid_exists(pid) and not _of(server, "cancelled"), 60)
        print(f"cancel: the tree was gone after {took:.1f} s")
        wait_for(lambda: _state(run) == "Cancelled")
        log = (server.home / "logs" / "worker-cpu.log").read_text()
        assert f"home {server.home}, bucket of-the-worker" in log
        failed = _run("", "distill/failing")
        wait_for(lambda: _state(failed) == "Failed", 90)
    finally:
        out, err = _stop(worker)
    assert worker.returncode == 0
    assert err == ""
    first, last = out.splitlines()
    assert first.startswith("worker cpu@")
    assert last.startswith("stopping")
    wait_for(lambda: _ours(server) == [])


def test_a_worker_that_is_stopped_puts_its_run_back_and_the_next_one_finishes_it(server: OwnServer) -> None:
    worker = _worker(server)
    run = _run("stopped")
    _started(server, "stopped")
    began = time.monotonic()
    out, err = _stop(worker)
    print(f"stop: {time.monotonic() - began:.1f} s")
    assert (worker.returncode, err) == (0, "")
    assert f"run {_read(run).name} is back in the queue" in out
    assert _ours(server) == []
    assert _state(run) == "AwaitingRetry"
    worker = _worker(server)
    wait_for(lambda: _state(run) == "Completed", 120)
    assert _read(run).run_count == 2
    _stop(worker)


@pytest.mark.parametrize("who", ["distilflow worker", "prefect worker"])
def test_a_killed_worker_takes_its_runs_along_and_the_next_one_finishes_them(server: OwnServer, who: str) -> None:
    mark = who.replace(" ", "-")
    worker = _worker(server)
    run = _run(mark)
    pid = _started(server, mark)
    if who == "distilflow worker":
        worker.kill()
    else:
        (victim,) = [p for p in named(_ours(server), "prefect --no-prompt worker") if "guardian" not in words(p)]
        victim.kill()
    worker.communicate(timeout=90)
    took = wait_for(lambda: not psutil.pid_exists(pid) and _ours(server) == [])
    print(f"SIGKILL of the {who}: its tree was gone after {took:.1f} s")
    if who == "prefect worker":
        assert worker.returncode == 75
    worker = _worker(server)
    wait_for(lambda: _state(run) == "Completed", 120)
    assert _read(run).run_count == 2
    _stop(worker)


def test_a_run_cancelled_while_its_worker_was_dead_is_cancelled_by_the_next(server: OwnServer) -> None:
    worker = _worker(server)
    run = _run("late")
    _started(server, "late")
    worker.kill()
    worker.communicate(timeout=90)
    assert _state(run) == "Running"
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling())
    worker = _worker(server)
    wait_for(lambda: _state(run) == "Cancelled", 120)
    out, _ = _stop(worker)
    assert f"run {_read(run).name} is cancelled" in out
    assert (server.home / "late.starts").read_text() == "started\n"


def test_a_run_that_ends_as_it_is_cancelled_is_cancelled(server: OwnServer) -> None:
    """Where no worker is quick enough to notice, Prefect leaves it in Cancelling."""
    run = _run("", "late/late")
    env = _env(server) | {"PREFECT__FLOW_RUN_ID": str(run)}
    subprocess.run([sys.executable, "-m", "prefect.engine"], check=True, env=env, capture_output=True, timeout=90)
    assert _state(run) == "Cancelled"


def test_a_second_worker_of_a_pool_and_a_missing_pool_are_refused_in_a_sentence(server: OwnServer) -> None:
    worker = _worker(server)
    assert worker.stdout is not None
    assert worker.stdout.readline().startswith("worker cpu@")
    second = _worker(server)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 78
    assert f"a worker of the pool 'cpu' runs here already (pid {worker.pid})" in err
    _stop(worker)
    with get_client(sync_client=True) as client:
        client.delete_work_pool("gpu")
    words = [sys.executable, "-m", "flows.commands.main", "worker", "gpu"]
    done = subprocess.run(words, env=_env(server), capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "has no work pool 'gpu': run `make bootstrap`" in done.stderr
