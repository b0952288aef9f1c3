"""What LiteLLM makes of a request for a batch, and what is made of a batch's lines: no server, but LiteLLM itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.llm.litellm_batches import BatchAPI
from tasks.llm.litellm_forms import Form
from tasks.llm.litellm_process import describe, load_litellm
from tasks.llm.protocol import LLMEndpoint, ProviderError

KEY = "sk-proj-0123456789"
ASKED: dict[str, Any] = {
    "messages": [{"role": "system", "content": "half a character: \ud83d"}, {"role": "user", "content": "u"}],
    "temperature": 0.7,
    "max_tokens": 100,
    "schema": {"type": "object"},
    "schema_name": "Verdict",
}
BODY: dict[str, Any] = {
    "id": "x",
    "object": "chat.completion",
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}


def _api(model: str = "openai/gpt-4o", base: str | None = None) -> BatchAPI:
    return BatchAPI(LLMEndpoint(model, base, KEY), 10.0)


def _line(model: str, form: Form | None = None) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(_api(model).line("a key", ASKED, form or Form("schema")))
    assert (line["custom_id"], line["method"], line["url"]) == ("a key", "POST", "/v1/chat/completions")
    return line["body"]


def test_a_line_is_what_the_model_would_be_asked_directly() -> None:
    body = _line("openai/gpt-4o")
    schema = {"name": "Verdict", "schema": {"type": "object"}, "strict": True}
    assert body.pop("messages")[1] == {"role": "user", "content": "u"}
    assert body == {
        "model": "gpt-4o",
        "temperature": 0.7,
        "max_tokens": 100,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    reasoning = _line("openai/o3-mini", Form("json"))
    assert (reasoning["max_completion_tokens"], reasoning["response_format"]) == (100, {"type": "json_object"})
    assert not {"max_tokens", "temperature"} & set(reasoning)
    assert [message["role"] for message in ASKED["messages"]] == ["system", "user"], "LiteLLM changed what is asked"


@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4-5", "mistral/mistral-large-latest", "groq/llama-3"])
def test_a_provider_whose_batches_could_not_be_found_again_is_refused_by_name(model: str) -> None:
    with pytest.raises(ProviderError, match=f"'{model}' cannot be asked in batches, .* openai, azure") as refused:
        _api(model)
    assert refused.value.kind == "no_batches"
    assert KEY not in str(refused.value)


def test_an_answer_costs_what_litellm_knows_of_batches() -> None:
    answer = _api().answer({"custom_id": "k", "response": {"status_code": 200, "body": BODY}, "error": None})
    assert not isinstance(answer, ProviderError)
    assert answer["cost_usd"] == pytest.approx((1000 * 2.5e-6 + 100 * 10e-6) / 2)
    assert (answer["text"], answer["finish_reason"], answer["prompt_tokens"]) == ("hi", "stop", 1000)
    unknown = _api("openai/mine", "http://here/v1")
    free = unknown.answer({"response": {"status_code": 200, "body": {**BODY, "model": "mine"}}})
    assert not isinstance(free, ProviderError)
    assert free["cost_usd"] == 0.0, "it is reckoned from the price that the user gives"


def test_the_price_of_batches_is_known_or_half_of_the_other() -> None:
    litellm = load_litellm()
    known = describe(litellm, {"model": "azure/eu/gpt-4o-mini", "api_key": KEY})
    assert known["usd_per_token_in_batches"] == [8.3e-08, 6.6e-07 / 2]  # LiteLLM names one of the two
    unknown = describe(litellm, {"model": "openai/mine", "api_base": "http://here/v1"})
    assert (unknown["usd_per_token_in_batches"], unknown["priced"]) == ([0.0, 0.0], False)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ({"response": {"status_code": 429, "body": {"error": {"message": "Rate limit reached"}}}}, "rate_limit"),
        ({"response": {"status_code": 500, "body": {"error": {"message": "oops"}}}}, "server"),
        ({"response": {"status_code": 400, "body": {"error": {"message": "what?"}}}}, "bad_request"),
        ({"response": {"status_code": 401, "body": {"error": {"message": f"Incorrect: {KEY}"}}}}, "refused_key"),
        ({"response": {"status_code": 400, "body": {"error": "a plain text"}}}, "bad_request"),
        ({"error": {"code": "batch_expired", "message": "too late"}, "response": None}, "timeout"),
        ({"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}, "server"),
        ({"response": {"status_code": 200, "body": {}}}, "server"),
        ({"response": {"status_code": 200, "body": {"choices": "none"}}}, "server"),
        ({"response": {"status_code": 200, "body": {**BODY, "choices": []}}}, None),
        ({"response": "words"}, "server"),
        ({"response": {"status_code": "200", "body": [1]}}, "server"),
        ({}, "server"),
    ],
)
def test_whatever_a_line_holds_is_an_answer_or_an_error_of_a_known_kind(line: dict[str, Any], kind: str | None) -> None:
    answer = _api().answer({"custom_id": "k", **line})
    assert (answer.kind if isinstance(answer, ProviderError) else None) == kind
    assert KEY not in str(answer)
