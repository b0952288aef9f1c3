"""Several turns: an answer is supervised in the middle of a row exactly where it stands as a row's last would."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.models import load_tokenizer
from tasks.rows import Message, Role, Row
from tasks.tokens.rows import Skipped, TokenisedRow, tokenise
from tasks.tokens.spans import RESPONSE, Span
from tests.support.templates import FAMILIES, source_of

_SAID = st.sampled_from(
    [
        "the name",
        "SELECT name\n",
        "\n\nthe price",
        "  of the book ",
        "<think>\nhow\n</think>\n\nSELECT 1",
        "é 書店 🙂",
        "5",
    ]
)
_ANY = st.one_of(_SAID, st.sampled_from(["", " ", "\n"]))
_TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), _ANY), max_size=6)
THREE = (("the name", "SELECT name FROM books;"), ("the price", "SELECT price\n  FROM books"), ("all", "SELECT *"))
DATE: dict[str, Any] = {"strftime_now": date(2024, 7, 26).strftime}
NONE, ALL = 0, 2  # of the two answers before the last
SUPERVISED = {
    **dict.fromkeys(("qwen2.5", "base with a template", "deepseek", "mistral", "gemma", "phi3", "llama3"), ALL),
    **dict.fromkeys(
        ("llama2", "granite", "llama3.2", "qwen2.5 as it is", "smollm3", "mistral 7b", "mistral small"), ALL
    ),
    **dict.fromkeys(("gemma3", "phi4", "olmo2", "granite 3.3", "deepseek v2"), ALL),
    **dict.fromkeys(("qwen3", "qwen3 with thoughts", "qwen3 thinking"), NONE),  # which have thoughts at the end only
    **dict.fromkeys(
        ("glm4", "no token at all", "gpt-oss"), NONE
    ),  # which close the last answer alone with such a token
    "vicuna": NONE,  # whose space before an answer is one token with it where it is not generated
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("families")
    return {name: load_tokenizer(source_of(family, folder / name, name)) for name, family in FAMILIES.items()}


def said(*turns: tuple[Role, str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=content) for role, content in turns)


def conversation(pairs: Sequence[tuple[str, str]], system: str | None = None) -> Row:
    """Questions and answers as one row."""
    roles: tuple[Role, Role] = ("user", "assistant")
    history = [(role, text) for pair in pairs[:-1] for role, text in zip(roles, pair, strict=True)]
    before: list[tuple[Role, str]] = [] if system is None else [("system", system)]
    return Row(instruction=pairs[-1][0], response=pairs[-1][1], history=said(*before, *history))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(turns=_TURNS, question=_SAID, response=_SAID)
def test_every_supervised_answer_continues_what_generation_sees_to_the_end_of_its_turn(
    name: str, tokenizers: dict[str, Any], turns: list[tuple[Role, str]], question: str, response: str
) -> None:
    tokenizer = tokenizers[name]
    row = Row(instruction=question, response=response, history=said(*turns))
    whole, last = (tokenise(row, tokenizer, 10_000, which) for which in ("all", "last"))  # type: ignore[arg-type]
    if isinstance(last, Skipped):
        assert whole == last
        return
    assert isinstance(whole, TokenisedRow)
    assert (whole.ids, whole.response_start) == (last.ids, last.response_start)
    assert (last.earlier, last.unsupervised) == ((), 0)
    answers = [place for place, (role, text) in enumerate(turns) if role == "assistant" and text.strip()]
    assert len(whole.earlier) + whole.unsupervised == len(answers)
    assert whole.in_order
    end = tokenizer.convert_tokens_to_ids(FAMILIES[name].end)
    found = {span.turn: span for span in whole.earlier}
    for place in answers:
        alone = _as_the_last(tokenizer, row.messages[: place + 1], end)
        if place not in found:
            assert alone is None or list(whole.ids[: len(alone[0])]) != alone[0]
            continue
        span = found[place]
        assert alone == (list(whole.ids[: span.stop]), span.start)
        assert list(whole.ids[span.start : span.stop]).index(end) == span.stop - span.start - 1


def _as_the_last(tokenizer: Any, messages: Sequence[Message], end: int) -> tuple[list[int], int] | None:
    """The prompt that generation would see, what it would have to write, and where that starts; by the template alone.

    None where the template writes no such conversation.
    """
    plain = [message.model_dump() for message in messages]
    try:
        prompt = tokenizer.apply_chat_template(plain[:-1], tokenize=False, add_generation_prompt=True, **DATE)
        text = tokenizer.apply_chat_template(plain, tokenize=False, **DATE)
    except Exception:  # of no other class
        return None
    if not text.startswith(prompt) or any(m.role == "system" and m.content.strip() not in prompt for m in messages):
        return None
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    if not ids:  # nothing predicts the first token
        return None
    answer = text[len(prompt) :]
    written = tokenizer.encode(answer, add_special_tokens=False)
    if tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[0].startswith("▁"):
        joined = tokenizer.encode(text, add_special_tokens=False)
        line = tokenizer.encode("\n", add_special_tokens=False)
        after_line = tokenizer.encode(f"\n{answer}", add_special_tokens=False)[len(line) :]
        written = joined[len(ids) :] if joined[: len(ids)] == ids else after_line
    written = [*written, end]
    return ids + written[: written.index(end) + 1], len(ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_which_templates_leave_earlier_answers_as_they_were(name: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[name]
    row = tokenise(conversation(THREE), tokenizer, 512, "all")
    assert isinstance(row, TokenisedRow)
    assert (len(row.earlier), row.unsupervised) == (SUPERVISED[name], ALL - SUPERVISED[name])
    assert [span.turn for span in row.spans] == ([1, 3] if row.earlier else []) + [RESPONSE]
    for span, part in row.parts():
        alone = tokenise(conversation(THREE[: 3 if span.turn == RESPONSE else span.turn // 2 + 1]), tokenizer, 512)
        assert isinstance(alone, TokenisedRow)
        assert (alone.ids, alone.response_start) == (row.ids[: span.stop], span.start)
        assert row.places_R[part].tolist() == list(range(span.start, span.stop))


def test_a_system_message_that_moves_along_is_another_conversation(tokenizers: dict[str, Any]) -> None:
    row = tokenise(conversation(THREE, system="Be brief."), tokenizers["mistral"], 512, "all")
    assert isinstance(row, TokenisedRow)
    assert (row.earlier, row.unsupervised) == ((), 2)


def test_an_answer_that_lost_its_thoughts_is_left_out_and_its_neighbour_is_not(tokenizers: dict[str, Any]) -> None:
    """Thoughts stay in ChatML; where they are dropped everywhere, the answer is what is left of it."""
    row = conversation([("one", "<think>\n1\n</think>\n\none"), THREE[0], THREE[1]])
    for name, earlier in (("qwen2.5", [1, 3]), ("deepseek", [1, 3]), ("qwen3 with thoughts", [])):
        tokenised = tokenise(row, tokenizers[name], 512, "all")
        assert isinstance(tokenised, TokenisedRow)
        assert [span.turn for span in tokenised.earlier] == earlier
        text = tokenizers[name].decode(tokenised.ids)
        assert ("1\n</think>" in text) == (name == "qwen2.5")


def test_an_empty_answer_is_neither_supervised_nor_missed(tokenizers: dict[str, Any]) -> None:
    row = tokenise(conversation([("one", ""), ("two", " \n"), THREE[0], THREE[1]]), tokenizers["qwen2.5"], 512, "all")
    assert isinstance(row, TokenisedRow)
    assert ([span.turn for span in row.earlier], row.unsupervised) == ([5], 0)


def test_an_answer_before_any_question_is_supervised_where_something_predicts_it(
    tokenizers: dict[str, Any],
) -> None:
    greeted = Row(instruction="Hi", response="Hello", history=said(("system", "Be."), ("assistant", "Welcome!")))
    row = tokenise(greeted, tokenizers["qwen2.5"], 512, "all")
    assert isinstance(row, TokenisedRow)
    assert [span.turn for span in row.earlier] == [1]
    bare = tokenise(greeted.model_copy(update={"history": greeted.history[1:]}), tokenizers["vicuna"], 512, "all")
    assert isinstance(bare, TokenisedRow)
    assert (bare.earlier, bare.unsupervised) == ((), 1)


def test_the_places_are_those_of_the_answers_in_order() -> None:
    row = TokenisedRow("r", list(range(10)), 8, earlier=(Span(1, 2, 4), Span(3, 5, 7)))
    assert row.places_R.tolist() == [2, 3, 5, 6, 8, 9]
    assert [(span.turn, part) for span, part in row.parts()] == [
        (1, slice(0, 2)),
        (3, slice(2, 4)),
        (RESPONSE, slice(4, 6)),
    ]
    assert row.supervised_tokens == 6
    assert row.in_order
    for wrong in ((Span(1, 5, 4),), (Span(1, 2, 4), Span(3, 3, 5)), (Span(1, 7, 9),), (Span(1, -1, 2),)):
        assert not TokenisedRow("r", list(range(10)), 8, earlier=wrong).in_order
    np.testing.assert_array_equal(TokenisedRow("r", [1, 2, 3], 1).places_R, [1, 2])
