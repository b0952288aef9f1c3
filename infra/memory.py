"""Memory of this machine, or of the container that we run in where that has less."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS, _OURS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Of cgroup v2 and of v1: what a group may have, what it has, and what of that the kernel gives back when it is asked.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def total() -> int:
    """Bytes that all processes here may have together."""
    return min([psutil.virtual_memory().total, *(limit for limit, _used in _limits())])


def free() -> int:
    """Bytes that a process here could still take."""
    return min([psutil.virtual_memory().available, *(max(0, limit - used) for limit, used in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """The limit of each group that we are in, and what is used of it; nothing where there is none."""
    for folder, (limit, usage, given_back) in _groups():
        with contextlib.suppress(OSError, ValueError):  # the root has no files, and no limit is called max
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield most, used - int(stat.get(given_back, 0))


def _groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Our own group and those above it. A container may be told of its path outside: then the root is its own."""
    with contextlib.suppress(OSError):
        for line in _OURS.read_text().splitlines():
            _number, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root, files = (_CGROUPS / "memory", _V1) if controllers else (_CGROUPS, _V2)
            own = root / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    yield folder, files
