"""How far a judge agrees with people on the same answers: a share, Cohen's κ and Kendall's τ-b, and a test of κ.

Several labels may be on one answer, and several answers to one question, which depend on each other: what is
resampled, and exchanged in the test, are whole questions. L labels, Q questions, V answers to each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.stats.intervals import Interval, Numbers, PerRow, bootstrapped, resamples, wilson

Array = NDArray[np.float64]
OUTCOMES = (-1.0, 0.0, 1.0)  # loss, tie, win
_PERMUTATIONS = 9_999  # the smallest p is 0.0001
_QUESTIONS_TO_DEAL_ALL = 7  # 5,040 orders
_VALUES_AT_ONCE = 1 << 19  # labels in all dealings at a time, times 8 features: 32 MiB


class Agreement(Numbers):
    """People's labels against a judge's verdicts; an end of an interval is NaN where there are too few to see it."""

    labels: int
    questions: int
    share: Interval = Field(description="of labels: the same outcome, or scores at most one mark apart")
    kappa: Interval = Field(description="Cohen's κ; of scores with quadratic weights")
    tau: Interval = Field(description="Kendall's τ-b of people's order and the judge's")
    p: float | None = Field(description="one-sided, of a κ as high by chance; None where κ is not a number")


@dataclass(frozen=True)
class Labelled:
    """Label l is `people_L[l]`, on answer `answer_L[l]` to question `question_L[l]`.

    `judge_QV` holds the judge's verdicts in the same terms (NaN: none), `finer_QV` what it ranks answers by.
    """

    question_L: NDArray[np.intp]
    answer_L: NDArray[np.intp]
    people_L: Array
    judge_QV: Array
    finer_QV: Array

    def beside(self, judge_QV: Array) -> Array:
        """A judge's number for each label."""
        return judge_QV[self.question_L, self.answer_L]


def agreement(labelled: Labelled, *, scores: bool) -> Agreement:
    """Of outcomes (−1, 0, 1), or of scores (1 to 10); every label's answer has a verdict."""
    people_L, judge_L = labelled.people_L, labelled.beside(labelled.judge_QV)
    questions = len(labelled.judge_QV)
    sums_QF = _by_question(labelled.question_L, _features(people_L, judge_L, scores), questions)
    kappa = float(_kappa(sums_QF.sum(0), scores))
    of_resamples = [_kappa(weights @ sums_QF, scores) for weights in resamples(questions)]
    return Agreement(
        labels=len(people_L),
        questions=questions,
        share=_share(labelled.question_L, np.abs(people_L - judge_L) <= (1.0 if scores else 0.0), questions),
        kappa=_percentiles(kappa, np.concatenate(of_resamples)),
        tau=_tau(labelled),
        p=None if math.isnan(kappa) else _p_of_kappa(labelled, kappa, scores),
    )


def _features(people: Array, judge: Array, scores: bool) -> Array:
    """(…, F): numbers whose sums over labels decide κ; all 0 where there is no verdict."""
    if scores:
        columns = [np.ones_like(people * judge), (people - judge) ** 2, people, judge, people**2, judge**2]
    else:
        marks = [people == one for one in OUTCOMES] + [judge == one for one in OUTCOMES]
        columns = [np.ones_like(people * judge), people == judge, *marks]
    known = ~np.isnan(judge)
    return np.stack([np.where(known, column, 0.0) for column in np.broadcast_arrays(*columns)], axis=-1)


def _kappa(sums: Array, scores: bool) -> Array:
    """Cohen's κ (1960; 1968 with weights (x − y)²) from `_features` summed; NaN where chance alone agrees fully."""
    n, rest = sums[..., 0], sums[..., 1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = rest / n[..., None]
        if scores:
            apart, x, y, xx, yy = np.moveaxis(means, -1, 0)
            by_chance = xx + yy - 2 * x * y
            return np.where(by_chance > 1e-12, 1 - apart / by_chance, np.nan)
        same, outcomes = means[..., 0], len(OUTCOMES)
        by_chance = (means[..., 1 : 1 + outcomes] * means[..., 1 + outcomes :]).sum(-1)
        return np.where(by_chance < 1 - 1e-12, (same - by_chance) / (1 - by_chance), np.nan)


def _by_question(question_L: NDArray[np.intp], values_LF: Array, questions: int) -> Array:
    sums_QF = np.zeros((questions, values_LF.shape[-1]))
    np.add.at(sums_QF, question_L, values_LF)
    return sums_QF


def _share(question_L: NDArray[np.intp], agree_L: NDArray[np.bool_], questions: int) -> Interval:
    """Bootstrapped over questions; Wilson's over questions where all are alike, which no resample differs from."""
    counts_Q = np.bincount(question_L, minlength=questions)
    found = bootstrapped(PerRow.of(np.bincount(question_L, agree_L, questions), counts_Q))
    if found.low == found.high or questions < 2:
        return wilson(found.estimate, questions)
    return Interval(found.estimate, max(0.0, found.low), min(1.0, found.high))


def _tau(labelled: Labelled) -> Interval:
    people_L, finer_L = labelled.people_L, labelled.beside(labelled.finer_QV)
    everyone = np.arange(len(people_L))
    drawn = [
        _kendall(people_L[rows], finer_L[rows])
        for weights_BQ in resamples(len(labelled.judge_QV))
        for weights_Q in weights_BQ.astype(np.intp)
        for rows in (np.repeat(everyone, weights_Q[labelled.question_L]),)
    ]
    return _percentiles(_kendall(people_L, finer_L), np.array(drawn))


def _kendall(people: Array, judge: Array) -> float:
    from scipy.stats import kendalltau  # takes a second to import

    if len(people) < 2:
        return math.nan
    return float(kendalltau(people, judge).statistic)


def _percentiles(estimate: float, of_resamples: Array) -> Interval:
    """The middle 95 % of resamples; no ends where there is no spread to see."""
    finite = of_resamples[np.isfinite(of_resamples)]
    if math.isnan(estimate) or not len(finite) or np.ptp(finite) == 0:
        return Interval(estimate, math.nan, math.nan)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


def _p_of_kappa(labelled: Labelled, seen: float, scores: bool) -> float:
    """How often κ is as high when the judge's verdicts, a question's together, are dealt to the questions at random.

    All dealings where they are few, else 9,999 of them from a fixed seed, counting the one that was seen.
    """
    questions = len(labelled.judge_QV)
    all_of_them = questions <= _QUESTIONS_TO_DEAL_ALL
    dealt = _all_orders(questions) if all_of_them else _some_orders(questions, len(labelled.people_L))
    as_high = sum(
        float((_kappa(_features(labelled.people_L, judge_BL, scores).sum(-2), scores) >= seen - 1e-9).sum())
        for orders_BQ in dealt
        for judge_BL in (labelled.judge_QV[orders_BQ[:, labelled.question_L], labelled.answer_L],)
    )
    return as_high / math.factorial(questions) if all_of_them else (as_high + 1) / (_PERMUTATIONS + 1)


def _all_orders(questions: int) -> Iterator[NDArray[np.intp]]:
    yield np.array(list(itertools.permutations(range(questions))), np.intp)


def _some_orders(questions: int, labels: int) -> Iterator[NDArray[np.intp]]:
    """(B, Q), a few at a time."""
    size = max(min(_PERMUTATIONS, _VALUES_AT_ONCE // max(labels, questions)), 1)
    for start in range(0, _PERMUTATIONS, size):
        rows = min(size, _PERMUTATIONS - start)
        rng = np.random.default_rng([start, questions])
        yield rng.permuted(np.tile(np.arange(questions), (rows, 1)), axis=1)
