"""The plan: every stage of a run in rows, tokens, memory, hours and money, made from what is known before it.

Maths alone; `flows.plan` finds out what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from infra.artifacts import ArtifactRef
from tasks.augment.estimate import Estimate
from tasks.augment.settings import Augmentation
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.plan import costs
from tasks.plan.hardware import Machine
from tasks.plan.lengths import Fitting, Lengths
from tasks.plan.model import AgentPlan, Plan, Problem, StagePlan
from tasks.plan.sizes import Size
from tasks.train.data import total_steps
from tasks.train.memory import estimate as training_memory
from tasks.train.settings import Distillation, Training, TrainingRun

STAGES = ("augment", "sft", "logits", "sft_control", "kd", "evaluate")
_VARIANTS = 5  # base, sft, sft_control, kd, teacher
_AGENT_TOKENS_S = 50.0


@dataclass(frozen=True)
class Known:
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

    @property
    def ranks(self) -> int:
        return self.run.processes or self.machine.devices

    @property
    def agents_price_known(self) -> bool:
        return self.agents_are_free or (self.agents is not None and self.agents.priced)

    @property
    def roles(self) -> dict[str, Size]:
        return {"student": self.student, "teacher": self.teacher}

    def fitting(self, max_length: int) -> Fitting:
        return self.lengths.fitting(max_length)

    def micro_batch_tokens(self, training: Training) -> int:
        """Of a large micro-batch: as many rows as it may hold, of the 95th percentile's length."""
        return round(self.run.micro_batch * self.fitting(training.max_length).long_row)

    def to_do(self, stage: str) -> bool:
        return stage not in self.done


def make_plan(known: Known, problems: Callable[[Known, Plan], Sequence[Problem]]) -> Plan:
    """The plan, and what `problems` finds in it."""
    stages = [_priced(known, stage) for stage in _stages(known)]
    sft, scored = known.fitting(known.sft.max_length), known.fitting(known.scoring.max_length)
    rows = known.rows * scored.share
    prompts = rows * (scored.tokens - scored.response_tokens)
    store = costs.store_bytes(known.teacher, known.k, known.scoring.max_error, rows * scored.response_tokens, prompts)
    usable = known.rows * sft.share
    plan = Plan(
        title=known.title,
        device=known.machine.name,
        devices=known.machine.devices,
        memory_bytes=known.machine.memory,
        seeds=known.seeds,
        heldout=known.heldout,
        rows=known.rows,
        rows_at_most=known.rows_at_most,
        tokens_per_row=sft.tokens,
        response_tokens_per_row=sft.response_tokens,
        tokens_per_epoch=round(usable * sft.tokens),
        supervised_tokens_per_epoch=round(usable * sft.response_tokens),
        store_bytes=store,
        disk_bytes=_disk(known, store),
        disk_free_bytes=known.disk_free,
        agents=_agents(known),
        judge_requests={name: _VARIANTS * requests for name, requests in known.judge_requests.items()},
        judge_usd_at_most=_judge_usd(known),
        stages=stages,
        problems=[],
        assumptions=_assumptions(known),
    )
    return plan.model_copy(update={"problems": list(problems(known, plan))})


def _stages(known: Known) -> list[StagePlan]:
    control = known.kd.training()
    return [
        _augment(known),
        _training(known, "sft", known.sft),
        _logits(known),
        _training(known, "sft_control", control),
        _training(known, "kd", known.kd),
        _evaluate(known),
    ]


def _priced(known: Known, stage: StagePlan) -> StagePlan:
    """What is done costs nothing; devices cost by the hour where their price is given."""
    if stage.done:
        return stage.model_copy(update={"hours": 0.0, "usd": 0.0})
    price = known.machine.usd_per_device_hour
    if stage.device_hours is None or price is None:
        return stage
    return stage.model_copy(update={"usd": stage.device_hours * price})


def _augment(known: Known) -> StagePlan:
    options, found = known.augmentation, known.agents
    plan = StagePlan(name="augment", done=not known.to_do("augment"), rows=known.rows)
    if not options.enabled:
        return plan.model_copy(update={"usd": 0.0})
    if found is None:
        return plan
    total = found.total
    tokens = total.prompt_tokens + total.completion_tokens
    seconds = costs.agents_seconds(
        total.requests,
        total.completion_tokens,
        tokens,
        float("inf") if known.agents_are_free else _AGENT_TOKENS_S,
        options.concurrency,
        options.processes,
        (options.requests_per_minute, options.tokens_per_minute),
    )
    usd = (0.0 if known.agents_are_free else total.cost_usd) if known.agents_price_known else None
    return plan.model_copy(update={"tokens": tokens, "hours": seconds / 3600, "usd": usd})


