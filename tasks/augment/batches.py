"""Batches of rows that any number of workers get done together: each is claimed, done, and found by its JSON."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, TypeVar

from infra.store.artifacts import Workspace
from infra.store.claims import Claims, Pauses, working_under


class InALanguage(Protocol):
    """A row, or what is asked of one."""

    @property
    def language(self) -> str: ...


OneT = TypeVar("OneT", bound=InALanguage)
AsTask = Callable[[str, Callable[[], Awaitable[None]]], Awaitable[None]]


@dataclass
class Batches:
    """Gets every batch of a part done, by us or by another worker."""

    work: Workspace
    claims: Claims
    as_task: AsTask
    at_once: int
    whole: bool  # one claim on all batches

    async def each(self, part: str, batches: Callable[[], Iterator[tuple[int, Any]]], do: Callable[..., Any]) -> None:
        """`do(index, batch)` for each batch that is not done yet; returns when all are, whoever did them."""
        done: set[int] = set()
        pauses = Pauses()
        while True:
            async with asyncio.TaskGroup() as group:
                free = asyncio.Semaphore(self.at_once)
                waiting = False
                for index, batch in batches():
                    if index in done:
                        continue
                    await free.acquire()
                    if await asyncio.to_thread(self.work.has, done_name(part, index)):
                        done.add(index)
                        free.release()
                    elif await asyncio.to_thread(self.claims.take, self._claim(part, index)):
                        group.create_task(self._one(part, index, functools.partial(do, index, batch), free))
                        done.add(index)
                        pauses = Pauses()
                    else:
                        waiting = True
                        free.release()
            if not waiting:
                return
            await asyncio.sleep(pauses.next())

    async def _one(self, part: str, index: int, do: Callable[[], Awaitable[None]], free: asyncio.Semaphore) -> None:
        try:
            with working_under(self.claims, self._claim(part, index)):
                if not await asyncio.to_thread(self.work.has, done_name(part, index)):  # done before we could claim it
                    await self.as_task(f"{part}-{index:05}", do)
            if not self.whole:
                await asyncio.to_thread(self.claims.release, self._claim(part, index))
        finally:
            free.release()

    def _claim(self, part: str, index: int) -> str:
        return "all" if self.whole else f"{part}-{index:05}"


def requests_of(ones: Iterable[OneT], size: int) -> Iterator[tuple[OneT, ...]]:
    """What one request may hold: at most so many of one language, for they go to one model."""
    for _language, of_it in groupby(sorted(ones, key=lambda one: one.language), key=lambda one: one.language):
        alike = tuple(of_it)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def done_name(part: str, index: int) -> str:
    """Of the JSON that is there once a batch is done."""
    return f"{part}/{index:05}.json"
