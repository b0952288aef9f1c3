"""A judge beside people: their labels matched with its verdicts, how far the two agree, and that in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from tasks.evaluate.benchmarks.labels import Label, ids
from tasks.evaluate.benchmarks.questions import ALPACA_EVAL, MT_BENCH, Question
from tasks.stats.agreement import Agreement, Labelled, agreement
from tasks.stats.intervals import Interval, Numbers
from tasks.stats.significance import ALPHA, p_words

NAMES = {ALPACA_EVAL: "AlpacaEval", MT_BENCH: "MT-Bench"}


@dataclass(frozen=True)
class JudgeVerdict:
    """A judge's, in the terms of people's labels, and the finer number that it ranks answers by."""

    value: float
    finer: float


@dataclass(frozen=True)
class Judged:
    """What a judge said of a variant's answers: by question id and turn ("": of the whole answer)."""

    judge: str
    questions: Sequence[Question]
    verdicts: Mapping[tuple[str, str], JudgeVerdict]


class JudgeAgreement(Numbers):
    """A judge and people on one benchmark, all variants together."""

    benchmark: str
    judge: str
    agreement: Agreement
    sentence: str


class BesidePeople(Numbers):
    """People's labels: how far the judges agree with them, and how many are on no judged answer."""

    labels: int
    matched: int
    not_matched: dict[str, int] = Field(description="reason → labels")
    judges: list[JudgeAgreement]

    @property
    def sentences(self) -> list[str]:
        """What agreement there is, and what was left out."""
        return [*(one.sentence for one in self.judges), self.account]

    @property
    def account(self) -> str:
        """How many labels were of use, in a sentence."""
        left_out = ", ".join(f"{count:,} × {reason}" for reason, count in sorted(self.not_matched.items()))
        rest = f"; {self.labels - self.matched:,} are not: {left_out}" if left_out else ""
        return f"Of {self.labels:,} labels of people, {self.matched:,} are on answers that a judge judged{rest}."


def beside_people(labels: Sequence[Label], judged: Mapping[str, Mapping[str, Judged]]) -> BesidePeople:
    """`judged` by benchmark and variant."""
    found: dict[str, list[tuple[str, tuple[str, str], float]]] = {name: [] for name in judged}
    missed: Counter[str] = Counter()
    ids_of = {name: ids(next(iter(by_variant.values())).questions) for name, by_variant in judged.items() if by_variant}
    for label in labels:
        item, reason = _matched(label, ids_of, judged)
        if item is None:
            missed[reason] += 1
        else:
            found[label.benchmark].append((item, (label.variant, label.turn), label.value))
    return BesidePeople(
        labels=len(labels),
        matched=len(labels) - missed.total(),
        not_matched=dict(missed),
        judges=[_agreement(name, matched, judged[name]) for name, matched in found.items() if matched],
    )


def _matched(
    label: Label, ids_of: Mapping[str, Mapping[str, str | None]], judged: Mapping[str, Mapping[str, Judged]]
) -> tuple[str | None, str]:
    """The id of the question of the judged answer, or why there is none."""
    name = NAMES[label.benchmark]
    if label.benchmark not in ids_of:
        return None, f"{name} was not run"
    if label.question not in ids_of[label.benchmark]:
        return None, f"no such question in {name}"
    item = ids_of[label.benchmark][label.question]
    if item is None:
        return None, f"several questions of {name} have that text (name the id)"
    if label.variant not in judged[label.benchmark]:
        return None, f"no such variant in {name}"
    if (item, label.turn) not in judged[label.benchmark][label.variant].verdicts:
        return None, f"the judge of {name} gave no verdict"
    return item, ""


def _agreement(
    benchmark: str, matched: Sequence[tuple[str, tuple[str, str], float]], judged: Mapping[str, Judged]
) -> JudgeAgreement:
    items = {item: place for place, item in enumerate(sorted({item for item, _, _ in matched}))}
    answers = {answer: place for place, answer in enumerate(sorted({answer for _, answer, _ in matched}))}
    judge_QV, finer_QV = np.full((2, len(items), len(answers)), math.nan)
    for (variant, turn), column in answers.items():
        for item, row in items.items():
            if verdict := judged[variant].verdicts.get((item, turn)):
                judge_QV[row, column], finer_QV[row, column] = verdict.value, verdict.finer
    labelled = Labelled(
        np.array([items[item] for item, _, _ in matched], np.intp),
        np.array([answers[answer] for _, answer, _ in matched], np.intp),
        np.array([value for _, _, value in matched], np.float64),
        judge_QV,
        finer_QV,
    )
    measured = agreement(labelled, scores=benchmark == MT_BENCH)
    judge = next(iter(judged.values())).judge
    return JudgeAgreement(
        benchmark=benchmark, judge=judge, agreement=measured, sentence=_sentence(benchmark, judge, measured)
    )


def _sentence(benchmark: str, judge: str, measured: Agreement) -> str:
    """What is claimed beyond chance, and only where the test shows it."""
    scores = benchmark == MT_BENCH
    agree = "are at most one mark apart" if scores else "agree"
    what = "labels" if measured.labels != 1 else "label"
    questions = f"{measured.questions:,} question{'s' if measured.questions != 1 else ''}"
    figures = (
        f"{NAMES[benchmark]}: {judge} and people {agree} on {percent(measured.share)} of {measured.labels:,} {what} "
        f"on {questions}"
    )
    if measured.p is None:
        return f"{figures}; whether that is more than chance cannot be told, for one of them says the same throughout."
    kappa = f"Cohen’s κ{' with quadratic weights' if scores else ''} {number(measured.kappa)}"
    test = f"permutation test of κ over questions, {p_words(measured.p)}"
    claim = "more than by chance" if measured.p < ALPHA else "which is not shown to be more than chance"
    return f"{figures}, {claim} ({kappa}, Kendall’s τ-b {number(measured.tau)}; {test})."


def number(interval: Interval) -> str:
    """`0.61 (0.50 – 0.71)`, without ends where there are none."""
    if math.isnan(interval.estimate):
        return "–"
    ends = "" if math.isnan(interval.low) else f" ({interval.low:.2f} – {interval.high:.2f})"
    return f"{interval.estimate:.2f}{ends}".replace("-", "−")


def percent(share: Interval) -> str:
    """`78.0 % (70.1 – 84.0)`."""
    return f"{100 * share.estimate:.1f} % ({100 * share.low:.1f} – {100 * share.high:.1f})"
