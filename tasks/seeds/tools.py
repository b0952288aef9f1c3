"""Tools in conversations, as OpenAI, transformers and LLaMA-Factory write them: definitions, calls and results.

What comes of them is OpenAI's form. Calls are numbered anew, as `call00001`, for ids mean nothing and Mistral's
templates take no others; each result names the call that it is of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tasks.rows import Function, Message, ToolCall
from tasks.seeds.account import LeftOutError
from tasks.seeds.columns import is_empty

CALLS = ("tool_calls", "function_call")
NO_DEFINITION = "defines a tool that is no function with a name"
NO_CALL = "calls a tool without its name, or with arguments that are no JSON object"
NOT_AN_ASSISTANTS = "has a call of a tool in a turn that is no assistant's"
NOT_CALLED = "has a tool's result without a call"
NO_RESULT = "has a call of a tool without its result"
_NONE = ("null", "None")  # how a column of texts says that there are none
_FUNCTION = (None, "function")  # no tool of the provider's own


def definitions_of(value: Any) -> str:
    """Definitions of tools (a list, or JSON of one) as JSON of OpenAI's form; empty where there are none."""
    if is_empty(value) or (isinstance(value, str) and value.strip() in _NONE):
        return ""
    told = _read(value, NO_DEFINITION)
    if not told:
        return ""
    return written([_definition(one) for one in (told if isinstance(told, list) else [told])], NO_DEFINITION)


def calls_of(turn: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """The calls of an assistant's turn, by OpenAI's `tool_calls` or its older `function_call`."""
    given = next((turn[name] for name in CALLS if not is_empty(turn.get(name))), None)
    return () if given is None else _calls(given)


def spoken(value: Any) -> tuple[str, tuple[ToolCall, ...]]:
    """What LLaMA-Factory's `function_call` holds: a thought, if there is one, and a call or a list of them as JSON."""
    thought, ends, calls = value.rpartition("</think>") if isinstance(value, str) else ("", "", value)
    return thought + ends, _calls(calls)


def result_of(content: Any) -> Any:
    """What a tool answered, as text: JSON where it is no text."""
    if content is None:
        return ""
    return content if isinstance(content, str) else written(content, NOT_CALLED)


def paired(messages: Iterable[Message]) -> list[Message]:
    """The conversation with its calls numbered, and each result told whose it is, by id, name or order.

    Raises LeftOutError where a result has no call, or a call before the last turn no result at all.
    """
    found: list[Message] = []
    open_calls: list[tuple[str, ToolCall]] = []  # with the ids that they came with
    calls, unanswered = 0, False
    for message in messages:
        if message.role == "tool":
            found.append(_result(message, open_calls))
            unanswered = False
            continue
        if unanswered:
            raise LeftOutError(NO_RESULT)
        ours = [
            call.model_copy(update={"id": f"call{number:05}"})
            for number, call in enumerate(message.tool_calls, calls + 1)
        ]
        open_calls = [(theirs.id or own.id, own) for theirs, own in zip(message.tool_calls, ours, strict=True)]
        calls, unanswered = calls + len(ours), bool(ours)
        found.append(message.model_copy(update={"tool_calls": tuple(ours)}))
    return found


def _result(message: Message, open_calls: list[tuple[str, ToolCall]]) -> Message:
    for place, (theirs, call) in enumerate(open_calls):
        if message.tool_call_id in ("", theirs) and message.name in ("", call.function.name):
            del open_calls[place]
            return message.model_copy(update={"tool_call_id": call.id, "name": call.function.name})
    raise LeftOutError(NOT_CALLED)


def _definition(told: Any) -> dict[str, Any]:
    told = _read(told, NO_DEFINITION)
    if not isinstance(told, dict) or told.get("type") not in _FUNCTION:
        raise LeftOutError(NO_DEFINITION)
    function = told.get("function", {name: value for name, value in told.items() if name != "type"})
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise LeftOutError(NO_DEFINITION)
    return {"type": "function", "function": function}


def _calls(value: Any) -> tuple[ToolCall, ...]:
    told = _read(value, NO_CALL)
    return tuple(_call(one) for one in (told if isinstance(told, list) and told else [told]))


def _call(told: Any) -> ToolCall:
    function = told.get("function", told) if isinstance(told, dict) else None
    if not isinstance(function, dict) or not _is_name(name := function.get("name")):
        raise LeftOutError(NO_CALL)
    arguments = _read(function.get("arguments") or function.get("parameters") or {}, NO_CALL)
    if not isinstance(arguments, dict) or told.get("type") not in _FUNCTION:
        raise LeftOutError(NO_CALL)
    return ToolCall(id=str(told.get("id") or ""), function=Function(name=name, arguments=written(arguments, NO_CALL)))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _read(value: Any, why: str) -> Any:
    """What a text says in JSON; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise LeftOutError(why) from error


def written(value: Any, why: str) -> str:
    """JSON, or LeftOutError for `why` where it cannot be written: not a number, half a character, a date."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise LeftOutError(why) from error
    return text
