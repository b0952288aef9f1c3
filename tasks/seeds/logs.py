"""Logs of requests to LLMs and their answers, as rows: those of OpenAI's API, LiteLLM and proxies like them.

A line holds what was asked (`messages`, `prompt` or `input`, itself or in `request` or `body`) and, in `response`, what
was answered (`choices`, or the `output` of OpenAI's Responses). What a log says beside it is not used.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping
from typing import Any

from tasks.seeds.account import LeftOutError

_REQUEST = ("request", "request_body", "body", "kwargs")
_RESPONSE = ("response", "response_body", "response_obj")
_ANSWERS = ("choices", "output")
_ASKED = ("messages", "prompt", "input")
_FAILED = {"failure", "failed", "error", "expired", "cancelled"}
COLUMNS = frozenset({*_REQUEST, *_RESPONSE, "status", "error", "instructions"})
NO_ANSWER = "is a request that got no answer"
CUT_OFF = "is an answer that was cut off at its longest"


def conversation(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """A log's line as a row of `messages` (and `tools`, where the model had some); None where it is no such line.

    Raises LeftOutError where there is no whole answer.
    """
    answer = next((found for name in _RESPONSE if (found := _answering(fields.get(name)))), None)
    nested = (_object(fields.get(name)) for name in _REQUEST)
    request: Mapping[str, Any] | None = next((found for found in nested if found and _asked(found)), None)
    failed = bool(fields.get("error")) or str(fields.get("status")).lower() in _FAILED
    is_empty = any(name in fields and not fields[name] for name in _RESPONSE)
    if request is None and _asked(fields) and (answer or (failed and is_empty)):
        request = fields
    if request is None:
        return None
    if failed or (answer is None and not fields.keys().isdisjoint(_RESPONSE)):
        raise LeftOutError(NO_ANSWER)
    row: dict[str, Any] = {"messages": [*_messages(request), *([_answer(answer)] if answer else [])]}
    return row | {name: request[name] for name in ("tools", "functions") if request.get(name)}


def _answering(value: Any) -> dict[str, Any] | None:
    """A response with answers in it, itself or in the `body` of what came over HTTP."""
    found = _object(value) or {}
    for body in (found, _object(found.get("body")) or {}):
        if any(
            isinstance(body.get(name), list) and isinstance(next(iter(body[name]), None), dict) for name in _ANSWERS
        ):
            return body
    return None


def _object(value: Any) -> dict[str, Any] | None:
    """An object, itself or as JSON in a text."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _asked(request: Mapping[str, Any]) -> bool:
    return any(request.get(name) for name in _ASKED)


def _messages(request: Mapping[str, Any]) -> list[Any]:
    asked = next(request[name] for name in _ASKED if request.get(name))
    if isinstance(asked, str) and asked.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            asked = json.loads(asked)
    said = _turns(asked) if isinstance(asked, list) else [{"role": "user", "content": asked}]
    first = request.get("instructions")
    return [{"role": "system", "content": first}, *said] if isinstance(first, str) and first else said


def _answer(body: Mapping[str, Any]) -> dict[str, Any]:
    """The first answer as a turn, with the tools that it calls."""
    if body.get("choices"):
        choice = body["choices"][0]
        if choice.get("finish_reason") == "length":
            raise LeftOutError(CUT_OFF)
        message = _object(choice.get("message")) or {"content": choice.get("text")}
        return {**message, "role": "assistant"}
    if body.get("status") == "incomplete":
        raise LeftOutError(CUT_OFF)
    items = [item for item in body["output"] if isinstance(item, dict)]
    parts = [part for item in items if item.get("type") == "message" for part in item.get("content") or ()]
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    calls = [_call(item) for item in items if str(item.get("type")).endswith("_call")]
    if not texts and not calls:
        raise LeftOutError(NO_ANSWER)
    return {"role": "assistant", "content": "".join(texts), "tool_calls": calls}


def _turns(items: list[Any]) -> list[Any]:
    """Turns, of which those of OpenAI's Responses have calls and results as items of their own."""
    turns: list[Any] = []
    for kind, same in itertools.groupby(items, lambda item: item.get("type") if isinstance(item, dict) else None):
        if kind == "function_call":
            turns.append({"role": "assistant", "content": "", "tool_calls": list(map(_call, same))})
        elif kind == "function_call_output":
            turns += [
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")} for item in same
            ]
        elif kind != "reasoning":
            turns += same
    return turns


def _call(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call of a function as Chat Completions write it; another kind of call as it is."""
    if item.get("type") != "function_call":
        return item
    return {"id": item.get("call_id"), "type": "function", "function": item}
