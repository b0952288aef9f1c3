"""What augmentation can be told, and what whatever else asks LLMs can be told about that."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.augment.addresses import Address

Format = Literal["alpaca", "sharegpt", "messages", "parquet"]  # of exported rows
RowTable = Literal["kept", "rejected", "failed", "topk"]
Price = Annotated[float, Field(ge=0)]
NEVER_CHANGES_ANSWERS = {
    "concurrency",
    "processes",
    "requests_per_minute",
    "tokens_per_minute",
    "timeout_s",
    "api_base",
}


class LLMCalls(BaseModel):
    """How LLMs are asked through LiteLLM: for how much money, how many requests at a time."""

    # what is wrong may be a key in an address
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    setting: ClassVar[str] = "augmentation"  # what messages call these settings …
    model_setting: ClassVar[str] = "agent_model"  # … and the model that they go with

    fallbacks: tuple[str, ...] = Field((), description="models to ask, in order, where the first one fails")
    temperature: float = Field(0.7, ge=0, le=2, description="sampling temperature of the agents")
    max_output_tokens: int = Field(4096, ge=64, description="longest answer of an agent, in tokens")
    budget_usd: float | None = Field(
        None, gt=0, description="the dataset may cost this much; what is not reached by then is left out"
    )
    usd_per_million_tokens: tuple[Price, Price] | None = Field(
        None, description="price of input and output where LiteLLM does not know the model's"
    )
    concurrency: int = Field(64, ge=1, le=1024, description="requests in flight")
    processes: int = Field(1, ge=1, le=16, description="processes that talk to providers (LiteLLM needs CPU)")
    requests_per_minute: int | None = Field(None, ge=1, description="limit a model")
    tokens_per_minute: int | None = Field(None, ge=1, description="limit a model, prompt and answer")
    timeout_s: float = Field(120.0, gt=0, description="longest wait for one answer")
    api_base: Address | None = Field(None, description="address of a self-hosted OpenAI-compatible endpoint")

    @property
    def other_models(self) -> tuple[str, ...]:
        """Models beside the default one that requests may name as their route."""
        return ()


class Augmentation(LLMCalls):
    """How the agents work on the seeds."""

    enabled: bool = Field(True, description="off: the seeds' own responses are the training rows")
    expansions_per_seed: int = Field(5, ge=0, le=50, description="new instructions that Expansion writes per seed")
    rewriting: bool = Field(True, description="Rewriting improves instructions and responses, and its check runs")
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
        """What changes the rows. The budget is in it: a larger one reaches more seeds."""
        return self.model_dump(mode="json", exclude=NEVER_CHANGES_ANSWERS | {"enabled"})

    def route(self, agent: str, task_category: str, language: str) -> str | None:
        """The model for a request, where it is not the default one."""
        return next((self.routes[key] for key in (agent, task_category, language) if key in self.routes), None)

    @property
    def other_models(self) -> tuple[str, ...]:
        return tuple(self.routes.values())
