"""A real Prefect server of a test's own, which it may kill and start again on the same port and data."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

from infra.processes.supervise import guarded
from infra.services import prefect_server
from infra.services.server import Server, free_ports, wait_until_gone, wait_until_ready
from tests.support.prefect_database import give


class OwnServer:
    """`start` and `kill` as often as one likes."""

    def __init__(self, home: Path):
        (home / "logs").mkdir(parents=True, exist_ok=True)
        self.home = home
        self.server: Server = prefect_server.server(home, free_ports(1))
        self._running = contextlib.ExitStack()
        self._pid = 0

    @property
    def env(self) -> dict[str, str]:
        """What a client of it needs, on top of the test's environment."""
        known = {name: value for name, value in self.server.client_env.items() if value is not None}
        return {**os.environ, **known, "DISTILFLOW_HOME": str(self.home), "NO_PROXY": "127.0.0.1"}

    def start(self) -> None:
        command, log, env = self.server.command, self.server.log, self.server.env
        process = self._running.enter_context(guarded(command, log, env))
        self._pid = process.pid
        wait_until_ready(self.server, psutil.Process(process.pid), 180)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        children = psutil.Process(self._pid).children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)
        wait_until_gone(children, 30)
        self.stop()

    def stop(self) -> None:
        self._running.close()


@contextlib.contextmanager
def own_server(home: Path, database: Path) -> Iterator[OwnServer]:
    """A server that begins with the database; its variables are in the environment for the length of the `with`."""
    from infra.orchestration.prefect_client import talking_to

    give(home, database)
    server = OwnServer(home)
    server.start()
    try:
        with talking_to(server.env):
            yield server
    finally:
        server.stop()
