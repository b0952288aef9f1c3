"""Settings of whoever asks LLMs."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.llm.addresses import Address

Price = Annotated[float, Field(ge=0)]
NEVER_CHANGES_ANSWERS = {
    "concurrency",
    "processes",
    "requests_per_minute",
    "tokens_per_minute",
    "timeout_s",
    "api_base",
    "batch",
    "batch_wait_s",
    "batch_poll_s",
}
_IN_BATCHES = 20_000  # what waits in batches at a time: memory, and claims on the batches of seeds that it is of


class LLMCalls(BaseModel):
    """How LLMs are asked through LiteLLM: for how much money, how many requests at a time."""

    # what is wrong may be a key in an address
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    setting: ClassVar[str]  # what messages call these settings …
    model_setting: ClassVar[str]  # … and the model that they go with

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
    processes: int = Field(
        0,
        ge=0,
        le=16,
        description="processes that talk to providers (0: this one; LiteLLM needs 3 ms of CPU a request)",
    )
    requests_per_minute: int | None = Field(None, ge=1, description="limit a model")
    tokens_per_minute: int | None = Field(None, ge=1, description="limit a model, prompt and answer")
    timeout_s: float = Field(120.0, gt=0, description="longest wait for one answer")
    api_base: Address | None = Field(None, description="address of a self-hosted OpenAI-compatible endpoint")

    batch: bool = Field(
        False, description="ask through the provider's batch API: about half the price, answers within a day"
    )
    batch_wait_s: float = Field(
        5.0, ge=0, description="with batch: a batch is submitted when no request has come for so long"
    )
    batch_poll_s: float = Field(60.0, gt=0, description="with batch: longest pause between two looks at one")

    @property
    def in_flight(self) -> int:
        """Requests that may wait for their answers at a time."""
        return _IN_BATCHES if self.batch else self.concurrency

    @property
    def other_models(self) -> tuple[str, ...]:
        """Models beside the default one that requests may name as their route."""
        return ()

    def route(self, agent: str, task_category: str, language: str) -> str | None:
        """The model for a request, where it is not the default one."""
        return None
