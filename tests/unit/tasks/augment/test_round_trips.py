"""What is exported comes back as the same rows, in every form, whatever their turns are."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.store.artifacts import Workspace
from tasks.augment.export import alpaca, export, messages, sharegpt
from tasks.rows import KEPT, LAST_ALONE, Function, Message, Row, ToolCall, from_parquet, to_parquet
from tasks.seeds.account import Account
from tasks.seeds.formats import read
from tests.support.memory_store import MemoryStore

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_SAID = _TEXT.filter(str.strip)
_MESSAGES = st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=_TEXT)
_NAMES = st.sampled_from(["", "shop", "école"])
_ROWS = st.builds(
    Row,
    instruction=_SAID,
    input=st.just("") | _SAID,
    response=st.just("") | _SAID,
    history=st.lists(_MESSAGES, max_size=5).map(tuple),
    task_category=st.sampled_from(["general", "math", "code: python"]),
    language=st.sampled_from(["en", "zh", "de"]),
    database=_NAMES,
)
FORMS = {"alpaca": alpaca, "sharegpt": sharegpt, "messages": messages}
_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
_JSON = st.recursive(_VALUES, lambda part: st.lists(part, max_size=2) | st.dictionaries(_TEXT, part, max_size=2))
_NAME = st.sampled_from(["look_up", "répondre", 'say "it"'])


@st.composite
def _with_tools(draw: st.DrawFn) -> Row:
    """A row whose questions are answered after calls, one or some at a time, with or without words beside them."""
    calls = 0

    def call_turn() -> Message:
        nonlocal calls
        made = []
        for _ in range(draw(st.integers(1, 3))):
            calls += 1
            arguments = json.dumps(draw(st.dictionaries(_TEXT, _JSON, max_size=2)), ensure_ascii=False)
            function = Function(name=draw(_NAME), arguments=arguments)
            made.append(ToolCall(id=f"call{calls:05}", function=function))
        return Message(role="assistant", content=draw(st.just("") | _SAID), tool_calls=tuple(made))

    def rounds() -> list[Message]:
        turns: list[Message] = []
        for _ in range(draw(st.integers(0, 2))):
            turns.append(call_turn())
            for call in draw(st.permutations(turns[-1].tool_calls)):
                about = {"tool_call_id": call.id, "name": call.function.name}
                turns.append(Message(role="tool", content=draw(_TEXT), **about))
        return turns

    history: list[Message] = []
    for _ in range(draw(st.integers(0, 2))):
        question, answer = (Message(role=role, content=draw(_SAID)) for role in ("user", "assistant"))
        history += [question, *rounds(), answer]
    tool_turns = rounds()
    last = call_turn() if draw(st.booleans()) else Message(role="assistant", content=draw(_SAID))
    definitions = [{"type": "function", "function": {"name": draw(_NAME), "parameters": draw(_JSON)}}]
    return draw(_ROWS).model_copy(
        update={
            "history": tuple(history),
            "tools": json.dumps(definitions, ensure_ascii=False) if draw(st.booleans()) else "",
            "tool_turns": tuple(tool_turns),
            "response": last.content,
            "tool_calls": last.tool_calls,
        }
    )


def _back(form: str, rows: list[Row]) -> list[Row]:
    if form == "parquet":
        data = to_parquet(rows)
    else:
        data = "".join(json.dumps(FORMS[form](row), ensure_ascii=False) + "\n" for row in rows).encode()
    account = Account()
    back = list(read("f", io.BufferedReader(io.BytesIO(data)), account, response_required=False))
    assert (account.read, account.used) == (len(rows), len(back))
    return back


def _same(one: Row, other: Row) -> bool:
    names = ("id", "messages", "input", "task_category", "language", "database")
    return all(getattr(one, name) == getattr(other, name) for name in names)


@pytest.mark.parametrize("form", [*FORMS, "parquet"])
@settings(max_examples=150, deadline=None)
@given(rows=st.lists(_ROWS, min_size=1, max_size=4))
def test_what_is_exported_comes_back_the_same(form: str, rows: list[Row]) -> None:
    back = _back(form, rows)
    assert len(back) == len(rows)
    for one, other in zip(rows, back, strict=True):
        assert _same(one, other), (one, other)


@pytest.mark.parametrize("form", ["sharegpt", "messages", "parquet"])
@settings(max_examples=100, deadline=None)
@given(rows=st.lists(_with_tools() | _ROWS, min_size=1, max_size=3))
def test_rows_with_tools_come_back_the_same(form: str, rows: list[Row]) -> None:
    back = _back(form, rows)
    assert len(back) == len(rows)
    for one, other in zip(rows, back, strict=True):
        assert _same(one, other), (one, other)
        assert (one.tools, one.tool_turns, one.tool_calls) == (other.tools, other.tool_turns, other.tool_calls)


def test_llama_factory_reads_calls_and_results_where_it_looks_for_them() -> None:
    call = ToolCall(id="call00001", function=Function(name="f", arguments='{"a": "é"}'))
    turns = (
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="5", tool_call_id=call.id, name="f"),
    )
    tools = '[{"type": "function", "function": {"name": "f"}}]'
    said = sharegpt(Row(instruction="q", response="r", tools=tools, tool_turns=turns))
    assert (said["tools"], said["conversations"]) == (
        tools,
        [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": "é"}}'},
            {"from": "observation", "value": "5", "tool_call_id": "call00001"},
            {"from": "gpt", "value": "r"},
        ],
    )


def test_alpaca_cannot_say_tools_and_a_file_of_both_has_all_columns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    MemoryStore().replace(monkeypatch)
    plain = Row(instruction="q", response="r", history=(Message(role="user", content="a"),))
    call = ToolCall(id="call00001", function=Function(name="f", arguments="{}"))
    calling = Row(instruction="q", tool_calls=(call,))
    work = Workspace("augment", 1, {"of": "tools"}, {})
    for index, row in enumerate([plain, calling, plain]):
        work.put(f"{KEPT}{index:05}.parquet", to_parquet([row]))
    ref = work.publish((KEPT,), {"rows": 3}, {})
    assert export(ref, tmp_path / "rows.jsonl", "alpaca") == (2, 1)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    assert export(ref, tmp_path / "rows.parquet", "parquet") == (3, 0)
    assert list(from_parquet((tmp_path / "rows.parquet").read_bytes())) == [plain, calling, plain]


@pytest.mark.parametrize("form", [*FORMS, "parquet"])
def test_the_turns_that_get_lost_elsewhere_come_back(form: str) -> None:
    def said(*turns: tuple[str, str]) -> tuple[Message, ...]:
        return tuple(Message.model_validate({"role": role, "content": content}) for role, content in turns)

    histories = [
        said(("assistant", "Welcome!")),
        said(("system", "Be brief."), ("assistant", "Welcome!"), ("user", "Hi"), ("assistant", "Hello")),
        said(("user", "One"), ("user", "Two"), ("assistant", "Both"), ("assistant", "And more")),
        said(("system", "One"), ("system", "Two"), ("user", "Hi"), ("system", "Three"), ("assistant", "Hello")),
        said(("user", ""), ("assistant", "  indented\n")),
        said(("system", " "), ("user", " "), ("assistant", "\n")),
    ]
    rows = [
        Row(
            instruction="    def f():",
            input="\tx\n\n  y",
            response="        return 1\n",
            history=history,
            language="de",
        )
        for history in histories
    ]
    assert all(map(_same, rows, _back(form, rows)))


@pytest.mark.parametrize("form", ["sharegpt", "messages"])
def test_answers_that_are_not_to_be_trained_on_stay_so(form: str) -> None:
    history = (Message(role="user", content="One"), Message(role="assistant", content="Not this"))
    call = ToolCall(id="call00001", function=Function(name="f", arguments="{}"))
    tool_turns = (
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="5", tool_call_id=call.id, name="f"),
    )
    row = Row(instruction="Two", response="This", history=history)
    for between, places in (((), [1]), (tool_turns, [1, 3])):
        for verdicts, answers in (({LAST_ALONE: "weight 0"}, []), ({}, places)):
            [back] = _back(form, [row.model_copy(update={"verdicts": verdicts, "tool_turns": between})])
            assert back.earlier_answers == answers
