"""Settings of how the user's files become seeds."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.seeds.columns import RENAMED
from tasks.seeds.thoughts import Thoughts
from tasks.text.private import Handling


class Reading(BaseModel):
    """What of the user's files is read, and as what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...] = Field(
        (), description="columns of your files by what they mean: instruction=question response=answer"
    )
    strict: bool = Field(False, description="refuse a file with a row that cannot be used, instead of leaving it out")
    max_seeds: int | None = Field(
        None,
        ge=1,
        description="train on a sample of this many seeds; what is in the files more often is likelier in it",
    )

    thoughts: Thoughts = Field(
        "as they are",
        description="what reasoning models thought before an answer (<think> in it, reasoning_content beside it): left "
        "as it is in the answer, dropped from it, or used: put before it where it stands beside",
    )
    private: Handling = Field(
        "count",
        description="rows with e-mail addresses, telephone numbers, cards, keys, IBANs, national ids: keep (do not "
        "look), count, mask ([email]), or drop them",
    )
    near_heldout: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="similarity (TF-IDF of 4-grams) from which a row counts as a held-out one; none: equal rows only",
    )

    @field_validator("columns")
    @classmethod
    def _are_known(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        for column in columns:
            meaning, given, name = column.partition("=")
            if not (given and name) or meaning not in RENAMED:
                raise ValueError(f"{column!r}: expected MEANING=COLUMN, with a meaning out of {', '.join(RENAMED)}")
        if len({column.partition("=")[2] for column in columns}) < len(columns):
            raise ValueError("one column is named with two meanings")
        return columns

    @property
    def renamed(self) -> dict[str, str]:
        """The field that each of the user's columns is read as."""
        pairs = (column.partition("=")[::2] for column in self.columns)
        return {name: RENAMED[meaning] for meaning, name in pairs}

    def identity(self) -> dict[str, Any]:
        """What changes the seeds: nothing where all is as it is by default."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"strict"})
