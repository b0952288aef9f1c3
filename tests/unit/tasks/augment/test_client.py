"""The client: asked once more, paid once, spent within the budget, and clear about who is at fault.

Only the network is made up here: `Providers` that say what a test wrote.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.augment.agents import PRESERVATION, REWRITING, SELECTION, VERIFICATION
from tasks.llm import client as module
from tasks.llm.budget import UsageByAgent
from tasks.llm.client import LLMClient
from tasks.llm.protocol import ProviderError, Reply, Request
from tasks.llm.usefulness import NoAnswer
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
    assert second[2] == {"role": "assistant", "content": bad or "(nothing)"}  # many refuse a turn without text
    assert "was not the JSON object asked for" in second[3]["content"]


def test_two_bad_answers_are_no_answer_and_the_reason_is_kept(setting: Setting) -> None:
    providers = setting.providers(in_turn(GOOD.replace("correct", "corect"), "nothing"))
    with pytest.raises(NoAnswer, match="no valid answer: not one whole JSON object") as unanswered:
        setting.ask()
    assert (unanswered.value.agent, unanswered.value.reason) == ("verification", "no valid answer")
    assert not unanswered.value.transient
    assert len(providers.asked) == 2
    assert setting.usage["verification"].requests == 2


def test_an_answer_about_a_refusal_is_none(setting: Setting) -> None:
    evidence = "Es tut mir leid, das kann ich nicht sagen."
    setting.providers(lambda request: GOOD.replace('"e"', f'"{evidence}"'))
    assert setting.ask().evidence == evidence


def test_an_answer_that_was_cut_off_is_none_even_where_it_could_be_mended(setting: Setting) -> None:
    setting.providers(in_turn(reply(GOOD, finish="length"), reply(GOOD, finish="length")))
    with pytest.raises(NoAnswer, match="cut off at max_output_tokens"):
        setting.ask()


def test_a_judge_that_quotes_the_row_is_asked_again(setting: Setting) -> None:
    providers = setting.providers(lambda request: GOOD)
    with pytest.raises(NoAnswer, match="quotes the row"):
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


def test_only_an_answer_of_use_is_kept(setting: Setting) -> None:
    """A rerun asks for what has none, and the row has its answer in the end."""
    setting.providers(in_turn("bad", "worse"))
    with pytest.raises(NoAnswer):
        setting.ask()
    again = setting.providers(in_turn("bad", GOOD))
    assert setting.ask().correct
    assert len(again.asked) == 2
    setting.providers(lambda request: pytest.fail("asked again"))
    assert setting.ask().correct
    used = setting.usage["verification"]
    assert (used.requests, used.from_cache, used.cost_usd, used.paid_usd) == (4, 2, 3.0, 2.0)


@pytest.mark.parametrize(
    "kept",
    [
        {"text": "no JSON", "finish_reason": "stop"},
        {"text": GOOD, "finish_reason": "length"},
        {"text": "", "finish_reason": "content_filter"},
        {"text": GOOD},
        {"text": None, "finish_reason": "stop"},
        {},
        [],
    ],
)
def test_a_useless_answer_that_an_older_version_kept_is_not_believed(setting: Setting, kept: Any) -> None:
    told = {"prompt_tokens": 1, "completion_tokens": 1, "cost_usd": 0.0, "model": MODEL}
    setting.providers(lambda request: GOOD)
    setting.ask()
    setting.overwrite({**told, **kept} if isinstance(kept, dict) and kept else kept)
    again = setting.providers(lambda request: GOOD)
    assert setting.ask().correct
    assert len(again.asked) == 1


def _always(said: str) -> Callable[[Request], str]:
    return lambda request: said


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"api_base": "http://a:1/v1"}, {"api_base": "http://b:1/v1"}),
        ({"api_base": "http://a:1/v1"}, {"api_base": "http://a:2/v1"}),
        ({"api_base": "http://a:1/v1"}, {"api_base": "http://a:1/v2"}),
        ({"api_base": "http://a:1/v1"}, {}),
        ({"OPENAI_BASE_URL": "http://a:1/v1"}, {"OPENAI_BASE_URL": "http://b:1/v1"}),
        ({"OPENAI_API_BASE": "http://a:1/v1"}, {}),
    ],
)
def test_two_servers_under_one_model_name_share_no_answer(setting: Setting, one: Any, other: Any) -> None:
    for told, correct in ((one, True), (other, False), (one, True), (other, False)):
        setting.providers(_always(GOOD if correct else GOOD.replace("true", "false")))
        assert setting.ask_at(told).correct is correct
    assert setting.usage["verification"].requests == 2


def test_a_server_is_the_same_however_its_address_is_written(setting: Setting) -> None:
    setting.providers(lambda request: GOOD)
    for base in ("http://a/v1", "http://a:80/v1/", "http://user:secret@A/v1"):
        assert setting.ask_at({"api_base": base}).correct
    assert setting.ask_at({"OPENAI_API_BASE": "http://a/v1"}).correct
    assert setting.usage["verification"].requests == 1


def test_an_answer_of_a_fallback_is_kept_as_the_fallbacks(setting: Setting) -> None:
    setting.providers(lambda request: dataclasses.replace(reply(GOOD), place=1), other=(1.0, 1.0))
    setting.ask(fallbacks=("other",))
    setting.providers(lambda request: pytest.fail("asked again"))
    setting.ask(fallbacks=("other",))  # its answers count for whoever names it
    alone = setting.providers(lambda request: GOOD)
    setting.ask()
    assert len(alone.asked) == 1, "the model was given the answer of another"


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


def test_another_client_has_a_budget_of_its_own_and_the_same_litellm_and_answers(setting: Setting) -> None:
    providers = setting.providers(lambda request: GOOD)

    async def ask(client: LLMClient) -> None:
        for number in range(3):  # each has cost 0.5 of its dollar
            other = client.another()
            await other.ask(setting.usage, VERIFICATION, Row(instruction=str(number)))
            await other.ask(setting.usage, VERIFICATION, ROW)
            await other.close()
            assert other.ledger.spent == 1.0
        assert client.ledger.spent == 0.0

    setting.run(ask, budget_usd=10_000.0)
    assert (providers.starts, len(providers.asked)) == (1, 4)


def test_routes_and_fallbacks_reach_the_providers_in_order(setting: Setting) -> None:
    providers = setting.providers(lambda request: GOOD, other=(1.0, 1.0))
    setting.ask(row=Row(instruction="x", language="zh"), routes={"zh": "other"}, fallbacks=("one", "two"))
    assert providers.asked[0].route == "other"
    models = {route: [one.model for one in models] for route, models in providers.configuration.routes.items()}
    assert models == {MODEL: [MODEL, "one", "two"], "other": ["other", "one", "two"]}
    assert [one.api_key for one in providers.configuration.routes[MODEL]] == ["sk-secret", None, None]


def test_requests_carry_the_schema_and_the_settings(setting: Setting) -> None:
    providers = setting.providers(lambda request: '{"difficulty": "easy", "instruction": "i", "response": "r"}')
    told = {"chain_of_thought": True, "lengths": {"short": 1, "medium": 2, "long": 3}}
    rewrite = lambda client: client.ask(setting.usage, REWRITING, ROW, **told)  # noqa: E731
    setting.run(rewrite, temperature=0.3, max_output_tokens=77)
    (request,) = providers.asked
    assert (request.temperature, request.max_tokens, request.schema) == (0.3, 77, REWRITING.schema)
    assert json.loads(request.messages[1]["content"])["chain_of_thought"] is True
    assert PRESERVATION.schema != REWRITING.schema
