"""Settings of augmentation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.llm.settings import NEVER_CHANGES_ANSWERS, LLMCalls

RowFormat = Literal["alpaca", "sharegpt", "messages", "parquet"]  # of exported rows
Format = Literal[RowFormat, "dpo"]
RowTable = Literal["kept", "rejected", "failed", "topk"]


_NAMING = {"name_categories", "categories"}  # which act before


class ReasoningLengths(BaseModel):
    """Words of reasoning to aim at, for an easy, a medium and a hard question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    short: int = Field(40, ge=1, description="for an easy question")
    medium: int = Field(120, ge=1, description="for a question of medium difficulty")
    long: int = Field(300, ge=1, description="for a hard question")

    @model_validator(mode="after")
    def _grow(self) -> ReasoningLengths:
        if not self.short <= self.medium <= self.long:
            raise ValueError(f"short, medium and long must grow, and are {self.short}, {self.medium} and {self.long}")
        return self

    def of(self, difficulty: str) -> int:
        """The words for a question of that difficulty; the most where nobody said which."""
        return {"easy": self.short, "medium": self.medium}.get(difficulty, self.long)


class ReasoningLimits(ReasoningLengths):
    """Words of reasoning above which it is shortened."""

    short: int = Field(80, ge=1, description="for an easy question")
    medium: int = Field(200, ge=1, description="for a question of medium difficulty")
    long: int = Field(400, ge=1, description="for a hard question")


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
    reasoning_words: ReasoningLengths = Field(
        ReasoningLengths(), description="words of reasoning that Rewriting aims at, by how hard it finds the question"
    )
    longest_reasoning: Annotated[int, Field(ge=0)] | ReasoningLimits = Field(
        400,
        description="words of reasoning above which an agent shortens it, where the answer stays (0: never); one "
        "number, or one for each of short, medium and long",
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
    compare_heldout: int = Field(
        0,
        ge=0,
        le=1000,
        description="an agent compares each held-out row with so many rows of its language, and as many of others, "
        "that are likest it, and leaves out those that ask for it in other words or another language (0: none)",
    )
    max_rows: int | None = Field(None, ge=1, description="keep at most this many rows, balanced over task categories")
    routes: dict[str, str] = Field(
        {},
        description="other models than agent_model, by agent, task category or language: {zh: dashscope/qwen-max}; "
        "an agent's route comes before a category's, a category's before a language's",
    )

    def identity(self) -> dict[str, Any]:
        """What changes the rows. The budget is in it: a larger one reaches more seeds. Prompts count by their words."""
        compares = set() if self.compare_heldout else {"compare_heldout"}
        unused = NEVER_CHANGES_ANSWERS | _NAMING | compares | {"enabled", "prompts"}
        return self.model_dump(mode="json", exclude=unused)

    @property
    def aims(self) -> dict[str, int]:
        """`reasoning_words` by name, none above what is shortened."""
        longest = {"short": self.longest("easy"), "medium": self.longest("medium"), "long": self.longest("hard")}
        return {name: min(words, longest[name] or words) for name, words in self.reasoning_words.model_dump().items()}

    def longest(self, difficulty: str) -> int:
        """Words above which reasoning on a question of that difficulty is shortened; 0: never."""
        limit = self.longest_reasoning
        return limit.of(difficulty) if isinstance(limit, ReasoningLimits) else limit

    @model_validator(mode="after")
    def _compares_by_an_agent(self) -> Augmentation:
        if self.compare_heldout and not self.enabled:
            raise ValueError(
                "augmentation.compare_heldout needs an agent, and augmentation is off: switch it on, or leave that out"
            )
        return self

    def route(self, agent: str, task_category: str, language: str) -> str | None:
        """The model for a request, where it is not the default one."""
        return next((self.routes[key] for key in (agent, task_category, language) if key in self.routes), None)

    @property
    def other_models(self) -> tuple[str, ...]:
        return tuple(self.routes.values())
