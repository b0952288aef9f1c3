"""Calls of a batch API with patience: a provider that is away for a while does not end what takes a day anyway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import IO, Any

from tasks.llm.litellm_batches import BatchAPI, BatchState
from tasks.llm.litellm_here import on_litellms_loop
from tasks.llm.protocol import ProviderError

PASSES = ("rate_limit", "timeout", "unreachable", "server")  # kinds of failures that are none another time
_PATIENCE = 20  # calls in a row that fail
_FIRST_PAUSE_S = 1.0


def pauses(longest_s: float) -> Iterator[float]:
    """Seconds between two looks, ever longer."""
    pause = _FIRST_PAUSE_S
    while True:
        yield min(pause, longest_s)
        pause *= 1.5


class PatientCalls:
    """A `BatchAPI` whose calls are tried again while they fail in ways that pass, at most `poll_s` apart."""

    def __init__(self, api: BatchAPI, poll_s: float):
        self._api = api
        self._poll_s = poll_s

    async def submit(self, name: str, requests: IO[bytes]) -> str:
        """The new batch's id. Of a call that failed only the answer may have been lost, so it is looked for first."""
        for number, pause in enumerate(pauses(self._poll_s), start=1):
            try:
                requests.seek(0)
                return str(await on_litellms_loop(self._api.submit(name, requests)))
            except ProviderError as error:
                if error.kind not in PASSES or number == _PATIENCE:
                    raise
            await asyncio.sleep(pause)
            if found := await self.find(name):
                return found
        raise AssertionError("pauses have no end")

    async def find(self, name: str) -> str | None:
        """The id of the batch that was given this name."""
        found = await self._patiently(lambda: self._api.find(name))
        return None if found is None else str(found)

    async def state(self, batch_id: str, *, is_there: bool) -> BatchState:
        """How far it is. `is_there`: it was created just now, so "unknown" passes too."""
        passes = (*PASSES, "unknown_model") if is_there else PASSES
        state: BatchState = await self._patiently(lambda: self._api.state(batch_id), passes)
        return state

    async def download(self, file_id: str, into: IO[bytes]) -> None:
        """A file of answers, from its beginning."""

        def download() -> Coroutine[Any, Any, None]:
            into.seek(0)
            into.truncate()
            return self._api.download(file_id, into)

        await self._patiently(download)
        into.seek(0)

    async def _patiently(self, call: Callable[[], Coroutine[Any, Any, Any]], passes: tuple[str, ...] = PASSES) -> Any:
        for number, pause in enumerate(pauses(self._poll_s), start=1):
            try:
                return await on_litellms_loop(call())
            except ProviderError as error:
                if error.kind not in passes or number == _PATIENCE:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("pauses have no end")
