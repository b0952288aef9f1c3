"""The arms of an experiment out of the reports of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from infra.store.artifacts import ArtifactReader, artifact_at
from tasks.evaluate.heldout.predictions import from_parquet
from tasks.logits.store.reader import bytes_a_token
from tasks.report.comparison import CONTROL
from tasks.report.data import ReportData, StageSummary
from tasks.report.experiment.arms import ArmCost, ArmResult, ArmRun, Tables
from tasks.report.leaderboard.entry import Entry
from tasks.report.making import device_seconds, learns_from_scores

if TYPE_CHECKING:
    import pandas as pd


def arms_of(runs: Sequence[ArmRun], reports: Sequence[ReportData | None]) -> list[ArmResult]:
    """The finished arms in the order in which they are listed, on the held-out rows that all of them could take."""
    read: dict[str, pd.DataFrame] = {}
    found: dict[str, list[tuple[ArmRun, ReportData, Tables]]] = {}
    for run, data in zip(runs, reports, strict=True):
        if data is None or run.variant not in data.variants:
            continue
        wanted = {run.variant, CONTROL, "teacher"} & set(data.variants)
        tables = {name: _table(data.variants[name].uri, read) for name in wanted}
        found.setdefault(run.arm, []).append((run, data, tables))
    common: set[str] = set.intersection(*(set(table["row_id"]) for table in read.values())) if read else set()
    order = sorted(common)
    return [
        ArmResult(
            name,
            of[0][0].place,
            of[0][0].variant,
            [{key: table.set_index("row_id").loc[order].reset_index() for key, table in t.items()} for _, _, t in of],
            [taken(data, run.variant) for run, data, _ in of],
            of[0][1].coverage if learns_from_scores(of[0][0].variant) else None,
            of[0][1].k,
        )
        for name, of in found.items()
    ]


def taken(data: ReportData, variant: str) -> ArmCost:
    """What a run's variant took, as it took when it was made; what only measures it is left out."""
    entry = Entry(name="", data=data)
    stages = {stage.name: stage for stage in data.stages}
    scores = stages.get("logits") if learns_from_scores(variant) else None
    size, flow = _bytes(scores, data.k) if scores else 0, data.data_flow
    shares = (1 - flow.kept / (flow.seeds + flow.expanded), flow.drift) if flow else (None, None)
    return ArmCost(device_seconds(data, variant), entry.usd, entry.rows, size, *shares)


def _bytes(scores: StageSummary, k: int) -> int:
    """Of the teacher's scores, where `k` of those that are stored are used."""
    tokens = scores.counts["tokens"]
    store = artifact_at(scores.uri)
    if ArtifactReader(store).record.spec["k"] == k:
        return round(float(scores.facts["bytes_per_token"]) * tokens)
    return round(bytes_a_token(store, k) * tokens)


def _table(uri: str, read: dict[str, pd.DataFrame]) -> pd.DataFrame:
    if uri not in read:
        read[uri] = from_parquet(ArtifactReader(artifact_at(uri)).read("predictions.parquet"))
    return read[uri]
