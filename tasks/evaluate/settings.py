"""What evaluation can be told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Evaluation(BaseModel):
    """How variants are compared on held-out rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_rows: int | None = Field(None, ge=1, description="held-out rows to use (default: all)")
    max_new_tokens: int = Field(256, ge=1, description="longest generated answer in tokens")
    max_length: int = Field(2048, ge=16, description="longest held-out row in tokens; longer ones are skipped")
    batch_rows: int = Field(32, ge=1, description="rows computed at once; lower it when memory runs out")
    timeout_h: float | None = Field(None, gt=0, description="hours after which evaluation is ended (default: never)")

    def identity(self) -> dict[str, int | None]:
        """What changes the numbers."""
        return self.model_dump(exclude={"batch_rows", "timeout_h"})
