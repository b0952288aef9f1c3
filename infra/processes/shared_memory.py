"""Shared memory that engines leave behind: DeepSpeed never unlinks its CPU all-reduce buffers, 66 MiB of RAM a rank.

They outlive their processes until the machine restarts, so a machine that trains every week would fill up.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_FOLDER = Path("/dev/shm")
_BUFFERS = "deepspeed_allreduce_buffer_{uid}_*"
_SETTLED_S = 60.0  # a younger one may be about to be mapped


def remove_unused_buffers() -> int:
    """Remove this user's DeepSpeed buffers that no process maps; how many there were."""
    buffers = [path for path in _FOLDER.glob(_BUFFERS.format(uid=os.getuid())) if _age_s(path) > _SETTLED_S]
    mapped = _mapped() if buffers else set()
    unused = [path for path in buffers if str(path) not in mapped]
    for path in unused:
        path.unlink(missing_ok=True)
    return len(unused)


def remove_buffers_of(port: int) -> None:
    """Remove the buffers of a launch that is over, by its master port."""
    for path in _FOLDER.glob(f"{_BUFFERS.format(uid=os.getuid())}_{port}_*"):
        path.unlink(missing_ok=True)


def _age_s(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _mapped() -> set[str]:
    """Paths in shared memory that processes map."""
    found: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            for line in maps.read_text().splitlines():
                if str(_FOLDER) in line:
                    found.add(line.split(maxsplit=5)[-1])
    return found
