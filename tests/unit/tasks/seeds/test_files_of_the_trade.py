"""Files as people have them: how many rows are in each, how many are used, and why the others are not."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import ConfigurationError
from tasks.rows import Message, Row
from tasks.seeds import tools
from tasks.seeds.account import Account, sentences
from tasks.seeds.formats import read

Turns = list[tuple[str, str]]


def _lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _parquet(**columns: Any) -> bytes:
    return _parquet_of(pa.table(columns))


def _parquet_of(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _talk(*turns: dict[str, Any], **about: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[place % 2], **turn} for place, turn in enumerate(turns)], **about}


def _said(*contents: str) -> dict[str, Any]:
    return _talk(*({"content": content} for content in contents))


def _read(data: bytes, *, response_required: bool = False, heldout: bool = False) -> tuple[list[Row], Account]:
    account = Account()
    stream = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    return list(read("f", stream, account, response_required=response_required, heldout=heldout)), account


ONE = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
WEIGHT, PARTS = "has weight 0: it is not to be trained on", "no text"
NOTHING = "has nothing in it"

# name: (file, rows in it, left out by reason, columns that are not used)
USED: dict[str, tuple[bytes, int, dict[str, int], dict[str, int]]] = {
    "Alpaca with its formatted text": (_lines({**ONE, "text": "Below is"}, ONE), 2, {}, {"text": 1}),
    "LLaMA-Factory's system and history": (_lines({**ONE, "system": "Be.", "history": [["a", "b"]]}), 1, {}, {}),
    "Dolly": (_lines({"instruction": "q", "context": "c", "response": "r", "category": "open_qa"}), 1, {}, {}),
    "TRL's prompt and completion": (_lines({"prompt": "q", "completion": "r"}), 1, {}, {}),
    "TRL's conversational prompt": (
        _lines({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "r"}]}),
        1,
        {},
        {},
    ),
    "TRL's prompt in turns and completion in words": (
        _lines({"prompt": [{"role": "user", "content": "q"}], "completion": "r"}),
        1,
        {},
        {},
    ),
    "no tools, in words": (_parquet(instruction=["q", "p"], output=["r", "r"], tools=["[]", "null"]), 2, {}, {}),
    "a weight of one": (_lines({**ONE, "weight": 1}, {**ONE, "weight": 1.0}), 2, {}, {}),
    "Orca's system prompt": (_lines({"prompt": "q", "response": "r", "system_prompt": "Be."}), 1, {}, {}),
    "ShareGPT": (
        _lines({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}], "system": "Be."}),
        1,
        {},
        {},
    ),
    "OpenAI's weights": (
        _lines(
            _talk({"content": "q"}, {"content": "r", "weight": 0}),
            _talk({"content": "q"}, {"content": "r", "weight": 0}, {"content": "q2"}, {"content": "r2", "weight": 1}),
            {**ONE, "weight": 0},
            {**ONE, "weight": 0.5},
        ),
        4,
        {WEIGHT: 2},
        {"weight": 1},
    ),
    "tools that are none": (
        _lines(
            {**_said("q", "r"), "tools": [{"type": "function"}]},
            {**_said("q", "r"), "tools": []},
            _talk({"content": "q"}, {"content": None, "tool_calls": [{"id": "1"}]}),
            {"messages": [*_said("q", "r")["messages"], {"role": "tool", "content": "5"}]},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]},
        ),
        5,
        {tools.NO_DEFINITION: 1, tools.NO_CALL: 2, tools.NOT_CALLED: 1},
        {},
    ),
    "reasoning apart from the answer": (
        _lines(*[_talk({"content": "q"}, {"content": "r", "reasoning_content": "Hm."})] * 2, _said("q", "r")),
        3,
        {},
        {"messages.reasoning_content": 2},
    ),
    "content in parts": (
        _lines(
            _talk({"content": [{"type": "text", "text": "q"}]}, {"content": "r"}),
            _talk({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, {"content": "r"}),
        ),
        2,
        {f"holds parts that are {PARTS}": 1},
        {},
    ),
    "nulls and NaN, as pandas writes them": (
        b'{"instruction": "q", "input": NaN, "output": "r", "tags": null}\n{"instruction": null, "output": NaN}\n{}\n',
        3,
        {NOTHING: 2},
        {},
    ),
    "a byte order mark and CRLF": (b"\xef\xbb\xbf" + _lines(ONE, ONE).replace(b"\n", b"\r\n"), 2, {}, {}),
    "one object over several lines": (json.dumps(ONE, indent=2).encode(), 1, {}, {}),
    "objects over several lines": (b"\n".join([json.dumps(ONE, indent=2).encode()] * 3), 3, {}, {}),
    "a list over several lines": (json.dumps([ONE, ONE], indent=2).encode(), 2, {}, {}),
    "Parquet with columns that nobody knows": (
        _parquet(
            instruction=["q", "r"],
            output=["a", "b"],
            made=pa.array([date(1, 1, 1), None]),
            far=pa.array([2**60, 2**60], pa.timestamp("us")),
            none=pa.array([None, None], pa.string()),
            **{"a.b": [1, 2]},
        ),
        2,
        {},
        {"made": 1, "far": 2, "a.b": 2},
    ),
    "Parquet with nested turns": (
        _parquet(messages=[_said("q", "r")["messages"], _said("q2", "r2")["messages"], None], n=[1, 2, 3]),
        3,
        {NOTHING: 1},
        {"n": 3},
    ),
    "Parquet with turns as JSON": (_parquet(messages=[json.dumps(_said("q", "r")["messages"])]), 1, {}, {}),
    "Parquet with labels as numbers": (_parquet(instruction=["q"], output=["r"], category=[3]), 1, {}, {}),
    "labels as pandas writes them": (_lines({**ONE, "category": 3.0}, {**ONE, "category": float("nan")}), 2, {}, {}),
    "Self-Instruct": (
        _lines({"id": "s1", "instruction": "q", "instances": [{"input": "a", "output": "x"}, {"output": "y", "n": 1}]}),
        2,
        {},
        {"id": 1, "instances.n": 1},
    ),
}


@pytest.mark.parametrize("name", USED)
def test_every_row_is_used_or_left_out_for_a_reason_and_columns_are_named(name: str) -> None:
    data, rows, left_out, unused = USED[name]
    found, account = _read(data)
    assert (account.read, dict(account.left_out), dict(account.unused)) == (rows, left_out, unused)
    assert len(found) == account.used == rows - sum(left_out.values())


def test_what_the_columns_mean_is_used() -> None:
    def row(name: str) -> Row:
        return _read(USED[name][0])[0][0]

    system = Message(role="system", content="Be.")
    earlier = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    assert row("LLaMA-Factory's system and history").history == (system, *earlier)
    dolly = row("Dolly")
    assert (dolly.input, dolly.response, dolly.task_category) == ("c", "r", "open_qa")
    for name in ("Orca's system prompt", "ShareGPT"):
        assert (row(name).history, row(name).instruction, row(name).response) == ((system,), "q", "r")
    for name in (
        "TRL's prompt and completion",
        "TRL's conversational prompt",
        "content in parts",
        "TRL's prompt in turns and completion in words",
    ):
        assert (row(name).instruction, row(name).response) == ("q", "r")
    assert row("Parquet with labels as numbers").task_category == "3"
    assert row("labels as pandas writes them").task_category == "3"
    weighed = row("OpenAI's weights")
    assert [message.content for message in weighed.messages] == ["q", "r", "q2", "r2"]
    assert weighed.earlier_answers == [], "weight 0 is not trained on, nor are its neighbours"
    assert row("Parquet with nested turns").earlier_answers == []


def test_indentation_and_line_ends_stay() -> None:
    code = {"instruction": "  Fix\n", "input": "\tx = 1\n\n", "output": "    return 1\n"}
    (row,), _ = _read(_lines(code))
    assert (row.instruction, row.input, row.response) == tuple(code.values())


@pytest.mark.parametrize(
    ("entry", "wrong", "right"),
    [
        ({"instruction": "q", "ouput": "r"}, "ouput", "output"),
        ({"instrution": "q", "output": "r"}, "instrution", "instruction"),
        ({"Instruction": "q", "Output": "r"}, "Instruction", "instruction"),
        ({"instruction": "q", "imput": "x", "output": "r"}, "imput", "input"),
        ({"instruction": "q", "output": "r", "sytem": "Be."}, "sytem", "system"),
        ({"instruction": "q", "output": "r", "histroy": []}, "histroy", "history"),
        ({"instruction": "q", "output": "r", "catgory": "x"}, "catgory", "category"),
        ({"instruction": "q", "output": "r", "databse": "x"}, "databse", "database"),
        ({"instruction": "q", "contxt": "c", "response": "r"}, "contxt", "context"),
        ({"mesages": [{"role": "user", "content": "q"}]}, "mesages", "messages"),
        ({"instruction": "q", "instances": [{"inputs": "a", "output": "x"}]}, "inputs", "input"),
    ],
)
def test_a_misspelt_column_stops_the_run(entry: dict[str, Any], wrong: str, right: str) -> None:
    files = [_lines(entry)]
    if not {"instances", "histroy"} & entry.keys():  # which Parquet has no column for as they stand
        files.append(_parquet(**{name: [value] for name, value in entry.items()}))
    for data in files:
        with pytest.raises(ConfigurationError, match=f"'{wrong}' looks like '{right}' misspelt"):
            _read(data)


@pytest.mark.parametrize(
    "name", ["prompt_id", "content", "context_id", "source", "idx", "score", "model", "label", "tags"]
)
def test_an_honest_column_of_another_name_does_not(name: str) -> None:
    rows, account = _read(_lines({"instruction": "q", "output": "r", name: "x"}, {"instruction": "p", "output": "r"}))
    assert len(rows) == 2
    assert account.unused == {name: 1}


def test_columns_that_are_new_in_every_row_take_no_memory_and_no_page() -> None:
    data = _lines(*({"instruction": f"q{n}", f"column\n{n}" * 9: "x", "topic": "y"} for n in range(1_000)))
    account = _read(data)[1]
    assert len(account.unused) <= 201
    assert account.unused.total() == 2_000
    assert account.unused["topic"] == 1_000
    [sentence] = sentences({"files": {"seeds": account.plain()}})
    assert sentence.startswith("seeds: columns that are not used: topic (1,000 rows), (others)")
    assert len(sentence) < 1_000
    assert "\n" not in sentence


def test_two_columns_that_mean_the_same_and_differ_are_not_guessed_about() -> None:
    assert len(_read(_lines({**ONE, "response": "3"}))[0]) == 1
    with pytest.raises(ConfigurationError, match="row 1: the fields 'output' and 'response' differ"):
        _read(_lines({**ONE, "response": "4"}))


def _deep(depth: int) -> bytes:
    return b'{"instruction": "q", "x": ' + b"[" * depth + b"]" * depth + b"}"


REFUSED: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "f holds no rows"),
    "blank lines": (b"\n \r\n", "f holds no rows"),
    "an empty list": (b"[]", "f holds no rows"),
    "Parquet without rows": (_parquet(instruction=pa.array([], pa.string())), "f holds no rows"),
    "Latin-1": (
        _lines(ONE) + '{"instruction": "café"}'.encode("latin-1"),
        "f is neither Parquet nor UTF-8 text .*line 2",
    ),
    "UTF-16": (json.dumps(ONE).encode("utf-16"), "UTF-16: save it as JSONL in UTF-8"),
    "deep JSON": (_lines(ONE) + _deep(100_000), r"row 2 \(line 2\): is nested too deeply"),
    "a deep list": (b"[" * 100_000, r"row 1 \(line 1\): is nested too deeply"),
    "a number of thousands of digits": (
        _lines(ONE) + b'{"n": ' + b"1" * 5000 + b"}",
        r"row 2 \(line 2\): has a number of",
    ),
    "rows in a field": (json.dumps({"version": 1, "data": [ONE]}).encode(), "one object with rows in its field 'data'"),
    "a row cut off": (_lines(ONE) + b'{"instruction": "q', r"row 2 \(line 2\): not valid JSON"),
    "a list cut off": (json.dumps([ONE, ONE]).encode()[:-1], "the list has no end"),
    "two lists": (b"[]\n[]", "line 2: not valid JSON .text after the list"),
    "no comma in a list": (b'[{"instruction": "q"}\n{"instruction": "r"}]', r"row 1 \(line 2\): not valid JSON"),
    "a line break in a text": (b'{"instruction": "a\nb"}', r"row 1 \(line 1\): not valid JSON .*at column 19"),
    "a row without end": (
        b'{"instruction": "' + b"x" * (2**24 + 2**22),
        "row 1 .*is longer than 16,777,216 characters",
    ),
    "CSV": (b"instruction,output\nq,r\n", r"row 1 \(line 1\): not valid JSON"),
    "Parquet cut off": (_parquet(instruction=["q"])[:-20], "starts like a Parquet file but is not one, or is damaged"),
    "Parquet with bad UTF-8": (
        _parquet(instruction=["q", "r"], output=pa.array([b"fine", b"caf\xe9"]).view(pa.string())),
        "row 2, field 'output': holds no UTF-8 text",
    ),
    "Parquet with odd dates": (
        _parquet(instruction=["q"], output=pa.array([2**60], pa.timestamp("us"))),
        "row 1, field 'output': holds a value that Python cannot hold",
    ),
    "Parquet with dates": (
        _parquet(instruction=["q"], output=[date(2026, 1, 1)]),
        "'output': expected text, found date",
    ),
    "Parquet with lists": (
        _parquet(instruction=["q"], output=[["r"]]),
        "row 1, field 'output': expected text, found list",
    ),
    "Parquet in no format": (_parquet(question=["q"], answer=["r"]), "fields answer, question are none of the known"),
    "Parquet with one name twice": (
        _parquet_of(pa.table([pa.array(["q"]), pa.array(["r"])], names=["instruction", "instruction"])),
        "f has two columns named 'instruction'",
    ),
    "history of something else": (_lines({**ONE, "history": [["a"]]}), "field 'history', pair 1: expected"),
    "thousands of fields": (_lines({f"a\nb{n}" * 99: 1 for n in range(5_000)}), "row 1: fields a b0a b0a b0a"),
    "no turns": (_lines({"messages": "none"}), "field 'messages': expected a list of turns"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_used_gets_one_sentence(name: str) -> None:
    data, words = REFUSED[name]
    with pytest.raises(ConfigurationError, match=words) as caught:
        _read(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_300


class _Slowly(io.BytesIO):
    """Gives a few bytes at a time, so that texts, escapes and characters are cut anywhere."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(7, size) if size and size > 0 else size)

    def peek(self, _size: int = 0) -> bytes:
        return self.getvalue()[self.tell() :]


