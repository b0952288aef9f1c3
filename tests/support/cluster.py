"""A small production: services as `make up` keeps them, bootstrapped, one worker a pool; every part can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from infra.orchestration.prefect_client import talking_to
from infra.services import embedded
from infra.services.server import free_ports, wait_until_gone
from infra.services.start import kept
from tests.support.prefect_database import give
from tests.support.processes import named, of_home
from tests.support.wait import wait_for

SMALL: dict[str, Any] = {
    "sft": {"max_steps": 20},
    "kd": {"max_steps": 20},
    "evaluation": {"max_rows": 400},
    "augmentation": {"expansions_per_seed": 1, "max_rows": 200},
    "run": {"checkpoint_every_s": 0.1},
}
ENGINES = ("tasks.train.program", "tasks.logits.program", "tasks.evaluate.heldout.program", "EngineCore", "llm_server")


class Cluster:
    """Servers under `home`, workers under way. Its address is in this process's environment."""

    def __init__(self, home: Path):
        self.home = home
        self.port = free_ports(1)[0]
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def start_servers(self) -> None:
        """Start those that do not run."""
        self._cli("up", f"--port={self.port}")

    def bootstrap(self, gpus: int | None = None) -> str:
        return self._cli("bootstrap", *([f"--gpus={gpus}"] if gpus else []))

    def start_worker(self, pool: str, bucket: str = "distilflow") -> None:
        env = {**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1", "DISTILFLOW_BUCKET": bucket}
        words = [sys.executable, "-m", "flows.commands.main", "worker", pool]
        with (self.home / f"{pool}-worker.log").open("ab") as log:  # a pipe that nobody reads stops it when it is full
            self.workers[pool] = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=env)

    def kill_worker(self, pool: str) -> None:
        """SIGKILL to `distilflow worker`."""
        self.workers[pool].kill()
        self.workers[pool].wait()

    def stop_workers(self) -> None:
        for worker in self.workers.values():
            worker.terminate()
        for worker in self.workers.values():
            worker.wait(timeout=90)
        self.workers = {}

    def kill_server(self, name: str) -> None:
        """SIGKILL to SeaweedFS or the Prefect server."""
        guardian = kept(self.home)[name][0]
        below = guardian.children(recursive=True)
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until_gone([guardian, *below], 30)

    def run(self, deployment: str, **parameters: Any) -> UUID:
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def read(self, run: UUID) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(run)

    def cancel(self, run: UUID) -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Cancelling())

    def wait_for_end(self, run: UUID, timeout_s: float = 600.0) -> str:
        """The name of its final state."""
        name = ""

        def is_over() -> bool:
            nonlocal name
            state = self.read(run).state
            name = str(state.name) if state else ""
            return bool(state and state.is_final())

        wait_for(is_over, timeout_s)
        return name

    def stages(self) -> list[FlowRun]:
        """The runs of the flow `stage`, the oldest first."""
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["stage"])), limit=200)
        return sorted(runs, key=lambda run: str(run.created))

    def engines(self) -> list[psutil.Process]:
        """Engines of this home, orphans included."""
        return named(self.processes(), *ENGINES)

    def flows(self, pool: str) -> list[psutil.Process]:
        """The processes of flow runs that a pool's worker has started."""
        family = psutil.Process(self.workers[pool].pid).children(recursive=True)
        return named(family, "prefect.engine", "flow-run")

    def processes(self) -> list[psutil.Process]:
        return of_home(self.home)

    def _cli(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.commands.main", *words], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@contextlib.contextmanager
def cluster(home: Path, database: Path | None = None) -> Iterator[Cluster]:
    """Servers (Prefect on the database), pools, deployments and both workers, for the length of the `with`."""
    before = dict(os.environ)
    os.environ["DISTILFLOW_HOME"] = str(home)
    for name in ("AWS_ENDPOINT_URL_S3", "PREFECT_API_URL"):
        os.environ.pop(name, None)
    running = Cluster(home)
    if database is not None:
        give(home, database)
    try:
        running.start_servers()
        with embedded.lasting_services(), talking_to():
            running.bootstrap()
            for pool in ("cpu", "gpu"):
                running.start_worker(pool)
            yield running
            running.stop_workers()
    finally:
        for process in running.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        os.environ.clear()
        os.environ.update(before)


def stage_of(run: FlowRun) -> str:
    """sft, logits, …: which stage a run of the flow `stage` does."""
    (stage,) = (tag.removeprefix("stage:") for tag in run.tags if tag.startswith("stage:"))
    return stage


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
