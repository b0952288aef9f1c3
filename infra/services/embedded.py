"""Storage and orchestration of a run, wherever they are.

A run takes what the environment names (`AWS_ENDPOINT_URL_S3`, `PREFECT_API_URL`), else what `up` keeps
running, else it starts its own for as long as it lasts, under a guardian, so that nothing outlives it;
`services.lock` says which run holds the data.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra import settings
from infra.errors import ConfigurationError
from infra.processes.supervise import guarded
from infra.services import prefect_server, seaweedfs
from infra.services.lock import add_guardian, exclusive
from infra.services.server import Server
from infra.services.start import KINDS, answering, environment, kept, start

_VARIABLES = {seaweedfs.NAME: "AWS_ENDPOINT_URL_S3", prefect_server.NAME: "PREFECT_API_URL"}


@dataclass(frozen=True)
class Services:
    """Where the services of this run are, and which of them this call started; the password of our own Prefect."""

    s3_endpoint: str
    prefect_api_url: str
    prefect_ui_url: str
    started: tuple[str, ...]
    password_file: Path | None = None


@contextlib.contextmanager
def embedded_services() -> Iterator[Services]:
    """Services for the length of the `with`, in the environment variables that boto3 and Prefect read.

    Enter it before anything imports Prefect, which reads its settings once. Raises ConfigurationError where
    a program is missing or another run holds the data, TransientError where a server does not get ready.
    """
    with _embedded(_not_in_environment()) as (servers, started):
        yield described(servers, started)


@contextlib.contextmanager
def lasting_services(*names: str) -> Iterator[None]:
    """Services (all, or the named ones) that outlive this process: the environment's, else those of `up`.

    Raises ConfigurationError where there are none: what is started for a moment is of no use to others.
    """
    running = kept(settings.home())
    wanted = _not_in_environment() & set(names or KINDS)
    if missing := sorted(wanted - running.keys()):
        variables = " and ".join(_VARIABLES[name] for name in missing)
        raise ConfigurationError(f"no {' and no '.join(missing)} is running: run `make up`, or set {variables}")
    with environment({name: answering(*running[name]) for name in sorted(wanted)}):
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
        running = kept(home)
        started: dict[str, Server] = {}
        if not wanted <= running.keys():
            lock = stack.enter_context(exclusive(home))
            running = kept(home)

            def spawn(server: Server) -> subprocess.Popen[bytes]:
                stack.callback(server.remove_leftovers)
                process = stack.enter_context(guarded(server.command, server.log, server.env, server.grace_s))
                add_guardian(lock, process)
                return process

            started = start(home, wanted - running.keys(), spawn)
            stack.callback(prefect_server.flush_client)
        servers = started | {name: answering(*found) for name, found in running.items() if name in wanted}
        stack.enter_context(environment(servers))
        yield servers, started


def described(servers: Mapping[str, Server], started: Mapping[str, Server]) -> Services:
    """Where they are: those named here, else what the environment says."""
    s3 = servers.get(seaweedfs.NAME)
    prefect = servers.get(prefect_server.NAME)
    api_url = prefect.url if prefect else os.environ["PREFECT_API_URL"]
    return Services(
        s3_endpoint=s3.url if s3 else str(settings.s3_endpoint()),
        prefect_api_url=api_url,
        prefect_ui_url=prefect_server.ui_url(api_url),
        started=tuple(sorted(started)),
        password_file=prefect_server.password_file(settings.home()) if prefect else None,
    )


def _not_in_environment() -> set[str]:
    named = {
        seaweedfs.NAME: settings.s3_endpoint(),
        prefect_server.NAME: os.environ.get("PREFECT_API_URL"),
    }
    return {name for name, url in named.items() if not url}
