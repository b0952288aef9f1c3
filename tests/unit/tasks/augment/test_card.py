"""The dataset card: complete with and without rows left out, and no row's text can break out of its place."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from infra.store.artifacts import Workspace
from tasks.augment import card
from tasks.rows import KEPT, Function, Message, Row, ToolCall, to_parquet

HOSTILE = "a|b\n\n# Heading\n| x | y |\n<script>alert(1)</script> ![x](javascript:1) `code` {{ n }} **bold**"
USAGE = {"requests": 3, "from_cache": 1, "prompt_tokens": 1200, "completion_tokens": 40, "cost_usd": 0.25}
NOTHING_PRIVATE: dict[str, Any] = {"rows": {}, "handling": "count"}
COUNTS = {"seeds": 2, "expanded": 4, "rows": 5, "rejected": 1, "failed": 0}


class InMemory(Workspace):
    """A workspace whose pieces never leave the test."""

    def __init__(self, *batches: list[Row]):
        super().__init__("augment", 1, {"model": "openai/test"}, {})
        self.pieces = {f"{KEPT}{index:05}.parquet": to_parquet(rows) for index, rows in enumerate(batches)}

    def read(self, name: str) -> bytes:
        return self.pieces[name]


def _card(*batches: list[Row], counts: dict[str, int] | None = None, **facts: Any) -> str:
    work = InMemory(*batches)
    told = {
        "rejected": {},
        "failed": {},
        "usage": {"selection": USAGE},
        "seeds_by_category": {"general": 7, "gone": 1},
        "private": NOTHING_PRIVATE,
        **facts,
    }
    return card.render(work, counts or COUNTS, {**told, "rows": card.describe(work, len(batches))})


def test_rows_with_answers_before_their_response_are_counted() -> None:
    def row(*roles: str) -> Row:
        return Row(instruction="q", history=tuple(Message(role=role, content="x") for role in roles))

    empty = Row(instruction="q", history=(Message(role="assistant", content=" "),))
    work = InMemory([row("user", "assistant", "user", "assistant"), row("system"), row()], [empty, row("assistant")])
    assert card.describe(work, 2)["conversations"] == 2


CALL = ToolCall(id="call00001", function=Function(name="look_up", arguments='{"word": "x"}'))
CALLING = Row(
    instruction="q",
    tool_turns=(
        Message(role="assistant", content="", tool_calls=(CALL,)),
        Message(role="tool", content=HOSTILE, tool_call_id=CALL.id, name="look_up"),
    ),
    tool_calls=(CALL,),
)


def test_rows_with_tools_are_counted_and_shown_as_text() -> None:
    plain = Row(instruction="q", response="r")
    assert card.describe(InMemory([CALLING, plain], [plain]), 2)["conversations"] == 1, "its call is an answer"
    text = _card([CALLING, plain], counts={**COUNTS, "with_tools": 1_234})
    assert "| Seeds with tools, neither expanded nor rewritten | 1,234 |" in text
    assert 'tool_turns:\n\n    assistant: look_up {"word": "x"}\n    tool: a|b\n    \n    # Heading\n' in text
    assert 'response:\n\n    {"name": "look_up", "arguments": {"word": "x"}}\n' in text
    assert "tools" not in _card([plain])


def _tables(markdown: str) -> list[list[str]]:
    """Runs of table lines."""
    tables: list[list[str]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]


def test_a_sample_shows_its_earlier_turns_as_text() -> None:
    history = (Message(role="system", content="Be brief."), Message(role="user", content=HOSTILE))
    text = _card([Row(instruction="And now?", response="Later", history=history)])
    assert "history:\n\n    system: Be brief.\n    user: a|b\n    \n    # Heading\n" in text


def test_a_card_tells_what_was_kept_left_out_and_spent() -> None:
    rows = [
        Row(instruction="Hi", response="Hello"),
        Row(instruction="你好", language="zh", lineage=("seed", "expansion")),
    ]
    text = _card(
        rows, rejected={"selection": {"score below 4": 1}}, failed={"rewriting": {"no answer (timeout)": 1_234}}
    )
    for line in (
        "2 seeds and 4 expansions became",
        "**5 rows**; 1 were rejected and 0 got no usable answer.",
        "| rejected | selection | score below 4 | 1 |",
        "| failed | rewriting | no answer (timeout) | 1,234 |",
        "Languages: en 1, zh 1.",
        "Written by: seed 1, expansion 1.",
        "| general | 7 | 2 |",
        "| gone | 1 | 0 |",
        "$0.2500",
    ):
        assert line in text
    assert "Nothing." not in text


def test_a_card_tells_what_private_data_there_was() -> None:
    private = {"rows": {"card": 1, "email": 1_200}, "handling": "mask"}
    line = "| Seeds with private data (masked) | card 1, email 1,200 |"
    assert line in _card([Row(instruction="x")], private=private)
    assert "private" not in _card([Row(instruction="x")])


def test_a_card_tells_how_hard_the_questions_were_and_how_long_their_reasoning() -> None:
    said = {"easy": ["one two", "one two three four"], "hard": ["one\n```python\nx = 1\n```\ntwo three"]}
    rows = [Row(instruction="x", response=text, verdicts={"difficulty": d}) for d in said for text in said[d]]
    text = _card([*rows, Row(instruction="y", response="no reasoning at all")])
    assert "| reasoning | rows | words, mean |\n|---|---:|---:|\n| easy | 2 | 3 |\n| hard | 1 | 3 |\n" in text
    assert "| reasoning |" not in _card([Row(instruction="y")])


def test_a_card_tells_what_was_compared_and_what_was_not() -> None:
    counts = {**COUNTS, "compared": 1_200, "not_compared": 3}
    line = "| Rows compared with a held-out row | 1,200 pairs, not compared 3 (budget reached) |"
    assert line in _card([Row(instruction="x")], counts=counts, not_compared={"budget reached": 3})
    assert "compared" not in _card([Row(instruction="x")])


def test_a_card_says_so_where_nothing_was_left_out() -> None:
    text = _card([Row(instruction="x")], counts={**COUNTS, "rejected": 0})
    assert "Nothing." in text
    assert "| rejected |" not in text


def test_a_card_of_a_batch_without_rows_and_of_empty_texts_is_whole() -> None:
    assert "| general | 7 | 1 |" in _card([], [Row(instruction="")])


@pytest.mark.parametrize("field", ["instruction", "input", "response", "task_category", "language"])
def test_no_text_of_a_row_breaks_out_of_its_place(field: str) -> None:
    plain = _card([Row(**{"instruction": "x", field: "text"})], seeds_by_category={field: 1, "a": 1})
    hostile = _card([Row(**{"instruction": "x", field: HOSTILE})], seeds_by_category={field: 1, f"{HOSTILE}!": 1})
    assert [len(table) for table in _tables(hostile)] == [len(table) for table in _tables(plain)]
    for table in _tables(hostile):
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1, table
    outside = [line for line in hostile.splitlines() if not line.startswith("    ")]  # indented: shown as it is
    headings = Counter(line for line in outside if line.startswith("#"))
    assert headings == Counter(line for line in plain.splitlines() if line.startswith("#"))
    assert not any("<script>" in line or "](javascript" in line for line in outside)
    assert hostile.count("{{ n }}") >= 1  # shown, not rendered


@pytest.mark.parametrize("brk", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028"])
def test_no_line_break_of_a_sample_ends_its_indentation(brk: str) -> None:
    text = _card([Row(instruction=f"one{brk}# two{brk}{brk}<b>three")])
    lines = [line for line in text.splitlines() if "two" in line or "three" in line]
    assert len(lines) == 2
    assert all(line.startswith("    ") for line in lines)


def test_samples_are_few_and_short() -> None:
    text = _card([Row(instruction=f"{n} " + "x" * 10_000) for n in range(50)])
    assert text.count("instruction:") == 3
    assert len(text) < 5_000
