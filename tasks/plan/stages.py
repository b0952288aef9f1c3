"""Every stage of a run in rows, tokens, memory and hours. Maths alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from tasks.engines.memory import CONTEXT
from tasks.engines.sizes import Size
from tasks.evaluate.variants import CONTINUED, round_of
from tasks.logits.settings import Scoring
from tasks.plan import costs
from tasks.plan.known import AGENT_TOKENS_S, PlanInputs
from tasks.plan.lengths import Fitting
from tasks.plan.model import StagePlan
from tasks.quantise.settings import Format
from tasks.train.data.order import total_steps
from tasks.train.memory import estimate as training_memory
from tasks.train.settings import Training

_AFTER_SCORING = ("sft_control", "kd", "sft_after_kd")
STAGES = ("augment", "sft", "logits", "sft_control", "kd", "evaluate")  # and benchmarks, where there are any


def stages_of(known: PlanInputs) -> list[StagePlan]:
    """In the order of the run, with what each costs."""
    trainings = known.trainings
    benchmarks = [_benchmarks(known)] if known.benchmark_answers else []
    compared = [_heldout_scores(known)] if known.evaluation.teacher == "topk" and known.has_weights else []
    asked = [] if known.has_weights else [_asked(known)]
    scores = _scorings(known, "logits") if known.has_weights else [_stored(known)]
    here = replace(known, scoring=known.scoring.here())
    chosen = [_scoring(here, "student_scores", known.student)] if known.keep < 1 else []
    stages = [
        _augment(known),
        *chosen,
        *asked,
        _training(known, "sft", trainings["sft"]),
        *scores,
        *(_training(known, name, trainings[name]) for name in _AFTER_SCORING if name in trainings),
        *_rounds(known),
        *(_quantised(known, name, form) for name, form in known.quantise.names.items()),
        *compared,
        _evaluate(known),
        *benchmarks,
    ]
    return [_priced(known, stage) for stage in stages]


def _priced(known: PlanInputs, stage: StagePlan) -> StagePlan:
    """What is done costs nothing; devices cost by the hour where their price is given."""
    if stage.done:
        return stage.model_copy(update={"hours": 0.0, "usd": 0.0})
    price = known.machine.usd_per_device_hour
    if stage.device_hours is None or price is None:
        return stage
    return stage.model_copy(update={"usd": stage.device_hours * price})


def _augment(known: PlanInputs) -> StagePlan:
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
        float("inf") if known.agents_are_free else AGENT_TOKENS_S,
        options.concurrency,
        options.processes,
        (options.requests_per_minute, options.tokens_per_minute),
    )
    usd = (0.0 if known.agents_are_free else total.cost_usd) if known.agents_price_known else None
    return plan.model_copy(update={"tokens": tokens, "hours": seconds / 3600, "usd": usd})


def _asked(known: PlanInputs) -> StagePlan:
    """A teacher behind an API answers every prompt."""
    plan = StagePlan(name="teacher_answers", done=not known.to_do("teacher_answers"), rows=known.rows)
    if (used := known.teacher_usage) is None:
        return plan
    tokens, calls = used.prompt_tokens + used.completion_tokens, known.scoring.api
    limits = calls.requests_per_minute, calls.tokens_per_minute
    seconds = costs.agents_seconds(
        used.requests, used.completion_tokens, tokens, AGENT_TOKENS_S, calls.concurrency, calls.processes, limits
    )
    return plan.model_copy(update={"tokens": tokens, "hours": seconds / 3600, "usd": used.cost_usd or None})


def _stored(known: PlanInputs) -> StagePlan:
    """What it told becomes the store: minutes, on any machine."""
    return StagePlan(name="logits", done=not known.to_do("logits"), rows=known.rows, usd=0.0)


def _training(known: PlanInputs, name: str, training: Training) -> StagePlan:
    fits = known.fitting(training.max_length)
    usable = round(known.trained_rows * fits.share)
    steps = total_steps(usable, training.epochs, training.global_batch, training.max_steps)
    tokens = steps * training.global_batch * fits.tokens
    way = known.placement_of(training)
    flops = costs.training_flops(known.student, training, way, tokens)
    devices = min(known.ranks, known.machine.devices)
    seconds = costs.start_seconds(known.machine, "train", known.student)
    batch = known.micro_batch_tokens(training, way.micro_batch)
    memory = training_memory(known.student.shape, way, known.ranks, batch, training.lora, half=known.half)
    return StagePlan(
        name=name,
        done=not known.to_do(name),
        rows=usable,
        tokens=round(tokens),
        steps=steps,
        memory_bytes=memory.total + CONTEXT,
        devices=devices,
        hours=(seconds + costs.seconds(known.machine, flops, devices)) / 3600,
    )


def _rounds(known: PlanInputs) -> Iterator[StagePlan]:
    """The student answers, both score its answers, the student learns, and is checked; and kd continued for as long."""
    for name, training in known.trainings.items():
        if number := round_of(name):
            yield _rollout(known, f"rollout_{number}")
            yield from _scorings(known, f"logits_{number}", known.answers)
            yield _scoring(known, f"own_{number}", known.student, known.answers)
        if number or name == CONTINUED:
            yield _training(known, name, training)
        if known.aside and (number or name == "kd"):
            yield _scoring(known, f"validation_scores_{number or 0}", known.student, known.aside)


def _rollout(known: PlanInputs, name: str) -> StagePlan:
    """Answers as long as the rows' own."""
    machine, length = known.machine, round(known.fitting(known.kd.max_length).supervised_tokens)
    parallel = known.rollout_parallel()
    engines = known.answering(known.rounds, parallel)
    seconds = costs.start_seconds(machine, "logits", known.student)
    each = known.answers if machine.is_cpu else math.ceil(known.answers / engines)
    seconds += costs.generation_seconds(machine, known.student, each, length, known.rounds)
    return StagePlan(
        name=name,
        done=not known.to_do(name),
        rows=known.answers,
        tokens=known.answers * length,
        memory_bytes=_shared(
            known, costs.rollout_memory(machine, known.student, known.rounds, known.kd.max_length, parallel)
        ),
        devices=machine.devices if machine.is_cpu else parallel * engines,
        hours=seconds / 3600,
    )


