"""Ctrl-C and TERM: unwind, and leave for certain; at once on a second signal. Guardians end whatever we started."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

EXIT_CODE = 130
STOPPED = "stopped; what is finished is kept, the same command continues"
_UNWIND_S = 20.0


def unwind_on_signals() -> None:
    """Make TERM and INT raise KeyboardInterrupt in the main thread."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _interrupt)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _leave)
    watchdog = threading.Timer(_UNWIND_S, _leave)
    watchdog.daemon = True
    watchdog.start()
    raise KeyboardInterrupt


def _leave(*_: Any) -> None:
    print(f"distilflow: {STOPPED}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
