"""What the benchmarks say of all variants: figures with intervals, paired tests, and what to know of the judge.

Pure: results and scores in, one model out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from tasks.evaluate.analysis.comparisons import Metric, compare_in
from tasks.evaluate.benchmarks.people import BesidePeople
from tasks.stats.intervals import Z95, Interval, Numbers, PerRow, bootstrapped, wilson
from tasks.stats.significance import Comparison, verdict

Unit = Literal["%", "1 to 10", ""]

_TESTED = {
    "alpaca_eval": Metric("AlpacaEval win rate", "points", "higher"),
    "mt_bench": Metric("MT-Bench rating", "marks of 10", "higher"),
    "ifeval": Metric("IFEval, prompts followed", "points", "higher", is_share=True),
    "probes": Metric("answers in which a probe finds something", "points", "lower", is_share=True),
}
_NAMES = {"alpaca_eval": "AlpacaEval", "mt_bench": "MT-Bench", "ifeval": "IFEval", "probes": "probes"}


@dataclass(frozen=True)
class BenchmarkResult:
    """One variant on one benchmark: its published result, and a score an item (none for lm-eval)."""

    result: Mapping[str, Any]
    scores: Mapping[str, float]
    judge: str = ""
    empty: int = 0


class Figure(Numbers):
    """One variant's figure; `interval` is None where it has none, and its ends are in the same unit."""

    value: float
    interval: Interval | None = None
    n: int = Field(description="items that it is over")


class Measure(Numbers):
    """One line of the table."""

    benchmark: str
    name: str
    unit: Unit = Field(description="'%': figures are shares of 1")
    figures: dict[str, Figure] = Field(description="by variant; a variant of which nothing was judged is missing")


class BenchmarkAnalysis(Numbers):
    """All benchmarks of a run."""

    measures: list[Measure]
    comparisons: list[Comparison] = Field(description="paired tests on the items that all variants have a score of")
    verdicts: list[str] = Field(description="a sentence for each comparison, in the same order")
    remarks: list[str] = Field(description="of the judge, and of what is missing")
    cost_usd: float = Field(0.0, description="what the judgments cost, whoever paid")
    people: BesidePeople | None = Field(None, description="the judge beside people, where they gave labels")


def analyse(results: Mapping[str, Mapping[str, BenchmarkResult]], labels: Mapping[str, str]) -> BenchmarkAnalysis:
    """`results` by benchmark and variant; `labels` name the variants."""
    measures: list[Measure] = []
    comparisons: list[Comparison] = []
    remarks: list[str] = []
    for benchmark, by_variant in results.items():
        measures += _measures(benchmark, by_variant)
        if benchmark in _TESTED:
            comparisons += compare_in(benchmark, _TESTED[benchmark], _on_common_items(benchmark, by_variant), labels)
        for variant, found in by_variant.items():
            remarks += [f"{_NAMES[benchmark]}, {labels[variant]}: {text}." for text in _remarks(found)]
        remarks += _of_all(benchmark, by_variant)
    cost = sum(found.result.get("cost_usd", 0.0) for by_variant in results.values() for found in by_variant.values())
    return BenchmarkAnalysis(
        measures=measures,
        comparisons=comparisons,
        verdicts=[verdict(comparison) for comparison in comparisons],
        remarks=remarks,
        cost_usd=cost,
    )


def _on_common_items(benchmark: str, by_variant: Mapping[str, BenchmarkResult]) -> dict[str, PerRow]:
    """Scores of the items that every variant has one of, in one order; nothing where there is none."""
    scored = {variant: found.scores for variant, found in by_variant.items() if found.scores}
    common = sorted(set.intersection(*(set(of) for of in scored.values()))) if scored else []
    if not common:
        return {}
    whole = benchmark == "ifeval"  # a prompt counts where all its instructions are followed
    return {
        variant: PerRow.of([float(of[item] == 1.0) if whole else of[item] for item in common])
        for variant, of in scored.items()
    }


def _measures(benchmark: str, by_variant: Mapping[str, BenchmarkResult]) -> list[Measure]:
    """The benchmark's lines, each with the variants that have it."""
    lines: dict[tuple[str, Unit], dict[str, Figure]] = {}
    for variant, found in by_variant.items():
        for name, unit, figure in _FIGURES[benchmark](found):
            lines.setdefault((name, unit), {})[variant] = figure
    return [Measure(benchmark=benchmark, name=n, unit=unit, figures=figures) for (n, unit), figures in lines.items()]


