"""Rows for a student: as many as asked for, the easy ones thinned out, in every run the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.fit.choice import BINS, choose, choose_by_chance

finite = st.floats(0, 20)


@given(st.lists(st.tuples(finite, finite), max_size=60), st.floats(0.01, 1.0), st.integers(0, 9))
def test_as_many_rows_are_kept_as_asked_for(losses: list[tuple[float, float]], keep: float, seed: int) -> None:
    both = np.array(losses, float).reshape(-1, 2)
    chance = np.random.default_rng(seed).random(len(losses))
    choice = choose(both[:, 0], both[:, 1], chance, keep)
    least = sum(np.ceil(min(0.1, keep) * (choice.bin_N == number).sum()) for number in range(BINS))
    assert choice.kept_N.sum() == max(round(keep * len(losses)), least)
    assert choose_by_chance(chance, keep).sum() == round(keep * len(losses))


def test_the_easy_ones_go_first_and_some_of_them_stay() -> None:
    gaps = np.arange(100) / 100
    chance = np.random.default_rng(0).random(100)
    choice = choose(gaps + 1, np.ones(100), chance, 0.5)
    assert [int(choice.kept_N[choice.bin_N == number].sum()) for number in range(BINS)] == [1] * 5 + [5] + [10] * 4
    assert choice.bin_N.tolist() == sorted(choice.bin_N.tolist())
    kept = np.flatnonzero(choice.kept_N[:10])
    assert kept.tolist() == [int(np.argmin(chance[:10]))], "by chance, and not the hardest of them"


def test_what_the_teacher_finds_improbable_is_marked() -> None:
    teacher = np.r_[np.full(199, 1.0), 9.0, np.inf]
    improbable = choose(np.full(201, 5.0), teacher, np.linspace(0, 1, 201), 0.9).improbable_N
    assert np.flatnonzero(improbable).tolist() == [199, 200]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_are_rows_too(rows: int) -> None:
    losses = np.arange(rows, dtype=float)
    assert len(choose(losses, losses, losses, 0.5).kept_N) == rows
