"""What a run came to: the numbers for machines, and the latest report where people look for it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import prefect.runtime
from pydantic import BaseModel, Field

from infra import settings
from infra.files import write_whole
from infra.stage import Made
from infra.store.artifacts import ArtifactReader, ArtifactRef
from tasks.evaluate.heldout.predictions import perplexity
from tasks.report.benchmarks import as_data
from tasks.report.data import ReportData, Variant
from tasks.report.stage import report_data


class StageOutcome(BaseModel):
    """A stage in this run: `seconds` spent now; `cached` where it was found finished."""

    seconds: float
    cached: bool
    uri: str


class Outcome(BaseModel):
    """`results.json`: every variant's numbers and every stage's cost in this run."""

    variants: dict[str, dict[str, Any]]
    stages: dict[str, StageOutcome]
    benchmarks: dict[str, dict[str, Any]] = Field({}, description="by measure and variant, where any ran")
    rounds: dict[str, Any] = Field({}, description="what each on-policy round began with and came to, where any ran")
    report: ArtifactRef
    seconds: float
    flow_run: str | None = Field(None, description="the run's id on the Prefect server")

    @staticmethod
    def of(stages: Mapping[str, Made], page: ArtifactRef, seconds: float) -> Outcome:
        """`stages` by title: what each came to in this run."""
        data = report_data(page)
        return Outcome(
            variants={name: {**_decisive(variant), **_metrics(data, name)} for name, variant in data.variants.items()},
            stages={
                name: StageOutcome(seconds=made.seconds, cached=made.cached, uri=made.shown.uri)
                for name, made in stages.items()
            },
            rounds=data.rounds.model_dump() if data.rounds else {},
            benchmarks=as_data(data.benchmarks) if data.benchmarks else {},
            report=page,
            seconds=round(seconds, 2),
            flow_run=prefect.runtime.flow_run.id,
        )


def _decisive(variant: Variant) -> dict[str, Any]:
    return variant.model_dump(include={"exec_accuracy", "cross_entropy", "kl_to_teacher", "n"})


def _metrics(data: ReportData, name: str) -> dict[str, Any]:
    """Every metric by its name, perplexity and ECE, and the 95 % intervals (low, high) of those that have one."""
    if data.analysis is None:
        return {}
    metrics = data.analysis.metrics[name]
    return {
        **{metric: interval.estimate for metric, interval in metrics.items()},
        "perplexity": perplexity(metrics["cross_entropy"].estimate),
        "ece": data.analysis.calibration[name].ece,
        "intervals": {metric: [interval.low, interval.high] for metric, interval in metrics.items()},
    }


def latest() -> Path:
    """The folder of the latest report."""
    return settings.home() / "latest"


def latest_results() -> Outcome | None:
    """What the latest run came to, if one has finished here."""
    with contextlib.suppress(FileNotFoundError):
        return Outcome.model_validate_json((latest() / "results.json").read_text())
    return None


def publish_latest(outcome: Outcome) -> Outcome:
    """Leave `report.html`, `report.md` and `results.json` of this run in `latest/`."""
    reader = ArtifactReader(outcome.report)
    for name in ("report.html", "report.md"):
        write_whole(latest() / name, reader.read(name))
    write_whole(latest() / "results.json", json.dumps(outcome.model_dump(mode="json"), indent=1))
    return outcome


def publish_latest_page(page: ArtifactRef) -> ArtifactRef:
    """Leave the files of a sweep's leaderboard, or of an experiment, in `latest/`."""
    reader = ArtifactReader(page)
    for name in reader.names():
        write_whole(latest() / name, reader.read(name))
    return page
