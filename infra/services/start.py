"""Starting SeaweedFS and a Prefect server on this machine, and which of them `up` keeps running.

All state is under `settings.home()`: data, logs, and `services.json` (what `up` started).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from infra import settings
from infra.errors import TransientError, disk_full
from infra.files import write_whole
from infra.services import prefect_server, seaweedfs
from infra.services.server import Server, ServerDiedError, find_process, is_identity, wait_until_ready

KINDS = {seaweedfs.NAME: seaweedfs, prefect_server.NAME: prefect_server}
_START_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 30.0
_ATTEMPTS = 3

Spawn = Callable[[Server], "subprocess.Popen[bytes]"]


def start(
    home: Path, names: set[str], spawn: Spawn, ports: Mapping[str, Callable[[], list[int]]] | None = None
) -> dict[str, Server]:
    """Start servers side by side and wait for each; one that dies at once gets another try on other ports."""
    if not names:
        return {}
    (home / "logs").mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(home).free < settings.min_free_mib() << 20:
        raise disk_full(home)

    def launch(name: str) -> tuple[Server, psutil.Process]:
        chosen = ports[name]() if ports and name in ports else KINDS[name].ports(home)
        server = KINDS[name].server(home, chosen)
        server.log.unlink(missing_ok=True)
        return server, psutil.Process(spawn(server).pid)

    running = {name: launch(name) for name in sorted(names)}
    for name in running:
        for attempt in range(1, _ATTEMPTS + 1):
            server, process = running[name]
            try:
                wait_until_ready(server, process, _START_TIMEOUT_S)
                break
            except ServerDiedError as error:
                if attempt == _ATTEMPTS:
                    tail = "\n".join(server.log.read_text(errors="replace").splitlines()[-5:])
                    raise TransientError(f"{name} ended while starting; its log: {server.log}\n{tail}") from error
            running[name] = launch(name)
    return {name: server for name, (server, _) in running.items()}


def answering(process: psutil.Process, server: Server) -> Server:
    try:
        wait_until_ready(server, process, _ANSWER_TIMEOUT_S)
    except (ServerDiedError, TransientError) as error:
        raise TransientError(
            f"{server.name} from `make up` (pid {process.pid}) does not answer: run `make down`, then `make up`; "
            f"its log: {server.log}"
        ) from error
    return server


@contextlib.contextmanager
def environment(servers: Mapping[str, Server]) -> Iterator[None]:
    """Set what clients of these servers need; put back what was there."""
    changes: dict[str, str | None] = {}
    for server in servers.values():
        no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        direct = ",".join(filter(None, [no_proxy, "127.0.0.1"]))
        changes |= {**server.client_env, "no_proxy": direct, "NO_PROXY": direct}
    before = {name: os.environ.get(name) for name in changes}
    _set_environment(changes)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def kept(home: Path) -> dict[str, tuple[psutil.Process, Server]]:
    """The services of `services.json` that are still the processes they were."""
    return {
        name: (process, KINDS[name].server(home, entry["ports"]))
        for name, entry in read_state(home).items()
        if (process := find_process(entry))
    }


def read_state(home: Path) -> dict[str, Any]:
    """What `up` wrote down. What cannot be read was half written: the machine crashed, and the services with it."""
    try:
        state = json.loads((home / "services.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    known = state.items() if isinstance(state, dict) else ()
    return {name: entry for name, entry in known if name in KINDS and is_identity(entry) and _has_ports(entry)}


def _has_ports(entry: Mapping[str, Any]) -> bool:
    ports = entry.get("ports")
    return isinstance(ports, list) and bool(ports) and all(isinstance(port, int) for port in ports)


def write_state(home: Path, state: dict[str, Any]) -> None:
    path = home / "services.json"
    if not state:
        path.unlink(missing_ok=True)
        return
    write_whole(path, json.dumps(state, indent=1))
