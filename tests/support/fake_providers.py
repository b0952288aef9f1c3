"""The client's other end for tests: `Providers` that say what a test wrote, and a client on them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tasks.augment.agents import VERIFICATION
from tasks.augment.settings import Augmentation
from tasks.llm import client as module
from tasks.llm.budget import UsageByAgent
from tasks.llm.cache import AnswerCache
from tasks.llm.client import LLMClient
from tasks.llm.litellm_pool import Providers
from tasks.llm.protocol import Configuration, LLMEndpoint, Reply, Request
from tasks.rows import Row

GOOD = '{"correct": true, "evidence": "e", "tests": []}'
SCORES = '{"informativeness": 5, "helpfulness": 5, "generality": 5, "reason": ""}'
ROW = Row(instruction="x", response="y")
MODEL = "openai/test"
Script = Callable[[Request], str | Exception | Reply]


class FakeProviders(Providers):
    """Answers by a script, after the event loop had a turn; remembers what it was asked."""

    def __init__(self, script: Script, prices: dict[str, tuple[float, float] | None]):
        self._script = script
        self._prices = prices
        self.asked: list[Request] = []
        self.starts = 0
        self.routes: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, configuration: Configuration, processes: int) -> FakeProviders:
        self.routes = {
            route: [self._described(one.model) for one in models] for route, models in configuration.routes.items()
        }
        self.configuration = configuration
        return self

    def _described(self, model: str) -> dict[str, Any]:
        price = self._prices.get(model, (1.0, 1.0))
        one, other = price or (0.0, 0.0)
        return {"model": model, "priced": bool(price), "usd_per_input_token": one, "usd_per_output_token": other}

    async def __aenter__(self) -> FakeProviders:
        self.starts += 1
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        await asyncio.sleep(0)
        said = self._script(request)
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, Reply) else reply(said)


def reply(text: str, cost: float = 0.5, finish: str = "stop") -> Reply:
    return Reply(text, 10, 2, cost, MODEL, finish)


def in_turn(*says: str | Exception | Reply) -> Script:
    left = list(says)
    return lambda request: left.pop(0)


class Setting:
    """A client on the providers and the cache of a test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self._cache = folder / "answers.sqlite"
        self.monkeypatch = monkeypatch
        self.usage = UsageByAgent()

    def providers(self, script: Script, **prices: tuple[float, float] | None) -> FakeProviders:
        fake = FakeProviders(script, {MODEL: prices.get("price", (1.0, 1.0)), "other": prices.get("other")})
        self.monkeypatch.setattr(module, "Providers", fake)
        return fake

    def run(
        self, use: Callable[[LLMClient], Coroutine[Any, Any, Any]], api_base: str | None = None, **options: Any
    ) -> Any:
        async def run() -> Any:
            cache = AnswerCache(self._cache)
            client = LLMClient(LLMEndpoint(MODEL, api_base, api_key="sk-secret"), cache, Augmentation(**options))
            try:
                return await use(client)
            finally:
                await client.close()
                cache.close()

        return asyncio.run(run())

    def ask(self, agent: Any = VERIFICATION, row: Row = ROW, **options: Any) -> Any:
        return self.run(lambda client: client.ask(self.usage, agent, row), **options)

    def ask_at(self, told: dict[str, str]) -> Any:
        """Ask the server of an `api_base`, or of the environment's."""
        self.monkeypatch.setattr(module, "check_address", lambda *_: None)
        with self.monkeypatch.context() as environment:
            for name, value in told.items():
                if name != "api_base":
                    environment.setenv(name, value)
            return self.ask(api_base=told.get("api_base"))

    def overwrite(self, answer: Any) -> None:
        """Whatever is in the cache becomes this."""
        with contextlib.closing(sqlite3.connect(self._cache)) as database, database:
            database.execute("UPDATE answers SET answer = ?", (json.dumps(answer),))
