"""Tools as data files have them: one row whatever the form, and a reason for what is no call, result or definition."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import ConfigurationError
from tasks.rows import LAST_ALONE, Function, Message, Row, ToolCall, from_parquet, to_parquet
from tasks.seeds import tools
from tasks.seeds.account import Account
from tasks.seeds.formats import _NOT_ASKED, _RESULT_LAST, read
from tasks.seeds.settings import Reading

FUNCTION = {
    "name": "price_of",
    "description": "é",
    "parameters": {"type": "object", "properties": {"title": {"type": "string"}}},
}
TOOLS = [{"type": "function", "function": FUNCTION}]
ASKED = {"role": "user", "content": "What is the price?"}
RESULT, ANSWER = "five", {"role": "assistant", "content": "It is 5."}
ARGUMENTS = {"title": "le livre é"}
CALLED = {"id": "call_x1", "type": "function", "function": {"name": "price_of", "arguments": json.dumps(ARGUMENTS)}}
CALL = {"role": "assistant", "content": None, "tool_calls": [CALLED]}
FOUND = {"role": "tool", "tool_call_id": "call_x1", "content": RESULT}
MESSAGES = [ASKED, CALL, FOUND, ANSWER]
OLD_CALL = {"role": "assistant", "content": None, "function_call": CALLED["function"]}
SHAREGPT = [
    {"from": "human", "value": ASKED["content"]},
    {"from": "function_call", "value": json.dumps({"name": "price_of", "arguments": ARGUMENTS})},
    {"from": "observation", "value": RESULT},
    {"from": "gpt", "value": ANSWER["content"]},
]
ITEMS = [
    {"type": "reasoning", "summary": []},
    {"type": "function_call", "call_id": "x1", "name": "price_of", "arguments": json.dumps(ARGUMENTS)},
    {"type": "function_call_output", "call_id": "x1", "output": RESULT},
]
SPOKEN = {"type": "message", "content": [{"type": "output_text", "text": "It is 5."}]}


def _call(number: int, arguments: dict[str, Any]) -> ToolCall:
    function = Function(name="price_of", arguments=json.dumps(arguments, ensure_ascii=False))
    return ToolCall(id=f"call{number:05}", function=function)


def _result(number: int, content: str) -> Message:
    return Message(role="tool", content=content, tool_call_id=f"call{number:05}", name="price_of")


ROW = Row(
    instruction=str(ASKED["content"]),
    response=str(ANSWER["content"]),
    tools=json.dumps(TOOLS, ensure_ascii=False),
    tool_turns=(Message(role="assistant", content="", tool_calls=(_call(1, ARGUMENTS),)), _result(1, RESULT)),
)


def _read(*rows: Any, **how: Any) -> tuple[list[Row], Account]:
    account = Account()
    data = rows[0] if isinstance(rows[0], bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    stream = io.BufferedReader(io.BytesIO(data))
    return list(read("f", stream, account, response_required=True, how=Reading(**how))), account


def _parquet(*rows: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


FORMS: dict[str, Any] = {
    "OpenAI's": {"messages": MESSAGES, "tools": TOOLS},
    "transformers', with arguments as objects": {
        "messages": [
            ASKED,
            {**CALL, "tool_calls": [{"function": {"name": "price_of", "arguments": ARGUMENTS}}]},
            {"role": "tool", "name": "price_of", "content": RESULT},
            ANSWER,
        ],
        "tools": TOOLS,
    },
    "OpenAI's of before": {
        "messages": [ASKED, OLD_CALL, {"role": "function", "name": "price_of", "content": RESULT}, ANSWER],
        "functions": [FUNCTION],
    },
    "LLaMA-Factory's": {"conversations": SHAREGPT, "tools": json.dumps([FUNCTION])},
    "ShareGPT's in OpenAI's words": {
        "messages": [
            ASKED,
            {"role": "tool_call", "content": SHAREGPT[1]["value"]},
            {"role": "tool_response", "content": RESULT},
            ANSWER,
        ],
        "tools": TOOLS,
    },
    "TRL's": {"prompt": MESSAGES[:3], "completion": MESSAGES[3:], "tools": TOOLS},
    "texts in columns": {"messages": json.dumps(MESSAGES), "tools": json.dumps(TOOLS)},
    "a result in parts": {
        "messages": [ASKED, CALL, {**FOUND, "content": [{"type": "text", "text": RESULT}]}, ANSWER],
        "tools": TOOLS,
    },
    "a log": {"request": {"messages": MESSAGES[:3], "tools": TOOLS}, "response": {"choices": [{"message": ANSWER}]}},
    "a log of Responses": {
        "request": {"input": [ASKED, *ITEMS], "tools": [{"type": "function", **FUNCTION}]},
        "response": {"output": [SPOKEN]},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_with_a_tool_is_one_row_whatever_its_form(form: str) -> None:
    [row], account = _read(FORMS[form])
    for name in ("instruction", "response", "history", "tools", "tool_turns", "tool_calls"):
        assert getattr(row, name) == getattr(ROW, name), name
    assert (row.id, row.origin_seed) == (ROW.id, ROW.id)
    assert (account.plain()["left_out"], account.unused) == ({}, {})


def test_parquet_gives_every_object_the_fields_of_all_and_none_of_them_is_there() -> None:
    other = {"messages": [ASKED, ANSWER], "tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}
    call = {**CALL, "tool_calls": [{**CALLED, "function": {"name": "price_of", "arguments": ARGUMENTS}}]}
    again = {**CALL, "tool_calls": [{**CALLED, "function": {"name": "price_of", "arguments": {"page": 2}}}]}
    whole = {"messages": [ASKED, call, FOUND, again, FOUND, ANSWER], "tools": TOOLS}
    rows, account = _read(_parquet(whole, other))
    assert account.used == 2
    assert rows[0].definitions == TOOLS
    assert [call.function.arguments for turn in rows[0].tool_turns for call in turn.tool_calls] == [
        '{"title": "le livre é"}',
        '{"page": 2}',
    ]
    assert rows[1].definitions == other["tools"]


def test_a_call_at_the_end_is_the_response() -> None:
    for answer in (CALL, OLD_CALL, {"role": "function_call", "content": SHAREGPT[1]["value"]}):
        [row], _ = _read({"messages": [ASKED, answer], "tools": TOOLS})
        assert (row.response, row.tool_turns, row.tool_calls) == ("", (), (_call(1, ARGUMENTS),))
        assert row.is_answered
        assert row.response_text == '{"name": "price_of", "arguments": {"title": "le livre é"}}'
    output = {"output": [SPOKEN, ITEMS[1]]}
    [row], _ = _read({"request": {"input": "What is the price?"}, "response": output})
    assert (row.response, row.tool_calls) == ("It is 5.", (_call(1, ARGUMENTS),))


def test_results_find_their_calls_by_id_name_or_order() -> None:
    def called(*ids: str) -> dict[str, Any]:
        return {**CALL, "tool_calls": [{**CALLED, "id": name} for name in ids]}

    swapped = [called("a", "b"), {**FOUND, "tool_call_id": "b"}, {**FOUND, "tool_call_id": "a"}]
    in_order = [called("", ""), {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    for turns, numbers in ((swapped, [2, 1]), (in_order, [1, 2])):
        [row], _ = _read({"messages": [ASKED, *turns, ANSWER]})
        assert [turn.tool_call_id for turn in row.tool_turns[1:]] == [f"call{number:05}" for number in numbers]
    same = [ASKED, called("a"), {**FOUND, "tool_call_id": "a"}, called("a"), {**FOUND, "tool_call_id": "a"}, ANSWER]
    [row], _ = _read({"messages": same})
    assert [call.id for turn in row.tool_turns for call in turn.tool_calls] == ["call00001", "call00002"]


def test_turns_before_the_last_question_are_history_and_all_calls_are_answers() -> None:
    [row], _ = _read({"messages": [*MESSAGES, {"role": "user", "content": "And now?"}, *MESSAGES[1:]], "tools": TOOLS})
    assert [turn.role for turn in row.history] == ["user", "assistant", "tool", "assistant"]
    assert (row.instruction, [turn.role for turn in row.tool_turns]) == ("And now?", ["assistant", "tool"])
    assert row.earlier_answers == [1, 3, 5]
    assert [call.id for turn in row.messages for call in turn.tool_calls] == ["call00001", "call00002"]
    [unweighed], _ = _read({"messages": [ASKED, {**CALL, "weight": 0}, FOUND, ANSWER]})
    assert (unweighed.earlier_answers, list(unweighed.verdicts)) == ([], [LAST_ALONE])


def test_thoughts_before_a_call_are_left_dropped_or_used() -> None:
    value = f"<think>\nHm.\n</think>\n\n{SHAREGPT[1]['value']}"
    inside = {"conversations": [SHAREGPT[0], {**SHAREGPT[1], "value": value}, *SHAREGPT[2:]]}
    beside = {"messages": [ASKED, {**CALL, "reasoning_content": "Hm."}, FOUND, ANSWER]}
    for row, thoughts, said in (
        (inside, "as they are", "<think>\nHm.\n</think>"),
        (inside, "drop", ""),
        (beside, "use", "<think>\nHm.\n</think>\n\n"),
        (beside, "as they are", ""),
    ):
        [read_row], _ = _read(row, thoughts=thoughts)
        assert read_row.tool_turns[0].content == said


def _calling(**function: Any) -> list[Any]:
    return [ASKED, {**CALL, "tool_calls": [{"function": {"name": "price_of", **function}}]}, FOUND, ANSWER]


LEFT_OUT: dict[str, tuple[Any, str]] = {
    "arguments that are no JSON": ({"messages": _calling(arguments="{title: 1}")}, tools.NO_CALL),
    "arguments that are no object": ({"messages": _calling(arguments="[1]")}, tools.NO_CALL),
    "arguments in JSON twice": ({"messages": _calling(arguments=json.dumps(json.dumps(ARGUMENTS)))}, tools.NO_CALL),
    "arguments that are not a number": ({"messages": _calling(arguments='{"a": NaN}')}, tools.NO_CALL),
    "arguments beyond any number": ({"messages": _calling(arguments='{"a": 1e999}')}, tools.NO_CALL),
    "arguments with half a character": ({"messages": _calling(arguments='{"a": "\\ud800"}')}, tools.NO_CALL),
    "deep arguments": ({"messages": _calling(arguments='{"a":' * 50_000)}, tools.NO_CALL),
    "a call without a name": ({"messages": _calling(name="")}, tools.NO_CALL),
    "a name over two lines": ({"messages": _calling(name="a\nb")}, tools.NO_CALL),
    "a tool of the provider's own": (
        {"messages": [ASKED, {**CALL, "tool_calls": [{"type": "custom", "custom": {"name": "x"}}]}]},
        tools.NO_CALL,
    ),
    "a call in words": ({"conversations": [SHAREGPT[0], {**SHAREGPT[1], "value": "price_of()"}]}, tools.NO_CALL),
    "a user's call": ({"messages": [{**ASKED, "tool_calls": [CALLED]}, ANSWER]}, tools.NOT_AN_ASSISTANTS),
    "a result without a call": ({"messages": [ASKED, FOUND, ANSWER]}, tools.NOT_CALLED),
    "a result of another call": (
        {"messages": [ASKED, CALL, {**FOUND, "tool_call_id": "call_x2"}, ANSWER]},
        tools.NOT_CALLED,
    ),
    "a result more": ({"messages": [ASKED, CALL, FOUND, FOUND, ANSWER]}, tools.NOT_CALLED),
    "a call without a result": ({"messages": [ASKED, CALL, ANSWER]}, tools.NO_RESULT),
    "a call that the next question leaves": ({"messages": [ASKED, CALL, ASKED, ANSWER]}, tools.NO_RESULT),
    "a call at the end of the history": (
        {"instruction": "q", "output": "a", "history": [ASKED, CALL]},
        tools.NO_RESULT,
    ),
    "a result at the end": ({"messages": [ASKED, CALL, FOUND]}, _RESULT_LAST),
    "tools and nobody who asks": ({"messages": [CALL, FOUND, ANSWER]}, _NOT_ASKED),
    "a definition without a name": ({"messages": [ASKED, ANSWER], "tools": [{"function": {}}]}, tools.NO_DEFINITION),
    "a definition of another kind": ({"messages": [ASKED, ANSWER], "tools": [{"type": "mcp"}]}, tools.NO_DEFINITION),
    "definitions in words": ({"instruction": "q", "output": "a", "tools": "search, mail"}, tools.NO_DEFINITION),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_no_call_result_or_definition_is_left_out_and_counted(case: str) -> None:
    entry, reason = LEFT_OUT[case]
    rows, account = _read(entry, {"messages": MESSAGES})
    assert (len(rows), dict(account.left_out)) == (1, {reason: 1})
    assert account.examples[reason].startswith("row 1: {")
    with pytest.raises(ConfigurationError, match=r"^f, row 1: .*data\.strict$"):
        _read(entry, strict=True)


@pytest.mark.parametrize("told", ["[]", "null", "None", "", [], None, "{}"])
def test_no_tools_are_none(told: Any) -> None:
    [row], _ = _read({"messages": [ASKED, ANSWER], "tools": told})
    assert not row.uses_tools


def test_rows_without_tools_are_what_they_were() -> None:
    history = (Message(role="user", content="é"), Message(role="assistant", content="b"))
    plain = Row(instruction="q", input="i", response="r", history=history)
    assert plain.id == "e861fb78960b164c140a"
    assert [message.model_dump() for message in plain.history] == [
        {"role": "user", "content": "é"},
        {"role": "assistant", "content": "b"},
    ]
    columns = pq.read_schema(pa.BufferReader(to_parquet([plain])))
    assert "tools" not in columns.names
    assert str(columns.field("messages").type) == "list<element: struct<role: string, content: string>>"
    mixed = to_parquet([plain, ROW])
    assert list(from_parquet(mixed)) == [plain, ROW]
    assert list(from_parquet(to_parquet([plain]))) == [plain]
