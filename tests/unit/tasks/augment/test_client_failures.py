"""The client when providers fail: who is at fault, when a stage ends for it, and what is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError, TransientError
from tasks.augment.agents import SELECTION, VERIFICATION
from tasks.llm.client import LLMClient
from tasks.llm.protocol import LLMEndpoint, ProviderError, Request
from tasks.llm.usefulness import NoAnswer
from tasks.rows import Row
from tests.support.fake_providers import GOOD, MODEL, SCORES, Setting, in_turn, reply


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(tmp_path, monkeypatch)


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
