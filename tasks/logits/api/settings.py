"""Settings of a teacher behind an API."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from tasks.llm.settings import NEVER_CHANGES_ANSWERS, LLMCalls

MOST_ALTERNATIVES = 20  # `top_logprobs` of OpenAI's API, and the most that any known provider tells


class TeacherCalls(LLMCalls):
    """How the teacher is asked for its answers, with the log-probs of each token."""

    setting: ClassVar[str] = "scoring.api"
    model_setting: ClassVar[str] = "teacher"

    temperature: float = Field(0.7, ge=0, le=2, description="sampling temperature of the teacher's answers")
    max_output_tokens: int = Field(
        1024, ge=1, description="longest answer of the teacher in tokens; one that is cut off is left out"
    )
    budget_usd: float | None = Field(
        None, gt=0, description="the answers may cost this much; rows that are not reached by then are left out"
    )

    fallbacks: tuple[str, ...] = Field((), description="none may be named: each would be another teacher")
    batch: bool = Field(False, description="stays off: the teacher is asked request by request")

    @model_validator(mode="after")
    def _is_one_teacher_at_once(self) -> Self:
        if self.fallbacks:
            raise ValueError(
                "scoring.api.fallbacks would be other teachers, with distributions of their own: leave it out"
            )
        if self.batch:
            raise ValueError("scoring.api.batch is not known: the teacher is asked request by request, leave it out")
        return self

    def identity(self) -> dict[str, Any]:
        """What changes the answers. The budget is in it: a larger one reaches more rows."""
        return self.model_dump(mode="json", exclude=NEVER_CHANGES_ANSWERS | {"fallbacks", "usd_per_million_tokens"})
