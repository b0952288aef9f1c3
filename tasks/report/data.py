"""What the report is made from: plain numbers and texts, gathered from the artifacts of one run.

Everything optional may be missing (a run on users' own data has no execution accuracy, augmentation may be
off), and the page then leaves that part out. Texts come from models and users: they are data, never markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tasks.evaluate.analysis.analysis import Analysis
from tasks.evaluate.benchmarks.analysis import BenchmarkAnalysis
from tasks.evaluate.variants import in_order
from tasks.quantise.settings import Format
from tasks.report.rounds import RoundsSummary
from tasks.stats.intervals import Interval

AGENTS = (
    "naming",
    "expansion",
    "category",
    "rewriting",
    "shortening",
    "preservation",
    "comparison",
    "selection",
    "verification",
)
MASS_BINS = 20

Chosen = Literal["at random", "better with kd", "better with control"]

T = TypeVar("T")


def in_order_of_work(agents: Iterable[str]) -> list[str]:
    return sorted(agents, key=lambda name: AGENTS.index(name) if name in AGENTS else len(AGENTS))


def _ordered(by_variant: dict[str, T]) -> dict[str, T]:
    return {name: by_variant[name] for name in in_order(by_variant)}


class _Frozen(BaseModel):
    # a diverged run has numbers that are none; as null they could not be read back
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Variant(_Frozen):
    """One model on the held-out rows."""

    label: str
    exec_accuracy: float | None = Field(None, ge=0, le=1, description="share of requests answered correctly")
    cross_entropy: float = Field(description="nats per supervised token; NaN when training diverged")
    kl_to_teacher: float | None = Field(
        None, description="nats per supervised token; NaN when training diverged, nothing without a teacher to compare"
    )
    n: int = Field(ge=0, description="held-out requests")
    correct: list[bool] | None = Field(None, description="per request, in the same order for every variant")
    left_out: dict[str, int] = Field(
        {}, description="reason → held-out requests that this variant's numbers are without"
    )
    parameters: int | None = None
    tokens_s: float | None = Field(None, description="that an engine wrote while it answered, where that was measured")
    draft: Literal["as it is", "shared tokens"] | None = Field(
        None, description="how vLLM takes it as the teacher's draft; none where that is not known, or tokens differ"
    )
    uri: str

    @model_validator(mode="after")
    def _one_mark_per_request(self) -> Self:
        if self.correct is not None and len(self.correct) != self.n:
            raise ValueError(f"variant '{self.label}' has {len(self.correct)} marks for n = {self.n} requests")
        return self


class QuantisedStudent(_Frozen):
    """A variant that is another one in fewer bits; differences are its number minus that one's, in nats a token."""

    variant: str
    student: str = Field(description="the variant that it is made of")
    format: Format
    size: int = Field(description="bytes of what is shipped")
    student_size: int = Field(description="bytes of the weights that it is made of")
    quantised: int = Field(description="matrices that were rounded")
    fell_back: int = Field(
        0, description="those of them in more bits than the format, which does not divide their rows"
    )
    agreed: int | None = Field(None, description="next tokens that llama.cpp gives as transformers does, of `tokens`")
    tokens: int | None = None
    cross_entropy: Interval
    kl_to_teacher: Interval


class StageSummary(_Frozen):
    name: str = Field(description="seeds, augment, sft, logits, sft_control, kd or evaluate")
    seconds: float = Field(ge=0, description="what it took when it was made")
    uri: str
    fingerprint: str
    counts: dict[str, int] = {}
    facts: dict[str, Any] = {}


class Mass(_Frozen):
    """Mean probability held by the top K, over some of the tokens."""

    tokens: int
    mean: float


class Coverage(_Frozen):
    """How much of the teacher's probability its top K tokens hold, over supervised tokens."""

    k: int
    mean: float
    percentiles: dict[str, float] = Field(description="such as {'p1': 0.62, 'p10': 0.91}")
    histogram: list[int] = Field(
        min_length=MASS_BINS, max_length=MASS_BINS, description="tokens in 20 equal bins of [0, 1]"
    )
    tokens: int
    k_for: dict[str, int | None] = Field({}, description="mean mass → smallest K that holds it (None: more than K)")
    by_k: list[float] = Field([], description="mean mass of the top 1, of the top 2, and so on to K")
    by_category: dict[str, Mass] = Field({}, description="by task category")
    by_position: dict[str, Mass] = Field({}, description="by position in the answer, such as '4–15'")
    warning: str | None = None