_Figures = Iterator[tuple[str, Unit, Figure]]


def _alpaca_eval(found: BenchmarkResult) -> _Figures:
    """A preference lies between 0 and 1 and so varies at most as a verdict of 0 or 1: Wilson's is wide enough."""
    numbers, n = found.result, found.result["judged"]
    if not n:
        return
    yield (
        "AlpacaEval 2.0, win rate",
        "%",
        Figure(value=numbers["win_rate"], interval=wilson(numbers["win_rate"], n), n=n),
    )
    control = numbers["length_controlled"]
    interval = Interval(control["win_rate"], control["low"], control["high"])
    yield "AlpacaEval 2.0, length-controlled", "%", Figure(value=control["win_rate"], interval=interval, n=n)


def _mt_bench(found: BenchmarkResult) -> _Figures:
    numbers = found.result
    if not found.scores:
        return
    rating = bootstrapped(PerRow.of(list(found.scores.values())))
    yield "MT-Bench, both turns", "1 to 10", Figure(value=rating.estimate, interval=rating, n=len(found.scores))
    for turn, value in numbers["by_turn"].items():
        yield f"MT-Bench, turn {turn}", "1 to 10", Figure(value=value, n=numbers["judged"])


def _ifeval(found: BenchmarkResult) -> _Figures:
    numbers, n = found.result, found.result["prompts"]
    for how in ("strict", "loose"):
        share = numbers[f"prompt_{how}"]
        yield f"IFEval, prompts followed, {how}", "%", Figure(value=share, interval=wilson(share, n), n=n)
    for how in ("strict", "loose"):
        value = numbers[f"instruction_{how}"]
        yield f"IFEval, instructions followed, {how}", "%", Figure(value=value, n=numbers["instructions"])


def _probes(found: BenchmarkResult) -> _Figures:
    for probe, numbers in found.result["probes"].items():
        if numbers["judged"]:
            interval = Interval(numbers["rate"], numbers["low"], numbers["high"])
            yield f"Probe: {probe}", "%", Figure(value=numbers["rate"], interval=interval, n=numbers["judged"])


def _harness(found: BenchmarkResult) -> _Figures:
    for task, measured in found.result["tasks"].items():
        for metric, numbers in measured["metrics"].items():
            value, error = numbers["value"], numbers["standard_error"]
            interval = None if error is None else Interval(value, value - Z95 * error, value + Z95 * error)
            yield f"lm-eval, {task}: {metric}", "", Figure(value=value, interval=interval, n=measured["documents"])


_FIGURES = {
    "alpaca_eval": _alpaca_eval,
    "mt_bench": _mt_bench,
    "ifeval": _ifeval,
    "probes": _probes,
    "harness": _harness,
}


def _remarks(found: BenchmarkResult) -> Iterator[str]:
    """What a reader should know of one variant's result."""
    if sentence := found.result.get("position_bias_sentence"):
        yield sentence
    not_judged: dict[str, int] = dict(found.result.get("not_judged", {}))
    for probe in found.result.get("probes", {}).values():
        for reason, count in probe["not_judged"].items():
            not_judged[reason] = not_judged.get(reason, 0) + count
    if not_judged:
        yield "not judged: " + ", ".join(f"{count:,} × {reason}" for reason, count in sorted(not_judged.items()))
    if found.empty:
        yield f"{found.empty:,} questions without an answer (the model said nothing, or had no room for it)"


def _of_all(benchmark: str, by_variant: Mapping[str, BenchmarkResult]) -> Iterator[str]:
    """What holds for every variant."""
    name, first = _NAMES.get(benchmark, benchmark), next(iter(by_variant.values()))
    if first.judge:
        yield f"{name} was judged by {first.judge}."
    if first.result.get("length_control") == "length_controlled_minimal":
        yield "AlpacaEval’s length control knew no instruction difficulties (benchmarks.alpaca_eval_gamed)."
    if missing := first.result.get("without_reference"):
        yield f"MT-Bench graded {missing:,} turns without the reference answers that they should have."
