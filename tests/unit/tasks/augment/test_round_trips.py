"""What is exported comes back as the same rows, in every form, whatever their turns are."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.augment.export import alpaca, messages, sharegpt
from tasks.rows import LAST_ALONE, Message, Row, to_parquet
from tasks.seeds.account import Account
from tasks.seeds.formats import read

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
    for verdicts, answers in (({LAST_ALONE: "weight 0"}, []), ({}, [1])):
        [back] = _back(form, [Row(instruction="Two", response="This", history=history, verdicts=verdicts)])
        assert back.earlier_answers == answers
