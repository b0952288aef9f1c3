"""Which rows ask what a held-out row asks, however either is written."""

from __future__ import annotations

import pytest

from tasks.rows import Function, Message, Role, Row, ToolCall
from tasks.text.overlap import HeldOut, conversations


def _turns(*contents: str, system: str = "") -> tuple[Message, ...]:
    roles: tuple[Role, Role] = ("user", "assistant")
    said = [Message(role=roles[place % 2], content=content) for place, content in enumerate(contents)]
    return (*([Message(role="system", content=system)] if system else []), *said)


QUESTION = Row(instruction="Which river is the longest?", response="The Nile.")
WITH_INPUT = Row(instruction="Add.", input="17 and 25", response="42")
TALK = Row(
    instruction="And in Asia?", history=_turns("Which river is the longest?", "The Nile."), response="The Yangtze."
)
LONG = Row(
    instruction="Which of the rivers that you named so far is the one that carries the most water to the sea?",
    history=_turns("Name rivers", "Nile, Amazon"),
    response="The Amazon.",
)


@pytest.mark.parametrize(
    ("heldout", "row"),
    [
        (QUESTION, QUESTION),
        (QUESTION, Row(instruction="  which RIVER\nis the longest", response="The Nile.")),
        (QUESTION, Row(instruction="Ｗhich river is the longest？", response="The Nile.")),
        (QUESTION, Row(instruction="Which river is the longest?", response="The Amazon.")),
        (QUESTION, Row(instruction="Which river is the longest?")),
        (QUESTION, Row(instruction="Which river is", input="the longest?", response="x")),
        (WITH_INPUT, Row(instruction="Add.\n17 and 25", response="42")),
        (WITH_INPUT, Row(instruction="17 and 25\n\nAdd.", response="42")),
        (WITH_INPUT, Row(instruction="17 and 25", input="add", response="42")),
        (QUESTION, QUESTION.model_copy(update={"history": _turns(system="Be brief.")})),
        (QUESTION, QUESTION.model_copy(update={"history": _turns("Hi", "Hello")})),
        (QUESTION, TALK),
        (
            QUESTION,
            Row(instruction="Bye", history=_turns("Hi", "Hello", "Which river is the longest", "?"), response="x"),
        ),
        (TALK, TALK.model_copy(update={"response": "Another."})),
        (TALK, TALK.model_copy(update={"history": _turns("which river is the longest", "Nile", system="Be brief.")})),
        (TALK, Row(instruction="And in Asia?", response="x")),
        (TALK, QUESTION),
        (TALK, Row(instruction="Thanks", history=_turns("Which river is the longest?", "?", "And in Asia?", "!"))),
        (TALK, TALK.model_copy(update={"history": _turns("Which town is the largest?", "Tokyo.")})),
        (LONG, LONG.model_copy(update={"history": _turns("Hello", "Hi"), "response": "Another."})),
    ],
)
def test_the_same_question_is_found_however_it_is_written(heldout: Row, row: Row) -> None:
    assert HeldOut.of([heldout]).asked_by(row)


@pytest.mark.parametrize(
    ("heldout", "row"),
    [
        (QUESTION, Row(instruction="Which river is the shortest?", response="The Nile.")),
        (WITH_INPUT, Row(instruction="Add.", input="17 and 26", response="43")),
        (WITH_INPUT, Row(instruction="Add.", response="What?")),
        (
            TALK,
            Row(instruction="And in Asia?", history=_turns("Which town is the largest?", "Lagos."), response="Tokyo."),
        ),
        (TALK, Row(instruction="Which river is the shortest?", history=_turns("Hi", "Hello"), response="x")),
        (Row(instruction="x² + 1?", response="a"), Row(instruction="y² + 1?", response="a")),
    ],
)
def test_another_question_is_not_taken_for_it(heldout: Row, row: Row) -> None:
    assert not HeldOut.of([heldout]).asked_by(row)


def test_what_tools_answer_changes_no_question() -> None:
    call = ToolCall(id="call00001", function=Function(name="add", arguments='{"a": 17}'))
    tool_turns = (Message(role="assistant", content="", tool_calls=(call,)), Message(role="tool", content="42"))
    calling = WITH_INPUT.model_copy(update={"tool_turns": tool_turns})
    turned = Row(instruction=f"{WITH_INPUT.input}\n\n{WITH_INPUT.instruction}", response="42")
    for heldout, row in ((WITH_INPUT, calling), (calling, WITH_INPUT), (calling, turned), (turned, calling)):
        assert HeldOut.of([heldout]).asked_by(row)
    assert conversations(calling) == conversations(WITH_INPUT)


def test_conversations_are_told_by_their_user_turns() -> None:
    assert conversations(TALK)[:1] == conversations(QUESTION)
    assert len(set(conversations(TALK))) == 2
    assert conversations(QUESTION.model_copy(update={"history": _turns(system="Be brief.")})) == conversations(QUESTION)
