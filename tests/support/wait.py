"""Waiting for what other processes do. A wait that is in vain ends within a minute, and says what it waited for."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

_RESTS = 9  # times as long as it took to ask
_EVERY_S, _AT_LEAST_EVERY_S = 0.05, 0.5


class _Process(Protocol):
    def poll(self) -> int | None: ...


def wait_for(
    condition: Callable[[], Any], timeout_s: float = 60.0, alive: Iterable[_Process] = (), every_s: float | None = None
) -> float:
    """Ask until it holds; the seconds that it took. Processes in `alive` must not end before it does.

    Asking takes a tenth of the time at most, or nearly, for a question to a server costs both of us. What holds for a
    moment only is asked `every_s`.
    """
    began = asked = time.monotonic()
    while not condition():
        ended = [process for process in alive if process.poll() is not None]
        if ended and not condition():
            raise AssertionError(f"ended before its time, waited for {_words(condition)}: {ended}")
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain for {_words(condition)}")
        time.sleep(every_s or min(max(_RESTS * (time.monotonic() - asked), _EVERY_S), _AT_LEAST_EVERY_S))
        asked = time.monotonic()
    return time.monotonic() - began


def _words(condition: Callable[[], Any]) -> str:
    """The condition as it stands in the test."""
    try:
        source = " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        source = repr(condition)
    return f"`{source}`"
