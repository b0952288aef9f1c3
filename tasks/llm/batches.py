"""Requests through the providers' batch APIs: collected by model, submitted, waited for, each answered by its own line.

    async with BatchProviders(configuration, notes, options, note) as providers:
        reply = await providers.complete(request)

What waits is a coroutine for each request: that is what memory grows with. A batch is noted in storage before it is
submitted (`tasks.llm.batch_notes`), so a rerun finds it under way, or ended, and reads its answers (again) instead of
paying. One whose maker was killed between "create" and noting the id is found by the name in its metadata. What stays
open is a batch that its provider does not list yet `poll_s` after the rerun first looked: that one is paid again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from tasks.llm.batch_notes import Notes, key_of_request
from tasks.llm.batch_queue import ModelBatches
from tasks.llm.litellm_batches import BatchAPI
from tasks.llm.litellm_here import on_litellms_loop
from tasks.llm.litellm_pool import Providers
from tasks.llm.protocol import Configuration, LLMEndpoint, ProviderError, Reply, Request
from tasks.llm.settings import LLMCalls

_SAID_AGAIN_S = 600.0


class BatchProviders(Providers):
    """`Providers` at half the price, whose answers take up to a day. LiteLLM runs in this process."""

    def __init__(self, configuration: Configuration, notes: Notes, options: LLMCalls, note: Callable[[str], None]):
        super().__init__(configuration)
        self._notes, self._options, self._note = notes, options, note
        self._models: dict[tuple[str, str | None], ModelBatches] = {}
        self._first_look = asyncio.Lock()
        self._recalled: float | None = None  # when a request that was sent before was asked again
        self._reporting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> BatchProviders:
        """Raises ProviderError for a model that cannot be asked in batches."""
        await super().__aenter__()
        try:
            for route, endpoints in self._configuration.routes.items():
                for endpoint, model in zip(endpoints, self.routes[route], strict=True):
                    await self._add(endpoint, model["mode"])
        except BaseException:
            await self._end()
            raise
        self.routes = {route: [_in_batches(model) for model in models] for route, models in self.routes.items()}
        self._reporting = asyncio.create_task(self._report())
        return self

    async def complete(self, request: Request) -> Reply:
        """Ask each of the route's models in turn, until one answers. Raises the first one's ProviderError."""
        first: ProviderError | None = None
        for place, endpoint in enumerate(self._configuration.routes[request.route]):
            try:
                return Reply(**await self._models[endpoint.model, endpoint.api_base].answer(request), place=place)
            except ProviderError as error:
                first = first or error
        assert first
        raise first

    async def sent_before(self, request: Request) -> bool:
        """Whether a run before this one has sent it: it is paid for, whatever the budget.

        A new one waits here while those are being asked again, so that they are counted before anything is added.
        """
        async with self._first_look:
            if self._recalled is None:
                await self._notes.refresh()
                self._recalled = time.monotonic() if self._notes.any_open else float("-inf")
        if any(self._notes.of(key) for key in self._keys(request)):
            self._recalled = time.monotonic()
            return True
        while (left := self._recalled + self._options.batch_wait_s - time.monotonic()) > 0:
            await asyncio.sleep(left)
        return False

    def settled(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._notes.settle(self._keys(request))

    def tidy(self) -> None:
        self._notes.tidy()

    @property
    def waiting(self) -> str:
        """How much is under way, for people; empty where nothing is."""
        batches = [batch for model in self._models.values() for batch in model.under_way.values()]
        if not batches:
            return ""
        requests, done = sum(batch.requests for batch in batches), sum(batch.done for batch in batches)
        providers = sorted({model.provider for model in self._models.values() if model.under_way})
        since = time.strftime("%a %H:%M", time.localtime(min(batch.note.since for batch in batches)))
        number = f"{len(batches):,} batch" + ("es" if len(batches) > 1 else "")
        share = min(done / requests, 1.0)
        return f"{requests:,} requests in {number} at {' and '.join(providers)} since {since}, {share:.0%} done"

    def _keys(self, request: Request) -> list[str]:
        return [key_of_request(endpoint, request) for endpoint in self._configuration.routes[request.route]]

    async def _add(self, endpoint: LLMEndpoint, mode: str) -> None:
        async def api() -> BatchAPI:
            return BatchAPI(endpoint, self._configuration.timeout_s)

        place = endpoint.model, endpoint.api_base
        if place not in self._models:
            made = await on_litellms_loop(api())
            self._models[place] = ModelBatches(made, endpoint, mode, self._notes, self._options)

    async def _report(self) -> None:
        said, pause = "", 1.0
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _SAID_AGAIN_S)
            if (text := self.waiting) and text != said:
                self._note(text)
                said = text

    async def _end(self) -> None:
        if self._reporting:
            self._reporting.cancel()
            await asyncio.gather(self._reporting, return_exceptions=True)
        for model in self._models.values():
            await model.end()
        await super()._end()


def _in_batches(model: dict[str, object]) -> dict[str, object]:
    """What LiteLLM knows of a model, at the price of its batches."""
    prices = model["usd_per_token_in_batches"]
    assert isinstance(prices, list)
    return {**model, "usd_per_input_token": prices[0], "usd_per_output_token": prices[1]}
