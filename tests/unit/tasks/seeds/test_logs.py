"""Logs of requests and answers, as providers and proxies write them: rows of what was asked and answered."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import pytest

from tasks.rows import Row
from tasks.seeds.account import Account
from tasks.seeds.formats import read
from tasks.seeds.logs import CUT_OFF, NO_ANSWER
from tasks.seeds.tools import NO_CALL, NO_DEFINITION

ASKED = [{"role": "system", "content": "Be."}, {"role": "user", "content": "q"}]
ANSWERED = {"id": "1", "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "r"}}]}
SPOKEN = {"type": "message", "content": [{"type": "output_text", "text": "r"}]}


def _read(*lines: dict[str, Any]) -> tuple[list[Row], Account]:
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    account = Account()
    stream = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    return list(read("log.jsonl", stream, account, response_required=False)), account


@pytest.mark.parametrize(
    "line",
    [
        {"model": "gpt-4o", "messages": ASKED, "response": ANSWERED, "status": "success", "startTime": 1.5},  # LiteLLM
        {"request": {"model": "m", "messages": ASKED}, "response": ANSWERED, "latency_ms": 12},
        {"request_body": json.dumps({"messages": ASKED}), "response_body": json.dumps(ANSWERED)},
        {
            "custom_id": "1",
            "body": {"messages": ASKED},
            "response": {"status_code": 200, "body": ANSWERED},
            "error": None,
        },
        {"request": {"instructions": "Be.", "input": "q"}, "response": {"status": "completed", "output": [SPOKEN]}},
        {"request": {"messages": ASKED}, "response": {"choices": [{"message": {"content": "r"}}, {"message": {}}]}},
    ],
    ids=["litellm", "proxy", "texts", "batch", "responses", "two choices"],
)
def test_a_line_is_what_was_asked_and_answered(line: dict[str, Any]) -> None:
    [row], account = _read(line)
    assert [(m.role, m.content) for m in row.messages] == [("system", "Be."), ("user", "q"), ("assistant", "r")]
    assert account.plain()["left_out"] == {}
    assert account.unused == Counter(), "what else a log says is no column that somebody forgot"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"messages": ASKED, "response": None, "status": "failure"}, NO_ANSWER),
        ({"request": {"messages": ASKED}, "response": {"error": {"message": "no"}}}, NO_ANSWER),
        ({"request": {"messages": ASKED}, "response": ANSWERED, "error": "late"}, NO_ANSWER),
        ({"request": {"messages": ASKED}, "response": {"choices": [{"finish_reason": "length"}]}}, CUT_OFF),
        ({"request": {"input": "q"}, "response": {"status": "incomplete", "output": [SPOKEN]}}, CUT_OFF),
        ({"request": {"input": "q"}, "response": {"output": [{"type": "function_call"}]}}, NO_CALL),
        ({"request": {"messages": ASKED, "tools": [{"type": "function"}]}, "response": ANSWERED}, NO_DEFINITION),
    ],
)
def test_what_is_no_whole_answer_is_left_out_and_counted(line: dict[str, Any], reason: str) -> None:
    rows, account = _read(line, {"request": {"messages": ASKED}, "response": ANSWERED})
    assert (len(rows), account.left_out) == (1, {reason: 1})
    assert account.examples[reason].startswith("row 1: {")


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "Write JSON.", "response": '{"choices": [1], "output": "x"}'},
        {"prompt": "Write JSON.", "response": '{"error": null}', "status": "new"},
    ],
)
def test_an_answer_in_json_is_no_log(line: dict[str, Any]) -> None:
    [row], account = _read(line)
    assert (row.instruction, row.response) == (line["prompt"], line["response"])
    assert account.used == 1


def test_requests_without_a_log_of_answers_are_questions() -> None:
    [row], _ = _read({"custom_id": "1", "method": "POST", "body": {"messages": ASKED}})
    assert (row.instruction, row.response) == ("q", "")
