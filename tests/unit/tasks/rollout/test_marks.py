"""What a student may write of its chat template: a call, where it has tools; never a turn."""

from __future__ import annotations

import pytest

from tasks.models import load_tokenizer, resolve
from tasks.rollout.answering import holds_marks
from tasks.rows import Row

PLAIN = Row(instruction="Count the books", response="5")
WITH_TOOLS = PLAIN.model_copy(update={"tools": '[{"type": "function", "function": {"name": "count"}}]'})


@pytest.mark.parametrize(
    ("row", "text", "holds"),
    [
        (PLAIN, "There are 5.", False),
        (PLAIN, "<tool_call>{}", True),
        (WITH_TOOLS, "<tool_call>{}", False),
        (WITH_TOOLS, "<tool_call>{}<|im_start|>user", True),
        (PLAIN, "5<|im_start|>user", True),
    ],
)
def test_an_answer_may_hold_a_call_where_there_are_tools_and_never_a_turn(row: Row, text: str, holds: bool) -> None:
    tokenizer = load_tokenizer(resolve("demo", "student"))
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.chat_template += "{# <tool_call> #}"
    assert holds_marks(row, text, tokenizer) is holds
