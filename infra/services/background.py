"""`up`, `down` and `status`: services that stay when the command has ended."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from infra import settings
from infra.errors import ConfigurationError, DistilflowError
from infra.processes import guardian
from infra.services import prefect_server
from infra.services.embedded import Services, described
from infra.services.lock import exclusive, workers_at_work
from infra.services.server import Server, free_ports, identity, is_free, wait_until_gone
from infra.services.start import KINDS, answering, environment, kept, read_state, start, write_state

_STOP_TIMEOUT_S = 15.0
_NAMED = 5  # runs
_PREFECT_TOML = "prefect.toml"  # which Prefect reads in the folder that it is started in
_OURS = "# written by `distilflow up`, removed by `distilflow down`"


def up(port: int | None = None) -> Services:
    """Start both services and leave them running; says where they are. `port` is for Prefect's UI."""
    home = settings.home()
    with exclusive(home):
        running = kept(home)
        _check_port(port, running)
        servers = {name: answering(*found) for name, found in running.items()}
        spawned: list[Server] = []

        def spawn(server: Server) -> subprocess.Popen[bytes]:
            spawned.append(server)
            return _spawn_kept(home, server)

        def ui_port() -> list[int]:
            return [port] if port else free_ports(1, preferred=prefect_server.USUAL_PORT)

        try:
            started = start(home, KINDS.keys() - servers.keys(), spawn, {prefect_server.NAME: ui_port})
        except BaseException:
            _stop(home, {server.name for server in spawned})
            raise
    services = described(servers | started, started)
    _print(services)
    if prefect_server.NAME in started:
        print(f"Password:    {prefect_server.password(home)} (a browser is asked for it once)")
    _tell_prefect(services, home)
    return services


def down(*, now: bool = False) -> None:
    """Stop what `up` started and wait until it is gone.

    Raises ConfigurationError where runs are under way or workers run, unless it is to be `now`.
    """
    if not now and (at_work := _at_work(settings.home())):
        raise ConfigurationError(
            f"{at_work}: wait for the runs and end the workers (Ctrl-C) first, or stop all the same by "
            "`distilflow down --now`, which runs under way do not survive; what is finished is kept"
        )
    stopped = _stop(settings.home(), set(KINDS))
    if _is_ours(config := settings.home().parent / _PREFECT_TOML):
        config.unlink()
    print(f"stopped {' and '.join(sorted(stopped))}" if stopped else "no services are running")


def _at_work(home: Path) -> str:
    """Runs that are under way on our services, and workers of this home, in words."""
    running = kept(home)
    runs = _runs({name: server for name, (_, server) in running.items()})
    sentence = f"{len(runs)} runs are under way ({_some(runs)})" if len(runs) > 1 else f"{_some(runs)} is under way"
    workers = [f"worker {pool} (pid {pid})" for pool, pid in workers_at_work(home).items()] if running else []
    at_work = f"{' and '.join(workers)} run{'s' * (len(workers) == 1)}"
    return ", and ".join([sentence] * bool(runs) + [at_work] * bool(workers))


def _runs(servers: Mapping[str, Server]) -> list[str]:
    """Names of the runs under way, without those that were killed, which Prefect shows as running for ever."""
    shown = prefect_server.under_way(servers[prefect_server.NAME]) if prefect_server.NAME in servers else {}
    if not shown:
        return []
    from infra.store.claims import run_is_dead  # which takes boto3 to ask

    with environment(servers):
        try:
            return [name for run, name in shown.items() if not run_is_dead(run)]
        except DistilflowError:  # storage does not answer: Prefect's word has to do
            return list(shown.values())


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + " …" * (len(names) > _NAMED)


def status() -> Services | None:
    """Where the services are that `up` started, or None; says so."""
    running = kept(settings.home())
    if running.keys() != KINDS.keys():
        print("no services are running: `make up` starts them")
        return None
    services = described({name: answering(*found) for name, found in running.items()}, {})
    _print(services)
    return services


def _tell_prefect(services: Services, home: Path) -> None:
    """Let plain `prefect` beside the home talk to the server, unless somebody has told it otherwise."""
    config, file = home.parent / _PREFECT_TOML, prefect_server.password_file(home)
    print(f"To use `prefect` elsewhere: export PREFECT_API_URL={services.prefect_api_url}")
    print(f"                            export PREFECT_API_AUTH_STRING=$(cat {shlex.quote(str(file))})")
    if config.exists() and not _is_ours(config):
        print(f"{config} is yours, and stays: `prefect` in that folder does what it says")
        return
    url, password = services.prefect_api_url, prefect_server.password(home)
    with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(f'{_OURS}\n[api]\nurl = "{url}"\nauth_string = "{password}"\n')


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_text().startswith(_OURS)


def _print(services: Services) -> None:
    print(f"Prefect UI:  {services.prefect_ui_url}")
    print(f"S3 endpoint: {services.s3_endpoint}")


def _check_port(port: int | None, running: Mapping[str, tuple[psutil.Process, Server]]) -> None:
    if port is None:
        return
    if prefect_server.NAME in running:
        current = running[prefect_server.NAME][1].ports[0]
        if port != current:
            raise ConfigurationError(f"Prefect is up on port {current}: run `make down` first to move it")
    elif not 1024 <= port <= 65535:
        raise ConfigurationError(f"port {port} cannot be used: choose one between 1024 and 65535")
    elif not is_free(port):
        raise ConfigurationError(f"port {port} is taken: another program listens on 127.0.0.1; choose another")


def _spawn_kept(home: Path, server: Server) -> subprocess.Popen[bytes]:
    """Start under a guardian that does not watch us, and write down that we did."""
    with server.log.open("ab") as log:
        process = subprocess.Popen(
            # -P: the guardian needs none of its neighbours, and they must not shadow what it imports
            [sys.executable, "-P", guardian.__file__, "--grace", str(server.grace_s), "--", *server.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=server.env,
            start_new_session=True,
        )
    write_state(home, {**read_state(home), server.name: {**identity(process), "ports": server.ports}})
    return process


def _stop(home: Path, names: set[str]) -> set[str]:
    stopping = {name: found for name, found in kept(home).items() if name in names}
    for process, _ in stopping.values():
        process.terminate()
    for process in wait_until_gone([process for process, _ in stopping.values()], _STOP_TIMEOUT_S):
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in [*process.children(recursive=True), process]:
                member.kill()
    for _, server in stopping.values():
        server.remove_leftovers()
    write_state(home, {name: entry for name, entry in read_state(home).items() if name not in names})
    return set(stopping)
