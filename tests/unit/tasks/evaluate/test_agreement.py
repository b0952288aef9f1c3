"""Agreement of a judge with people: as computed by hand and elsewhere, and claimed only where a test shows it."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.stats.agreement import Labelled, agreement
from tasks.stats.intervals import wilson


def _one_each(people: list[float], judge: list[float], finer: list[float] | None = None) -> Labelled:
    """One label a question."""
    rows, column = np.arange(len(people)), np.zeros(len(people), np.intp)
    judge_QV = np.array(judge, float)[:, None]
    return Labelled(rows, column, np.array(people, float), judge_QV, np.array(finer or judge, float)[:, None])


def test_kappa_of_outcomes_is_cohens() -> None:
    """Wins and losses of 50: 20 + 15 agree, marginals 25/25 and 30/20 (Cohen 1960): κ = (0.7 − 0.5) / 0.5."""
    people = [1.0] * 25 + [-1.0] * 25
    judge = [1.0] * 20 + [-1.0] * 5 + [1.0] * 10 + [-1.0] * 15
    found = agreement(_one_each(people, judge), scores=False)
    assert found.share.estimate == pytest.approx(0.7)
    assert found.kappa.estimate == pytest.approx(0.4)
    assert found.kappa.low < 0.4 < found.kappa.high
    assert (found.labels, found.questions) == (50, 50)


def _weighted_kappa(people: list[int], judge: list[int]) -> float:
    """Cohen's (1968) own form: 1 − Σ w·observed / Σ w·expected over a table of scores, w = (i − j)²."""
    seen = np.zeros((10, 10))
    for one, other in zip(people, judge, strict=True):
        seen[one - 1, other - 1] += 1 / len(people)
    weights = (np.arange(10)[:, None] - np.arange(10)) ** 2
    by_chance = float((weights * np.outer(seen.sum(1), seen.sum(0))).sum())
    return 1 - float((weights * seen).sum()) / by_chance if by_chance else math.nan


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=2, max_size=12))
def test_kappa_of_scores_is_the_table_of_weights_and_tau_is_scipys(pairs: list[tuple[int, int]]) -> None:
    from scipy.stats import kendalltau

    people, judge = [list(side) for side in zip(*pairs, strict=True)]
    found = agreement(_one_each(people, judge), scores=True)
    assert found.kappa.estimate == pytest.approx(_weighted_kappa(people, judge), nan_ok=True, abs=1e-9)
    assert found.tau.estimate == pytest.approx(kendalltau(people, judge).statistic, nan_ok=True)
    assert found.share.estimate == np.mean(np.abs(np.subtract(people, judge)) <= 1)
    assert (found.p is None) == math.isnan(found.kappa.estimate)


def test_the_test_deals_verdicts_to_questions_and_is_exact_for_few() -> None:
    """Of 24 dealings of four different scores, one is as good as the one that was seen."""
    assert agreement(_one_each([1, 4, 7, 10], [1, 4, 7, 10]), scores=True).p == pytest.approx(1 / 24)
    many = agreement(_one_each([1, 10] * 20, [1, 10] * 20), scores=True)
    assert many.p == 1 / 10_000
    assert many.share == wilson(1.0, 40)  # no resample differs from it


def test_many_people_on_few_questions_count_as_few_questions() -> None:
    """Ten people who say the same are no ten observations."""
    question, people, judge = (
        np.repeat(np.arange(6), 10),
        np.repeat([1.0, 1, 1, -1, -1, -1], 10),
        [1.0, 1, -1, -1, -1, 1],
    )
    judge_QV = np.array(judge)[:, None]
    crowd = Labelled(question, np.zeros(60, np.intp), people, judge_QV, judge_QV)
    alone = _one_each([1.0, 1, 1, -1, -1, -1], judge)
    of_crowd, of_one = agreement(crowd, scores=False), agreement(alone, scores=False)
    assert of_crowd.p == of_one.p
    for one, other in ((of_crowd.kappa, of_one.kappa), (of_crowd.share, of_one.share)):
        assert (one.estimate, one.low, one.high) == pytest.approx((other.estimate, other.low, other.high))


@pytest.mark.timeout(180)  # 12 s alone
def test_chance_agreement_is_claimed_no_more_often_than_the_test_allows() -> None:
    rng = np.random.default_rng(3)
    claimed = 0
    for _ in range(25):
        judge_QV = rng.integers(-1, 2, (12, 2)).astype(float)
        question, answer = np.repeat(np.arange(12), 2), np.tile([0, 1], 12)
        people = np.repeat(rng.integers(-1, 2, 12), 2).astype(float)  # one opinion of a question, whoever answers
        found = agreement(Labelled(question, answer, people, judge_QV, judge_QV), scores=False)
        claimed += found.p is not None and found.p < 0.05
    assert claimed <= 5  # 1 or 2 are expected; 6 or more have a probability of 0.1 %


def test_finer_verdicts_decide_the_order_alone() -> None:
    found = agreement(_one_each([-1, 0, 1], [0, 0, 0], [0.1, 0.2, 0.3]), scores=False)
    assert found.tau.estimate == pytest.approx(1.0)
    assert math.isnan(found.tau.low) or found.tau.low <= 1
    assert found.share.estimate == pytest.approx(1 / 3)


def test_one_label_and_one_opinion_have_no_kappa() -> None:
    one = agreement(_one_each([1], [1]), scores=False)
    assert (one.p, one.questions, one.share) == (None, 1, wilson(1.0, 1))
    assert math.isnan(one.kappa.estimate)
    assert math.isnan(one.tau.estimate)


def _kappa(pairs: list[tuple[float, float]]) -> float:
    """Cohen's κ by counting."""
    people, judge = [Counter(side) for side in zip(*pairs, strict=True)]
    same = sum(one == other for one, other in pairs) / len(pairs)
    by_chance = sum(people[x] * judge[x] for x in people) / len(pairs) ** 2
    return (same - by_chance) / (1 - by_chance) if by_chance < 1 else -math.inf


def test_verdicts_of_a_question_are_dealt_together_and_a_missing_one_is_dealt_as_missing() -> None:
    judge_QV = np.array([[1.0, np.nan], [-1.0, 1.0], [0.0, -1.0], [1.0, -1.0]])
    labels = [(0, 0, 1.0), (1, 0, -1.0), (1, 1, 1.0), (2, 1, -1.0), (3, 0, -1.0), (3, 1, -1.0)]
    question, answer, people = (np.array(column) for column in zip(*labels, strict=True))
    kappas = [
        _kappa([(x, judge_QV[order[q], v]) for q, v, x in labels if not math.isnan(judge_QV[order[q], v])])
        for order in itertools.permutations(range(4))
    ]
    found = agreement(Labelled(question, answer, people, judge_QV, judge_QV), scores=False)
    assert found.kappa.estimate == pytest.approx(kappas[0])
    assert found.p == sum(kappa >= kappas[0] - 1e-9 for kappa in kappas) / 24
