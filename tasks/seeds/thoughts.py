"""What reasoning models thought before an answer, in it or beside it: left, dropped or used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tasks.rows import Message, Row
from tasks.seeds.columns import TURNS, is_empty
from tasks.seeds.tools import CALLS
from tasks.text.answers import answer_of

Thoughts = Literal["as they are", "drop", "use"]
_BESIDE = ("reasoning_content", "reasoning", "thinking")  # fields of a turn, by maker


def put_before_answers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A row's fields, whose turns have what they thought in their content, before the answer."""
    return {name: _told(value) if name in TURNS or name == "completion" else value for name, value in fields.items()}


def _told(turns: Any) -> Any:
    if not isinstance(turns, list):
        return turns
    return [_with_thought(turn) if isinstance(turn, dict) else turn for turn in turns]


def _with_thought(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that were used."""
    rest = {name: value for name, value in turn.items() if name not in _BESIDE}
    thought = next((turn[name] for name in _BESIDE if isinstance(turn.get(name), str) and turn[name].strip()), "")
    content = turn.get("content")
    if content is None and not all(is_empty(turn.get(name)) for name in CALLS):
        content = ""
    if not thought or not isinstance(content, str) or "</think>" in content:
        return rest
    return {**rest, "content": f"<think>\n{thought.strip()}\n</think>\n\n{content}"}


def without_thoughts(row: Row) -> Row:
    """The row without what its answers thought."""
    response = answer_of(row.response)
    history, tool_turns = (tuple(map(_without_thought, turns)) for turns in (row.history, row.tool_turns))
    if (response, history, tool_turns) == (row.response, row.history, row.tool_turns):
        return row
    return row.model_copy(update={"response": response, "history": history, "tool_turns": tool_turns})


def _without_thought(turn: Message) -> Message:
    return turn.model_copy(update={"content": answer_of(turn.content)}) if turn.role == "assistant" else turn
