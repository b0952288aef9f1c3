"""Pieces of a stage's work, which engines share out by claims in storage: of one machine or of many."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from infra.errors import TransientError
from infra.processes import program
from infra.processes.shares import Share
from infra.processes.side_by_side import run_side_by_side
from infra.processes.supervise import Event
from infra.store import storage
from infra.store.artifacts import Workspace
from infra.store.claims import Claims, Pauses
from tasks.engines.progress import Progress

CLAIMS = "claims/"
STALL_TIMEOUT_S = 1800.0  # a large model takes long to load
Tell = Callable[..., None]  # tell(event, **fields), which `Progress` understands


class Queue:
    """The pieces that are not stored yet, each claimed for us while we have it; over when all are stored.

    A piece is named as what is stored of it, and `sizes` has how much work each is. Everyone goes through them in an
    order of its own, so that few want the same one. `tell` hears of what is stored, ours or others'.
    """

    def __init__(self, work: Workspace, sizes: Mapping[str, int], claims: Claims, tell: Tell):
        self.asked = 0  # for a claim
        self.by_us = 0  # of the sizes
        self._work = work
        self._claims = claims
        self._tell = tell
        self._left = {name: sizes[name] for name in random.sample(list(sizes), len(sizes))}

    def __iter__(self) -> Iterator[str]:
        pauses = Pauses()
        while self._left:
            for name in self.free():
                pauses = Pauses()
                yield name
            if self._left:
                time.sleep(pauses.next())

    def free(self) -> Iterator[str]:
        """Those that nobody has now, without waiting for others."""
        for name in list(self._left):
            if name not in self._left:
                continue
            if self._is_stored(name):
                folder = name.rpartition("/")[0] + "/"
                self._drop(name, *(folder + other for other in storage.keys(self._work.uri + folder)))
                continue
            self.asked += 1
            if not self._claims.take(name):
                continue
            if not self._is_stored(name):  # since we looked
                yield name
                self.by_us += self._left[name]
            self._drop(name)
            self._claims.release(name)

    def _is_stored(self, name: str) -> bool:
        return self._work.has(name)

    def _drop(self, *stored: str) -> None:
        pieces = {self._work.uri + name: self._left.pop(name) for name in stored if name in self._left}
        self._tell("stored", pieces=pieces)


def work_side_by_side(
    name: str, module: str, spec: Mapping[str, Any], parts: Sequence[Share], progress: Progress
) -> list[dict[str, Any]]:
    """Run a program that works through a `Queue` on each part of the machine; the results of those that did not die.

    All are told the same; `progress` hears all of them.
    """

    def on_event(engine: int, event: Event) -> None:
        progress.hear(engine, event["event"], **{name: value for name, value in event.items() if name != "event"})

    def on_loss(engine: int, error: TransientError) -> None:
        progress.lose(engine, str(error).splitlines()[0])

    return run_side_by_side(
        name,
        program.command(module),
        spec,
        parts,
        on_event=on_event,
        on_loss=on_loss,
        on_log=functools.partial(print, flush=True),  # ours is what people find in storage
        stall_timeout_s=STALL_TIMEOUT_S,
    )
