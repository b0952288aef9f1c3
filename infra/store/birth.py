"""Which process an id means: told by what no step of a clock changes.

An id is given again, and start times as dates follow the wall clock (the kernel counts ticks since the boot, and the
date of the boot moves when the clock is set). So a process is known by where its id counts (the boot of a machine, a
namespace of ids in it) and by its start in ticks.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import psutil


def place() -> str:
    """Where process ids mean what they mean here: containers of one machine may share its name and not its ids."""
    if not sys.platform.startswith("linux"):
        return socket.gethostname()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def started(pid: int) -> str | None:
    """When the process with this id here started; None where there is none."""
    if not sys.platform.startswith("linux"):
        try:
            return str(psutil.Process(pid).create_time())
        except psutil.Error:
            return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]  # field 22 of all; the name before may hold anything
