"""What must not be trained on is known in another order and other words; other questions in its words are not it."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from tasks.rows import Function, Message, Row, ToolCall
from tasks.text.leaks import BENCHMARK, HELD_OUT, NEAR_HELD_OUT, Leaks, passages_of
from tasks.text.near import NearHeldOut, Rarity
from tasks.text.overlap import HeldOut
from tests.support.leaks import KINDS, QUESTIONS

HELD = [Row(instruction=forms[0], response="x") for forms in QUESTIONS]


def _leaks(heldout: list[Row], others: list[Row], near: float | None = 0.8) -> Leaks:
    return Leaks.of(lambda: heldout, lambda: others, near)


def test_fifty_planted_questions_are_found_by_kind() -> None:
    """The README tells these figures: what is retold or translated is found by an agent alone (`test_comparing`)."""
    planted = {kind: [Row(instruction=forms[place]) for forms in QUESTIONS] for place, kind in enumerate(KINDS, 1)}
    planted["equal"] = [Row(instruction=f"  {row.instruction.upper()}!") for row in HELD]
    others = [Row(instruction=forms[5]) for forms in QUESTIONS]
    leaks = _leaks(HELD, [*others, *(row for rows in planted.values() for row in rows)])
    found = {kind: Counter(map(leaks.reason, rows)) for kind, rows in planted.items()}
    assert found == {
        "equal": {HELD_OUT: 10},
        "in another order": {NEAR_HELD_OUT: 10},
        "reworded": {NEAR_HELD_OUT: 10},
        "retold": {None: 10},
        "translated": {None: 10},
    }
    assert [leaks.reason(row) for row in others] == [None] * 10, "other questions in the same words"


def test_equal_ones_only_where_that_is_asked_for() -> None:
    leaks = _leaks(HELD, HELD, near=None)
    assert [leaks.reason(Row(instruction=forms[1])) for forms in QUESTIONS] == [None] * 10
    assert leaks.reason(HELD[3]) == HELD_OUT


@pytest.mark.parametrize(
    ("row", "is_near"),
    [
        (Row(instruction="Please classify the mood of this review", input="A very good film with a weak ending"), True),
        (Row(instruction="Classify the mood of this review", input="A dull book without any ending at all"), False),
        (Row(instruction="Count the vowels of this review", input="A good film with a weak ending"), False),
        (Row(instruction="Classify the mood of this review"), False),
        (
            Row(
                instruction="Classify the mood of this very review",
                input="A good film with a weak ending",
                history=(Message(role="user", content="Hi"), Message(role="assistant", content="Hello")),
            ),
            False,
        ),
    ],
)
def test_instruction_and_input_must_both_be_near(row: Row, is_near: bool) -> None:
    heldout = [Row(instruction="Classify the mood of this review", input="A good film with a weak ending")]
    assert (_leaks(heldout, heldout).reason(row) == NEAR_HELD_OUT) is is_near


def test_short_questions_are_never_near() -> None:
    leaks = _leaks([Row(instruction="And now?")], [])
    assert leaks.reason(Row(instruction="Now and")) is None
    assert _leaks([], []).reason(Row(instruction="anything")) is None


def test_the_quick_look_leaves_nothing_out() -> None:
    """Against the cosine of the whole, computed plainly."""
    dice = np.random.default_rng(0)
    words = ["".join(dice.choice(list("abcdefgh"), 6)) for _ in range(60)]
    texts = [" ".join(dice.choice(words, 12)) for _ in range(40)]
    near = [" ".join(dice.permutation(text.split())[: dice.integers(6, 13)]) for text in texts]
    rows = [Row(instruction=text) for text in (*texts, *near)]
    rarity = Rarity.of(rows)
    weights = rarity.weights()

    def vector(text: str) -> dict[int, float]:
        import zlib

        grams = {zlib.crc32(f" {word} "[i : i + 4].encode()) % (1 << 20) for word in text.split() for i in range(5)}
        return {gram: float(weights[gram]) for gram in grams}

    def cosine(one: dict[int, float], other: dict[int, float]) -> float:
        dot = sum(one[gram] * other[gram] for gram in one.keys() & other.keys())
        return dot / np.sqrt(sum(w * w for w in one.values()) * sum(w * w for w in other.values()))

    held = [vector(text) for text in texts]
    found = NearHeldOut([Row(instruction=text) for text in texts], rarity, 0.8)
    wanted = [max(cosine(vector(text), one) for one in held) for text in near]
    sure = [abs(value - 0.8) > 1e-4 for value in wanted]
    assert [found.is_near(Row(instruction=text)) for text, is_sure in zip(near, sure, strict=True) if is_sure] == [
        value >= 0.8 for value, is_sure in zip(wanted, sure, strict=True) if is_sure
    ]
    assert 5 < sum(value >= 0.8 for value in wanted) < 35


def test_a_passage_of_a_benchmark_is_known_in_any_turn() -> None:
    question = "A train leaves Kiel at nine and another leaves Ulm at ten; when and where do the two trains meet?"
    leaks = Leaks(HeldOut(), None, frozenset(passages_of(question)))
    quoting = f"Solve this for me, please: {question.lower()} Show your work."
    asking = ToolCall(id="call00001", function=Function(name="solve", arguments=json.dumps({"asked": quoting})))
    for row in (
        Row(instruction=quoting),
        Row(instruction="x", response=quoting),
        Row(instruction="x", history=(Message(role="user", content=quoting),)),
        Row(instruction="x", tool_turns=(Message(role="tool", content=quoting),)),
        Row(instruction="x", tool_calls=(asking,)),
        Row(instruction="x", history=(Message(role="assistant", content="", tool_calls=(asking,)),)),
    ):
        assert leaks.reason(row) == BENCHMARK
    assert leaks.reason(Row(instruction="A train leaves Kiel at nine and arrives in Ulm at ten.")) is None


@pytest.mark.parametrize(
    ("text", "passages"),
    [("too short to tell", 0), ("as short as six words are", 1), ("word " * 13, 1), ("word " * 15, 3), ("天" * 14, 2)],
)
def test_passages_are_thirteen_words_or_signs(text: str, passages: int) -> None:
    assert len(list(passages_of(text))) == passages
