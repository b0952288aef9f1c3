"""Files that appear whole or not at all, and folders for a while. Standard library only."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write to, which becomes `path` when the `with` ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.rename(path)


def write_whole(path: Path, data: str | bytes, *, secret: bool = False) -> None:
    """Write a file whole; what is `secret` only the user can read."""
    with whole(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if secret else 0o666)
        with open(descriptor, "wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def scratch(folder: Path, what: str) -> Iterator[Path]:
    """A folder of this process's own below `folder`, for the length of the `with`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{what}-{os.getpid()}-", dir=folder) as place:
        yield Path(place)
