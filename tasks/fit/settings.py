"""Settings of choosing rows for a student."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Fit(BaseModel):
    """Which of the rows the student is trained on, by how hard they are for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: float = Field(
        1.0, gt=0, le=1, description="share of the rows to train on; easy ones go first (1: all, nothing is measured)"
    )
    by: Literal["difficulty", "chance"] = Field(
        "difficulty", description="what is left out: rows that are easy for this student, or any, to compare with"
    )

    @property
    def chooses(self) -> bool:
        return self.keep < 1
