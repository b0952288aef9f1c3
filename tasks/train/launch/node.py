"""What DeepSpeed's runner starts on every node of a hostfile: the training program, with its spec brought there.

    python -m tasks.train.launch.node s3://…/launch/ID.json NAME=VALUE … FOLDER

FOLDER is the first node's. The other nodes share no folder with it: they take the spec from the workspace, into a
folder of their own. NAME=VALUE says where storage is, unless the node's environment knows better.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from infra import settings
from infra.errors import ConfigurationError
from infra.files import write_whole
from infra.processes.supervise import owner_of, remove_folders_of_the_dead
from infra.store import storage
from tasks.train.launch.nodes import PROGRAM, Launch, environment

# where Open MPI says a rank's place; DeepSpeed's own launcher says it as torch wants it
_PLACES = {"RANK": "OMPI_COMM_WORLD_RANK", "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK"}


def main(uri: str, variables: list[str], folder: Path) -> None:
    """Run this rank."""
    for pair in variables:
        name, _, value = pair.partition("=")
        os.environ.setdefault(name, value)
    announced = _announced(uri)
    launch = Launch(**announced["launch"])
    set_place(launch)
    if os.environ["RANK"] == os.environ["LOCAL_RANK"]:
        threading.Thread(target=_end_with, args=[folder], daemon=True).start()
    else:
        folder = _own_folder(launch.id, announced["spec"])
    sys.argv = [PROGRAM, str(folder)]
    runpy.run_module(PROGRAM, run_name="__main__")


def set_place(launch: Launch) -> None:
    """Set what torch and DeepSpeed want to know of a rank, where the launcher did not."""
    for name, other in _PLACES.items():
        if name not in os.environ:
            os.environ[name] = os.environ[other]
    known = {
        "WORLD_SIZE": launch.ranks,
        "LOCAL_SIZE": launch.on_node,
        "MASTER_ADDR": launch.address,
        "MASTER_PORT": launch.port,
        **environment(launch.on_node),
    }
    for name, value in known.items():
        os.environ.setdefault(name, str(value))


def _announced(uri: str) -> dict[str, Any]:
    data = storage.get(uri)
    if data is None:
        raise ConfigurationError(f"{socket.gethostname()} does not find {uri}: every node has to see the same storage")
    found: dict[str, Any] = json.loads(data)
    return found


def _own_folder(launch_id: str, spec: dict[str, Any]) -> Path:
    """The same for all ranks of this node, which have one parent; named so that the next one removes it."""
    work = settings.work_dir() / "nodes" / socket.gethostname()
    work.mkdir(parents=True, exist_ok=True)
    remove_folders_of_the_dead(work)
    folder = work / f"node-{os.getppid()}-{launch_id}"
    folder.mkdir(exist_ok=True)
    write_whole(folder / "spec.json", json.dumps(spec))
    return folder


def _end_with(folder: Path) -> None:
    """End this rank, and the others with it, when the process that supervises the run is gone or gave it up.

    A rank that was started through ssh is in no tree that the supervisor could end.
    """
    while folder.exists() and psutil.pid_exists(owner_of(folder) or 0):
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:-1], Path(sys.argv[-1]))
