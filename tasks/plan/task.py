"""The *plan* among a run's artifacts in the Prefect UI."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact

from infra.orchestration.view import publish_table
from tasks.plan.model import Plan
from tasks.plan.view import plan_markdown, stage_rows


@task(name="plan", persist_result=False)
def publish_plan(plan: Plan) -> None:
    """A table of the stages, and the whole plan as Markdown, problems first."""
    publish_table("plan", [dict(row) for row in stage_rows(plan)], plan.title)
    create_markdown_artifact(plan_markdown(plan), key="plan-summary", description=plan.title)
