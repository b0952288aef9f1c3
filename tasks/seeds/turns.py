"""Conversations as other programs write them: OpenAI's messages, ShareGPT's turns, LLaMA-Factory's pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from infra.errors import ConfigurationError
from tasks.rows import Message, Role, ToolCall
from tasks.seeds import tools
from tasks.seeds.account import LeftOutError
from tasks.seeds.columns import is_empty

_SPEAKERS: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython"), "tool"),
}
_CALLERS = ("function_call", "tool_call")  # ShareGPT's, whose text is the call
_ANSWERERS = frozenset(speaker for speaker, role in _SPEAKERS.items() if role == "assistant")
_FIELDS = frozenset({"role", "content", "from", "value", "weight", *tools.CALLS})
_OF_RESULTS = frozenset({"tool_call_id", "name"})
NO_TEXT = "holds parts that are no text"
UNKNOWN_ROLE = "has a turn of a role that is none of system, user, assistant and tool"
NOT_TRAINED_ON = "has weight 0: it is not to be trained on"


def messages_of(where: str, field: str, turns: Any, unused: Counter[str]) -> list[Message]:
    """A list of turns, of `role` and `content` or of `from` and `value`; what else a turn holds is counted in `unused`.

    Raises LeftOutError for what a row cannot hold, ConfigurationError for what is no conversation.
    """
    turns = _listed(where, field, turns)
    if not turns:
        raise ConfigurationError(f"{where}, field {field!r}: expected a non-empty list of turns")
    found: list[Message] = []
    names: set[str] = set()
    for index, turn in enumerate(turns):
        here = f"{where}, field {field!r}, turn {index + 1}"
        found.append(_message(here, turn, is_last=index == len(turns) - 1))
        known = _FIELDS | _OF_RESULTS if found[-1].role == "tool" else _FIELDS
        names.update(name for name, value in turn.items() if name not in known and not is_empty(value))
    unused.update(f"{field}.{name}" for name in names)
    return tools.paired(found)


def are_for_training(turns: Any) -> bool:
    """Whether no answer of a conversation has a weight of 0."""
    told = turns if isinstance(turns, list) else []
    answers = (turn for turn in told if isinstance(turn, dict) and turn.get("role", turn.get("from")) in _ANSWERERS)
    return not any(is_zero(turn.get("weight")) for turn in answers)


def history_of(where: str, history: Any, unused: Counter[str]) -> list[Message]:
    """Earlier turns: LLaMA-Factory's pairs of user and assistant (an empty text: no such turn), or messages."""
    pairs = _listed(where, "history", history)
    if pairs and isinstance(pairs[0], dict):
        earlier = messages_of(where, "history", pairs, unused)
        if earlier[-1].tool_calls:
            raise LeftOutError(tools.NO_RESULT)
        return earlier
    found = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2 or not all(one is None or isinstance(one, str) for one in pair):
            raise ConfigurationError(
                f"{where}, field 'history', pair {index + 1}: expected two texts, user and assistant"
            )
        roles: tuple[Role, Role] = ("user", "assistant")
        found += [
            Message(role=role, content=whole_text(f"{where}, field 'history', pair {index + 1}", text))
            for role, text in zip(roles, pair, strict=True)
            if text
        ]
    return found


def pairs_of(history: Iterable[Message]) -> tuple[str, list[list[str]]]:
    """Earlier turns as LLaMA-Factory's `system` and `history` of pairs, which `history_of` reads."""
    system, pairs = "", []
    for message in history:
        if message.role == "system":
            system = "\n\n".join(filter(None, [system, message.content]))
        elif message.role == "user":
            pairs.append([message.content, ""])
        elif pairs and not pairs[-1][1]:
            pairs[-1][1] = message.content
        else:
            pairs.append(["", message.content])
    return system, pairs


def whole_text(where: str, value: str) -> str:
    """The text, refused where JSON's escapes left half a character in it, which no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise ConfigurationError(f"{where}: {half} at {error.start} is half of a character: write it whole") from error
    return value


def _message(where: str, turn: Any, *, is_last: bool) -> Message:
    speaker = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if isinstance(speaker, str) and role is None:
        raise LeftOutError(UNKNOWN_ROLE)
    content = turn.get("content", turn.get("value")) if role else None
    calls: tuple[ToolCall, ...] = ()
    if isinstance(content, list):
        content = _joined(content)
    if speaker in _CALLERS:
        said, calls = tools.spoken(turn.get("value", content))
        content = turn.get("content", said) if "value" in turn else said
    elif role == "assistant":
        content, calls = "" if content is None else content, tools.calls_of(turn)
    elif role and not all(is_empty(turn.get(name)) for name in tools.CALLS):
        raise LeftOutError(tools.NOT_AN_ASSISTANTS)
    elif role == "tool":
        content = tools.result_of(content)
    if role is None or not isinstance(content, str):
        raise ConfigurationError(
            f"{where}: expected 'role' (system, user, assistant or tool) and 'content' (text), or 'from' and 'value'"
        )
    if is_last and role == "assistant" and is_zero(turn.get("weight")):
        raise LeftOutError(NOT_TRAINED_ON)
    of_result = {name: str(turn.get(name) or "") for name in _OF_RESULTS} if role == "tool" else {}
    return Message(role=role, content=whole_text(where, content), tool_calls=calls, **of_result)


def is_zero(weight: Any) -> bool:
    """Whether a weight says that the loss does not count this."""
    return isinstance(weight, int | float) and weight == 0


def _joined(parts: list[Any]) -> Any:
    """The text of OpenAI's content parts; the parts themselves where they are no such parts."""
    if not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts):
        return parts
    if any(part["type"] != "text" or not isinstance(part.get("text"), str) for part in parts):
        raise LeftOutError(NO_TEXT)
    return "".join(part["text"] for part in parts)


def _listed(where: str, field: str, value: Any) -> list[Any]:
    """A list, which a column of texts holds as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list):
        raise ConfigurationError(f"{where}, field {field!r}: expected a list of turns")
    return value
