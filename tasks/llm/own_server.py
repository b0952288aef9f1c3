"""Runs a server of ours (`tasks.shipped.LLMS`) for as long as a stage needs it."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from infra import settings
from infra.errors import TransientError
from infra.processes.environment import for_server
from infra.processes.supervise import guarded
from tasks.llm.protocol import LLMEndpoint
from tasks.shipped import LLMS

_START_TIMEOUT_S = 60.0


@contextlib.contextmanager
def serving(name: str) -> Iterator[LLMEndpoint]:
    """The LLM that is shipped under this name, for the length of the `with`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = settings.home() / "logs" / f"{name}-llm.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", LLMS[name].module, "--port", str(port)]
    with guarded(command, log, for_server()) as process:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TransientError(f"the {name} LLM server did not start; log: {log}")
            time.sleep(0.1)
        yield LLMEndpoint(LLMS[name].model, f"http://127.0.0.1:{port}/v1", name)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
