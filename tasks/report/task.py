"""The *report* task."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_markdown_artifact

from infra.artifacts import ArtifactReader, ArtifactRef
from infra.stage_task import stage_task
from infra.ui import publish_table, stage_view
from tasks.report import stage
from tasks.report.data import ReportData
from tasks.report.page import comparison_rows


@stage_task(name="report")
def report(stages: dict[str, ArtifactRef], evaluations: dict[str, ArtifactRef], about: dict[str, Any]) -> ArtifactRef:
    """The run's page, and its comparison as an artifact in the Prefect UI."""
    work = stage.workspace(stages, evaluations, about)
    with stage_view("report", "writing the report") as view:
        ref = work.find() or stage.report(work, stages, evaluations, about)
        reader = ArtifactReader(ref)
        data = ReportData.model_validate_json(reader.read("data.json"))
        publish_table("comparison", comparison_rows(data), data.title)
        create_markdown_artifact(reader.read("report.md").decode(), key="report", description=data.title)
        return view.done(ref, "page, Markdown and data")
