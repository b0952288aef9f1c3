"""Storage and orchestration on one machine: SeaweedFS and a Prefect server that start by themselves.

A run takes what the environment names (`AWS_ENDPOINT_URL_S3`, `PREFECT_API_URL`), else what `up` keeps
running, else it starts its own for as long as it lasts, under a guardian, so that nothing outlives it.
All state is under `settings.home()`: data, logs, `services.json` (what `up` started), and `services.lock`
(which run holds the data).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from infra import guardian, prefect_server, seaweedfs, settings
from infra.errors import ConfigurationError, TransientError, disk_full
from infra.local_server import (
    Server,
    ServerDiedError,
    find_process,
    free_ports,
    identity,
    is_free,
    wait_until_gone,
    wait_until_ready,
)
from infra.processes import guarded
from infra.run_lock import add_guardian, exclusive

_KINDS = {seaweedfs.NAME: seaweedfs, prefect_server.NAME: prefect_server}
_VARIABLES = {seaweedfs.NAME: "AWS_ENDPOINT_URL_S3", prefect_server.NAME: "PREFECT_API_URL"}
_START_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 15.0
_ATTEMPTS = 3

Spawn = Callable[[Server], "subprocess.Popen[bytes]"]


@dataclass(frozen=True)
class Services:
    """Where the services of this run are, and which of them this call started."""

    s3_endpoint: str
    prefect_api_url: str
    prefect_ui_url: str
    started: tuple[str, ...]


@contextlib.contextmanager
def embedded_services() -> Iterator[Services]:
    """Services for the length of the `with`, in the environment variables that boto3 and Prefect read.

    Enter it before anything imports Prefect, which reads its settings once. Raises ConfigurationError where
    a program is missing or another run holds the data, TransientError where a server does not get ready.
    """
    with _embedded(_not_in_environment()) as (servers, started):
        yield _services(servers, started)


@contextlib.contextmanager
def lasting_services(*names: str) -> Iterator[None]:
    """Services (all, or the named ones) that outlive this process: the environment's, else those of `up`.

    Raises ConfigurationError where there are none: what is started for a moment is of no use to others.
    """
    kept = _kept(settings.home())
    wanted = _not_in_environment() & set(names or _KINDS)
    if missing := sorted(wanted - kept.keys()):
        variables = " and ".join(_VARIABLES[name] for name in missing)
        raise ConfigurationError(f"no {' and no '.join(missing)} is running: run `make up`, or set {variables}")
    with _environment({name: _answering(*kept[name]) for name in sorted(wanted)}):
        yield


@contextlib.contextmanager
def embedded_storage() -> Iterator[None]:
    """Storage alone, in the same way."""
    with _embedded(_not_in_environment() & {seaweedfs.NAME}):
        yield


@contextlib.contextmanager
def _embedded(wanted: set[str]) -> Iterator[tuple[dict[str, Server], dict[str, Server]]]:
    home = settings.home()
    with contextlib.ExitStack() as stack:
        kept = _kept(home)
        started: dict[str, Server] = {}
        if not wanted <= kept.keys():
            lock = stack.enter_context(exclusive(home))
            kept = _kept(home)

            def spawn(server: Server) -> subprocess.Popen[bytes]:
                stack.callback(server.remove_leftovers)
                process = stack.enter_context(guarded(server.command, server.log, server.env, server.grace_s))
                add_guardian(lock, process)
                return process

            started = _start(home, wanted - kept.keys(), spawn)
            stack.callback(prefect_server.flush_client)
        servers = started | {name: _answering(*found) for name, found in kept.items() if name in wanted}
        stack.enter_context(_environment(servers))
        yield servers, started


def up(port: int | None = None) -> Services:
    """Start both services and leave them running; says where they are. `port` is for Prefect's UI."""
    home = settings.home()
    with exclusive(home):
        kept = _kept(home)
        _check_port(port, kept)
        servers = {name: _answering(*found) for name, found in kept.items()}
        spawned: list[Server] = []

        def spawn(server: Server) -> subprocess.Popen[bytes]:
            spawned.append(server)
            return _spawn_kept(home, server)

        def ui_port() -> list[int]:
            return [port] if port else free_ports(1, preferred=prefect_server.USUAL_PORT)

        try:
            started = _start(home, _KINDS.keys() - servers.keys(), spawn, {prefect_server.NAME: ui_port})
        except BaseException:
            _stop(home, {server.name for server in spawned})
            raise
    services = _services(servers | started, started)
    _print(services)
    return services


def down() -> None:
    """Stop what `up` started and wait until it is gone."""
    stopped = _stop(settings.home(), set(_KINDS))
    print(f"stopped {' and '.join(sorted(stopped))}" if stopped else "no services are running")


