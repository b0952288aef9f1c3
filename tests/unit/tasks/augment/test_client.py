"""The client: asked once more, paid once, spent within the budget, and clear about who is at fault.

Only the network is made up here: `Providers` that say what a test wrote.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError, TransientError
from tasks.augment import client as module
from tasks.augment.agents import PRESERVATION, REWRITING, SELECTION, VERIFICATION
from tasks.augment.budget import UsageByAgent
from tasks.augment.client import LLMClient, Unanswered
from tasks.augment.providers import Deployment, ProviderError, Reply, Request
from tasks.rows import Row
from tests.support.fake_providers import GOOD, MODEL, ROW, SCORES, FakeProviders, Setting, in_turn, reply


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(tmp_path, monkeypatch)


@pytest.mark.parametrize("bad", ["", "I cannot help", GOOD[:-1], GOOD.replace("true", "1"), GOOD + GOOD, "\x00", "[]"])
def test_a_bad_answer_is_asked_once_more_with_the_reason(setting: Setting, bad: str) -> None:
    providers = setting.providers(in_turn(bad, GOOD))
    assert setting.ask().correct
    first, second = (request.messages for request in providers.asked)
    assert second[:2] == first
    assert second[2] == {"role": "assistant", "content": bad}
    assert "was not the JSON object asked for" in second[3]["content"]


def test_two_bad_answers_are_no_answer_and_the_reason_is_kept(setting: Setting) -> None:
    providers = setting.providers(in_turn(GOOD.replace("correct", "corect"), "nothing"))
    with pytest.raises(Unanswered, match="no valid answer: not one whole JSON object") as unanswered:
        setting.ask()
    assert (unanswered.value.agent, unanswered.value.reason) == ("verification", "no valid answer")
    assert not unanswered.value.transient
    assert len(providers.asked) == 2
    assert setting.usage["verification"].requests == 2


def test_an_answer_that_was_cut_off_is_none_even_where_it_could_be_mended(setting: Setting) -> None:
    setting.providers(in_turn(reply(GOOD, finish="length"), reply(GOOD, finish="length")))
    with pytest.raises(Unanswered, match="cut off at max_output_tokens"):
        setting.ask()


def test_a_judge_that_quotes_the_row_is_asked_again(setting: Setting) -> None:
    providers = setting.providers(lambda request: GOOD)
    with pytest.raises(Unanswered, match="quotes the row"):
        setting.ask(row=Row(instruction=f"Say {GOOD}", response="y"))
    assert len(providers.asked) == 2


def test_a_paid_answer_is_never_paid_again(setting: Setting) -> None:
    first = setting.providers(lambda request: GOOD)
    setting.ask()
    again = setting.providers(lambda request: pytest.fail("asked again"))
    assert setting.ask().correct
    assert setting.ask(temperature=0.7, concurrency=3, budget_usd=1.0).correct
    assert (len(first.asked), len(again.asked), again.starts) == (1, 0, 0)
    used = setting.usage["verification"]
    assert (used.requests, used.from_cache, used.cost_usd, used.paid_usd) == (1, 2, 1.5, 0.5)


def test_bad_answers_that_were_paid_are_not_paid_again_either(setting: Setting) -> None:
    setting.providers(in_turn("bad", GOOD))
    setting.ask()
    setting.providers(lambda request: pytest.fail("asked again"))
    assert setting.ask().correct


@pytest.mark.parametrize("change", [{"temperature": 0.1}, {"max_output_tokens": 99}, {"routes": {"en": "other"}}])
def test_another_request_is_another_answer(setting: Setting, change: dict[str, Any]) -> None:
    providers = setting.providers(lambda request: GOOD, other=(1.0, 1.0))
    setting.ask()
    setting.ask(**change)
    assert len(providers.asked) == 2


def test_equal_requests_in_flight_are_sent_once(setting: Setting) -> None:
    providers = setting.providers(lambda request: GOOD)

    async def many(client: LLMClient) -> list[Any]:
        return await asyncio.gather(*(client.ask(setting.usage, VERIFICATION, ROW) for _ in range(20)))

    answers = setting.run(many)
    assert len(providers.asked) == 1
    assert [answer.evidence for answer in answers] == ["e"] * 20
    used = setting.usage["verification"]
    assert (used.requests, used.from_cache, used.paid_usd) == (1, 19, 0.5)


def test_equal_requests_in_flight_share_a_failure(setting: Setting) -> None:
    setting.providers(lambda request: ProviderError("content_policy", "no"))

    async def many(client: LLMClient) -> list[Any]:
        asks = (client.ask(setting.usage, VERIFICATION, ROW) for _ in range(5))
        return await asyncio.gather(*asks, return_exceptions=True)

    assert [str(error) for error in setting.run(many)] == ["declined by the provider: no"] * 5


def test_no_more_requests_are_in_flight_than_allowed(setting: Setting) -> None:
    flying, most = 0, 0

    class Slow(FakeProviders):
        async def complete(self, request: Request) -> Reply:
            nonlocal flying, most
            flying += 1
            most = max(most, flying)
            await asyncio.sleep(0.002)
            flying -= 1
            return reply(GOOD)

    setting.monkeypatch.setattr(module, "Providers", Slow(lambda request: GOOD, {}))

    async def many(client: LLMClient) -> None:
        await asyncio.gather(*(client.ask(setting.usage, VERIFICATION, Row(instruction=str(i))) for i in range(30)))

    setting.run(many, concurrency=4)
    assert most == 4


@pytest.mark.parametrize("kind", ["rate_limit", "timeout", "unreachable", "server"])
def test_a_passing_failure_gets_a_second_chance(setting: Setting, kind: str) -> None:
    setting.providers(in_turn(ProviderError(kind, "busy"), GOOD))
    assert setting.ask().correct
    setting.providers(in_turn(ProviderError(kind, "busy"), ProviderError(kind, "busy")))
    with pytest.raises(Unanswered, match=r"no answer \(.*busy") as unanswered:
        setting.ask(row=Row(instruction="another"))
    assert unanswered.value.transient


@pytest.mark.parametrize("kind", ["content_policy", "context_window", "bad_request"])
def test_a_refused_row_is_not_asked_twice(setting: Setting, kind: str) -> None:
    providers = setting.providers(lambda request: ProviderError(kind, "no"))
    with pytest.raises(Unanswered):
        setting.ask()
    assert len(providers.asked) == 1


def _asks(setting: Setting, count: int) -> Callable[[LLMClient], Coroutine[Any, Any, list[Any]]]:
    async def use(client: LLMClient) -> list[Any]:
        outcomes: list[Any] = []
        for number in range(count):
            try:
                outcomes.append(await client.ask(setting.usage, VERIFICATION, Row(instruction=str(number))))
            except Unanswered as nothing:
                outcomes.append(nothing.reason)
        return outcomes

    return use


@pytest.mark.parametrize(("kind", "error"), [("server", TransientError), ("bad_request", ConfigurationError)])
def test_a_provider_that_never_answers_stops_the_stage_soon(setting: Setting, kind: str, error: type) -> None:
    providers = setting.providers(lambda request: ProviderError(kind, "broken"))
    with pytest.raises(error, match=r"fails again and again|does not take our requests"):
        setting.run(_asks(setting, 100))
    assert len(providers.asked) == 5


def test_an_outage_stops_the_stage_after_twenty_failures_in_a_row(setting: Setting) -> None:
    count = 0

    def script(request: Request) -> str | Exception:
        nonlocal count
        count += 1
        return GOOD if count == 1 else ProviderError("server", "broken")

    setting.providers(script)
    with pytest.raises(TransientError, match="answers so far are kept"):
        setting.run(_asks(setting, 100))
    assert count == 21


def test_single_failures_among_answers_and_refused_rows_stop_nothing(setting: Setting) -> None:
    def every_other(request: Request) -> str | Exception:
        number = int(json.loads(request.messages[1]["content"])["instruction"])
        return GOOD if number % 2 else ProviderError("server", "now and then")

    setting.providers(every_other)
    assert setting.run(_asks(setting, 60)).count("no answer (server error)") == 30
    setting.providers(lambda request: ProviderError("content_policy", "no"))
    declined = setting.run(_asks(setting, 60), temperature=0.0)
    assert declined == ["declined by the provider"] * 60


@pytest.mark.parametrize("kind", ["refused_key", "unknown_model"])
def test_a_refused_key_is_the_users_mistake_and_is_not_shown(setting: Setting, kind: str) -> None:
    providers = setting.providers(lambda request: ProviderError(kind, "bad key [key]"))
    with pytest.raises(ConfigurationError, match=MODEL) as refused:
        setting.ask()
    assert "sk-secret" not in str(refused.value) + repr(Deployment(MODEL, api_key="sk-secret"))
    assert len(providers.asked) == 1


def test_usage_is_booked_on_the_agent_that_asked(setting: Setting) -> None:
    setting.providers(lambda request: SCORES if request.schema_name == "Scores" else GOOD)
    setting.ask(SELECTION)
    setting.ask(VERIFICATION)
    setting.ask(VERIFICATION, Row(instruction="another"))
    told = setting.usage.plain()
    assert list(told) == ["selection", "verification"]
    assert told["verification"] == {
        "requests": 2, "from_cache": 0, "prompt_tokens": 20, "completion_tokens": 4, "cost_usd": 1.0, "paid_usd": 1.0,
    }  # fmt: skip
    sum_of_two = UsageByAgent()
    sum_of_two.merge(told)
    sum_of_two.merge(told)
    assert sum_of_two["selection"].requests == 2


def test_routes_and_fallbacks_reach_the_providers_in_order(setting: Setting) -> None:
    providers = setting.providers(lambda request: GOOD, other=(1.0, 1.0))
    setting.ask(row=Row(instruction="x", language="zh"), routes={"zh": "other"}, fallbacks=("one", "two"))
    assert providers.asked[0].route == "other"
    models = {route: [one.model for one in models] for route, models in providers.configuration.routes.items()}
    assert models == {MODEL: [MODEL, "one", "two"], "other": ["other", "one", "two"]}
    assert [one.api_key for one in providers.configuration.routes[MODEL]] == ["sk-secret", None, None]


def test_requests_carry_the_schema_and_the_settings(setting: Setting) -> None:
    providers = setting.providers(lambda request: '{"instruction": "i", "response": "r"}')
    rewrite = lambda client: client.ask(setting.usage, REWRITING, ROW, chain_of_thought=True)  # noqa: E731
    setting.run(rewrite, temperature=0.3, max_output_tokens=77)
    (request,) = providers.asked
    assert (request.temperature, request.max_tokens, request.schema) == (0.3, 77, REWRITING.schema)
    assert json.loads(request.messages[1]["content"])["chain_of_thought"] is True
    assert PRESERVATION.schema != REWRITING.schema
