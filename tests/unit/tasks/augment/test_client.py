"""The client: asked once more, paid once, spent within the budget, and clear about who is at fault.

Only the network is made up here: `Providers` that say what a test wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError, TransientError
from tasks.augment.agents import PRESERVATION, REWRITING, SELECTION, VERIFICATION
from tasks.llm import client as module
from tasks.llm.budget import UsageByAgent
from tasks.llm.client import LLMClient
from tasks.llm.protocol import LLMEndpoint, ProviderError, Reply, Request
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


@pytest.mark.parametrize("kind", ["rate_limit", "timeout", "unreachable", "server"])
def test_a_passing_failure_is_told_as_one_that_another_time_may_not_be(setting: Setting, kind: str) -> None:
    """The Router has tried it again by then, and nobody else does."""
    setting.providers(in_turn(ProviderError(kind, "busy")))
    with pytest.raises(NoAnswer, match=r"no answer \(.*busy") as unanswered:
        setting.ask(row=Row(instruction="another"))
    assert unanswered.value.transient


@pytest.mark.parametrize("kind", ["content_policy", "context_window", "bad_request"])
def test_a_refused_row_is_not_asked_twice(setting: Setting, kind: str) -> None:
    providers = setting.providers(lambda request: ProviderError(kind, "no"))
    with pytest.raises(NoAnswer):
        setting.ask()
    assert len(providers.asked) == 1


async def _asks_one(client: LLMClient, setting: Setting, number: int) -> Any:
    try:
        return await client.ask(setting.usage, VERIFICATION, Row(instruction=str(number)))
    except NoAnswer as nothing:
        return nothing.reason


def _asks(setting: Setting, count: int) -> Callable[[LLMClient], Coroutine[Any, Any, list[Any]]]:
    async def use(client: LLMClient) -> list[Any]:
        return [await _asks_one(client, setting, number) for number in range(count)]

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
        if number > 59:
            return ProviderError("content_policy", "no")
        return GOOD if number % 2 else ProviderError("server", "now and then")

    setting.providers(every_other)
    outcomes = setting.run(_asks(setting, 120))
    assert outcomes.count("no answer (server error)") == 30
    assert outcomes.count("declined by the provider") == 60


USELESS: dict[str, Any] = {
    "no JSON": "I would rather talk about the weather.",
    "another object": '{"unexpected": 1}',
    "empty": "",
    "declined": "I'm sorry, but I can't help with that.",
    "cut off": reply(GOOD, finish="length"),
    "filtered": reply("", finish="content_filter"),
    "content policy": ProviderError("content_policy", "against our policy"),
    "context window": ProviderError("context_window", "at most 100 tokens"),
}


@pytest.mark.parametrize("said", USELESS.values(), ids=USELESS)
@pytest.mark.parametrize(("concurrency", "rows"), [(1, 60), (64, 1000), (1000, 1000)])
def test_a_model_that_is_of_no_use_is_found_out_for_two_dozen_requests(
    setting: Setting, said: Any, concurrency: int, rows: int
) -> None:
    async def patiently(client: LLMClient) -> list[Any]:
        asks = (client.ask(setting.usage, VERIFICATION, Row(instruction=str(number))) for number in range(rows))
        return await asyncio.gather(*asks, return_exceptions=True)

    providers = setting.providers(lambda request: said)
    outcomes = setting.run(patiently, concurrency=concurrency)
    assert len(providers.asked) <= 24
    ended = [one for one in outcomes if isinstance(one, ConfigurationError)]
    assert len(ended) >= rows - 12
    assert "the verification agent gets no usable answers from the LLM 'openai/test'" in str(ended[0])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no JSON", ["no valid answer: 12", "I would rather talk about the weather.", "agent_model"]),
        ("another object", ["Field required", '{"unexpected": 1}']),
        ("empty", ["an empty answer"]),
        ("declined", ["no valid answer: 12", "the model declines", "I'm sorry, but I can't help with that."]),
        ("cut off", ["cut off at max_output_tokens", "raise `augmentation.max_output_tokens`"]),
        ("filtered", ["declined by the provider: 12", "its content filter"]),
        ("content policy", ["declined by the provider: 12", "against our policy"]),
        ("context window", ["too long for the model: 12", "at most 100 tokens"]),
    ],
)
def test_the_end_is_told_with_the_reason_and_the_providers_words(setting: Setting, name: str, told: list[str]) -> None:
    setting.providers(lambda request: USELESS[name])
    with pytest.raises(ConfigurationError) as ended:
        setting.run(_asks(setting, 100))
    for words in told:
        assert words in str(ended.value)
    assert "not one whole JSON object" not in str(ended.value) or name == "no JSON"


def test_an_agent_that_is_of_no_use_ends_the_stage_though_others_are(setting: Setting) -> None:
    async def both(client: LLMClient) -> None:
        for number in range(100):
            row = Row(instruction=str(number))
            await client.ask(setting.usage, SELECTION, row)
            with contextlib.suppress(NoAnswer):
                await client.ask(setting.usage, VERIFICATION, row)

    setting.providers(lambda request: SCORES if request.schema_name == "Scores" else "no")
    with pytest.raises(ConfigurationError, match="the verification agent gets no usable answers"):
        setting.run(both)


def test_what_is_paid_in_vain_is_bounded_by_what_was_of_use(setting: Setting) -> None:
    def one_in(every: int) -> Callable[[Request], str]:
        return lambda request: "no" if int(json.loads(request.messages[1]["content"])["instruction"]) % every else GOOD

    setting.providers(one_in(5))
    assert setting.run(_asks(setting, 300)).count("no valid answer") == 240
    rare = setting.providers(one_in(100))
    with pytest.raises(ConfigurationError, match=r"1 of use, no valid answer: 24"):
        setting.run(_asks(setting, 300), temperature=0.1)
    assert len(rare.asked) == 1 + 2 * 24


def test_rows_that_never_get_an_answer_do_not_end_a_rerun_that_has_the_others(setting: Setting) -> None:
    def some(request: Request) -> str | Exception:
        number = int(json.loads(request.messages[1]["content"])["instruction"])
        return GOOD if number >= 30 else ProviderError("context_window", "too long")

    setting.providers(some)
    with pytest.raises(ConfigurationError):
        setting.run(_asks(setting, 100))

    async def backwards(client: LLMClient) -> list[Any]:
        return [await _asks_one(client, setting, number) for number in reversed(range(100))]

    assert setting.run(backwards).count("too long for the model") == 30
    assert setting.run(backwards).count("too long for the model") == 30


def test_a_used_up_quota_ends_the_stage_at_once(setting: Setting) -> None:
    providers = setting.providers(lambda request: ProviderError("quota", "You exceeded your current quota"))
    with pytest.raises(ConfigurationError, match=r"quota or credit .* is used up \(You exceeded .*run again"):
        setting.run(_asks(setting, 100))
    assert len(providers.asked) == 1


@pytest.mark.parametrize("kind", ["rate_limit", "timeout", "unreachable", "server", "bad_request", "refused_key"])
def test_every_end_has_the_providers_own_words(setting: Setting, kind: str) -> None:
    setting.providers(lambda request: ProviderError(kind, "ZX-81 overheated"))
    with pytest.raises((ConfigurationError, TransientError), match="ZX-81 overheated") as ended:
        setting.run(_asks(setting, 100))
    assert ("concurrency" in str(ended.value)) == (kind in ("rate_limit", "timeout", "server"))


@pytest.mark.parametrize("kind", ["refused_key", "unknown_model"])
def test_a_refused_key_is_the_users_mistake_and_is_not_shown(setting: Setting, kind: str) -> None:
    providers = setting.providers(lambda request: ProviderError(kind, "bad key [key]"))
    with pytest.raises(ConfigurationError, match=MODEL) as refused:
        setting.ask()
    assert "sk-secret" not in str(refused.value) + repr(LLMEndpoint(MODEL, api_key="sk-secret"))
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
