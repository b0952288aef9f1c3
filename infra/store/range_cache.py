"""A local cache of pieces of stored objects, with a limit in bytes: what was not used for longest goes first."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_RECOUNT_SHARE = 1 / 8  # other processes write here too: count anew after writing this share of the limit


class RangeCache:
    """Files in one folder, shared by any number of processes; safe to delete at any time.

    A key names content that never changes (it holds the object's digest), so nothing is ever out of date.
    """

    def __init__(self, folder: Path, limit_bytes: int):
        self._folder = folder
        self._limit = limit_bytes
        self._unaccounted: float = limit_bytes  # bytes written since the folder was counted

    def read(self, key: str, fetch: Callable[[], bytes], *, start: int = 0, length: int | None = None) -> bytes:
        """A piece from the cache (or `length` bytes of it from `start`), fetched and kept where it is not there."""
        path = self._folder / key
        with contextlib.suppress(FileNotFoundError):
            with path.open("rb") as stream:
                stream.seek(start)
                data = stream.read(-1 if length is None else length)
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
            return data
        data = fetch()
        self._keep(path, data)
        return data[start : None if length is None else start + length]

    def has(self, key: str) -> bool:
        return (self._folder / key).exists()

    def drop(self, key: str) -> None:
        (self._folder / key).unlink(missing_ok=True)

    def _keep(self, path: Path, data: bytes) -> None:
        if len(data) > self._limit:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix="partial-", delete=False) as stream:
            stream.write(data)
        os.replace(stream.name, path)
        self._unaccounted += len(data)
        if self._unaccounted >= self._limit * _RECOUNT_SHARE:
            self._shrink()

    def _shrink(self) -> None:
        found = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                state = entry.stat()
                found.append((state.st_mtime_ns, state.st_size, entry.path))
        total = sum(size for _time, size, _path in found)
        for _time, size, path in sorted(found):
            if total <= self._limit * (1 - _RECOUNT_SHARE):
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        self._unaccounted = 0
