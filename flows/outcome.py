"""What a run came to: the numbers for machines, and the latest report where people look for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infra import settings
from infra.artifacts import ArtifactReader, ArtifactRef
from tasks.report.data import ReportData


class StageOutcome(BaseModel):
    """A stage in this run: `seconds` spent now; `cached` where it was found finished."""

    seconds: float
    cached: bool
    uri: str


class Outcome(BaseModel):
    """`results.json`: every variant's numbers and every stage's cost in this run."""

    variants: dict[str, dict[str, Any]]
    stages: dict[str, StageOutcome]
    report: ArtifactRef
    seconds: float

    @staticmethod
    def of(
        stages: Mapping[str, ArtifactRef], evaluations: Mapping[str, ArtifactRef], page: ArtifactRef, seconds: float
    ) -> Outcome:
        data = ReportData.model_validate_json(ArtifactReader(page).read("data.json"))
        done = {**stages, "report": page}
        return Outcome(
            variants={
                name: variant.model_dump(include={"exec_accuracy", "cross_entropy", "kl_to_teacher", "n"})
                for name, variant in data.variants.items()
            },
            stages={
                **{n: StageOutcome(seconds=r.seconds, cached=r.cached, uri=r.uri) for n, r in done.items()},
                "evaluate": StageOutcome(
                    seconds=sum(ref.seconds for ref in evaluations.values()),
                    cached=all(ref.cached for ref in evaluations.values()),
                    uri=evaluations["kd"].uri,
                ),
            },
            report=page,
            seconds=round(seconds, 2),
        )


def latest() -> Path:
    """The folder of the latest report."""
    return settings.home() / "latest"


def publish_latest(outcome: Outcome) -> Outcome:
    """Leave `report.html`, `report.md` and `results.json` of this run in `latest/`."""
    reader = ArtifactReader(outcome.report)
    latest().mkdir(parents=True, exist_ok=True)
    for name in ("report.html", "report.md"):
        _replace(latest() / name, reader.read(name))
    _replace(latest() / "results.json", json.dumps(outcome.model_dump(mode="json"), indent=1).encode())
    return outcome


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.rename(path)
