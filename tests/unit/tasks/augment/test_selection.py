"""Selection: low scores out, near-duplicates out but for the best, the rest balanced; the order does not matter."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.augment.selection import (
    DUPLICATE,
    OVER_SHARE,
    balanced_quotas,
    opened,
    score_of,
    signature,
    similarity,
)
from tasks.rows import Function, Message, Row, ToolCall
from tasks.text.leaks import HELD_OUT, Leaks
from tasks.text.overlap import HeldOut

HAN = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少床前明月光疑是地上霜举头望明月低头思故乡白日依山尽黄河入海流"


def _row(instruction: str, score: float = 5.0, category: str = "a", **fields: Any) -> Row:
    return Row(instruction=instruction, task_category=category, scores={"x": score}, **fields)


def _decided(tmp_path: Path, batches: list[tuple[int, list[Row]]], **how: Any) -> dict[tuple[int, int], str]:
    options = {"min_score": 0.0, "near_duplicate": None, "max_rows": None, **how}
    with opened(tmp_path) as selection:
        for index, rows in batches:
            selection.add(index, rows)
        selection.decide(**options)
        return {(index, position): why for index, _ in batches for position, why in selection.reasons(index).items()}


def _prose(seed: int, words: int) -> list[str]:
    """Made-up words; the first ones of a seed are the same for any number."""
    letters = random.Random(seed)
    return ["".join(letters.choices("abcdefghijklmnop", k=letters.randint(3, 8))) for _ in range(words)]


def _shingles(text: str) -> set[str]:
    plain = " ".join(text.lower().split())
    return {plain[i : i + 5] for i in range(max(len(plain) - 4, 1))}


def _jaccard(one: str, other: str) -> float:
    a, b = _shingles(one), _shingles(other)
    return len(a & b) / len(a | b)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 200))
def test_quotas_are_even_within_supply_and_add_up(available: dict[str, int], total: int) -> None:
    quotas = balanced_quotas(available, total)
    assert sum(quotas.values()) == min(total, sum(available.values()))
    assert all(quotas[category] <= supply for category, supply in available.items())
    unfilled = [quotas[c] for c in available if quotas[c] < available[c]]
    assert not unfilled or max(quotas.values()) - min(unfilled) <= 1


def test_a_row_without_scores_is_not_rejected_for_them() -> None:
    assert score_of(Row(instruction="x")) == 10.0
    assert score_of(Row(instruction="x", scores={"a": 4.0, "b": 5.0, "c": 9.0})) == 6.0


def test_low_scores_are_dropped_and_the_lowest_allowed_is_not(tmp_path: Path) -> None:
    rows = [_row("one", 3.99), _row("two", 4.0), _row("three", 1.0), Row(instruction="unscored")]
    reasons = _decided(tmp_path, [(0, rows)], min_score=4.0)
    assert reasons == {(0, 0): "score below 4", (0, 2): "score below 4"}


def test_categories_share_the_places_and_the_best_rows_get_them(tmp_path: Path) -> None:
    rows = [_row(f"a{n}", 5.0 + n, "a") for n in range(4)] + [_row("b0", 1.0, "b"), _row("c0", 2.0, "c")]
    reasons = _decided(tmp_path, [(0, rows)], max_rows=4)
    assert reasons == {(0, 0): OVER_SHARE, (0, 1): OVER_SHARE}


def test_rows_that_were_dropped_before_take_no_place(tmp_path: Path) -> None:
    rows = [_row("one", 1.0), _row("the very same words", 9.0), _row("The very  same words", 8.0), _row("four", 7.0)]
    reasons = _decided(tmp_path, [(0, rows)], min_score=4.0, near_duplicate=0.9, max_rows=2)
    assert reasons == {(0, 0): "score below 4", (0, 2): DUPLICATE}


def test_of_near_duplicates_the_best_is_kept_wherever_it_stands(tmp_path: Path) -> None:
    rows = [_row("The river runs to the harbor.", score) for score in (5.0, 9.0, 7.0)]
    assert _decided(tmp_path, [(0, rows)], near_duplicate=0.9) == {(0, 0): DUPLICATE, (0, 2): DUPLICATE}
    apart = [(2, [rows[1]]), (0, [rows[0]]), (1, [rows[2]])]
    assert _decided(tmp_path, apart, near_duplicate=0.9) == {(0, 0): DUPLICATE, (1, 0): DUPLICATE}


def test_of_two_equal_rows_exactly_one_is_kept(tmp_path: Path) -> None:
    for rows in ([_row("Same  text"), _row("same text")], [_row("Same text")] * 2, [_row("")] * 2):
        assert len(_decided(tmp_path, [(0, rows[:1]), (1, rows[1:])], near_duplicate=1.0)) == 1


def test_a_duplicate_of_a_row_that_scores_too_low_is_kept(tmp_path: Path) -> None:
    rows = [_row("The same words again", 3.0), _row("the same words again", 5.0)]
    assert _decided(tmp_path, [(0, rows)], min_score=4.0, near_duplicate=0.9) == {(0, 0): "score below 4"}


def test_the_same_question_on_another_text_is_no_duplicate(tmp_path: Path) -> None:
    texts = [" ".join(_prose(seed, 60)) for seed in (1, 2)]
    rows = [_row("Summarize the text in one sentence.", input=text) for text in texts]
    assert _decided(tmp_path, [(0, rows)], near_duplicate=0.9) == {}
    again = [*rows, _row("Summarize the text in one sentence.", 1.0, input=texts[0])]
    assert _decided(tmp_path, [(0, again)], near_duplicate=0.9) == {(0, 2): DUPLICATE}
    assert _decided(tmp_path, [(0, again)], near_duplicate=None) == {}


def _calling(number: int) -> Message:
    call = ToolCall(id="call00001", function=Function(name="count", arguments=f'{{"of": {number}}}'))
    return Message(role="assistant", content="", tool_calls=(call,))


@pytest.mark.parametrize(
    "contexts",
    [
        [{"history": (Message(role="user", content=f"Topic {n}"),)} for n in range(36)],
        [{"history": (Message(role="system", content=f"You are agent {n} of a large company."),)} for n in range(3)],
        [{"database": name} for name in ("store", "school", "clinic")],
        [{"history": (Message(role=role, content="Hi"),)} for role in ("system", "user", "assistant")],
        [{"tools": f'[{{"type": "function", "function": {{"name": "tool_{n}"}}}}]'} for n in range(3)],
        [{"tool_turns": (Message(role="tool", content=f"{n} found"),)} for n in range(3)],
        [{"history": (_calling(n),)} for n in range(3)],
        [{"tool_turns": (_calling(n),)} for n in range(3)],
    ],
)
def test_the_same_question_in_another_context_is_no_duplicate(tmp_path: Path, contexts: list[dict[str, Any]]) -> None:
    rows = [_row("And how many of them are there in all?", **context) for context in contexts]
    assert _decided(tmp_path, [(0, rows)], near_duplicate=0.9) == {}
    again = [*rows, _row("and how many  of them are there in all?", 1.0, **contexts[-1])]
    assert _decided(tmp_path, [(0, again)], near_duplicate=0.9) == {(0, len(rows)): DUPLICATE}


def test_what_a_held_out_row_asks_is_not_kept_whoever_wrote_it_and_takes_no_place(tmp_path: Path) -> None:
    leaks = Leaks(HeldOut.of([Row(instruction="Which river is the longest?", response="The Nile.")]), None)
    rows = [
        _row("which river is the  longest", 1.0),
        _row("Which river is the longest?", 9.0),
        _row("one"),
        _row("two"),
    ]
    with opened(tmp_path) as selection:
        selection.add(0, rows, leaks)
        selection.decide(min_score=4.0, near_duplicate=0.9, max_rows=2)
        assert selection.reasons(0) == {0: HELD_OUT, 1: HELD_OUT}


def _pairs() -> list[tuple[str, str]]:
    """Long English and Chinese texts with more and more of their parts replaced."""
    pairs = []
    for changed in (0, 1, 2, 4, 16, 50, 100):
        words = _prose(changed, 200)
        other = [*words]
        for place in range(changed):
            other[place * (200 // changed)] = "zebra"
        pairs.append((" ".join(words), " ".join(other)))
        signs = random.Random(changed).choices(HAN, k=400)
        others = [*signs]
        for place in range(changed):
            others[place * (400 // changed)] = "〇"
        pairs.append(("".join(signs), "".join(others)))
    return pairs


@pytest.mark.parametrize(("one", "other"), _pairs())
def test_pairs_clearly_above_or_below_the_threshold_are_told_apart(tmp_path: Path, one: str, other: str) -> None:
    jaccard = _jaccard(one, other)
    assert similarity(signature(one), signature(other)) == pytest.approx(jaccard, abs=0.15)  # 3 sigma of 96 hashes
    reasons = _decided(tmp_path, [(0, [_row(one, 9.0), _row(other, 5.0)])], near_duplicate=0.8)
    if jaccard > 0.92:
        assert reasons == {(0, 1): DUPLICATE}
    elif jaccard < 0.65:
        assert reasons == {}


def test_the_pairs_lie_on_both_sides_in_both_languages() -> None:
    similar = [_jaccard(*pair) for pair in _pairs()]
    for language in (similar[::2], similar[1::2]):
        assert sum(value > 0.92 for value in language) >= 2
        assert sum(value < 0.65 for value in language) >= 2


def test_case_and_spacing_do_not_matter_and_empty_texts_are_alike() -> None:
    assert signature(" The\n RIVER  runs ") == signature("the river runs")
    assert similarity(signature(""), signature(" \n")) == 1.0
    assert similarity(signature(""), signature("The river runs to the sea")) < 0.5
    assert similarity(signature("ab"), signature("ab")) == 1.0


def _made_up(seed: int) -> list[tuple[int, list[Row]]]:
    """Four batches full of ties and near-duplicates."""
    rng = random.Random(seed)
    texts = [" ".join(_prose(n, 30)) for n in range(6)]
    return [
        (
            batch,
            [_row(rng.choice(texts) + rng.choice(["", "!"]), rng.randint(3, 6), rng.choice("abc")) for _ in "x" * 8],
        )
        for batch in range(4)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_does_not_depend_on_the_order_in_which_batches_come(tmp_path: Path, seed: int) -> None:
    batches = _made_up(seed)
    how = {"min_score": 4.0, "near_duplicate": 0.9, "max_rows": 7}
    reasons = _decided(tmp_path, batches, **how)
    kept = sum(len(rows) for _, rows in batches) - len(reasons)
    assert 0 < kept <= 7
    assert {OVER_SHARE, DUPLICATE, "score below 4"} >= set(reasons.values()) > set()
    for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
        assert _decided(tmp_path, [batches[index] for index in order], **how) == reasons


def test_nothing_is_left_on_the_disk(tmp_path: Path) -> None:
    with opened(tmp_path / "work") as selection:
        selection.add(0, [_row("x")])
        assert list((tmp_path / "work").iterdir())
    with pytest.raises(RuntimeError), opened(tmp_path / "work"):
        raise RuntimeError
    assert list((tmp_path / "work").iterdir()) == []
