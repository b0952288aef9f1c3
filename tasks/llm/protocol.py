"""What is said between a stage and its LLMs: where they answer, what is asked, what comes back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from infra.errors import TransientError


class ProviderError(Exception):
    """A request (or a configuration) that failed for good; `kind` is one of the protocol's.

    refused_key, unknown_model, quota, bad_request, content_policy, context_window, rate_limit, timeout, unreachable,
    server, no_batches; of a configuration: missing_key, unknown_model, no_batches.
    """

    def __init__(self, kind: str, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s


class ProviderDied(TransientError):
    """A provider process ended (killed, out of memory) with requests in flight."""


@dataclass(frozen=True)
class LLMEndpoint:
    """A LiteLLM model name and, for self-hosted ones, its address. Limits are a minute's, and of a route's first."""

    model: str
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    rpm: float | None = None
    tpm: float | None = None


@dataclass(frozen=True)
class Configuration:
    """Routes by name, each a model and its fallbacks in order; `timeout_s` is for one attempt."""

    routes: dict[str, list[LLMEndpoint]]
    retries: int = 4
    timeout_s: float = 120.0


@dataclass(frozen=True)
class Request:
    """What to ask, and of which route. `schema` is the JSON schema of the answer; None where it is free text."""

    messages: list[dict[str, str]]
    route: str = "default"
    temperature: float | None = None
    max_tokens: int | None = None
    schema: dict[str, Any] | None = None
    schema_name: str = "Answer"
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Reply:
    """What a model answered, and what it took (`cost_usd` is 0 where the model's price is unknown).

    `last_logprobs` has the last tokens with their most likely alternatives, where they were asked for and the
    provider tells them: [token, [[alternative, log-prob], …]] each. `logprobs` has all tokens of free text, with
    bytes (`tasks.llm.litellm_replies`). `place`: of the route's models, which answered.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    model: str
    finish_reason: str | None
    last_logprobs: list[Any] | None = None
    logprobs: list[Any] | None = None
    place: int = 0


def as_bytes(line: dict[str, Any]) -> bytes:
    """A line as it goes over a pipe. Half a character (a lone surrogate), which no file can hold, becomes a "?"."""
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def content_of(line: dict[str, Any]) -> Any:
    """The fields of an answering line, or the numbers of counted tokens; raises ProviderError where it has an error."""
    if "error" in line:
        raise ProviderError(**line["error"])
    return line["tokens"] if "tokens" in line else {name: value for name, value in line.items() if name != "id"}