class AgentUse(_Frozen):
    """What one agent asked its model for; answers found in the cache count as asked."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class TeacherUse(AgentUse):
    """What a teacher behind an API was asked for, and what came of it."""

    answers: int = Field(description="that the student is trained on")
    left_out: dict[str, int] = Field({}, description="reason → prompts")


class DataFlow(_Frozen):
    """Where the rows went: seeds + expanded = kept + rejected + failed."""

    seeds: int
    expanded: int = Field(description="rows that Expansion wrote, before anything was rejected")
    kept: int = Field(description="rows that the student is trained on")
    rejected: dict[str, dict[str, int]] = Field({}, description="agent → reason → rows")
    failed: dict[str, dict[str, int]] = Field({}, description="agent that got no usable answer → reason → rows")
    drift: float | None = Field(None, description="share of expansions that left their task category")
    usage: dict[str, AgentUse] = Field({}, description="by agent")
    agent_model: str

    @property
    def left_out(self) -> list[tuple[str, list[tuple[str, int]]]]:
        """(agent, [(reason, rows)]) of what was rejected, then of what got no usable answer, in the order of work."""
        return [
            (agent, list(by_agent[agent].items()))
            for by_agent in (self.rejected, self.failed)
            for agent in in_order_of_work(by_agent)
        ]

    def rejected_by(self, agent: str) -> int:
        return sum(self.rejected[agent].values())

    @property
    def failures(self) -> int:
        return sum(sum(reasons.values()) for reasons in self.failed.values())

    @property
    def used(self) -> AgentUse:
        """All agents together."""
        return AgentUse(
            **{name: sum(getattr(use, name) for use in self.usage.values()) for name in AgentUse.model_fields}
        )

    @property
    def unaccounted(self) -> int:
        """Rows that the counts lose; anything but 0 is an error in the bookkeeping, and shown."""
        rejected = sum(self.rejected_by(agent) for agent in self.rejected)
        return self.seeds + self.expanded - rejected - self.failures - self.kept


class Output(_Frozen):
    text: str
    correct: bool | None = None


class ShownExample(_Frozen):
    """One held-out request, answered by every variant."""

    instruction: str
    input: str = ""
    reference: str
    outputs: Annotated[dict[str, Output], AfterValidator(_ordered)]
    chosen: Chosen = Field("at random", description="why it is shown")


class ChangedSetting(_Frozen):
    """A setting of the run that its student's preset has otherwise."""

    name: str
    value: Any
    default: Any


class RunInfo(_Frozen):
    """A run's parameters, as far as the page says them."""

    title: str
    student: str
    teacher: str
    k: int
    seed: int
    demo: bool = Field(False, description="demo models and a rule-based LLM: the page says what that means")
    settings: dict[str, Any] = {}
    reproduce: str = Field("", description="the command that makes the run again")
    run: str = Field("", description="what the run is called that made the report")
    changed: list[ChangedSetting] = []


class ReportData(RunInfo):
    """Everything on the page, and nothing else: equal data gives an equal page."""

    made: str = Field("", description="the day on which the last of its artifacts was begun")
    left_out: list[str] = Field([], description="rows and columns of the user's files that were not used, in sentences")
    variants: Annotated[dict[str, Variant], AfterValidator(_ordered)]
    quantised: list[QuantisedStudent] = []
    stages: list[StageSummary] = []
    curves: dict[str, list[tuple[int, float]]] = Field({}, description="training → (step, loss in nats per token)")
    coverage: Coverage | None = None
    scored_by: dict[str, int] = Field({}, description="rows to train on by their teacher, where there are several")
    compared_with_top: int | None = Field(
        None, description="teacher tokens that its KL is over, beside a bucket for the rest (default: the vocabulary)"
    )
    data_flow: DataFlow | None = None
    teacher_use: TeacherUse | None = Field(None, description="of a teacher behind an API")
    examples: list[ShownExample] = []
    analysis: Analysis | None = Field(None, description="intervals, paired tests, slices and what was inherited")
    benchmarks: BenchmarkAnalysis | None = Field(None, description="judged and checked benchmarks, where any ran")
    rounds: RoundsSummary | None = Field(None, description="on-policy rounds, where any were asked for")
    versions: dict[str, str] = {}

    @property
    def spent(self) -> dict[str, float]:
        """Dollars by whom LLMs were asked for: agents, a teacher behind an API, a judge; those that there are."""
        flow, teacher, judged = self.data_flow, self.teacher_use, self.benchmarks
        found = {"agents": flow.used.cost_usd} if flow else {}
        found |= {"teacher": teacher.cost_usd} if teacher else {}
        return found | ({"judge": judged.cost_usd} if judged and judged.cost_usd else {})

    @model_validator(mode="after")
    def _marks_are_aligned(self) -> Self:
        lengths = {len(v.correct) for v in self.variants.values() if v.correct is not None}
        if len(lengths) > 1:
            raise ValueError(f"variants were marked on different numbers of requests: {sorted(lengths)}")
        return self
