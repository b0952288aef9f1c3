"""Starts the ranks of one machine, and ends with the first that fails.

`python -m tasks.train.launch.local RANKS PORT MODULE FOLDER`. What DeepSpeed's launcher does on one node, without the
three seconds in which it imports all of DeepSpeed: the guardian above ends whatever is left. Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from infra.errors import ConfigurationError

ADDRESS = "127.0.0.1"


def command(ranks: int, port: int, module: str) -> list[str]:
    """What starts them; the folder is to be added. ConfigurationError where fewer GPUs are visible than ranks."""
    visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device.strip()]
    if 0 < len(visible) < ranks:
        raise ConfigurationError(
            f"{ranks} ranks, and CUDA_VISIBLE_DEVICES names {len(visible)} GPUs: name more, or set run.processes"
        )
    return [sys.executable, "-m", __name__, str(ranks), str(port), module]


def place(rank: int, ranks: int, port: int) -> Mapping[str, str]:
    """What torch and DeepSpeed read from the environment of a rank: it listens to this machine alone."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "MASTER_ADDR": ADDRESS,
        "MASTER_PORT": str(port),
        **{name: os.environ.get(name) or "lo" for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")},
    }


def main(ranks: int, port: int, command: list[str]) -> int:
    """Run the command `ranks` times; the exit code of the first that fails, or 0 when all are done."""
    running = {}
    for rank in range(ranks):
        process = subprocess.Popen(command, env={**os.environ, **place(rank, ranks, port)})
        running[process.pid] = process
    while running:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        if running.pop(pid, None) and code != 0:
            return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(
        main(int(sys.argv[1]), int(sys.argv[2]), [sys.executable, "-u", "-m", "infra.processes.program", *sys.argv[3:]])
    )
