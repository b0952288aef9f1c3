"""The cap on spending: never passed, by any order of requests, and no rows written that cannot be verified."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.errors import ConfigurationError
from tasks.augment.agents import SELECTION, VERIFICATION
from tasks.llm import client as client_module
from tasks.llm.budget import BudgetReached, Ledger
from tasks.llm.client import LLMClient
from tasks.llm.protocol import ProviderError, Reply, Request
from tasks.llm.usefulness import NoAnswer
from tasks.rows import Row
from tests.support.fake_providers import GOOD, MODEL, SCORES, FakeProviders, Setting, reply

PRICE = (0.0, 1 / 128)  # of a token of prompt and of answer, exact in binary
ASKED = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1), st.integers(0, 3)), max_size=30)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(tmp_path, monkeypatch)


@hypothesis_settings(deadline=None)
@given(ASKED, st.floats(0.1, 20))
def test_spending_and_reservations_never_pass_the_limit(asked: list[tuple[float, float, int]], limit: float) -> None:
    ledger = Ledger(limit)
    flying = 0.0
    outcomes: list[bool] = []

    async def one(most: float, share: float, turns: int) -> None:
        nonlocal flying
        try:
            await ledger.reserve(most)
        except BudgetReached:
            assert ledger.spent + most > limit - 1e-6  # it was true when it was said
            outcomes.append(False)
            return
        flying += most
        assert ledger.spent + flying <= limit + 1e-6
        for _ in range(turns):
            await asyncio.sleep(0)
        flying -= most
        ledger.settle(most, most * share)
        outcomes.append(True)

    async def all_of_them() -> None:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for each in asked:
                group.create_task(one(*each))

    asyncio.run(all_of_them())
    assert len(outcomes) == len(asked)  # nobody waits for ever
    assert ledger.spent <= limit + 1e-6
    assert ledger.reached == (False in outcomes)


def test_a_request_waits_for_room_that_another_may_leave() -> None:
    async def run() -> list[str]:
        ledger, order = Ledger(1.0), []
        await ledger.reserve(0.8)

        async def second() -> None:
            await ledger.reserve(0.8)
            order.append("second")

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0)
        order.append("first settles")
        ledger.settle(0.8, 0.1)
        await waiting
        return order

    assert asyncio.run(run()) == ["first settles", "second"]


def test_what_is_spent_already_has_its_room_whatever_is_left() -> None:
    async def run() -> None:
        ledger = Ledger(1.0)
        await ledger.reserve(0.8)
        await ledger.reserve(0.9, surely=True)
        ledger.settle(0.8, 0.0)
        ledger.settle(0.9, 0.7)
        with pytest.raises(BudgetReached):
            await ledger.reserve(0.4)

    asyncio.run(run())


def test_what_a_killed_run_has_sent_is_read_whatever_the_budget(setting: Setting) -> None:
    class SentBefore(FakeProviders):
        async def sent_before(self, request: Request) -> bool:
            return True

    setting.monkeypatch.setattr(
        client_module, "Providers", SentBefore(lambda request: reply(GOOD, 0.5), {MODEL: PRICE})
    )
    assert _spend(setting, 3, budget_usd=0.75, max_output_tokens=128) == (3, [], 1.5, False)


def test_with_no_limit_it_only_adds_up() -> None:
    ledger = Ledger(None)
    asyncio.run(ledger.reserve(1e9))
    ledger.settle(1e9, 7.0)
    assert (ledger.spent, ledger.reached) == (7.0, False)


def test_money_for_verification_is_set_aside_while_rows_are_written() -> None:
    ledger = Ledger(1.0)
    ledger.settle(0.0, 0.4)
    ledger.scored(0.4)
    with pytest.raises(BudgetReached):
        asyncio.run(ledger.reserve(0.2))  # 0.4 are spent, 0.5 set aside
    asyncio.run(ledger.reserve(0.05))
    ledger.settle(0.05, 0.0)
    ledger.verify()
    asyncio.run(ledger.reserve(0.6))


def test_only_as_much_is_set_aside_as_rows_can_be_kept() -> None:
    ledger = Ledger(1.0, max_rows=1)
    ledger.settle(0.0, 0.4)
    for _ in range(4):
        ledger.scored(0.1)
    asyncio.run(ledger.reserve(0.4))  # a quarter of 0.5 is set aside
    ledger.settle(0.4, 0.4)
    with pytest.raises(BudgetReached):
        asyncio.run(ledger.reserve(0.1))  # 0.8 are spent, 0.125 set aside


def _spend(setting: Setting, count: int, **options: Any) -> tuple[int, list[str], float, bool]:
    """(requests answered, reasons of the others, what the ledger says, whether it says reached)."""

    async def use(client: LLMClient) -> tuple[int, list[str], float, bool]:
        asks = (client.ask(setting.usage, VERIFICATION, Row(instruction=str(n))) for n in range(count))
        outcomes = await asyncio.gather(*asks, return_exceptions=True)
        reasons = [one.reason for one in outcomes if isinstance(one, NoAnswer)]
        return count - len(reasons), reasons, client.ledger.spent, client.ledger.reached

    return setting.run(use, **options)


@pytest.mark.parametrize("concurrency", [1, 3, 64])
def test_no_run_costs_more_than_its_budget(setting: Setting, concurrency: int) -> None:
    paid = 0.0

    def script(request: Request) -> Reply:
        nonlocal paid
        paid += 0.875
        return reply(GOOD, cost=0.875)

    setting.providers(script, price=PRICE)  # a request costs $1 at most
    answered, reasons, spent, reached = _spend(
        setting, 40, budget_usd=10.0, max_output_tokens=128, concurrency=concurrency
    )
    assert answered == 11  # $8.75 leave room for one more, $9.625 do not
    assert reasons == ["budget reached"] * 29
    assert reached
    assert paid == spent == 9.625


def test_a_prompt_counts_towards_what_a_request_may_cost(setting: Setting) -> None:
    providers = setting.providers(lambda request: GOOD, price=(0.01, 0.0))
    prompt = sum(len(m["content"].encode()) for m in VERIFICATION.messages(Row(instruction="0")))
    assert _spend(setting, 1, budget_usd=0.01 * prompt - 0.001)[1] == ["budget reached"]
    assert providers.asked == []
    assert _spend(setting, 1, budget_usd=0.01 * prompt + 0.001)[0] == 1


def test_answers_that_are_there_count_towards_the_datasets_cost_and_are_not_paid(setting: Setting) -> None:
    setting.providers(lambda request: reply(GOOD, cost=0.875), price=PRICE)
    _spend(setting, 10, max_output_tokens=128)
    providers = setting.providers(lambda request: reply(GOOD, cost=0.875), price=PRICE)
    answered, _, spent, _ = _spend(setting, 20, budget_usd=10.0, max_output_tokens=128, concurrency=1)
    assert (answered, len(providers.asked)) == (11, 1)
    assert spent == pytest.approx(9.625)


def test_where_the_provider_names_no_cost_it_is_reckoned_from_the_price(setting: Setting) -> None:
    setting.providers(lambda request: reply(GOOD, cost=0.0), price=(2e-3, 5e-3))
    assert _spend(setting, 1)[2] == pytest.approx(10 * 2e-3 + 2 * 5e-3)


def test_a_failed_request_gives_its_reservation_back(setting: Setting) -> None:
    def script(request: Request) -> Any:
        number = json.loads(request.messages[1]["content"])["instruction"]
        return ProviderError("content_policy", "no") if int(number) < 5 else reply(GOOD, cost=0.0)

    setting.providers(script, price=PRICE)
    answered, reasons, _, reached = _spend(setting, 10, budget_usd=1.5, max_output_tokens=128)
    assert (answered, reasons, reached) == (5, ["declined by the provider"] * 5, False)


def test_a_budget_needs_a_price(setting: Setting) -> None:
    providers = setting.providers(lambda request: GOOD, price=None)
    with pytest.raises(ConfigurationError, match=r"usd_per_million_tokens"):
        setting.ask(budget_usd=1.0)
    assert providers.asked == []
    assert setting.ask(budget_usd=1.0, usd_per_million_tokens=(1.0, 2.0)).correct
    assert setting.ask(row=Row(instruction="no budget")).correct


def test_a_fallbacks_unknown_price_is_not_taken_for_free(setting: Setting) -> None:
    setting.providers(lambda request: GOOD, other=None)
    with pytest.raises(ConfigurationError, match="'other'"):
        setting.ask(budget_usd=1.0, fallbacks=("other",))


def test_the_client_sets_money_aside_for_rows_that_it_scored(setting: Setting) -> None:
    setting.providers(lambda request: reply(SCORES, cost=1.0), price=PRICE)

    async def use(client: LLMClient) -> list[Any]:
        outcomes: list[Any] = []
        for number in range(10):
            try:
                outcomes.append(await client.ask(setting.usage, SELECTION, Row(instruction=str(number))))
            except NoAnswer as nothing:
                outcomes.append(nothing.reason)
        return outcomes

    outcomes = setting.run(use, budget_usd=10.0, max_output_tokens=128)
    assert [isinstance(one, str) for one in outcomes] == [False] * 5 + [True] * 5  # of $10, 5 x $1.25 are set aside