def _quantised(known: PlanInputs, name: str, form: Format) -> StagePlan:
    """On a CPU, whatever the machine: the weights are read, rounded and written, in memory twice."""
    return StagePlan(
        name=name,
        done=not known.to_do(name),
        rows=0,
        memory_bytes=2 * known.weight_width * known.student.parameters,
        hours=costs.quantising_seconds(known.student, form) / 3600,
    )


def _heldout_scores(known: PlanInputs) -> StagePlan:
    """Of the rows that evaluation compares variants on."""
    how = known.evaluation
    fits = known.heldout_lengths.fitting(how.max_length)
    rows = round(min(known.heldout, how.max_rows or known.heldout) * fits.share)
    scoring = known.scoring_of(known.teacher, how.max_length)
    return _scored_rows(known, "heldout_scores", known.teacher, scoring, rows, fits)


def _scorings(known: PlanInputs, stage: str, answers: int | None = None) -> Iterator[StagePlan]:
    """By each teacher."""
    for name, (model, share) in known.scorings(stage).items():
        yield _scoring(known, name, model, answers, share)


def _scoring(known: PlanInputs, name: str, model: Size, answers: int | None = None, share: float = 1.0) -> StagePlan:
    """Of a share of the rows that are trained on, or of so many answers like them."""
    fits = known.fitting(known.scoring.max_length)
    rows = round(share * (known.rows * fits.share if answers is None else answers))
    return _scored_rows(known, name, model, known.scoring_of(model), rows, fits)