def status() -> Services | None:
    """Where the services are that `up` started, or None; says so."""
    kept = _kept(settings.home())
    if kept.keys() != _KINDS.keys():
        print("no services are running: `make up` starts them")
        return None
    services = _services({name: _answering(*found) for name, found in kept.items()}, {})
    _print(services)
    return services


def _not_in_environment() -> set[str]:
    named = {
        seaweedfs.NAME: settings.s3_endpoint(),
        prefect_server.NAME: os.environ.get("PREFECT_API_URL"),
    }
    return {name for name, url in named.items() if not url}


def _services(servers: Mapping[str, Server], started: Mapping[str, Server]) -> Services:
    s3 = servers.get(seaweedfs.NAME)
    prefect = servers.get(prefect_server.NAME)
    api_url = prefect.url if prefect else os.environ["PREFECT_API_URL"]
    return Services(
        s3_endpoint=s3.url if s3 else str(settings.s3_endpoint()),
        prefect_api_url=api_url,
        prefect_ui_url=prefect_server.ui_url(api_url),
        started=tuple(sorted(started)),
    )


def _print(services: Services) -> None:
    print(f"Prefect UI:  {services.prefect_ui_url}")
    print(f"S3 endpoint: {services.s3_endpoint}")


# Starting


def _start(
    home: Path, names: set[str], spawn: Spawn, ports: Mapping[str, Callable[[], list[int]]] | None = None
) -> dict[str, Server]:
    """Start servers side by side and wait for each; one that dies at once gets another try on other ports."""
    if not names:
        return {}
    (home / "logs").mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(home).free < settings.min_free_mib() << 20:
        raise disk_full(home)

    def launch(name: str) -> tuple[Server, psutil.Process]:
        chosen = ports[name]() if ports and name in ports else _KINDS[name].ports(home)
        server = _KINDS[name].server(home, chosen)
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


def _answering(process: psutil.Process, server: Server) -> Server:
    try:
        wait_until_ready(server, process, _ANSWER_TIMEOUT_S)
    except (ServerDiedError, TransientError) as error:
        raise TransientError(
            f"{server.name} from `make up` (pid {process.pid}) does not answer: run `make down`, then `make up`; "
            f"its log: {server.log}"
        ) from error
    return server


def _check_port(port: int | None, kept: Mapping[str, tuple[psutil.Process, Server]]) -> None:
    if port is None:
        return
    if prefect_server.NAME in kept:
        current = kept[prefect_server.NAME][1].ports[0]
        if port != current:
            raise ConfigurationError(f"Prefect is up on port {current}: run `make down` first to move it")
    elif not 1024 <= port <= 65535:
        raise ConfigurationError(f"port {port} cannot be used: choose one between 1024 and 65535")
    elif not is_free(port):
        raise ConfigurationError(f"port {port} is taken: another program listens on 127.0.0.1; choose another")


@contextlib.contextmanager
def _environment(servers: Mapping[str, Server]) -> Iterator[None]:
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


# What `up` keeps running


def _spawn_kept(home: Path, server: Server) -> subprocess.Popen[bytes]:
    """Start under a guardian that does not watch us, and write down that we did."""
    with server.log.open("ab") as log:
        process = subprocess.Popen(
            # -P: the guardian needs none of its neighbours, and they must not shadow what it imports
            [sys.executable, "-P", guardian.__file__, "--grace", str(server.grace_s), "--", *server.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **server.env},
            start_new_session=True,
        )
    _write_state(home, {**_read_state(home), server.name: {**identity(process), "ports": server.ports}})
    return process


def _kept(home: Path) -> dict[str, tuple[psutil.Process, Server]]:
    """The services of `services.json` that are still the processes they were."""
    return {
        name: (process, _KINDS[name].server(home, entry["ports"]))
        for name, entry in _read_state(home).items()
        if (process := find_process(entry))
    }


def _stop(home: Path, names: set[str]) -> set[str]:
    kept = {name: found for name, found in _kept(home).items() if name in names}
    for process, _ in kept.values():
        process.terminate()
    for process in wait_until_gone([process for process, _ in kept.values()], _STOP_TIMEOUT_S):
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in [*process.children(recursive=True), process]:
                member.kill()
    for _, server in kept.values():
        server.remove_leftovers()
    _write_state(home, {name: entry for name, entry in _read_state(home).items() if name not in names})
    return set(kept)


def _read_state(home: Path) -> dict[str, Any]:
    try:
        return json.loads((home / "services.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # half written: the machine crashed, and the services with it
        return {}


def _write_state(home: Path, state: dict[str, Any]) -> None:
    path = home / "services.json"
    if not state:
        path.unlink(missing_ok=True)
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(state, indent=1))
    partial.rename(path)
