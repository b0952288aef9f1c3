"""Small flows that workers of the tests run: an engine under supervision, and a run that fails."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from uuid import UUID

import prefect.runtime
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from infra import settings
from infra.orchestration.remote_run import own_process
from infra.processes.supervise import guarded

# an engine like ours: ignores TERM, and has a child in a session of its own
_ENGINE = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)  # " + sys.argv[1]], start_new_session=True)
open(sys.argv[2], "a").write("started\\n")
time.sleep(3600)
"""


@flow(name="engine")
def engine(mark: str) -> str:
    """Starts an engine that works for an hour; on its second start it finds itself done."""
    own_process(str(prefect.runtime.flow_run.id))
    folder = settings.home()
    starts = folder / f"{mark}.starts"
    get_run_logger().info("in %s, home %s, bucket %s", Path.cwd(), folder, settings.bucket())
    if starts.exists():
        return "done by the run before"
    with guarded([sys.executable, "-c", _ENGINE, mark, str(starts)], folder / f"{mark}.log"):
        (folder / f"{mark}.pid").write_text(str(os.getpid()))
        try:
            time.sleep(3600)
        finally:
            get_run_logger().info("on its way out")  # to whoever reads it, if anybody is left
    return "done"


@flow(name="distill", flow_run_name="{student}-from-{teacher}")
def failing(student: str = "small", teacher: str = "large") -> None:
    raise ValueError("the seeds are empty")


@flow(name="late")
def late() -> str:
    """Is cancelled, and done."""
    run_id = str(prefect.runtime.flow_run.id)
    own_process(run_id)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run_id), Cancelling())
    return "done"
