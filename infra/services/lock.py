"""One run at a time holds the embedded services' data: a file lock that ends with its holder, however it ends.

The file says who holds it and which guardians it started, so that the next holder can wait until the
services of a killed run are gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from infra import settings
from infra.errors import ConfigurationError, TransientError
from infra.services.server import find_process, identity, is_identity, wait_until_gone

_LEFTOVER_TIMEOUT_S = 15.0


@contextlib.contextmanager
def exclusive(home: Path) -> Iterator[IO[str]]:
    """Hold `services.lock`; raises ConfigurationError where another process does."""
    settings.make_home(home)
    with (home / "services.lock").open("a+") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another run (pid {lock.readline().strip()}) holds {home}: wait for it to end, "
                "then run `make up` once so that runs share the services"
            ) from error
        if stuck := wait_until_gone(_guardians(lock.readlines()[1:]), _LEFTOVER_TIMEOUT_S):
            pids = ", ".join(str(process.pid) for process in stuck)
            raise TransientError(f"services of a run that was killed do not end (pid {pids}): end them and run again")
        lock.truncate(0)
        _append(lock, str(os.getpid()))
        yield lock


def add_guardian(lock: IO[str], process: subprocess.Popen[bytes]) -> None:
    """Note a process that the next holder has to wait for."""
    _append(lock, json.dumps(identity(process)))


def workers_at_work(home: Path) -> dict[str, int]:
    """The pools that a `distilflow worker` of this home works for, and its pid: it holds its own lock."""
    found = {}
    for path in sorted(home.glob("worker-*.lock")):
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found[path.stem.removeprefix("worker-")] = int(lock.readline() or 0)
    return found


def _guardians(lines: list[str]) -> list[psutil.Process]:
    """Those that still run. A line that is cut short is from a machine that crashed: nothing runs."""
    found = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            described = json.loads(line)
            found.append(find_process(described) if is_identity(described) else None)
    return [process for process in found if process]


def _append(lock: IO[str], line: str) -> None:
    lock.write(line + "\n")
    lock.flush()