def _each() -> Iterator[str]:
    return (name for name, (data, *_) in USED.items() if not data.startswith(b"PAR1"))


@pytest.mark.parametrize("name", _each())
def test_where_the_chunks_end_does_not_matter(name: str) -> None:
    data = USED[name][0]
    account = Account()
    assert list(read("f", _Slowly(data), account, response_required=False)) == _read(data)[0]


@pytest.mark.parametrize("name", ["a row cut off", "a list cut off", "no comma in a list", "deep JSON", "Latin-1"])
def test_errors_are_the_same_wherever_the_chunks_end(name: str) -> None:
    data, words = REFUSED[name]
    with pytest.raises(ConfigurationError, match=words):
        list(read("f", _Slowly(data), Account(), response_required=False))


def _bomb(kind: str) -> bytes:
    """A few kilobytes that unpack to gigabytes."""
    text, sink = "x" * 1_000_000, io.BytesIO()
    if kind == "one text for every row":
        output = pa.DictionaryArray.from_arrays(pa.array([0] * 4_500, pa.int32()), [text])
        pq.write_table(pa.table({"instruction": list(map(str, range(4_500))), "output": output}), sink)
    elif kind == "one text for every turn":
        schema = pa.schema([("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))])
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for _ in range(30):
                writer.write_table(pa.table({"messages": [_said("q", text)["messages"]] * 10}, schema=schema))
    elif kind == "a page of one letter":
        table = pa.table({"instruction": ["q"] * 28, "output": [text * 10] * 28})
        pq.write_table(table, sink, compression="zstd", use_dictionary=False, data_page_size=2**31 - 1)
    else:
        same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(6_000_000, "i1")), ["equal"])
        pq.write_table(pa.table({"instruction": same}), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "kind", ["one text for every row", "one text for every turn", "a page of one letter", "rows that are all equal"]
)
def test_a_small_file_that_unpacks_to_gigabytes_is_refused_in_bounded_memory(kind: str) -> None:
    data, before, taken = _bomb(kind), pa.total_allocated_bytes(), [0]
    rows = read("f", io.BufferedReader(io.BytesIO(data)), Account(), response_required=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="f unpacks to more than 200 times its size and 256 MiB"):
        taken.extend(pa.total_allocated_bytes() - before for _ in rows)
    assert len(data) < 2**20
    assert max(taken) < 2**26


def test_rows_of_many_row_groups_and_long_texts_are_all_read() -> None:
    sink = io.BytesIO()
    schema = pa.table({"messages": [_said("q", "r")["messages"]]}).schema
    with pq.ParquetWriter(sink, schema) as writer:
        for group in range(7):
            talks = [_said(f"q{group}-{row}", f"{row}" * 30_000)["messages"] for row in range(70)]
            writer.write_table(pa.table({"messages": talks}, schema=schema))
    rows, account = _read(sink.getvalue())
    assert [row.instruction for row in rows] == [f"q{group}-{row}" for group in range(7) for row in range(70)]
    assert account.read == 490
