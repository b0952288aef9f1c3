"""Puts rows before agents: cached, budgeted, rate-limited, validated, asked again where the answer is no good.

Only an answer of use is kept in the cache, under the request that it answers at last: a rerun asks again where there
was none, and nothing is paid twice where there was one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from infra.errors import ConfigurationError
from infra.store.claims import check_leases
from tasks.llm import complaints
from tasks.llm.addresses import check_address, server_of
from tasks.llm.agent import Agent, AnswerT
from tasks.llm.answers import read
from tasks.llm.batch_notes import Notes
from tasks.llm.batches import BatchProviders
from tasks.llm.budget import BudgetReached, Ledger, UsageByAgent
from tasks.llm.cache import AnswerCache, as_kept, key_of
from tasks.llm.litellm_pool import Providers
from tasks.llm.litellm_replies import DECLINED
from tasks.llm.pacing import Slots
from tasks.llm.prices import price_of
from tasks.llm.protocol import Configuration, LLMEndpoint, ProviderError, Request
from tasks.llm.reading import BadAnswer
from tasks.llm.redaction import redacted
from tasks.llm.settings import LLMCalls
from tasks.llm.usefulness import BUDGET_REACHED, NoAnswer, Usefulness
from tasks.rows import Row
from tasks.text.refusals import is_refusal

_ATTEMPTS = 2
_RETRIES = 7  # of the Router: with its pauses of 0.5 to 8 s, patience for half a minute
_FAILURES_IN_A_ROW = 20
_FAILURES_AT_FIRST = 5
_TAKEN = ("prompt_tokens", "completion_tokens", "cost_usd")
_WORDS = 200  # characters of a useless answer that its row keeps


class LLMClient:
    """One for a stage and its event loop; `close` it. LiteLLM starts with the first request that is not cached."""

    def __init__(
        self,
        endpoint: LLMEndpoint,
        cache: AnswerCache,
        options: LLMCalls,
        max_rows: int | None = None,
        lender: LLMClient | None = None,
        note: Callable[[str], None] = lambda text: None,
    ):
        """`note` is told now and then what waits in batches."""
        self.endpoint = endpoint
        self._lender = lender
        self.ledger = Ledger(options.budget_usd, max_rows)
        self._options = options
        self._cache = cache
        self._note = note
        self._slots = Slots(options.in_flight)
        self._pending: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._usefulness = Usefulness(self._hopeless)
        self._starting = asyncio.Lock()
        self._providers: Providers | None = None
        self._prices: dict[str, tuple[float, float]] = {}
        self._failures = 0
        self._answers = 0

    def another(self) -> LLMClient:
        """One with a budget of its own, on this one's cache and LiteLLM, for as long as this one is open."""
        return LLMClient(self.endpoint, self._cache, self._options, lender=self)

    def tidy(self) -> None:
        """All answers are shared by now: whatever served to find them again may go."""
        if self._providers is not None:
            self._providers.tidy()

    async def close(self) -> None:
        if self._providers is not None and self._lender is None:
            await self._providers.__aexit__(None, None, None)

    async def ask(self, usage: UsageByAgent, agent: Agent[AnswerT], row: Row, **settings: Any) -> AnswerT:
        """The agent's validated answer on a row, booked on `usage`; raises as `converse` does."""
        model = self._options.route(agent.name, row.task_category, row.language)
        answer, _ = await self.converse(usage, agent, agent.messages(row, **settings), model)
        return answer

    async def converse(
        self,
        usage: UsageByAgent,
        agent: Agent[AnswerT],
        messages: list[dict[str, str]],
        model: str | None = None,
        top_logprobs: int | None = None,
    ) -> tuple[AnswerT, dict[str, Any]]:
        """The agent's validated answer to messages, and the reply as the cache keeps it, booked on `usage`.

        Raises NoAnswer where there is none, ConfigurationError where the provider refuses us, and
        TransientError where it fails again and again.
        """
        model = model or self.endpoint.model
        parameters: dict[str, Any] = {
            "temperature": self._options.temperature,
            "max_tokens": self._options.max_output_tokens,
        }
        if top_logprobs is not None:
            parameters["top_logprobs"] = top_logprobs
        keys = self._keys(model, {"messages": messages, "schema": agent.schema, **parameters})
        answer = self._found(agent, keys, messages)
        cached = True
        if answer is not None:
            self._usefulness.was_of_use(agent.name, model)
            self.ledger.settle(0.0, answer["cost_usd"])
        elif keys[0] in self._pending:  # asked for another row at this moment
            answer = await asyncio.shield(self._pending[keys[0]])
        else:
            cached = False
            request = Request(messages, model, schema=agent.schema, schema_name=agent.answer.__name__, **parameters)
            self._pending[keys[0]] = asyncio.ensure_future(self._asked(usage, agent, keys, request))
            try:
                answer = await self._pending[keys[0]]
            finally:
                self._pending.pop(keys[0]).cancel()
        if cached:
            usage.add(agent.name, answer, cached=True)
        if agent.sets_aside:
            self.ledger.scored(answer["cost_usd"])
        try:
            return read(agent, answer, messages), answer
        except BadAnswer as bad:  # of one that was kept though it is of no use
            raise NoAnswer(agent.name, str(bad)) from None

    @property
    def routes(self) -> list[str]:
        """The models that rows go to."""
        return list(self._configuration.routes)

    async def price(self, model: str) -> tuple[float, float]:
        """$ a token of prompt and of answer; zeros where nobody knows."""
        await self._started()
        return self._prices[model]

    async def tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as far as LiteLLM knows the model's tokenizer."""
        return await (await self._started()).tokens(model, list(texts))

    def _keys(self, model: str, asked: dict[str, Any]) -> list[str]:
        """Of the answer of each of a route's models, in order."""
        return [key_of({**who, **asked}) for who in self._answering[model]]

    @functools.cached_property
    def _answering(self) -> dict[str, list[dict[str, str]]]:
        """Which models answer for each route, and where."""
        return {
            route: [{"model": one.model, "server": server_of(one.model, one.api_base)} for one in deployments]
            for route, deployments in self._configuration.routes.items()
        }

    def _found(self, agent: Agent[Any], keys: list[str], messages: list[dict[str, str]]) -> dict[str, Any] | None:
        """A kept answer that is of use, or that is not asked for again."""
        for key in keys:
            answer = self._cache.get(key)
            if answer is not None and not agent.asks_again:
                return answer
            with contextlib.suppress(BadAnswer, NoAnswer, KeyError, TypeError, AttributeError):  # another version's
                read(agent, answer or {}, messages)
                return answer
        return None

    async def _asked(self, usage: UsageByAgent, agent: Agent[Any], keys: list[str], request: Request) -> dict[str, Any]:
        """A new answer that is of use, kept (its only one always); what it took is booked on `usage`."""
        answers: list[dict[str, Any]] = []
        messages = request.messages
        async with self._usefulness.turn(agent.name, request.route), self._settling() as asked:
            while len(answers) < _ATTEMPTS:
                asked.append(request)
                answer = await self._paid(agent, request)
                usage.add(agent.name, answer, cached=False)
                answers.append(answer)
                if not agent.asks_again:
                    self._cache.put(keys[answer["place"]], answer)
                try:
                    read(agent, answer, messages)
                except BadAnswer as bad:
                    if not agent.asks_again:
                        raise NoAnswer(agent.name, str(bad)) from None
                    why = str(bad)
                else:
                    answer |= {name: sum(one[name] for one in answers) for name in _TAKEN} | {"requests": len(answers)}
                    self._cache.put(keys[answer["place"]], answer)
                    return answer
                correction = f"That was not the JSON object asked for ({why}). Answer with that object alone."
                again = [
                    {"role": "assistant", "content": answer["text"][:2_000].strip(" \n") or "(nothing)"},
                    {"role": "user", "content": correction},
                ]
                request = dataclasses.replace(request, messages=[*messages, *again])
            said = redacted(answer["text"][:2_000], [self.endpoint.api_key or ""])[:_WORDS]
            if answer["finish_reason"] == DECLINED or ("{" not in said and is_refusal(said)):
                why = "the model declines"
            raise NoAnswer(agent.name, "no valid answer", f"{why}: {said!r}" if said else why)

    @contextlib.asynccontextmanager
    async def _settling(self) -> AsyncIterator[list[Request]]:
        """Gathers what is asked for a row, which need not be found again once that has its answer, or surely none."""
        asked: list[Request] = []
        try:
            yield asked
        except NoAnswer:
            self._settled(asked)
            raise
        self._settled(asked)

    def _settled(self, asked: list[Request]) -> None:
        if self._providers:
            self._providers.settled(asked)

    async def _paid(self, agent: Agent[Any], request: Request) -> dict[str, Any]:
        """Send a request; its slot is free again when the answer is there.

        Rows that are further along go first, so that few are half done when a budget ends or a kill comes.
        """
        async with self._slots.one(-agent.stage):
            providers = await self._started()
            most = self._most(request)
            check_leases()
            try:
                await self.ledger.reserve(most, surely=await providers.sent_before(request))
            except BudgetReached:
                raise NoAnswer(agent.name, BUDGET_REACHED) from None
            cost = 0.0
            try:
                reply = await providers.complete(request)
                answer = as_kept(reply, self._prices[request.route])
                cost = answer["cost_usd"]
            except ProviderError as error:
                raise self._failure(agent, request.route, error) from None
            finally:
                self.ledger.settle(most, cost)
            self._failures, self._answers = 0, self._answers + 1
            return answer

    def _most(self, request: Request) -> float:
        """The most that a request can cost: a token is at least one byte."""
        price = self._prices[request.route]
        prompt_bytes = sum(len(message["content"].encode()) for message in request.messages)
        return prompt_bytes * price[0] + self._options.max_output_tokens * price[1]

    def _failure(self, agent: Agent[Any], model: str, error: ProviderError) -> Exception:
        """What a provider's error means: for this row, or for the whole stage."""
        if for_all := complaints.at_once(error, model, self._where(model), self._options):
            return for_all
        if error.kind not in complaints.OF_ONE_ROW:
            self._failures += 1
            if self._failures >= (_FAILURES_IN_A_ROW if self._answers else _FAILURES_AT_FIRST):
                return complaints.at_last(error, self._where(model), self._options)
        return complaints.of_a_row(error, agent.name)

    def _hopeless(self, agent: str, model: str, counts: str, last: NoAnswer) -> Exception:
        return complaints.hopeless(agent, self._where(model), counts, last, self._options)

    def _where(self, model: str) -> str:
        base = self.endpoint.api_base if model == self.endpoint.model else None
        return f"the LLM {model!r}" + (f" at {base}" if base else "")

    async def _started(self) -> Providers:
        async with self._starting:
            if self._providers is None:
                self._providers = await (self._lender._started() if self._lender else self._new_providers())
            if not self._prices:
                routes = self._providers.routes
                self._prices = {route: price_of(models, self._options) for route, models in routes.items()}
            return self._providers

    async def _new_providers(self) -> Providers:
        check_address(self.endpoint.api_base, self._options.setting)
        providers = Providers(self._configuration, processes=self._options.processes)
        if self._options.batch:
            providers = BatchProviders(self._configuration, Notes(self._cache), self._options, self._note)
        try:
            return await providers.__aenter__()
        except ProviderError as error:
            raise ConfigurationError(f"{self._options.model_setting}: {error}") from error

    @functools.cached_property
    def _configuration(self) -> Configuration:
        options = self._options
        limits: dict[str, Any] = {"rpm": options.requests_per_minute, "tpm": options.tokens_per_minute}
        fallbacks = [LLMEndpoint(model) for model in options.fallbacks]
        routes = {model: [LLMEndpoint(model, **limits), *fallbacks] for model in options.other_models}
        routes[self.endpoint.model] = [dataclasses.replace(self.endpoint, **limits), *fallbacks]
        return Configuration(routes, _RETRIES, options.timeout_s)
