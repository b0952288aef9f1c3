"""`distilflow worker`: a Prefect process worker of this machine, whose runs do not outlive it and are not lost.

One of the few files in `infra` that import Prefect. Prefect's worker (3.7) forgets its runs when it dies: their
processes go on as orphans that no worker can cancel, and after a kill the server shows them as running for ever.
Here the worker runs under a guardian, which ends the whole tree with it; and what a worker of this name did not
finish, however it ended, goes back to the queue, where the next one finds it and continues from what is finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import AwaitingRetry, Cancelled, Crashed

from infra import settings
from infra.errors import ConfigurationError, TransientError
from infra.orchestration.limits import answering
from infra.printable import printable
from infra.processes.environment import for_flow
from infra.processes.supervise import guarded
from infra.services import prefect_server
from infra.services.server import find_process, identity, wait_until_gone

MAX_TRIES = 5
_GRACE_S = 20.0  # for flows to end their engines, upload logs, and give back their slots
_POLL_S = 0.2
_UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def run_worker(pool: str, limit: int | None) -> None:
    """Work for a pool until TERM or Ctrl-C; raises TransientError where Prefect's worker ends by itself."""
    stopped = _on_signals()
    with _only_one(pool) as lock:
        name = worker_name(pool)
        with answering(), get_client(sync_client=True) as client:
            _check_pool(client, pool)
            for line in return_runs(client, pool, name):
                print(printable(line), flush=True)
        log = settings.home() / "logs" / f"worker-{pool}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start"]
        command += ["--pool", pool, "--name", name, "--type", "process"]
        command += ["--limit", str(limit)] if limit else []
        with guarded(command, log, for_flow() | _environment(), _GRACE_S, kill_first=True) as process:
            lock.write(json.dumps(identity(process)) + "\n")
            lock.flush()
            ui = prefect_server.ui_url(str(PREFECT_API_URL.value()))
            print(f"worker {name} takes runs of the pool {pool} ({ui}); its log: {log}", flush=True)
            while process.poll() is None and not stopped:
                time.sleep(_POLL_S)
            if stopped:
                print("stopping: runs under way end, and go back to the queue", flush=True)
                _stop(process, pool, name)
        with answering(), get_client(sync_client=True) as client:
            for line in return_runs(client, pool, name):
                print(printable(line), flush=True)
    if not stopped:
        raise TransientError(f"the Prefect worker {name} ended with exit code {process.returncode}; its log: {log}")


def worker_name(pool: str) -> str:
    """The same at every start on this machine and home: by it a worker knows the runs of the one before."""
    return f"{pool}@{socket.gethostname()}-{zlib.crc32(str(settings.home()).encode()):08x}"


def return_runs(client: SyncPrefectClient, pool: str, name: str) -> Iterator[str]:
    """Put what a dead worker of this name left unfinished back in the queue; yields a line for each run.

    A run that was being cancelled is cancelled now. One whose worker ended each of `MAX_TRIES` times is crashed:
    it may be what ends them.
    """
    for run in unfinished(client, pool, name):
        assert run.state is not None
        if run.state.type == StateType.CANCELLING:
            state: Any = Cancelled(message="It was being cancelled when its worker ended.")
            what = "is cancelled"
        elif run.run_count >= MAX_TRIES:
            state = Crashed(message=f"Its worker ended in each of {run.run_count} tries: look at the worker's log.")
            what = f"has failed: its worker ended in each of {run.run_count} tries"
        else:
            state = AwaitingRetry(message="Its worker ended; the next one continues from what is finished.")
            what = "is back in the queue"
        client.set_flow_run_state(run.id, state, force=True)
        yield f"run {run.name} {what}"


def unfinished(client: SyncPrefectClient, pool: str, name: str) -> list[FlowRun]:
    """Runs that a worker took and that have not ended."""
    found: list[FlowRun] = []
    offset = 0
    while page := client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": _UNFINISHED}}}),
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
        limit=200,
        offset=offset,
    ):
        offset += len(page)
        found += [run for run in page if run.labels.get("prefect.worker.name") == name]
    return found


def _stop(process: subprocess.Popen[bytes], pool: str, name: str) -> None:
    """Let an idle worker sign off. One with runs would report them as crashed: it is left to its guardian's KILL."""
    with contextlib.suppress(psutil.NoSuchProcess, subprocess.TimeoutExpired, httpx.HTTPError):
        with get_client(sync_client=True) as client:
            if unfinished(client, pool, name):
                return
        for worker in psutil.Process(process.pid).children():
            worker.send_signal(signal.SIGINT)
        process.wait(_GRACE_S)


def _environment() -> dict[str, str]:
    """For the worker and its flows, which run in temporary folders."""
    return {
        "DISTILFLOW_HOME": str(settings.home()),
        "DISTILFLOW_BUCKET": settings.bucket(),
        "DISTILFLOW_CONSOLE": "0",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "NO_COLOR": "1",
        # on TERM from our guardian a run stays unfinished, for the next worker to return, and is not told as crashed
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
    }


def _check_pool(client: SyncPrefectClient, pool: str) -> None:
    try:
        kind = client.read_work_pool(pool).type
    except ObjectNotFound as error:
        raise ConfigurationError(
            f"the Prefect server at {PREFECT_API_URL.value()} has no work pool {pool!r}: run `make bootstrap`"
        ) from error
    if kind != "process":
        raise ConfigurationError(f"the work pool {pool!r} is of type {kind!r}, and this worker starts processes")


@contextlib.contextmanager
def _only_one(pool: str) -> Iterator[IO[str]]:
    """One worker a pool and home: a second would take the first one's runs for lost.

    Of one that was killed, the processes are waited for: its guardian is ending them.
    """
    path = _lock(pool)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"a worker of the pool {pool!r} runs here already (pid {lock.readline().strip()}): "
                "it takes several runs at a time, bounded by --limit and the pool's limit"
            ) from error
        before = [find_process(json.loads(line)) for line in lock.readlines()[1:] if line.endswith("}\n")]
        if wait_until_gone([process for process in before if process], _GRACE_S + 10):
            raise TransientError(f"processes of the last worker of the pool {pool!r} do not end: run it again")
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield lock


def _lock(pool: str) -> Path:
    return settings.home() / f"worker-{pool}.lock"


def _on_signals() -> list[int]:
    """A list that a TERM or Ctrl-C ends up in."""
    received: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, note)
    return received
