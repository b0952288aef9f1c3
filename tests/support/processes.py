"""Which processes are a home's: workers, flows, engines, servers; orphans included, other sessions' left out."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

from infra.processes.guardian import is_alive


def of_home(home: Path | str) -> list[psutil.Process]:
    """All but ourselves that have the home in their environment, command line or output, with all below them.

    vLLM's EngineCore hides its environment behind its title: it is told by its parent, or by where it writes.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and _belongs(process, str(home)):
                found |= {member.pid: member for member in [process, *process.children(recursive=True)]}
    found.pop(os.getpid(), None)
    return [process for process in found.values() if is_alive(process)]


def named(processes: list[psutil.Process], *names: str) -> list[psutil.Process]:
    """Those whose title or command line has one of the names."""
    return [process for process in processes if any(name in words(process) for name in names)]


def words(process: psutil.Process) -> str:
    """Title and command line, or nothing if it has ended."""
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.Error:
        return ""


def _belongs(process: psutil.Process, home: str) -> bool:
    inside = f"{home}{os.sep}"
    variables = process.environ().values()
    if any(value == home or value.startswith(inside) for value in variables):
        return True
    if any(inside in f"{word}{os.sep}" for word in process.cmdline()):
        return True
    return os.readlink(f"/proc/{process.pid}/fd/1").startswith(inside)
