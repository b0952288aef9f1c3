"""Easy rows first: which rows a step is drawn from, the same for a resumed run, and in packed batches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tasks.rollout.settings import Rounds
from tasks.train.data.curriculum import Curriculum, competence
from tasks.train.data.feed import feeding
from tasks.train.data.order import Example, mixed_batch_indices
from tasks.train.data.spool import ExampleStore, write_spool
from tasks.train.settings import Distillation


def test_competence_is_the_papers() -> None:
    assert competence(0, 100) == pytest.approx(0.01)
    assert competence(25, 100) == pytest.approx(math.sqrt(0.25 * (1 - 1e-4) + 1e-4))
    assert competence(100, 100) == pytest.approx(1.0)
    assert competence(300, 100) == 1.0


def test_a_step_draws_from_the_easiest_rows_of_each_part_and_from_more_with_every_step() -> None:
    chance = np.random.default_rng(0)
    hard = np.concatenate([chance.permutation(200), 1000 + chance.permutation(50)]).astype(float)
    curriculum = Curriculum(hard, [200, 50], steps=40, seed=3)
    hardest = []
    for step in range(40):
        rows = curriculum.rows(step, [8, 4])
        assert len(set(rows)) == 12
        for part, (first, size, wanted) in enumerate(((0, 200, 8), (200, 50, 4))):
            mine = rows[:8] if part == 0 else rows[8:]
            pool = max(math.ceil(competence(step, 40) * size), wanted)
            assert all(first <= row < first + size for row in mine)
            assert max(hard[mine]) - 1000 * part < pool
        hardest.append(max(hard[rows[:8]]))
    assert np.mean(hardest[:5]) < 0.4 * np.mean(hardest[-5:])
    assert curriculum.rows(7, [8, 4]) == Curriculum(hard, [200, 50], 40, 3).rows(7, [8, 4])
    assert curriculum.rows(7, [8, 4]) != Curriculum(hard, [200, 50], 40, 4).rows(7, [8, 4])


def test_of_fewer_rows_than_a_batch_each_comes_as_often() -> None:
    rows = Curriculum(np.arange(3.0), [3], 10, 0).rows(9, [7])
    assert sorted(np.bincount(rows).tolist()) == [2, 2, 3]
    assert Curriculum(np.arange(5.0), [3, 2], 10, 0).rows(2, [0, 2]) != []


def test_a_resumed_feed_has_the_same_rows_and_after_the_curriculum_those_of_none(tmp_path: Path) -> None:
    rows = [Example(f"{n:03}", list(range(4 + (7 * n) % 30)), 2, difficulty=float(n)) for n in range(60)]
    write_spool(tmp_path, rows)
    spool = ExampleStore(tmp_path)
    assert spool.difficulty.tolist() == [float(n) for n in range(60)]
    curriculum = Curriculum(spool.lengths, [60], 10, 0)
    with feeding(spool, [8], 2, 0, 0, 1, curriculum) as feed:
        whole = [feed.rows(step) for step in range(1, 15)]
        lengths = [sorted(len(e.ids) for e in (spool[place] for place in feed.rows(step))) for step in (1, 10)]
    assert lengths[0] == sorted(spool.lengths)[:8]
    assert lengths[1][-1] > lengths[0][-1]
    with feeding(spool, [8], 2, 0, 0, 1, curriculum) as feed:
        assert [feed.rows(step) for step in range(6, 15)] == whole[5:]
        step = feed.step(6)
    assert step.supervised_tokens == sum(spool.supervised_of(place) for place in whole[5])
    assert whole[10:] == [mixed_batch_indices([60], [8], step, 0) for step in range(10, 14)]


def test_it_is_off_by_default_and_in_rounds() -> None:
    assert not {"curriculum", "curriculum_share"} & Distillation().identity().keys()
    kd = Distillation(curriculum="length")
    assert kd.identity() == {**Distillation().identity(), "curriculum": "length"}
    assert Rounds().distillation(kd).curriculum == "none"
