"""Seeds in the formats that people have, and one clear sentence for those that are none."""

import io
import json
from typing import Any

import pandas as pd
import pytest

from infra.errors import ConfigurationError
from tasks.seeds.formats import parse
from tasks.seeds.sources import find


def _jsonl(*rows: Any) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3", "category": "math"}


def test_alpaca_jsonl_and_json_and_parquet_give_the_same_rows() -> None:
    frame = io.BytesIO()
    pd.DataFrame([ALPACA]).to_parquet(frame)
    for data in (_jsonl(ALPACA), json.dumps([ALPACA], indent=2).encode(), frame.getvalue()):
        (row,) = parse("f", data, response_required=True)
        assert (row.instruction, row.input, row.response, row.task_category) == ("Add.", "1 and 2", "3", "math")
        assert row.origin_seed == row.id


def test_self_instruct_gives_a_row_an_instance() -> None:
    entry = {
        "instruction": "Classify.",
        "instances": [{"input": "a", "output": "x"}, {"input": "b", "output": "y"}],
        "is_classification": True,
    }
    rows = parse("f", _jsonl(entry), response_required=True)
    assert [(r.input, r.response, r.task_category) for r in rows] == [
        ("a", "x", "classification"),
        ("b", "y", "classification"),
    ]


def test_chat_messages_keep_their_history() -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao")]
    entry = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (row,) = parse("f", _jsonl(entry), response_required=True)
    assert [(m.role, m.content) for m in row.messages] == turns


def test_parquet_with_messages_is_read() -> None:
    frame = io.BytesIO()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    pd.DataFrame({"messages": [messages]}).to_parquet(frame)
    (row,) = parse("f", frame.getvalue(), response_required=True)
    assert (row.instruction, row.response) == ("Hi", "Hello")


def test_language_is_noticed() -> None:
    (row,) = parse("f", _jsonl({"instruction": "请写一首关于春天的诗", "output": "好"}), response_required=True)
    assert row.language == "zh"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_jsonl(ALPACA, {"instruction": 5, "output": "x"}), ["f, row 2", "'instruction'", "expected text, found int"]),
        (_jsonl(ALPACA) + b'\n{"instruction": ', ["f, row 2 (line 2)", "not valid JSON"]),
        (_jsonl({"question": "?"}), ["f, row 1", "question", "Alpaca"]),
        (_jsonl({"instruction": "x"}), ["f, row 1", "'output'", "augmentation is off"]),
        (_jsonl({"instruction": "x", "instances": []}), ["'instances'", "non-empty"]),
        (_jsonl({"messages": [{"role": 5, "content": "x"}]}), ["'messages', turn 1", "role"]),
        (_jsonl([1]), ["row 1", "expected an object"]),
        (b"", ["holds no rows"]),
        (b"\xff\xfe\x00", ["neither Parquet nor UTF-8"]),
        (b"PAR1 and then not", ["not one"]),
        (b"[1, 2", ["not valid JSON"]),
    ],
)
def test_a_malformed_file_gets_one_sentence_with_file_row_and_field(data: bytes, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse("f", data, response_required=True)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no file 'nowhere.jsonl'"):
        find("nowhere.jsonl", "seeds")


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ({"instruction": "a", "output": "b\ud800"}, r"f, row 1, field 'output': \\ud800 at 1 is half of a character"),
        (
            {"messages": [{"role": "user", "content": "\udc00"}, {"role": "assistant", "content": "x"}]},
            r"f, row 1, field 'messages', turn 1: \\udc00 at 0",
        ),
    ],
)
def test_half_a_character_is_refused_by_row_and_field(entry: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigurationError, match=where):
        parse("f", _jsonl(entry), response_required=False)
