"""What agents use and cost, and the cap on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Verification reads what Selection read and answers about as much; the rest is a margin.
_VERIFICATION_PER_SELECTION = 1.25


@dataclass
class Usage:
    """What one agent asked. `cost_usd` is what its answers cost, whoever paid; `paid_usd` what this run paid."""

    requests: int = 0
    from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    paid_usd: float = 0.0


class UsageByAgent(dict[str, Usage]):
    """Usage of each agent, by name."""

    def add(self, agent: str, answer: Mapping[str, Any], *, cached: bool) -> None:
        """Book one answer; one of the cache stands for all requests that it took."""
        used = self.setdefault(agent, Usage())
        if cached:
            used.from_cache += answer.get("requests", 1)
        else:
            used.requests += 1
        used.prompt_tokens += answer["prompt_tokens"]
        used.completion_tokens += answer["completion_tokens"]
        used.cost_usd += answer["cost_usd"]
        used.paid_usd += 0.0 if cached else answer["cost_usd"]

    def plain(self) -> dict[str, dict[str, float]]:
        return {agent: asdict(used) for agent, used in sorted(self.items())}

    def merge(self, plain: Mapping[str, Mapping[str, float]]) -> None:
        for agent, numbers in plain.items():
            used = self.setdefault(agent, Usage())
            for name, value in numbers.items():
                setattr(used, name, getattr(used, name) + value)


class BudgetReached(Exception):
    """One more request might cost more than is left."""


class Ledger:
    """Keeps spending under a limit: a request reserves the most that it can cost before it is sent.

    While rows are written, what their verification will cost is set aside, so that the money never runs out
    between writing rows and verifying them. With no limit it only adds up.
    """

    def __init__(self, limit_usd: float | None, max_rows: int | None = None):
        self.spent = 0.0
        self.reached = False
        self._limit = limit_usd
        self._max_rows = max_rows
        self._reserved = 0.0
        self._scored = 0
        self._scoring_cost = 0.0
        self._verifying = False
        self._settled = asyncio.Event()

    async def reserve(self, most_usd: float, *, surely: bool = False) -> None:
        """Wait until the limit has room for `most_usd`; BudgetReached where it never will.

        `surely`: it is spent already, and had its room in the run that spent it.
        """
        while not surely and self._limit is not None and self._committed() + most_usd > self._limit:
            if self._reserved == 0:
                self.reached = True
                raise BudgetReached
            await self._settled.wait()
        self._reserved += most_usd

    def settle(self, most_usd: float, spent_usd: float) -> None:
        """The request is over: give its reservation back and book what it cost."""
        self._reserved = max(0.0, self._reserved - most_usd)
        if self._reserved < 1e-9:
            self._reserved = 0.0
        self.spent += spent_usd
        self._settled.set()
        self._settled = asyncio.Event()

    def scored(self, cost_usd: float) -> None:
        """A row was scored, so it may come to be verified."""
        self._scored += 1
        self._scoring_cost += cost_usd

    def verify(self) -> None:
        """From here on what was set aside may be spent."""
        self._verifying = True

    def _committed(self) -> float:
        return self.spent + self._reserved + (0.0 if self._verifying else self._set_aside())

    def _set_aside(self) -> float:
        share = 1.0 if self._max_rows is None else min(1.0, self._max_rows / max(self._scored, 1))
        return self._scoring_cost * share * _VERIFICATION_PER_SELECTION
