"""What servers refuse and how they say so: the next form to ask in, and what a failure is."""

import json
from typing import Any

import pytest

from tasks.llm.litellm_errors import is_quota, words_of
from tasks.llm.litellm_forms import Form
from tasks.llm.litellm_replies import joining_parts

REQUEST: dict[str, Any] = {
    "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
    "schema": {"type": "object"},
    "schema_name": "Answer",
    "temperature": 0.7,
    "max_tokens": 99,
    "top_logprobs": 5,
}


def _modes(kind: str, words: str, form: Form) -> list[str]:
    """How a server is asked that refuses everything in these words."""
    modes = [form.mode]
    while (other := form.without(kind, words, {**REQUEST, "top_logprobs": None})) is not None:
        form = other
        modes.append(form.mode)
    return modes


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bad_request", "response_format json_schema is not supported"),
        ("bad_request", "Invalid request"),
        ("bad_request", "Invalid schema for response_format 'Answer'"),
        ("server", "failed to compile the grammar"),
        ("unknown_model", "No endpoints found that support structured outputs"),
    ],
)
def test_a_schema_gives_way_to_json_mode_and_that_to_the_prompt(kind: str, words: str) -> None:
    assert _modes(kind, words, Form("schema")) == ["schema", "json", "prompt"]
    assert _modes(kind, words, Form("json")) == ["json", "prompt"]


@pytest.mark.parametrize("kind", ["rate_limit", "timeout", "unreachable", "content_policy", "context_window", "quota"])
def test_a_failure_of_another_kind_changes_no_form(kind: str) -> None:
    assert _modes(kind, "the json_schema of the response_format", Form("schema")) == ["schema"]


@pytest.mark.parametrize(("kind", "words"), [("server", "overloaded"), ("unknown_model", "no such model")])
def test_what_has_nothing_to_do_with_the_form_changes_none(kind: str, words: str) -> None:
    assert _modes(kind, words, Form("schema")) == ["schema"]


def test_a_row_that_is_refused_for_its_own_sake_changes_no_form_that_has_answered() -> None:
    assert _modes("bad_request", "Invalid characters in the prompt", Form("schema", proven=True)) == ["schema"]
    assert _modes("bad_request", "json_schema too complex", Form("schema", proven=True)) == ["schema", "json", "prompt"]


@pytest.mark.parametrize(
    ("words", "gone", "there"),
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'", "max_tokens", "max_completion_tokens"),
        ("'temperature' does not support 0.7 with this model, only the default", "temperature", "max_tokens"),
        ("logprobs is not supported by this model", "top_logprobs", "temperature"),
    ],
)
def test_a_parameter_that_is_not_supported_is_left_out(words: str, gone: str, there: str) -> None:
    form = Form("schema").without("bad_request", words, REQUEST)
    assert form is not None
    asked = form.of(REQUEST)
    assert gone not in asked
    assert there in asked
    assert asked["response_format"]["type"] == "json_schema"


def test_a_temperature_out_of_range_is_not_left_out() -> None:
    other = Form("prompt", proven=True).without("bad_request", "temperature must be between 0 and 1", REQUEST)
    assert other is None


def test_a_system_message_that_is_not_taken_goes_before_the_users() -> None:
    form = Form("schema").without("bad_request", "System role not supported", REQUEST)
    assert form is not None
    assert form.messages(REQUEST) == [{"role": "user", "content": "s\n\nu"}]


class _Said(Exception):
    def __init__(self, status_code: int | None, words: str):
        super().__init__(words)
        self.status_code = status_code


OPENAI = 'litellm.RateLimitError: RateLimitError: OpenAIException - {"error": {"message": "%s", "code": "%s"}}'


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, OPENAI % ("You exceeded your current quota, please check your plan.", "insufficient_quota")),
        (402, "Payment"),
        (402, "Insufficient Balance"),
        (400, "Your credit balance is too low to access the API. Please go to Plans & Billing"),
        (429, "Billing hard limit has been reached"),
        (403, "Your team has either used all available credits or reached its monthly spending limit."),
        (403, "The free tier of the model has been exhausted."),
        (429, "This request requires more credits"),
        (429, "账户余额不足，请充值"),
    ],
)
def test_what_is_used_up_is_a_quota(status: int, words: str) -> None:
    assert is_quota(_Said(status, words))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, "Rate limit reached for requests"),
        (429, "Rate limit reached: Limit 3 per minute. Please try again in 20s."),
        (429, "You exceeded your current quota. Quota exceeded for metric: requests_per_minute. Please retry in 28s."),
        (429, "Resource has been exhausted"),
        (503, "The quota service is exhausted"),
        (400, "The word 'credits' is too long"),
        (None, "insufficient_quota"),
    ],
)
def test_what_goes_by_is_none(status: int | None, words: str) -> None:
    assert not is_quota(_Said(status, words))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (OPENAI % ("Slow down", "rate_limit_exceeded"), "Slow down (rate_limit_exceeded)"),
        ('litellm.BadRequestError: OpenAIException - {"error": "no"}', "no"),
        ('litellm.BadRequestError: OpenAIException - {"detail": "no"}', '{"detail": "no"}'),
        ("litellm.Timeout: APITimeoutError - took too long", "took too long"),
        (
            "litellm.APIError: APIError: HosterException - <html> LiteLLM Retried: 2 times, LiteLLM Max Retries: 2",
            "<html>",
        ),
        ('Invalid response Traceback (most recent call last): File "/x/y.py"', "Invalid response"),
        ("[" * 100_000, "[" * 100_000),
        ("", "_Said"),
    ],
)
def test_the_providers_words_are_what_is_left(said: str, words: str) -> None:
    assert words_of(_Said(400, said)) == words


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        (None, None),
        ([{"type": "text", "text": "a"}, {"type": "output_text", "text": "b"}], "ab"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}], "a"),
        (["a", {"text": None}, 7, {"type": "image"}], "a"),
        ([], ""),
        ({"correct": True}, '{"correct": true}'),
    ],
)
def test_parts_are_one_text(content: Any, text: str | None) -> None:
    message = {"content": content, "role": "assistant"}
    before = json.dumps(message)
    assert joining_parts(lambda told: told["content"])(message) == text
    assert json.dumps(message) == before
