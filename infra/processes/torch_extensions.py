"""A lock for torch's compiled extensions that its owner's death releases.

torch guards the folder of an extension by a file that exists: a process that is killed while it compiles or loads
leaves the file, and every later one waits for ever. Here the file is locked instead, which the kernel undoes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from pathlib import Path
from typing import Any


class Baton:
    """What `torch.utils.file_baton.FileBaton` is, by `flock`. That the file exists means nothing."""

    def __init__(self, lock_file_path: str, *_: Any, **__: Any):
        self._path = lock_file_path + ".flock"
        with contextlib.suppress(FileNotFoundError):  # left by a process that torch's own baton served
            os.remove(lock_file_path)
        self._fd: int | None = None

    def try_acquire(self) -> bool:
        """Whether it is ours now."""
        fd = os.open(self._path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def wait(self) -> None:
        """Until its owner has released it, or is gone."""
        fd = os.open(self._path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.close(fd)

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def build_once() -> None:
    """Let this process lock extensions in this way, and build them with the ninja that is installed beside Python.

    The log of another version of ninja is none to it: whoever finds that one first would compile everything anew.
    """
    from torch.utils import cpp_extension

    vars(cpp_extension)["FileBaton"] = Baton
    beside, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != beside:
        os.environ["PATH"] = os.pathsep.join([beside, path])
