"""The plan as data: what machines read, and what the tables show."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tasks.plan.hardware import CPU


class Problem(BaseModel):
    """`stops`: the run would fail, or would not start. Otherwise it goes on, and a person should know."""

    model_config = ConfigDict(frozen=True)

    stops: bool
    text: str


class AgentPlan(BaseModel):
    """What an agent will be asked; `usd` None where nobody knows the price."""

    agent: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None


class StagePlan(BaseModel):
    """One stage; numbers that do not exist for it are None. `hours` are of the clock, with `devices` at work."""

    name: str
    done: bool = Field(description="its record exists: it costs nothing")
    rows: int
    tokens: int | None = Field(None, description="tokens that are computed, all epochs together")
    steps: int | None = None
    memory_bytes: int | None = Field(None, description="on each device")
    devices: int | None = None
    hours: float = 0.0
    usd: float | None = None

    @property
    def device_hours(self) -> float | None:
        return None if self.devices is None else self.hours * self.devices


class Plan(BaseModel):
    """What a run will take. `*_guessed` and `assumptions` say how far to trust it."""

    title: str
    device: str
    devices: int
    memory_bytes: int = Field(description="of one device")
    seeds: int
    heldout: int
    rows: int = Field(description="for training")
    rows_at_most: bool = Field(description="augmentation has not run: its agents will reject some")
    tokens_per_row: float
    supervised_tokens_per_row: float
    tokens_per_epoch: int
    supervised_tokens_per_epoch: int
    store_bytes: int
    disk_bytes: int = Field(description="under DISTILFLOW_HOME")
    disk_free_bytes: int
    agents: list[AgentPlan]
    judge_requests: dict[str, int] = Field({}, description="by benchmark, of all variants, before the answer cache")
    judge_usd_at_most: float | None = Field(None, description="what the judge's budgets allow; None without any")
    stages: list[StagePlan]
    chosen: list[str] = Field([], description="what was left to be chosen: of settings that change no result")
    problems: list[Problem]
    assumptions: list[str]

    @property
    def on_cpu(self) -> bool:
        return self.device == CPU

    @property
    def hours(self) -> float:
        return sum(stage.hours for stage in self.stages)

    @property
    def device_hours(self) -> float:
        return sum(stage.device_hours or 0.0 for stage in self.stages)

    @property
    def usd(self) -> float | None:
        """API and devices together, as far as prices are known; None where none is."""
        known = [stage.usd for stage in self.stages if stage.usd is not None]
        return sum(known) if known else None
