"""Puts rows before agents: cached, budgeted, rate-limited, validated, asked again where the answer is no good."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlparse

from infra.claims import check_leases
from infra.errors import ConfigurationError, TransientError
from tasks.augment.agents import AGENTS, SELECTION, Agent, Answer, BadAnswer
from tasks.augment.answers import AnswerCache, key_of
from tasks.augment.budget import BudgetReached, Ledger, UsageByAgent
from tasks.augment.providers import Configuration, Deployment, ProviderError, Providers, Reply, Request
from tasks.augment.settings import Augmentation, LLMCalls
from tasks.augment.turns import Slots
from tasks.rows import Row

_MAX_TEXT = 200_000  # characters of an answer that are kept: more than any agent may say
_ATTEMPTS = 2
_RETRIES = 5
_PAUSE_S = 5.0
_FAILURES_IN_A_ROW = 20
_FAILURES_AT_FIRST = 5

_ROW_REASONS = {
    "content_policy": "declined by the provider",
    "context_window": "too long for the model",
    "bad_request": "refused by the provider",
    "rate_limit": "no answer (rate limit)",
    "timeout": "no answer (timeout)",
    "unreachable": "no answer (connection)",
    "server": "no answer (server error)",
}
_TRANSIENT = {"rate_limit", "timeout", "unreachable", "server"}


class Unanswered(Exception):
    """An agent got no usable answer on a row. `transient`: another time it might."""

    def __init__(self, agent: str, reason: str, detail: str = "", *, transient: bool = False):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.agent = agent
        self.reason = reason
        self.transient = transient


class LLMClient:
    """One for a stage and its event loop; `close` it. LiteLLM starts with the first request that is not cached."""

    def __init__(self, endpoint: Deployment, cache: AnswerCache, options: LLMCalls, max_rows: int | None = None):
        self.endpoint = endpoint
        self.ledger = Ledger(options.budget_usd, max_rows)
        self._options = options
        self._cache = cache
        self._slots = Slots(options.concurrency)
        self._pending: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._starting = asyncio.Lock()
        self._providers: Providers | None = None
        self._prices: dict[str, tuple[float, float]] = {}
        self._failures = 0
        self._answers = 0

    async def close(self) -> None:
        if self._providers is not None:
            await self._providers.__aexit__(None, None, None)

    async def ask(self, usage: UsageByAgent, agent: Agent[Answer], row: Row, **settings: Any) -> Answer:
        """The agent's validated answer on a row, booked on `usage`; raises as `converse` does."""
        model = None
        if isinstance(self._options, Augmentation):
            model = self._options.route(agent.name, row.task_category, row.language)
        answer, _ = await self.converse(usage, agent, agent.messages(row, **settings), model)
        return answer

    async def converse(
        self,
        usage: UsageByAgent,
        agent: Agent[Answer],
        messages: list[dict[str, str]],
        model: str | None = None,
        top_logprobs: int | None = None,
    ) -> tuple[Answer, dict[str, Any]]:
        """The agent's validated answer to messages, and the reply as the cache keeps it, booked on `usage`.

        Raises Unanswered where there is none, ConfigurationError where the provider refuses us, and
        TransientError where it fails again and again.
        """
        model = model or self.endpoint.model
        for attempt in range(1, _ATTEMPTS + 1):
            answer = await self._patiently(usage, agent, model, messages, top_logprobs)
            try:
                if answer["finish_reason"] == "length":
                    raise BadAnswer("cut off at max_output_tokens")
                return agent.read(answer["text"], messages[1]["content"]), answer
            except BadAnswer as bad:
                why = str(bad)
            if attempt < _ATTEMPTS:
                correction = f"That was not the JSON object asked for ({why}). Answer with that object alone."
                messages = [
                    *messages,
                    {"role": "assistant", "content": answer["text"][:2_000]},
                    {"role": "user", "content": correction},
                ]
        raise Unanswered(agent.name, "no valid answer", why)

    @property
    def routes(self) -> list[str]:
        """The models that rows go to."""
        return list(self._configuration().routes)

    async def price(self, model: str) -> tuple[float, float]:
        """$ a token of prompt and of answer; zeros where nobody knows."""
        await self._started()
        return self._prices[model]

    async def tokens(self, model: str, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as far as LiteLLM knows the model's tokenizer."""
        return await (await self._started()).tokens(model, list(texts))

    async def _patiently(
        self,
        usage: UsageByAgent,
        agent: Agent[Any],
        model: str,
        messages: list[dict[str, str]],
        top_logprobs: int | None,
    ) -> dict[str, Any]:
        """A provider's passing failure, its own retries being used up, gets one more chance a little later."""
        try:
            return await self._complete(usage, agent, model, messages, top_logprobs)
        except Unanswered as nothing:
            if not nothing.transient:
                raise
        await asyncio.sleep(random.uniform(0.5, 1.0) * _PAUSE_S)
        return await self._complete(usage, agent, model, messages, top_logprobs)

    async def _complete(
        self,
        usage: UsageByAgent,
        agent: Agent[Any],
        model: str,
        messages: list[dict[str, str]],
        top_logprobs: int | None,
    ) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "temperature": self._options.temperature,
            "max_tokens": self._options.max_output_tokens,
        }
        if top_logprobs is not None:
            parameters["top_logprobs"] = top_logprobs
        key = key_of({"model": model, "messages": messages, "schema": agent.schema, **parameters})
        answer = self._cache.get(key)
        cached = answer is not None
        if answer is not None:
            self.ledger.settle(0.0, answer["cost_usd"])
        elif key in self._pending:  # asked for another row at this moment
            cached = True
            answer = await asyncio.shield(self._pending[key])
        else:
            request = Request(
                route=model, messages=messages, schema=agent.schema, schema_name=agent.answer.__name__, **parameters
            )
            self._pending[key] = asyncio.ensure_future(self._paid(agent, key, request))
            try:
                answer = await self._pending[key]
            finally:
                self._pending.pop(key).cancel()
        usage.add(agent.name, answer, cached=cached)
        if agent is SELECTION:
            self.ledger.scored(answer["cost_usd"])
        return answer

    async def _paid(self, agent: Agent[Any], key: str, request: Request) -> dict[str, Any]:
        """Send a request; its slot is free again when the answer is kept.

        Rows that are further along go first, so that few are half done when a budget ends or a kill comes.
        """
        async with self._slots.one(-AGENTS.index(agent) if agent in AGENTS else 0):
            providers = await self._started()
            most = self._most(request)
            check_leases()
            try:
                await self.ledger.reserve(most)
            except BudgetReached:
                raise Unanswered(agent.name, "budget reached") from None
            cost = 0.0
            try:
                reply = await providers.complete(request)
                answer = self._kept(reply, self._prices[request.route])
                cost = answer["cost_usd"]
                self._cache.put(key, answer)
            except ProviderError as error:
                raise self._failure(agent, request.route, error) from None
            finally:
                self.ledger.settle(most, cost)
            self._failures, self._answers = 0, self._answers + 1
            return answer

    def _kept(self, reply: Reply, price: tuple[float, float]) -> dict[str, Any]:
        cost = reply.cost_usd or reply.prompt_tokens * price[0] + reply.completion_tokens * price[1]
        logprobs = {} if reply.last_logprobs is None else {"last_logprobs": reply.last_logprobs}
        return {
            **logprobs,
            "text": reply.text[:_MAX_TEXT],
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "cost_usd": cost,
            "model": reply.model,
            "finish_reason": reply.finish_reason,
        }

    def _most(self, request: Request) -> float:
        """The most that a request can cost: a token is at least one byte."""
        price = self._prices[request.route]
        prompt_bytes = sum(len(message["content"].encode()) for message in request.messages)
        return prompt_bytes * price[0] + self._options.max_output_tokens * price[1]

    def _failure(self, agent: Agent[Any], model: str, error: ProviderError) -> Exception:
        """What a provider's error means: for this row, or for the whole stage."""
        where = f"the LLM {model!r}" + (f" at {self.endpoint.api_base}" if self.endpoint.api_base else "")
        if error.kind == "refused_key":
            return ConfigurationError(
                f"the provider of {model!r} refused the key: set its key in the environment "
                "(OPENAI_API_KEY, ANTHROPIC_API_KEY …)"
            )
        if error.kind == "unknown_model":
            return ConfigurationError(f"{where} does not exist for its provider: {error}")
        if error.kind not in ("content_policy", "context_window"):
            self._failures += 1
            if self._failures >= (_FAILURES_IN_A_ROW if self._answers else _FAILURES_AT_FIRST):
                if error.kind == "bad_request":
                    return ConfigurationError(f"{where} does not take our requests: {error}")
                why = _ROW_REASONS[error.kind].removeprefix("no answer ").strip("()")
                return TransientError(
                    f"{where} cannot be reached or fails again and again ({why}): check the address and the server, "
                    f"or lower `{self._options.setting}.concurrency`; answers so far are kept, run again"
                )
        return Unanswered(agent.name, _ROW_REASONS[error.kind], str(error), transient=error.kind in _TRANSIENT)

    async def _started(self) -> Providers:
        async with self._starting:
            if self._providers is None:
                _check_address(self.endpoint.api_base, self._options.setting)
                providers = Providers(self._configuration(), processes=self._options.processes)
                try:
                    await providers.__aenter__()
                except ProviderError as error:
                    raise ConfigurationError(f"{self._options.model_setting}: {error}") from error
                self._providers = providers
            if not self._prices:
                routes = self._providers.routes
                self._prices = {route: self._price(route, models) for route, models in routes.items()}
            return self._providers

    def _configuration(self) -> Configuration:
        options = self._options
        limits: dict[str, Any] = {"rpm": options.requests_per_minute, "tpm": options.tokens_per_minute}
        fallbacks = [Deployment(model) for model in options.fallbacks]
        routes = {model: [Deployment(model, **limits), *fallbacks] for model in options.other_models}
        routes[self.endpoint.model] = [dataclasses.replace(self.endpoint, **limits), *fallbacks]
        return Configuration(routes, _RETRIES, options.timeout_s, options.concurrency)

    def _price(self, route: str, models: list[dict[str, Any]]) -> tuple[float, float]:
        """The dearest of a route's models, in $ a token of prompt and of answer."""
        own = self._options.usd_per_million_tokens
        if own is not None and not models[0]["priced"]:
            return own[0] / 1e6, own[1] / 1e6
        unknown = [model["model"] for model in models if not model["priced"]]
        if self._options.budget_usd is not None and unknown:
            raise ConfigurationError(
                f"{self._options.setting}.budget_usd needs the price of {unknown[0]!r}, which LiteLLM does not know: "
                f"set {self._options.setting}.usd_per_million_tokens"
            )
        return (
            max(model["usd_per_input_token"] for model in models),
            max(model["usd_per_output_token"] for model in models),
        )


def _check_address(api_base: str | None, setting: str) -> None:
    """Refuse an address where nobody answers before anything is sent there."""
    if api_base is None:
        return
    address = urlparse(api_base)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=10).close()
    except OSError as error:
        raise TransientError(
            f"the LLM at {api_base} cannot be reached ({error.strerror or error}): check {setting}.api_base "
            "and that the server runs"
        ) from error
