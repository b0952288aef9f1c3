"""The text of a completion, wherever a provider put it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

_LAST_TOKENS = 16  # a verdict stands at the end of a judge's answer
Wanted = Literal["none", "last", "all"]
DECLINED = "refusal"  # as a finish reason: the text is the model's refusal


def wanted_logprobs(request: Mapping[str, Any]) -> Wanted:
    """Of which tokens: of free text all are learned from."""
    if not request.get("top_logprobs"):
        return "none"
    return "all" if request.get("schema") is None else "last"


def fields_of(reply: Any, *, logprobs: Wanted) -> dict[str, Any]:
    """What a completion says and took, as the protocol's Reply has it, with the log-probs of some tokens."""
    choice = reply.choices[0] if reply.choices else None
    text, ended = text_of(choice) if choice else ("", None)
    told = _logprobs(choice) if choice and logprobs != "none" else None
    return {
        "text": text,
        "prompt_tokens": reply.usage.prompt_tokens,
        "completion_tokens": reply.usage.completion_tokens,
        "finish_reason": ended,
        "last_logprobs": last(told) if told and logprobs == "last" else None,
        "logprobs": compact(told) if told and logprobs == "all" else None,
    }


def text_of(choice: Any) -> tuple[str, str | None]:
    """The text and why it ends. In place of text may stand one tool call, an object as the thought, or a refusal.

    A thought counts where it is nothing but an object: words may quote the row.
    """
    message, ended = choice.message, choice.finish_reason
    if (message.content or "").strip():
        return message.content, ended
    fields = getattr(message, "provider_specific_fields", None) or {}
    if refusal := fields.get("refusal"):
        return str(refusal), DECLINED
    called = [call.function for call in message.tool_calls or []] or [getattr(message, "function_call", None)]
    if len(called) == 1 and called[0] is not None:
        given = called[0].arguments or ""
        return given if isinstance(given, str) else json.dumps(given), ended
    thought = getattr(message, "reasoning_content", None) or fields.get("reasoning")
    bare = thought.strip() if isinstance(thought, str) else ""
    is_object = (bare.startswith("{") and bare.endswith("}")) or (bare.startswith("```") and bare.endswith("```"))
    return bare if is_object else "", ended


def _logprobs(choice: Any) -> list[Any] | None:
    """What the provider tells of the answer's tokens; None where it tells nothing."""
    logprobs = getattr(choice, "logprobs", None)
    content = getattr(logprobs, "content", None) or (logprobs.get("content") if isinstance(logprobs, dict) else None)
    return [one if isinstance(one, dict) else one.model_dump() for one in content] if content else None


def last(tokens: Sequence[Any]) -> list[Any]:
    """[token, [[alternative, log-prob], …]] of the answer's last tokens."""
    return [
        [one["token"], [[top["token"], top["logprob"]] for top in one["top_logprobs"] or []]]
        for one in tokens[-_LAST_TOKENS:]
    ]


def compact(tokens: Sequence[Any]) -> list[Any]:
    """[token, log-prob, [[alternative, log-prob], …]] of all tokens, unchecked.

    A token is its text where that says its bytes (or nothing else does), else the list of its bytes.
    """
    return [[*_token(one), [_token(top) for top in one.get("top_logprobs") or []]] for one in tokens]


def _token(told: Mapping[str, Any]) -> list[Any]:
    text, spelled, logprob = told.get("token"), told.get("bytes"), told.get("logprob")
    is_text = spelled is None or (isinstance(text, str) and spelled == list(text.encode("utf-8", "replace")))
    return [text if is_text else spelled, round(logprob, 6) if isinstance(logprob, float) else logprob]


def joining_parts(extract: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """LiteLLM's `extract_reasoning_content`, also for a content of parts, or an object itself, which it refuses."""

    def joined(message: Any) -> Any:
        content = message.get("content")
        if isinstance(content, list):
            texts = [
                part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | dict)
            ]
            message = {**message, "content": "".join(text for text in texts if isinstance(text, str))}
        elif isinstance(content, dict):
            message = {**message, "content": json.dumps(content)}
        return extract(message)

    return joined
