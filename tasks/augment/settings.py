"""What augmentation can be told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Augmentation(BaseModel):
    """How the agents work on the seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="off: the seeds' own responses are the training rows")
    expansions_per_seed: int = Field(5, ge=0, le=50, description="new instructions that Expansion writes per seed")
    min_score: float = Field(4.0, ge=0, le=10, description="lowest mean of Selection's three scores that is kept")
    max_rows: int | None = Field(None, ge=1, description="keep at most this many rows, balanced over task categories")
    temperature: float = Field(0.7, ge=0, le=2, description="sampling temperature of the agents")
    concurrency: int = Field(32, ge=1, le=1024, description="requests in flight")
    api_base: str | None = Field(None, description="address of a self-hosted OpenAI-compatible endpoint")

    def identity(self) -> dict[str, float | int | None]:
        """What changes the rows."""
        return self.model_dump(exclude={"enabled", "concurrency", "api_base"})
