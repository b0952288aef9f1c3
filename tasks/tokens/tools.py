"""Whether a chat template knows tools, and how it wants calls to be put: seen in what it writes of one that is known.

Most templates take arguments as an object, and write them as JSON themselves: a text they would quote twice. Some
(DeepSeek-V3) put a text where it belongs as it is, and write a call only where the `content` beside it is None.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.models import ModelSource
from tasks.rows import Function, Message, ToolCall
from tasks.tokens.chat import TemplateRefusal, named_tokens, render, template_of

TOOL_USE = "tool_use"  # the name of the template for tools, where a model has several
UNKNOWN = "uses tools, which the chat template does not know"
_UNCALLED, _CALLED, _KEY, _VALUE, _RESULT = "zqother", "zqlookup", "zqword", "zqapple", "zqfruit"


@dataclass(frozen=True)
class ToolForm:
    """How a template takes calls: `arguments` as objects or as JSON text, an empty `content` beside them as None."""

    objects: bool
    empty_as_none: bool

    def plain(self, message: Message) -> dict[str, Any]:
        """The turn as the template takes it."""
        told = message.model_dump()
        if message.tool_calls:
            told["tool_calls"] = [self._call(call) for call in message.tool_calls]
            told["content"] = None if self.empty_as_none and not message.content else message.content
        return told

    def _call(self, call: ToolCall) -> dict[str, Any]:
        told = call.model_dump()
        if self.objects:
            told["function"]["arguments"] = json.loads(call.function.arguments)
        return told


def knows_tools(source: ModelSource) -> bool:
    """Whether the model's chat template writes definitions of tools, calls and results."""
    tokens = named_tokens(source, source.json_file("tokenizer_config.json"))
    return tool_form(template_of(source, TOOL_USE), tokens) is not None


def tool_form(template: str, tokens: Mapping[str, str]) -> ToolForm | None:
    """The first form in which the template writes a whole conversation with a tool; None where it writes it in none."""
    forms = (ToolForm(objects, empty) for objects, empty in itertools.product((True, False), (False, True)))
    return next((form for form in forms if _writes(template, tokens, form)), None)


def _writes(template: str, tokens: Mapping[str, str], form: ToolForm) -> bool:
    try:
        text = render(template, [form.plain(message) for message in _KNOWN], tokens, _DEFINITIONS)
    except TemplateRefusal:
        return False
    is_written = all(word in text for word in (_UNCALLED, _CALLED, _KEY, _VALUE, _RESULT))
    quoted_wrongly = f"'{_KEY}'", f'\\"{_KEY}'  # as Python writes a dict, as JSON writes JSON
    return is_written and not any(wrong in text for wrong in quoted_wrongly)


def left_out(messages: Sequence[Message], text: str) -> str | None:
    """What the text of a conversation lacks of its calls and results; None where it lacks nothing."""
    for message in messages:
        if message.role == "tool" and not _stands_in(message.content.strip(), text):
            return "a tool's result"
        if any(call.function.name not in text for call in message.tool_calls):
            return "a call of a tool"
    return None


def _stands_in(content: str, text: str) -> bool:
    """As it is, or as JSON (Llama 3.1)."""
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


def _definition(name: str, parameter: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string", "description": "A word."}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": "Looks up.", "parameters": parameters}}


_DEFINITIONS = [_definition(_UNCALLED, "text"), _definition(_CALLED, "word")]
_CALL = ToolCall(id="call00001", function=Function(name=_CALLED, arguments=json.dumps({_KEY: _VALUE})))
_KNOWN = (
    Message(role="user", content="Which?"),
    Message(role="assistant", content="", tool_calls=(_CALL,)),
    Message(role="tool", content=_RESULT, tool_call_id=_CALL.id, name=_CALLED),
    Message(role="assistant", content="This."),
)
