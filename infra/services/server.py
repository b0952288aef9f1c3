"""A server program on this machine: what to run, and when it is ready. Used by `infra.services.embedded` only."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from infra.errors import TransientError
from infra.processes.guardian import is_alive

# Below what Linux (32768) and macOS (49152) hand out as ephemeral: nobody gets a port of ours by accident.
_PORTS = range(20_000, 32_000)
_POLL_S = 0.1


@dataclass(frozen=True)
class Server:
    """One server that can be started.

    `ports[0]` is the one that clients use; `env` is all that it is told; `answers` says whether the server does
    its work by now; `client_env` is what a client needs (None: unset); `leftovers` are files outside its folder
    that it leaves when it is killed.
    """

    name: str
    url: str
    ports: list[int]
    command: list[str]
    env: dict[str, str]
    log: Path
    grace_s: float
    answers: Callable[[], bool]
    client_env: dict[str, str | None]
    leftovers: tuple[Path, ...] = ()

    def remove_leftovers(self) -> None:
        for path in self.leftovers:
            path.unlink(missing_ok=True)


class ServerDiedError(Exception):
    """The server ended before it was ready."""


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def secret_file(path: Path) -> str:
    """The secret in a file that the user alone can read; made where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(secrets.token_urlsafe(32))
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)  # of two that start at a moment, one's is taken
        partial.unlink()
    return path.read_text()


def free_ports(count: int, preferred: int | None = None) -> list[int]:
    """Neighbouring free ports, those from `preferred` on where they are free."""
    draw = random.SystemRandom()  # the global generator belongs to the user's seed
    firsts = draw.sample(_PORTS[:-count], 100)
    for first in firsts if preferred is None else [preferred, *firsts]:
        ports = list(range(first, first + count))
        if all(is_free(port) for port in ports):
            return ports
    raise TransientError(f"no {count} free neighbouring ports between {_PORTS.start} and {_PORTS.stop}")


def identity(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What to write down to find a process again."""
    return {"pid": process.pid, "command": process.args}


def is_identity(value: Any) -> bool:
    """Whether it is what `identity` writes: files can be damaged."""
    return isinstance(value, dict) and isinstance(value.get("pid"), int) and isinstance(value.get("command"), list)


def find_process(identity: Mapping[str, Any]) -> psutil.Process | None:
    """The process, unless it ended or its pid is another's by now."""
    try:
        process = psutil.Process(identity["pid"])
        return process if is_alive(process) and process.cmdline() == identity["command"] else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def wait_until_gone(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that are still there after the timeout."""
    deadline = time.monotonic() + timeout_s
    while (alive := [p for p in processes if is_alive(p)]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return alive


def wait_until_ready(server: Server, process: psutil.Process, timeout_s: float) -> None:
    """Wait for a server that runs below `process`; raises ServerDiedError or TransientError.

    That it listens itself is part of it: another server of the same kind may have taken the port first.
    """
    deadline = time.monotonic() + timeout_s
    while is_alive(process):
        if _listens(process, server.ports[0]) and server.answers():
            return
        if time.monotonic() > deadline:
            raise TransientError(f"{server.name} was not ready within {timeout_s:.0f} s; its log: {server.log}")
        time.sleep(_POLL_S)
    raise ServerDiedError


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        family = [process, *process.children(recursive=True)]
        sockets = [s for member in family for s in member.net_connections("tcp")]
    except psutil.NoSuchProcess:
        return False
    return any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets)
