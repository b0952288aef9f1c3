"""One run of a leaderboard: what its report says, and what it took."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from infra.store.artifacts import ArtifactRef
from tasks.report.copies import report_file
from tasks.report.data import ReportData
from tasks.report.making import device_seconds


class Entry(BaseModel):
    """One combination: its report, or why there is none."""

    model_config = ConfigDict(frozen=True)

    name: str
    combination: str = Field("", description="what it is apart from its seed, where seeds are varied")
    report: ArtifactRef | None = None
    data: ReportData | None = Field(None, exclude=True, description="what the report says")
    link: str | None = Field(None, description="the run in the Prefect UI")
    failed: str | None = None

    @property
    def page(self) -> str:
        """Where its report lies beside the leaderboard."""
        return report_file(self.name)

    @property
    def seed(self) -> int | None:
        return self.data.seed if self.data else None

    @property
    def device_seconds(self) -> float:
        """Seconds times ranks of the stages that make the student, as they took when they were made."""
        return device_seconds(self.data, "kd") if self.data else 0.0

    @property
    def rows(self) -> int:
        """Rows that the student was trained on: those chosen for it, where there was a choice."""
        stages = self.data.stages if self.data else []
        rows = {stage.name: stage.counts.get("rows", 0) for stage in stages}
        return rows.get("fit", rows.get("augment", 0))

    @property
    def usd(self) -> float:
        """What the answers of the agents, and of a teacher behind an API, cost."""
        spent = self.data.spent if self.data else {}
        return spent.get("agents", 0.0) + spent.get("teacher", 0.0)
