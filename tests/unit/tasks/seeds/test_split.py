"""The split: by question, every row on one side or counted, whatever number of answers a question has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.processes.supervise import owner_of
from tasks.rows import HELDOUT, TRAIN, Message, Row
from tasks.seeds.account import DUPLICATE, OTHER_DATABASE, Account
from tasks.seeds.split import opened
from tasks.text.leaks import HELD_OUT


def _split(
    folder: Path, seeds: list[Row], heldout: list[Row] | None = None, share: float = 0.1
) -> tuple[list[Row], list[Row], Account]:
    account = Account(read=len(seeds) + len(heldout or ()))
    with opened(folder) as split:
        split.add(TRAIN, seeds, account)
        if heldout is None:
            split.hold_out(share)
        else:
            split.add(HELDOUT, heldout, account)
        train, held = list(split.training(account)), list(split.heldout())
    assert account.used == len(train) + len(held)
    return train, held, account


def _said(*contents: str) -> tuple[Message, ...]:
    return tuple(
        Message(role="assistant" if place % 2 else "user", content=content) for place, content in enumerate(contents)
    )


def test_a_questions_answers_are_all_on_one_side(tmp_path: Path) -> None:
    seeds = [Row(instruction=f"question {q}", response=f"answer {a}") for q in range(40) for a in range(10)]
    train, held, account = _split(tmp_path, seeds)
    assert not {row.instruction for row in train} & {row.instruction for row in held}
    assert len(train) + len(held) == 400
    assert 10 <= len(held) <= 120
    assert not account.left_out


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_question_without_an_answer_is_not_trained_on_where_another_row_answers_it(
    tmp_path: Path, share: float
) -> None:
    seeds = [Row(instruction=f"q{q}", response=response) for q in range(30) for response in ("", "yes")]
    train, held, account = _split(tmp_path, seeds, share=share)
    assert {row.response for row in held} == {"yes"}
    assert not {row.instruction for row in train} & {row.instruction for row in held}
    assert account.left_out == {HELD_OUT: len(held)}


def test_the_turns_of_a_conversation_are_held_out_together(tmp_path: Path) -> None:
    seeds = []
    for talk in range(40):
        said = [f"topic {talk}", "a", f"more of {talk}", "b", f"the end of {talk}", "c"]
        seeds += [
            Row(instruction=said[turn], history=_said(*said[:turn]), response=said[turn + 1]) for turn in (0, 2, 4)
        ]
    train, held, account = _split(tmp_path, seeds)
    assert held
    assert not account.left_out
    talks = [{row.instruction.split()[-1] for row in rows} for rows in (train, held)]
    assert not talks[0] & talks[1]


def test_conversations_that_end_in_the_same_words_are_different_questions(tmp_path: Path) -> None:
    seeds = [
        Row(instruction="And now?", history=_said(f"topic {n}", f"on {n}"), response=f"this {n}") for n in range(40)
    ]
    train, held, account = _split(tmp_path, seeds)
    assert len(train) + len(held) == 40
    assert 1 <= len(held) <= 12
    assert not account.left_out


def test_a_question_that_is_most_of_the_data_is_trained_on(tmp_path: Path) -> None:
    seeds = [Row(instruction="Go on", response=str(n)) for n in range(90)]
    seeds += [Row(instruction=f"question {n}", response="x") for n in range(10)]
    train, held, _ = _split(tmp_path, seeds, share=0.3)
    assert held
    assert all(row.instruction != "Go on" for row in held)
    assert len(train) >= 90


def test_duplicates_are_counted_and_one_text_for_two_databases_too(tmp_path: Path) -> None:
    row = Row(instruction="Count them", response="SELECT count(*) FROM t", database="a")
    seeds = [row, row.model_copy(update={"task_category": "x"}), row.model_copy(update={"database": "b"}), row]
    train, _, account = _split(tmp_path, seeds, heldout=[Row(instruction="other", response="x")])
    assert train == [row]
    assert account.left_out == {DUPLICATE: 2, OTHER_DATABASE: 1}


def test_the_choice_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    seeds = [Row(instruction=f"question {n % 50}", response=str(n)) for n in range(100)]
    held = [{row.id for row in _split(tmp_path, rows)[1]} for rows in (seeds, seeds[::-1])]
    assert held[0] == held[1]


def test_the_scratch_of_a_killed_run_is_found_by_its_owner(tmp_path: Path) -> None:
    with opened(tmp_path):
        assert [owner_of(folder) for folder in tmp_path.iterdir()] == [os.getpid()]
    assert not list(tmp_path.iterdir())
