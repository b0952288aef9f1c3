"""Stops asking an agent that is of no use before everything is paid, whatever the reason.

Until a model has given an agent one usable answer, no more than `FIRST` rows go before it; where all of them come
to nothing, the stage ends. Later it ends where more than nine rows in ten came to nothing, two dozen at least. So
what is paid in vain is bounded by what was of use, however many rows there are: `FIRST` rows, each with the requests
that one row takes (two), and from the first usable answer on nine rows for each that was of use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

FIRST = 12
_SINCE = 24
_IN_VAIN_FOR_ONE = 9
BUDGET_REACHED = "budget reached"


class NoAnswer(Exception):
    """An agent got no usable answer on a row. `transient`: another time it might."""

    def __init__(self, agent: str, reason: str, detail: str = "", *, transient: bool = False):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.agent = agent
        self.reason = reason
        self.transient = transient


@dataclass
class _Tried:
    """What came of the rows that were put before an agent of a model."""

    usable: int = 0
    under_way: int = 0
    in_vain: Counter[str] = field(default_factory=Counter)  # by reason
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_hopeless(self) -> bool:
        failed = self.in_vain.total()
        if not self.usable:
            return failed >= FIRST
        return failed >= _SINCE and failed > _IN_VAIN_FOR_ONE * self.usable


class Usefulness:
    """`hopeless(agent, model, counts, last)` makes the error that ends the stage: `counts` has rows by reason."""

    def __init__(self, hopeless: Callable[[str, str, str, NoAnswer], Exception]):
        self._hopeless = hopeless
        self._tried: dict[tuple[str, str], _Tried] = {}
        self._end: Exception | None = None

    def was_of_use(self, agent: str, model: str) -> None:
        """There was a usable answer."""
        tried = self._of(agent, model)
        tried.usable += 1
        self._wake(tried)

    @contextlib.asynccontextmanager
    async def turn(self, agent: str, model: str) -> AsyncIterator[None]:
        """Wait until a row may go before the agent; count what comes of it, a NoAnswer as a row in vain."""
        tried = self._of(agent, model)
        while not self._end and not tried.usable and tried.under_way + tried.in_vain.total() >= FIRST:
            await tried.changed.wait()
        if self._end:
            raise self._end
        tried.under_way += 1
        try:
            yield
            tried.usable += 1
        except NoAnswer as failure:
            if failure.reason != BUDGET_REACHED:
                tried.in_vain[failure.reason] += 1
            if not tried.is_hopeless:
                raise
            counts = ", ".join(f"{reason}: {count}" for reason, count in tried.in_vain.most_common())
            self._end = self._hopeless(agent, model, f"{tried.usable} of use, {counts}", failure)
            for other in self._tried.values():
                self._wake(other)
            raise self._end from failure
        finally:
            tried.under_way -= 1
            self._wake(tried)

    def _of(self, agent: str, model: str) -> _Tried:
        return self._tried.setdefault((agent, model), _Tried())

    def _wake(self, tried: _Tried) -> None:
        tried.changed.set()
        tried.changed = asyncio.Event()
