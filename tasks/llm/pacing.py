"""Whose turn it is: a semaphore with priorities, and requests spaced by a minute's limits."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator


class Slots:
    """A semaphore whose waiters go by priority, the lowest number first; among equals, who came first."""

    def __init__(self, count: int):
        self._free = count
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._came = itertools.count()

    @contextlib.asynccontextmanager
    async def one(self, priority: int) -> AsyncIterator[None]:
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (priority, next(self._came), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was our turn at this moment
                    self._give_on()
                raise
        try:
            yield
        finally:
            self._give_on()

    def _give_on(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class RateLimit:
    """Requests spaced so that a minute's limits hold. The Router would answer "too many" instead of waiting."""

    def __init__(self, rpm: float | None, tpm: float | None):
        self._request_s = 60.0 / rpm if rpm else 0.0
        self._token_s = 60.0 / tpm if tpm else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        if self._request_s or self._token_s:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._request_s
            await asyncio.sleep(mine - now)

    def used(self, tokens: int) -> None:
        self._next += max(0.0, tokens * self._token_s - self._request_s)
