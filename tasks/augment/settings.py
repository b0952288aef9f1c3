"""Settings of augmentation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from tasks.llm.settings import NEVER_CHANGES_ANSWERS, LLMCalls

RowFormat = Literal["alpaca", "sharegpt", "messages", "parquet"]  # of exported rows
Format = Literal[RowFormat, "dpo"]
RowTable = Literal["kept", "rejected", "failed", "topk"]


_NAMING = {"name_categories", "categories"}  # which act before


class Augmentation(LLMCalls):
    """How the agents work on the seeds."""

    setting: ClassVar[str] = "augmentation"
    model_setting: ClassVar[str] = "agent_model"

    enabled: bool = Field(True, description="off: the seeds' own responses are the training rows")
    expansions_per_seed: int = Field(5, ge=0, le=50, description="new instructions that Expansion writes per seed")
    name_categories: bool = Field(True, description="an agent names the task category of seeds that have none")
    categories: tuple[str, ...] = Field((), description="names to choose from, instead of some thirty usual ones")
    prompts: str | None = Field(
        None, description="folder with prompts of your own (NAME.jinja); `distilflow prompts` writes those we have"
    )
    rewriting: bool = Field(True, description="Rewriting improves instructions and responses, and its check runs")
    longest_reasoning: int = Field(
        400, ge=0, description="words of reasoning above which an agent shortens it, where the answer stays (0: never)"
    )
    selection: bool = Field(True, description="Selection scores rows, and near-duplicates are dropped")
    verification: bool = Field(True, description="Verification judges rows, and SQL, Python and arithmetic are run")
    min_score: float = Field(4.0, ge=0, le=10, description="lowest mean of Selection's three scores that is kept")
    near_duplicate: float = Field(
        0.9,
        gt=0,
        le=1,
        description="similarity (Jaccard, 5-character shingles) of instruction and input that is too much, where "
        "earlier turns, system prompt and database are the same",
    )
    max_rows: int | None = Field(None, ge=1, description="keep at most this many rows, balanced over task categories")
    routes: dict[str, str] = Field(
        {},
        description="other models than agent_model, by agent, task category or language: {zh: dashscope/qwen-max}; "
        "an agent's route comes before a category's, a category's before a language's",
    )

    def identity(self) -> dict[str, Any]:
        """What changes the rows. The budget is in it: a larger one reaches more seeds. Prompts count by their words."""
        return self.model_dump(mode="json", exclude=NEVER_CHANGES_ANSWERS | _NAMING | {"enabled", "prompts"})

    def route(self, agent: str, task_category: str, language: str) -> str | None:
        """The model for a request, where it is not the default one."""
        return next((self.routes[key] for key in (agent, task_category, language) if key in self.routes), None)

    @property
    def other_models(self) -> tuple[str, ...]:
        return tuple(self.routes.values())
