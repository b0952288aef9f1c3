"""Every metric of every variant with its interval, and the paired tests that the report speaks of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.evaluate.heldout.predictions import per_row
from tasks.evaluate.variants import CONTINUED, round_name, round_of
from tasks.stats.intervals import Interval, PerRow, bootstrapped, bootstrapped_difference, paired_difference, wilson
from tasks.stats.significance import Better, Comparison, holm, mcnemar, paired_permutation

if TYPE_CHECKING:
    import pandas as pd

# chosen before any result is seen; the first one is what a run is about
PAIRS = (("kd", "sft_control"), ("kd", "base"), ("kd", "sft"), ("sft", "base"), ("kd", "teacher"))


class Metric(NamedTuple):
    """A metric's words. `is_share`: each row is right or wrong, so that closed forms and McNemar's test apply."""

    name: str
    unit: str
    better: Better
    is_share: bool = False


METRICS = {
    "exec_accuracy": Metric("execution accuracy", "points", "higher", is_share=True),
    "sampled_accuracy": Metric("execution accuracy of sampled answers", "points", "higher"),
    "any_sample_correct": Metric("requests with a correct sample", "points", "higher", is_share=True),
    "cross_entropy": Metric("cross-entropy", "nats a token", "lower"),
    "kl_to_teacher": Metric("KL to the teacher", "nats a token", "lower"),
    "topk_kl": Metric("top-K KL to the teacher", "nats a token", "lower"),
    "top1_agreement": Metric("top-1 agreement with the teacher", "points", "higher"),
    "acceptance": Metric("acceptance as the teacher’s draft", "points", "higher"),
    "output_tokens": Metric("answer length", "tokens", "neither"),
    "truncated": Metric("answers cut at the length limit", "points", "lower", is_share=True),
}
_TO_TEACHER = {"kl_to_teacher", "topk_kl", "top1_agreement", "acceptance"}  # say nothing about the teacher itself


def pairs_of(variants: Iterable[str]) -> list[tuple[str, str]]:
    """Those that were chosen; of rounds, the last one against kd trained for as long without them, and against kd."""
    last = max((number for name in variants if (number := round_of(name))), default=None)
    return [*PAIRS, *((round_name(last), other) for other in (CONTINUED, "kd") if last)]


def interval_of(metric: str, values: PerRow) -> Interval:
    """95 % interval: Wilson's for shares of rows, the bootstrap's for all else."""
    if METRICS[metric].is_share:
        return wilson(values.value, len(values.sums))
    return bootstrapped(values)


def intervals(table: pd.DataFrame) -> dict[str, Interval]:
    """Every metric of one variant."""
    return {metric: interval_of(metric, values) for metric, values in per_row(table).items()}


def compare(tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> list[Comparison]:
    """The pairs that are there, in every metric that both have; Holm's correction is within a metric.

    `tables` hold the same rows in the same order.
    """
    numbers = {name: per_row(table) for name, table in tables.items()}
    found: list[Comparison] = []
    for metric, words in METRICS.items():
        pairs = [pair for pair in pairs_of(tables) if not (pair[1] == "teacher" and metric in _TO_TEACHER)]
        mine = {name: of[metric] for name, of in numbers.items() if metric in of}
        found += compare_in(metric, words, mine, labels, pairs)
    return found


def compare_in(
    metric: str,
    words: Metric,
    numbers: Mapping[str, PerRow],
    labels: Mapping[str, str],
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[Comparison]:
    """Those of `pairs` (all that were chosen) that are there, in one metric, with Holm's correction over them.

    `numbers` hold, by variant, the same rows in the same order.
    """
    pairs = pairs_of(numbers) if pairs is None else pairs
    pairs = [(ours, theirs) for ours, theirs in pairs if ours in numbers and theirs in numbers]
    found = [_difference(words, numbers[ours], numbers[theirs]) for ours, theirs in pairs]
    tested = [p for _difference, p in found if p is not None]
    adjusted = iter(holm(tested))
    return [
        Comparison(
            metric=metric,
            name=words.name,
            better=words.better,
            unit=words.unit,
            ours=labels[ours],
            theirs=labels[theirs],
            ours_value=_finite(numbers[ours].value),
            theirs_value=_finite(numbers[theirs].value),
            n=len(numbers[ours].sums),
            difference=difference,
            test="McNemar’s exact test" if words.is_share else "paired permutation test",
            p=p,
            p_adjusted=None if p is None else next(adjusted),
            family=len(tested),
        )
        for (ours, theirs), (difference, p) in zip(pairs, found, strict=True)
    ]


def _difference(words: Metric, ours: PerRow, theirs: PerRow) -> tuple[Interval, float | None]:
    """Ours minus theirs, and the p of its test; None where a value is not a number."""
    if words.is_share:
        found = paired_difference((ours.sums > 0).tolist(), (theirs.sums > 0).tolist())
        assert found.gained is not None
        assert found.lost is not None
        return found.interval, mcnemar(found.gained, found.lost)
    p = paired_permutation(ours, theirs)
    return bootstrapped_difference(ours, theirs), p if math.isfinite(p) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
