"""A session with LLMs: the client and its cache for the length of a stage, on an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from infra import settings
from infra.errors import DistilflowError
from tasks.llm.cache import AnswerCache
from tasks.llm.client import LLMClient
from tasks.llm.protocol import LLMEndpoint
from tasks.llm.settings import LLMCalls

_SHARE_S = 60.0
ResultT = TypeVar("ResultT")


@contextlib.asynccontextmanager
async def connected(
    endpoint: LLMEndpoint,
    options: LLMCalls,
    max_rows: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[LLMClient]:
    """The client with its cache, whose answers are shared now and then and at the end, however that comes."""
    cache = AnswerCache(settings.cache_dir() / "llm_answers.sqlite")
    client = LLMClient(endpoint, cache, options, max_rows, note=note)

    def share() -> None:
        cache.push()
        client.tidy()

    async def share_now_and_then() -> None:
        while True:
            await asyncio.sleep(_SHARE_S)
            share()

    await asyncio.to_thread(cache.pull)
    sharing = asyncio.create_task(share_now_and_then())
    try:
        yield client
    finally:
        sharing.cancel()
        await client.close()
        share()
        cache.close()


def run_async(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """asyncio.run, with our own error, or the signal, out of the group that the task group raises."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        ours, others = group.split(DistilflowError)
        error: BaseException | None = group.subgroup(_is_signal) or (ours if others is None else None)
        if error is None:
            raise
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group


def _is_signal(error: BaseException) -> bool:
    """Whether a batch was interrupted by TERM or Ctrl-C, which ends the whole, whatever failed in its wake."""
    return not isinstance(error, Exception | BaseExceptionGroup | asyncio.CancelledError)