def _training(known: Known, name: str, training: Training) -> StagePlan:
    fits = known.fitting(training.max_length)
    usable = round(known.rows * fits.share)
    steps = total_steps(usable, training.epochs, training.global_batch, training.max_steps)
    tokens = steps * training.global_batch * fits.tokens
    flops = costs.training_flops(known.student, training, known.run, tokens)
    devices = min(known.ranks, known.machine.devices)
    seconds = costs.start_seconds(known.machine, "train", known.student)
    batch, half = known.micro_batch_tokens(training), not known.machine.is_cpu
    memory = training_memory(known.student.shape, known.run, known.ranks, batch, training.lora, half=half)
    return StagePlan(
        name=name,
        done=not known.to_do(name),
        rows=usable,
        tokens=round(tokens),
        steps=steps,
        memory_bytes=memory.total + costs.CONTEXT,
        devices=devices,
        hours=(seconds + costs.seconds(known.machine, flops, devices)) / 3600,
    )


def _logits(known: Known) -> StagePlan:
    fits = known.fitting(known.scoring.max_length)
    usable = round(known.rows * fits.share)
    tokens = usable * fits.tokens
    devices = known.machine.devices if known.machine.is_cpu else known.scoring.tensor_parallel
    seconds = costs.start_seconds(known.machine, "logits", known.teacher)
    seconds += costs.seconds(known.machine, costs.forward_flops(known.teacher, tokens), devices)
    return StagePlan(
        name="logits",
        done=not known.to_do("logits"),
        rows=usable,
        tokens=round(tokens),
        memory_bytes=_shared(known, costs.scoring_memory(known.machine, known.teacher, known.scoring)),
        devices=devices,
        hours=seconds / 3600,
    )


def _evaluate(known: Known) -> StagePlan:
    """Every variant scores and answers the held-out rows, and the teacher scores them beside each student."""
    how = known.evaluation
    fits = known.heldout_lengths.fitting(how.max_length)
    rows = round(min(known.heldout, how.max_rows or known.heldout) * fits.share)
    tokens = rows * fits.tokens
    students, machine = _VARIANTS - 1, known.machine
    flops = students * costs.forward_flops(known.student, tokens)
    flops += _VARIANTS * costs.forward_flops(known.teacher, tokens)
    devices = machine.devices if machine.is_cpu else 1
    seconds = costs.start_seconds(machine, "evaluate", known.teacher) + costs.seconds(machine, flops, devices)
    seconds += students * costs.generation_seconds(machine, known.student, rows, how)
    seconds += costs.generation_seconds(machine, known.teacher, rows, how)
    return StagePlan(
        name="evaluate",
        done=not known.to_do("evaluate"),
        rows=rows,
        tokens=round(_VARIANTS * tokens),
        # the layers of both models are spread over all devices, which work one after the other
        memory_bytes=costs.evaluation_memory(machine, known.student, known.teacher, how, fits.long_row)
        // machine.devices,
        devices=devices,
        hours=seconds / 3600,
    )


def _shared(known: Known, memory: int) -> int:
    """A CPU's one process has what its ranks would share."""
    return memory // known.machine.devices if known.machine.is_cpu else memory


def _agents(known: Known) -> list[AgentPlan]:
    if known.agents is None or not known.to_do("augment"):
        return []
    usd = {agent: used.cost_usd for agent, used in known.agents.usage.items()} if known.agents_price_known else {}
    return [
        AgentPlan(
            agent=agent,
            requests=used.requests,
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            usd=0.0 if known.agents_are_free else usd.get(agent),
        )
        for agent, used in known.agents.usage.items()
    ]


def _judge_usd(known: Known) -> float | None:
    """What all budgets together allow; None where there is none."""
    if known.judge_budget_usd is None or not known.judge_requests:
        return None
    return _VARIANTS * len(known.judge_requests) * known.judge_budget_usd


def _disk(known: Known, store: int) -> int:
    """What is still to be written: with our own S3 the store, models and kept checkpoints, and always a scratch one.

    Checkpoints stay beside each of the three trainings' models.
    """
    trainings = {"sft": known.sft, "sft_control": known.kd.training(), "kd": known.kd}
    to_do = [training for name, training in trainings.items() if known.to_do(name)]
    scratch = max((costs.checkpoint_bytes(known.student, training) for training in to_do), default=0)
    store = store if known.to_do("logits") else 0
    if not known.stores_here:
        return scratch
    width = costs.weight_bytes(known.machine)
    kept = sum(known.run.checkpoints_kept * costs.checkpoint_bytes(known.student, training) for training in to_do)
    return store + len(to_do) * width * known.student.parameters + kept + scratch


def _assumptions(known: Known) -> list[str]:
    machine = known.machine
    said = [f"{machine.utilisation:.0%} of a device's {machine.tflops:,.3g} TFLOP/s are used (hardware.utilisation)"]
    if known.rows_at_most:
        said.append("the agents reject nothing")
    if known.agents is not None and known.to_do("augment") and not known.agents_are_free:
        said.append(f"their LLM writes {_AGENT_TOKENS_S:.0f} tokens a second to each request")
    if known.lengths.guessed:
        said.append("a token has 4 bytes of text (the student's tokenizer was not reached)")
    if tabled := [role for role, size in known.roles.items() if size.from_table]:
        said.append(f"{' and '.join(tabled)} are as large as in the built-in table of Qwen2.5")
    said.append("memory is good to about a fifth, hours to a factor of two")
    return said
