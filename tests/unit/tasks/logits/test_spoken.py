"""What an API told of its tokens: believed where it spells the answer in numbers that can be, refused where not."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.llm.litellm_replies import compact
from tasks.logits.api.spoken import (
    NO_LOGPROBS,
    NOT_SPELLED,
    NOT_TOLD,
    TURN,
    Answer,
    ToldTokens,
    Untold,
    answer_of,
)
from tasks.tokens.vocabulary import Vocabulary as TokensAsBytes


def _told(*tokens: Any) -> list[Any]:
    return [[token, -0.1, [[token, -0.1], ["other", -3.0]]] for token in tokens]


def _one(token: Any = "a", logprob: Any = -0.1, alternatives: Any = ()) -> list[Any]:
    return [[token, logprob, list(alternatives)]]


def test_bytes_are_kept_only_where_the_text_does_not_say_them() -> None:
    openai = [
        {"token": " é", "bytes": [32, 195, 169], "logprob": -0.12345678, "top_logprobs": []},
        {"token": "\\xc3", "bytes": [195], "logprob": -1, "top_logprobs": [{"token": "x", "logprob": -2.0}]},
    ]
    assert compact(openai) == [[" é", -0.123457, []], [[195], -1, [["x", -2.0]]]]


def test_a_token_of_half_a_character_is_its_bytes() -> None:
    answer = answer_of("é!", [[[195], -0.1, [[[195], -0.1]]], [[169], -0.1, []], ["!", -0.1, []]], 2, stopped=True)
    assert [one.token for one in answer.tokens] == [b"\xc3", b"\xa9", b"!"]
    assert answer.tokens[0].alternatives == ((b"\xc3", -0.1),)


def test_what_follows_a_token_without_bytes_has_no_distribution() -> None:
    """vLLM tells a character's bytes with the last of its tokens."""
    answer = answer_of("aé", _told("a", "", "é"), 2, stopped=True)
    assert [len(one.alternatives) for one in answer.tokens] == [2, 0, 0]


def test_alternatives_come_best_first_each_once_and_without_hidden_bytes() -> None:
    told = _one("a", -2.0, [["b", -3.0], ["a", -0.4], ["\ufffd", -2.5], ["", -3.0], ["a", -5.0]])
    [token] = answer_of("a", told, 5, stopped=True).tokens
    assert token.alternatives == ((b"a", -0.4), (b"b", -3.0))


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (None, NOT_TOLD),
        ([], NOT_TOLD),
        (_one("b"), NOT_SPELLED),
        (_one(None), NOT_SPELLED),
        (_one([999]), NOT_SPELLED),
        (_one({}), NOT_SPELLED),
        (_one("a", math.nan), NO_LOGPROBS),
        (_one("a", 0.5), NO_LOGPROBS),
        (_one("a", None), NO_LOGPROBS),
        (_one("a", True), NO_LOGPROBS),
        (_one("a", "-1"), NO_LOGPROBS),
        (_one("a", -0.1, [["a", math.nan]]), NO_LOGPROBS),
        (_one("a", -0.1, [["a", -0.1], ["b", -0.1]]), NO_LOGPROBS),
        (_one("a", -0.1, [["a"]]), NO_LOGPROBS),
        ([["a"]], NO_LOGPROBS),
    ],
)
def test_what_cannot_be_is_refused_and_says_why(told: Any, why: str) -> None:
    with pytest.raises(Untold, match=why):
        answer_of("a", told, 5, stopped=True)


def test_rounding_above_zero_and_the_providers_word_for_never_are_taken() -> None:
    [token] = answer_of("a", _one("a", 1e-5, [["a", 1e-5], ["b", -9999.0], ["c", -math.inf]]), 5, stopped=True).tokens
    assert token.logprob == 0.0
    assert token.alternatives == ((b"a", 0.0), (b"b", -9999.0), (b"c", -9999.0))


@pytest.mark.parametrize(("stopped", "end"), [(True, b"<eos>"), (False, None)])
def test_a_token_more_is_the_end_of_an_answer_that_ended(stopped: bool, end: bytes | None) -> None:
    if end is None:
        with pytest.raises(Untold, match=NOT_SPELLED):
            answer_of("a", _told("a", "<eos>"), 5, stopped=stopped)
    else:
        answer = answer_of("a", _told("a", "<eos>"), 5, stopped=stopped)
        assert answer.end is not None
        assert answer.end.token == end


def test_whitespace_that_a_server_trimmed_is_no_end() -> None:
    answer = answer_of("a", _told("a", "\n"), 5, stopped=True)
    assert answer.end is None
    assert len(answer.tokens) == 2


def test_the_end_is_the_students_end_wherever_it_was_an_alternative() -> None:
    told = [["a", -0.1, [["a", -0.1], ["<eos>", -3.0]]], ["<eos>", -0.2, [["<eos>", -0.2]]]]
    answer = answer_of("a", told, 2, stopped=True)
    vocabulary = ToldTokens([answer])
    row = vocabulary.scored("x", answer, 2)
    tokens = TokensAsBytes.of(vocabulary.tokenizer_json(), TURN)
    assert tokens.end == vocabulary.end
    assert list(row.ids) == [0, tokens.end]
    np.testing.assert_array_equal(row.topk_ids_RK, [[0, tokens.end], [tokens.end, 0]])
    np.testing.assert_allclose(row.logprobs_RK, [[-0.1, -3.0], [-0.2, -np.inf]])


def test_a_token_that_texts_hold_is_no_end() -> None:
    first, second = (answer_of(text, _told(*tokens), 2, stopped=True) for text, tokens in (("a", "ab"), ("ab", "ab")))
    vocabulary = ToldTokens([first, second])
    assert len(vocabulary.scored("x", first, 2).ids) == 1


@given(st.lists(st.binary(min_size=1, max_size=4), unique=True, max_size=20))
def test_a_vocabulary_is_read_back_byte_by_byte(texts: list[bytes]) -> None:
    answer = answer_of("a", [["a", -9.0, [[list(text), -9.0] for text in texts]]], 99, stopped=True)
    seen = ToldTokens([answer, Answer(())])
    tokens = TokensAsBytes.of(seen.tokenizer_json(), TURN)
    known = {text for text in texts if b"\xef\xbf\xbd" not in text} | {b"a"}
    assert [text for text in tokens.text if text is not None] == sorted(known)
