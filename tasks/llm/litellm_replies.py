"""The text of a completion, wherever a provider put it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_LAST_TOKENS = 16  # a verdict stands at the end of a judge's answer
DECLINED = "refusal"  # as a finish reason: the text is the model's refusal


def fields_of(reply: Any, *, logprobs: bool) -> dict[str, Any]:
    """What a completion says and took, as the protocol's Reply has it."""
    choice = reply.choices[0] if reply.choices else None
    text, ended = text_of(choice) if choice else ("", None)
    return {
        "text": text,
        "prompt_tokens": reply.usage.prompt_tokens,
        "completion_tokens": reply.usage.completion_tokens,
        "finish_reason": ended,
        "last_logprobs": last_logprobs(choice) if choice and logprobs else None,
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


def last_logprobs(choice: Any) -> list[Any] | None:
    """[token, [[alternative, log-prob], …]] of the answer's last tokens; None where the provider tells none."""
    logprobs = getattr(choice, "logprobs", None)
    content = getattr(logprobs, "content", None) or (logprobs.get("content") if isinstance(logprobs, dict) else None)
    if not content:
        return None
    plain = [one if isinstance(one, dict) else one.model_dump() for one in content[-_LAST_TOKENS:]]
    return [[one["token"], [[top["token"], top["logprob"]] for top in one["top_logprobs"] or []]] for one in plain]


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
