"""Several supervised engines of one machine side by side, each on its own part of it.

All run one program and are told the same; they share the work out by claims (`infra.store.claims`), so one that dies
costs what it had claimed, and the others go on.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from infra.errors import TransientError
from infra.processes.shares import Share
from infra.processes.supervise import Event, run_supervised
from infra.store.claims import LeaseLost, check_leases


class _Stopped(BaseException):
    """Raised where an engine is supervised, when all are to end."""


def run_side_by_side(
    name: str,
    command: list[str],
    spec: Mapping[str, Any],
    shares: Sequence[Share],
    *,
    on_event: Callable[[int, Event], None],
    on_loss: Callable[[int, TransientError], None],
    **how: Any,
) -> list[dict[str, Any]]:
    """Run `command … FOLDER` once on each share; the results of those that reached their end.

    `on_event` hears of each engine's events, with its number from 0 on, `on_loss` of one that failed in passing while
    others go on: both one at a time. `how` goes to `run_supervised`. Where all fail the last one's error is raised.
    One that all would meet (ConfigurationError, OutOfMemoryError, LeaseLost) ends all at once, and is raised.
    """
    telling, over = threading.Lock(), threading.Event()

    def check() -> None:
        check_leases()
        if over.is_set():
            raise _Stopped

    def hear(number: int, event: Event) -> None:
        with telling:
            on_event(number, event)

    def supervise(number: int, share: Share) -> dict[str, Any]:
        if share.cores:
            os.sched_setaffinity(0, share.cores)  # of this thread, and so of what it starts
        return run_supervised(
            f"{name}-{number + 1}",
            command,
            spec,
            on_event=lambda event: hear(number, event),
            env=share.environment,
            check=check,
            **how,
        )

    results: list[dict[str, Any]] = []
    lost = 0
    with ThreadPoolExecutor(len(shares)) as pool:
        running: dict[Future[dict[str, Any]], int] = {
            pool.submit(contextvars.copy_context().run, supervise, number, share): number
            for number, share in enumerate(shares)
        }
        try:
            for ended in as_completed(running):
                try:
                    results.append(ended.result())
                except LeaseLost:
                    raise
                except TransientError as error:
                    lost += 1
                    if lost == len(shares):
                        raise
                    with telling:
                        on_loss(running[ended], error)
        except BaseException:
            over.set()
            raise
    return results
