"""The benchmarks on the page: their results gathered, and the one table that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactReader, ArtifactRef, Record, read_record
from tasks.evaluate.benchmarks import alpaca_eval, artifacts, harness, labels, people
from tasks.evaluate.benchmarks.analysis import BenchmarkAnalysis, BenchmarkResult, Figure, Unit, analyse

_ORDER = (artifacts.ALPACA_EVAL, artifacts.MT_BENCH, artifacts.IFEVAL, artifacts.PROBES, harness.KIND)


def gather(
    verdicts: Mapping[str, ArtifactRef], names: Mapping[str, str], labelled: str | None = None
) -> BenchmarkAnalysis | None:
    """What the artifacts say, keyed by variant and benchmark ("kd/alpaca_eval"); None where there are none.

    `names` are the variants' own, `labelled` is a file of people's labels.
    """
    results: dict[str, dict[str, BenchmarkResult]] = {name: {} for name in _ORDER}
    for key, ref in verdicts.items():
        variant, benchmark = key.split("/")
        results[benchmark][variant] = _result(benchmark, ref)
    if not verdicts:
        return None
    found = analyse({name: of for name, of in results.items() if of}, names)
    return found.model_copy(update={"people": _beside_people(verdicts, labelled)}) if labelled else found


def _beside_people(verdicts: Mapping[str, ArtifactRef], labelled: str) -> people.BesidePeople:
    judged: dict[str, dict[str, people.Judged]] = {artifacts.ALPACA_EVAL: {}, artifacts.MT_BENCH: {}}
    for key, ref in verdicts.items():
        variant, benchmark = key.split("/")
        if benchmark in judged:
            judged[benchmark][variant] = _judged(benchmark, ref)
    return people.beside_people(labels.read(labelled), judged)


def _judged(benchmark: str, ref: ArtifactRef) -> people.Judged:
    """The judge's verdicts in the terms of people's labels."""
    record, judgments, scores = _record(ref), artifacts.judgments_of(ref), artifacts.scores_of(ref)
    if benchmark == artifacts.ALPACA_EVAL:
        outcomes = alpaca_eval.outcomes(judgments)
        verdicts = {(item, ""): people.JudgeVerdict(outcomes[item], score) for item, score in scores.items()}
    else:
        turns = {(one.item, one.part): one.value for one in judgments if one.value is not None}
        whole = {(item, ""): score for item, score in scores.items()}
        verdicts = {answer: people.JudgeVerdict(value, value) for answer, value in (turns | whole).items()}
    questions = [one.question for one in artifacts.conversations_of(record.inputs["answers"])]
    return people.Judged(str(record.spec["judge"]), questions, verdicts)


def seconds(verdicts: Mapping[str, ArtifactRef]) -> float:
    """What the answers, the verdicts and lm-eval took when they were made."""
    total, seen = 0.0, set[str]()
    for ref in verdicts.values():
        record = _record(ref)
        answers = record.inputs.get("answers")
        made = [(ref, record)] + ([(answers, _record(answers))] if answers and answers.kind != "evaluate" else [])
        total += sum(of.seconds for one, of in made if one.uri not in seen)
        seen |= {one.uri for one, _ in made}
    return total


def _result(benchmark: str, ref: ArtifactRef) -> BenchmarkResult:
    if benchmark == harness.KIND:
        return BenchmarkResult(ArtifactReader(ref).read_json(harness.RESULTS), {})
    record = _record(ref)
    return BenchmarkResult(
        artifacts.result_of(ref),
        artifacts.scores_of(ref),
        judge=str(record.spec.get("judge", "")),
        empty=record.inputs["answers"].counts.get("empty", 0),
    )


def _record(ref: ArtifactRef) -> Record:
    record = read_record(ref.uri)
    if record is None:
        raise ConfigurationError(f"the artifact {ref.uri} is gone: run again")
    return record


def people_rows(beside: people.BesidePeople) -> list[dict[str, str]]:
    """One row a benchmark: how far its judge agrees with people, as text."""
    return [
        {
            "Benchmark": people.NAMES[one.benchmark],
            "Judge": one.judge,
            "Labels": f"{one.agreement.labels:,}",
            "Questions": f"{one.agreement.questions:,}",
            "Agreement": people.percent(one.agreement.share),
            "Cohen’s κ": people.number(one.agreement.kappa),
            "Kendall’s τ-b": people.number(one.agreement.tau),
        }
        for one in beside.judges
    ]


def rows(analysis: BenchmarkAnalysis, labels: Mapping[str, str]) -> list[dict[str, str]]:
    """One row a measure and one column a variant, as text."""
    return [
        {
            "benchmark": measure.name,
            **{
                label: cell(measure.unit, measure.figures[name]) if name in measure.figures else "–"
                for name, label in labels.items()
            },
        }
        for measure in analysis.measures
    ]


def cell(unit: Unit, figure: Figure) -> str:
    """A figure with its interval: `63.0 % (58.1 – 67.7)`."""
    value = f"{number(unit, figure.value)}{' %' if unit == '%' else ''}"
    return f"{value} ({range_of(unit, figure)})" if figure.interval else value


def range_of(unit: Unit, figure: Figure) -> str:
    """The ends of a figure's interval, or nothing."""
    ends = figure.interval
    return f"{number(unit, ends.low)} – {number(unit, ends.high)}" if ends else ""


def number(unit: Unit, value: float) -> str:
    text = {"%": f"{100 * value:.1f}", "1 to 10": f"{value:.2f}"}.get(unit, f"{value:.3f}")
    return text.replace("-", "−")


def as_data(analysis: BenchmarkAnalysis) -> dict[str, dict[str, Any]]:
    """For `results.json`: by measure and variant, the value, its interval and what it is over."""
    return {
        measure.name: {
            variant: {
                "value": figure.value,
                "low": figure.interval.low if figure.interval else None,
                "high": figure.interval.high if figure.interval else None,
                "n": figure.n,
            }
            for variant, figure in measure.figures.items()
        }
        for measure in analysis.measures
    }
