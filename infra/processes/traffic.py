"""What a process tree reads and writes: its sign of life where it has nothing to report yet.

A download of 140 GB, the load of its weights, a million rows that are tokenised or a checkpoint of 100 GB take longer
than any wait for a report that would still notice an engine that hangs. One that hangs may compute (a collective
spins), but moves no data.
"""

from __future__ import annotations

import contextlib

import psutil

ALIVE_BYTES = 1 << 24  # logs and renewed claims of an engine that hangs stay far below it


class Traffic:
    """Bytes that a process and all that it has started have read and written, those that ended included."""

    def __init__(self, root: int):
        self._root = root
        self._by_process: dict[tuple[int, float], int] = {}

    def moved(self) -> int:
        """So far; never less than before."""
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._root)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error, AttributeError):  # where the system does not count
                    io = process.io_counters()
                    # what is mapped into memory is read from the disk, but by no call
                    moved = max(io.read_chars, io.read_bytes) + max(io.write_chars, io.write_bytes)
                    self._by_process[process.pid, process.create_time()] = moved
        return sum(self._by_process.values())
