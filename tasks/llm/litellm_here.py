"""LiteLLM in this process, on a thread and an event loop of its own, which every session of the process shares.

LiteLLM keeps connections, which belong to the loop that opened them: a loop of each session's own would find those of
the last one closed. Its import takes seconds, and is paid by the first session alone.
"""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from dataclasses import asdict
from typing import Any

from tasks.llm.protocol import Configuration, ProviderError, as_bytes, content_of
from tasks.llm.redaction import redacted


class LiteLLMHere:
    """What a provider process is, without the process."""

    def __init__(self) -> None:
        self.waiting: dict[int, Any] = {}
        self.routes: dict[str, list[dict[str, Any]]] = {}
        self._provider: Any = None

    async def start(self, configuration: Configuration) -> None:
        """Raises ProviderError for a configuration that cannot work."""
        self._provider = await on_litellms_loop(_provider(asdict(configuration)))
        self.routes = self._provider.described

    async def send(self, line: dict[str, Any]) -> Any:
        """The fields of the answer, or for texts to count their numbers: the same that come over a pipe."""
        answer = await on_litellms_loop(self._provider.answer({"id": 0, **line}))
        return content_of(json.loads(as_bytes(answer)))

    async def listen(self) -> None:
        """It does not end by itself."""
        await asyncio.Event().wait()

    async def end(self) -> None:
        """Nothing is left behind: what is in flight is cancelled with whoever waits for it."""


async def _provider(configuration: dict[str, Any]) -> Any:
    from tasks.llm.litellm_process import Provider, Refusal

    try:
        return Provider(configuration)
    except Refusal as refusal:
        raise ProviderError(refusal.kind, redacted(str(refusal), [])) from None


async def on_litellms_loop(work: Any) -> Any:
    """What a coroutine returns that runs where LiteLLM does."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _loop()))


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="litellm").start()
    return loop
