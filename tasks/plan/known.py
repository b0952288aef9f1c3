"""What a plan is made from; `flows.plan` finds it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from infra.devices import Gpus
from infra.store.artifacts import ArtifactRef
from tasks.augment.estimate import Estimate
from tasks.augment.settings import Augmentation
from tasks.engines.memory import least_parallel, splits
from tasks.engines.sizes import Size
from tasks.evaluate.settings import Evaluation
from tasks.evaluate.variants import CONTINUED, round_name, variants
from tasks.llm.budget import Usage
from tasks.logits.settings import Scoring
from tasks.plan import costs
from tasks.plan.hardware import Machine
from tasks.plan.lengths import Fitting, Lengths
from tasks.quantise.settings import Quantisation
from tasks.rollout.settings import Rounds
from tasks.train.memory import Placement
from tasks.train.placement import Demand, choose
from tasks.train.settings import Distillation, Order, Training, TrainingRun

AGENT_TOKENS_S = 50.0  # that an LLM writes to each request


@dataclass(frozen=True)
class OtherTeacher:
    """The teacher of some task categories, named in a row, that `share` of the rows have."""

    categories: str
    size: Size
    share: float

    def titled(self, stage: str) -> str:
        return f"{stage} ({self.categories})"


@dataclass(frozen=True)
class PlanInputs:
    """What the plan is made from. `done` holds the artifacts of finished stages; `agents` the agents' estimate."""

    title: str
    student: Size
    teacher: Size
    augmentation: Augmentation
    sft: Training
    scoring: Scoring
    kd: Distillation
    evaluation: Evaluation
    run: TrainingRun
    k: int
    machine: Machine
    seeds: int
    heldout: int
    rows: int
    rows_at_most: bool
    lengths: Lengths
    heldout_lengths: Lengths
    agents: Estimate | None
    agents_are_free: bool
    done: Mapping[str, ArtifactRef]
    disk_free: int
    stores_here: bool
    judge_requests: Mapping[str, int] = field(default_factory=dict)  # by benchmark, of one variant
    judge_budget_usd: float | None = None  # of one variant on one benchmark
    benchmark_answers: int = 0  # of one variant, a turn each
    benchmark_tokens: int = 0  # of the longest such answer
    harness: bool = False
    keep: float = 1.0  # share of the rows that the student is trained on; below 1 it scores them all before
    rounds: Rounds = field(default_factory=Rounds)
    order: Order = "sft_kd"
    quantise: Quantisation = field(default_factory=Quantisation)
    others: tuple[OtherTeacher, ...] = ()
    teacher_usage: Usage | None = None  # of a teacher behind an API, as far as it is known

    @property
    def has_weights(self) -> bool:
        """Whether there is a teacher to load; else `teacher` is as large as the student, and stands for nothing."""
        return self.scoring.engine != "api"

    @property
    def ranks(self) -> int:
        return self.run.processes or self.machine.devices

    @property
    def variants(self) -> int:
        """How many models are compared."""
        return self.students + self.has_weights

    @property
    def students(self) -> int:
        """All of them but the teacher."""
        return len(variants(self.rounds.rounds)) - 1 + len(self.quantise.formats)

    @property
    def trainings(self) -> dict[str, Training]:
        """All of them, by the name of their stage."""
        found: dict[str, Training] = {"sft": self.sft, "sft_control": self.kd.training(), "kd": self.kd}
        if self.order == "kd":
            found["kd"] = self.kd.in_place_of(self.sft)
        if self.order == "kd_sft":
            found["sft_after_kd"] = self.sft
        if self.rounds.rounds:
            found[CONTINUED] = self.rounds.distillation(self.kd, self.rounds.rounds)
        for number in range(1, self.rounds.rounds + 1):
            found[round_name(number)] = self.rounds.distillation(self.kd)
        return found

    @property
    def aside(self) -> int:
        """Rows that nothing is trained on, to check rounds on them."""
        return self.rounds.validation_rows if self.rounds.rounds else 0

    @property
    def trained_rows(self) -> float:
        return max(self.rows * self.keep - self.aside, 0.0)

    @property
    def answers(self) -> int:
        """That a student writes in a round."""
        usable = round(self.trained_rows * self.fitting(self.kd.max_length).share)
        return self.rounds.n * min(usable, self.rounds.prompts or usable)

    def rollout_parallel(self) -> int:
        """Devices that the student is spread over where it answers."""

        def takes(parallel: int) -> int:
            return costs.rollout_memory(self.machine, self.student, self.rounds, self.kd.max_length, parallel)

        return self.rounds.tensor_parallel or self._parallel(self.student, self.rounds.gpu_memory, takes)

    def scoring_of(self, model: Size, max_length: int | None = None) -> Scoring:
        """Scoring with this model: over the fewest devices that hold it, or as many as it splits over.

        `max_length` is of the rows that are scored (default: of those that are trained on).
        """
        scoring = self.scoring.model_copy(update={"max_length": max_length} if max_length else {})
        if scoring.tensor_parallel or scoring.is_elsewhere:
            return scoring

        def asked(parallel: int) -> Scoring:
            return scoring.model_copy(update={"tensor_parallel": parallel})

        def takes(parallel: int) -> int:
            return costs.scoring_memory(self.machine, model, asked(parallel))

        return asked(self._parallel(model, self.scoring.gpu_memory, takes, scoring.pipeline_parallel))

    def evaluation_of(self, model: Size) -> Evaluation:
        """Evaluation of this model: over the fewest devices that hold it, or as many as it splits over."""
        if self.evaluation.tensor_parallel:
            return self.evaluation

        def asked(parallel: int) -> Evaluation:
            return self.evaluation.model_copy(update={"tensor_parallel": parallel})

        def takes(parallel: int) -> int:
            return costs.generation_memory(self.machine, model, asked(parallel))

        return asked(self._parallel(model, self.evaluation.gpu_memory, takes))

    def _parallel(self, model: Size, share: float, takes: Callable[[int], int], parts: int = 1) -> int:
        if self.machine.is_cpu:
            return 1
        gpus = Gpus(max(1, self.machine.devices // parts), self.machine.memory)
        return least_parallel(model, gpus, share, takes) or splits(model, gpus.number)[-1]

    def engines_that_fit(self, scoring: Scoring) -> int:
        """Of a model over so many devices as `scoring` says."""
        return max(1, self.machine.devices // scoring.gpus_each)

    def engines(self, scoring: Scoring) -> int:
        """Of those, as many as score side by side; a CPU has one unless more are asked for."""
        if self.machine.is_cpu:
            return scoring.engines or 1
        return min(scoring.engines or self.engines_that_fit(scoring), self.engines_that_fit(scoring))

    def answering(self, how: Evaluation | Rounds, parallel: int) -> int:
        """Engines of so many devices each that answer side by side; a CPU has one unless more are asked for."""
        if self.machine.is_cpu or how.engine != "vllm":
            return how.engines or 1
        fit = max(1, self.machine.devices // parallel)
        return min(how.engines or fit, fit)

    @property
    def half(self) -> bool:
        """Whether weights in training have two bytes, beside master weights of four."""
        asked = self.run.precision
        return not self.machine.is_cpu if asked == "auto" else asked == "bf16"

    @property
    def weight_width(self) -> int:
        """Bytes of a weight of a finished student."""
        return 2 if self.half else 4

    @property
    def agents_price_known(self) -> bool:
        return self.agents_are_free or (self.agents is not None and self.agents.priced)

    def scorings(self, stage: str) -> dict[str, tuple[Size, float]]:
        """Of a stage in which rows are scored, one a teacher: its size and its share of the rows."""
        rest = 1 - sum(other.share for other in self.others)
        return {stage: (self.teacher, rest)} | {other.titled(stage): (other.size, other.share) for other in self.others}

    @property
    def roles(self) -> dict[str, Size]:
        return {"student": self.student} | ({"teacher": self.teacher} if self.has_weights else {})

    def fitting(self, max_length: int) -> Fitting:
        return self.lengths.fitting(max_length)

    def micro_batch_tokens(self, training: Training, micro_batch: int) -> int:
        """Of a large micro-batch: as many rows as it may hold, of the 95th percentile's length."""
        return round(micro_batch * self.fitting(training.max_length).long_row)

    def placement_of(self, training: Training) -> Placement:
        """What the run says of its layout, and will choose where it says nothing."""
        demand = Demand(
            shape=self.student.shape,
            ranks=self.ranks,
            memory=self.machine.memory,
            global_batch=training.global_batch,
            row_tokens=self.fitting(training.max_length).tokens,
            longest=lambda rows: self.micro_batch_tokens(training, rows),
            lora=training.lora,
            half=self.half,
            on_gpu=not self.machine.is_cpu,
        )
        return choose(self.run, demand)

    def to_do(self, stage: str) -> bool:
        return stage not in self.done
