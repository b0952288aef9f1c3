"""The *report* task."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_markdown_artifact

from infra.orchestration.stage_task import stage_task
from infra.orchestration.view import publish_table, stage_view
from infra.store.artifacts import ArtifactReader, ArtifactRef
from tasks.report import stage
from tasks.report.leaderboard import page
from tasks.report.leaderboard.entry import Entry
from tasks.report.leaderboard.ranking import rows, verdict
from tasks.report.page import comparison_rows


@stage_task(name="report")
def report(
    stages: dict[str, ArtifactRef],
    evaluations: dict[str, ArtifactRef],
    about: dict[str, Any],
    verdicts: dict[str, ArtifactRef],
) -> ArtifactRef:
    """The run's page, and its comparison as an artifact in the Prefect UI. `verdicts` are the benchmarks' results."""
    work = stage.workspace(stages, evaluations, about, verdicts)
    with stage_view("report", "writing the report") as view:
        ref = work.find() or stage.report(work, stages, evaluations, about, verdicts)
        reader, data = ArtifactReader(ref), stage.report_data(ref)
        publish_table("comparison", comparison_rows(data), data.title)
        create_markdown_artifact(reader.read("report.md").decode(), key="report", description=data.title)
        return view.done(ref, "page, Markdown and data")


@stage_task(name="leaderboard")
def leaderboard(entries: list[Entry]) -> ArtifactRef:
    """Several runs side by side: a page in storage, and table and Markdown in the Prefect UI."""
    work = stage.leaderboard_workspace(entries)
    with stage_view("leaderboard", "comparing") as view:
        ref = work.find() or stage.leaderboard(work, entries)
        publish_table("leaderboard-table", rows(entries), verdict(entries))
        create_markdown_artifact(page.render_markdown(entries), key="leaderboard", description="sweep")
        return view.done(ref, f"{len(entries)} combinations")