def _scored_rows(known: PlanInputs, name: str, model: Size, scoring: Scoring, usable: int, fits: Fitting) -> StagePlan:
    """Every row in one pass of the model, shared out over engines side by side; on a server it takes nothing here."""
    tokens = usable * fits.tokens
    plan = StagePlan(name=name, done=not known.to_do(name), rows=usable, tokens=round(tokens))
    if scoring.is_elsewhere:
        return plan
    engines, on_cpu = known.engines(scoring), known.machine.is_cpu
    devices = known.machine.devices if on_cpu else engines * scoring.gpus_each
    memory = costs.scoring_memory(known.machine, model, scoring) * (engines if on_cpu else 1)
    seconds = costs.start_seconds(known.machine, "logits", model)
    seconds += costs.seconds(known.machine, costs.forward_flops(model, tokens), devices)
    here = {"memory_bytes": _shared(known, memory), "devices": devices, "hours": seconds / 3600}
    return plan.model_copy(update=here)


def _evaluate(known: PlanInputs) -> StagePlan:
    """Every variant scores and answers the held-out rows, and the teacher scores them once for a group of students."""
    how = known.evaluation if known.has_weights else known.evaluation.model_copy(update={"teacher": "topk"})
    fits = known.heldout_lengths.fitting(how.max_length)
    rows = round(min(known.heldout, how.max_rows or known.heldout) * fits.share)
    tokens = rows * fits.tokens
    students, machine = known.students, known.machine
    scored = costs.evaluation(machine, known.student, known.teacher, students, how, fits.long_row)
    flops = students * costs.forward_flops(known.student, tokens)
    flops += scored.passes * costs.forward_flops(known.teacher, tokens)
    computing = machine.devices if machine.is_cpu else 1  # layers on several devices work one after the other
    parallel = [known.evaluation_of(size).tensor_parallel for size in known.roles.values()]
    answering = max(each * known.answering(how, each) for each in parallel)
    largest = known.teacher if scored.passes else known.student
    seconds = costs.start_seconds(machine, "evaluate", largest) + costs.seconds(machine, flops, computing)
    seconds += _generation_seconds(known, rows, how.max_new_tokens, side_by_side=True)
    return StagePlan(
        name="evaluate",
        done=not known.to_do("evaluate"),
        rows=rows,
        tokens=round(known.variants * tokens),
        # the layers of all models are spread over all devices, which work one after the other
        memory_bytes=scored.memory // machine.devices,
        devices=machine.devices if machine.is_cpu else answering,
        hours=seconds / 3600,
    )


def _benchmarks(known: PlanInputs) -> StagePlan:
    """Every variant answers every benchmark's questions, each in an engine of its own."""
    machine, answers = known.machine, known.benchmark_answers
    seconds = known.students * costs.start_seconds(machine, "logits", known.student)
    seconds += costs.start_seconds(machine, "logits", known.teacher)
    seconds += _generation_seconds(known, answers, known.benchmark_tokens)
    return StagePlan(
        name="benchmarks",
        done=not known.to_do("answers"),
        rows=answers,
        tokens=known.variants * answers * known.benchmark_tokens,
        devices=machine.devices if machine.is_cpu else known.evaluation_of(known.teacher).tensor_parallel,
        hours=seconds / 3600,
    )


def _generation_seconds(known: PlanInputs, answers: int, tokens: int, *, side_by_side: bool = False) -> float:
    """Of all variants, one after the other, each by one engine or by as many as answer side by side."""
    models, how = [known.student] * known.students + [known.teacher] * known.has_weights, known.evaluation

    def each(model: Size) -> int:
        if not side_by_side or known.machine.is_cpu:
            return answers
        return math.ceil(answers / known.answering(how, known.evaluation_of(model).tensor_parallel))

    return sum(costs.generation_seconds(known.machine, model, each(model), tokens, how) for model in models)


def _shared(known: PlanInputs, memory: int) -> int:
    """A CPU's one process has what its ranks would share."""
    return memory // known.machine.devices if known.machine.is_cpu else memory
