"""The inside of a supervised process: reads its spec, reports events, ends with a result or one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil

from infra.errors import ConfigurationError, DistilflowError, OutOfMemoryError, TransientError, disk_full, is_disk_full
from infra.files import write_whole
from infra.processes.guardian import is_alive
from infra.processes.program import imported

# Of a wrong setting, model or line of ours. What comes from outside is an OSError, or torch's RuntimeError.
_FAILS_AGAIN = (ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError, ImportError)


class Reporter:
    """Appends events for the supervisor; one short line each, flushed at once."""

    def __init__(self, folder: Path, min_interval_s: float = 0.2):
        self.folder = folder
        self._stream = (folder / "events.jsonl").open("a")
        self._min_interval_s = min_interval_s
        self._last = 0.0

    def event(self, name: str, **fields: Any) -> None:
        self._stream.write(json.dumps({"event": name, "time": time.time(), **fields}) + "\n")
        self._stream.flush()

    def progress(self, done: int, total: int, **fields: Any) -> None:
        """Throttled: call it as often as you like."""
        now = time.monotonic()
        if done >= total or now - self._last >= self._min_interval_s:
            self._last = now
            self.event("progress", done=done, total=total, **fields)

    def note(self, text: str) -> None:
        """Something that people should know."""
        self.event("note", text=text)

    @contextlib.contextmanager
    def loading(self, engine: str) -> Iterator[None]:
        """Say that an engine is loading, which takes minutes for a large model, and when it is ready."""
        began = time.monotonic()
        self.event("loading", engine=engine)
        yield
        self.event("ready", engine=engine, seconds=round(time.monotonic() - began, 1))


def run(main: Callable[[dict[str, Any], Reporter], dict[str, Any]], folder: Path, *, writes: bool = True) -> NoReturn:
    """Run `main(spec, reporter)` by the contract of `infra.processes.supervise` and exit.

    With several ranks in one folder only the one with `writes` leaves the result; any may leave an error.
    """
    imported()
    try:
        result = main(json.loads((folder / "spec.json").read_text()), Reporter(folder))
    except Exception as error:
        _fail(folder, explained(error, folder))
    if writes:
        write_whole(folder / "result.json", json.dumps(result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the work is done: engines' threads must not turn the interpreter's teardown into an abort


def explained(error: Exception, folder: Path) -> DistilflowError:
    """Any exception as one of ours: what the user has to do, or what went wrong."""
    if isinstance(error, DistilflowError):
        return error
    if isinstance(error, OSError) and is_disk_full(error):
        return disk_full(error.filename or folder)
    # torch's own OutOfMemoryError is a RuntimeError, and on a CPU it is a plain one
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        first_line = str(error).splitlines()[0] if str(error) else "MemoryError"
        advice = "use a smaller micro-batch, a higher ZeRO stage or a larger device"
        return OutOfMemoryError(f"out of memory ({first_line}): {advice}")
    if isinstance(error, _FAILS_AGAIN):
        words = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return ConfigurationError(
            f"{words} (it would fail again, so it is not tried again; the stage's log has the rest)"
        )
    return TransientError(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def abort_if_a_child_dies(folder: Path, name: str) -> Iterator[None]:
    """End this process as soon as one of the processes that it has started by now is gone.

    For engines whose front end waits for ever when its workers were killed (vLLM's `generate`).
    """
    children = psutil.Process().children(recursive=True)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            for process in children:
                if not is_alive(process):
                    _leave(folder, TransientError(f"{name} died (process {process.pid}): run again, it continues"))
                    os._exit(TransientError.exit_code)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _fail(folder: Path, error: DistilflowError) -> NoReturn:
    traceback.print_exc()
    _leave(folder, error)
    sys.exit(error.exit_code)


def _leave(folder: Path, error: DistilflowError) -> None:
    """Leave the error for the supervisor; of several ranks the first one's counts, the others fail in its wake."""
    with contextlib.suppress(FileExistsError), (folder / "error.json").open("x") as stream:
        json.dump({"code": error.exit_code, "message": str(error)}, stream)
