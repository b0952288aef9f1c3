"""A real server of vLLM with the demo's teacher, on this machine's CPU."""

from __future__ import annotations

import contextlib
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from infra.processes.environment import for_engine
from infra.processes.supervise import guarded
from infra.processes.vllm_environment import vllm_environment
from infra.services.server import free_ports
from tasks.shipped import MODELS
from tests.support.wait import wait_for

_SERVE = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")  # `vllm serve` asks for a package called vllm
_ON_A_CPU = ("--host=127.0.0.1", "--dtype=float32", "--enforce-eager", "--gpu-memory-utilization=0.3")
_START_S = 400.0  # three processes import it, one after the other


@contextlib.contextmanager
def vllm_serve(home: Path, *options: str, key: str = "") -> Iterator[str]:
    """Its address, for the length of the `with`; `options` are those of `vllm serve`."""
    (port,) = free_ports(1)
    command = [*_SERVE, f"--model={MODELS['teacher']['demo']}", f"--port={port}", *_ON_A_CPU, *options]
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_API_KEY": key}
    with guarded(command, home / f"vllm-{port}.log", {**for_engine(), **vllm_environment(), **own}) as process:
        wait_for(lambda: _answers(port), _START_S, [process])
        yield f"http://127.0.0.1:{port}"


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
