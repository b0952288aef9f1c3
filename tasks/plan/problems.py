"""What would go wrong, in the order in which it would: sentences that say what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.engines.memory import CONTEXT
from tasks.engines.sizes import Size
from tasks.logits.parallel import NOT_ON_A_CPU
from tasks.plan import costs
from tasks.plan.known import PlanInputs
from tasks.plan.model import Plan, Problem, StagePlan
from tasks.train.memory import advice

_GIB = 2**30
_IDLE_HOURS = 1.0
_LONG_ON_A_CPU = 24.0


def find(known: PlanInputs, plan: Plan) -> list[Problem]:
    """Those of the settings, the data, the money, the disk and the devices; what stops the run comes first."""
    found = [
        *_of_settings(known),
        *_of_rows(known),
        *_of_money(known),
        *_of_disk(plan),
        *_of_memory(known, plan),
        *_of_no_gpu(known, plan),
        *_of_idle_devices(known, plan),
    ]
    return sorted(found, key=lambda problem: not problem.stops)


def _of_settings(known: PlanInputs) -> Iterator[Problem]:
    for of, teacher in (("", known.teacher), *((f" of {other.categories}", other.size) for other in known.others)):
        if known.has_weights and teacher.parameters <= known.student.parameters:
            yield _warning(
                f"the teacher{of} ({_billions(teacher.parameters)}) is no larger than the student "
                f"({_billions(known.student.parameters)}): choose a larger teacher"
            )
    if not known.machine.is_cpu and known.ranks > known.machine.devices:
        yield _stop(f"run.processes asks for {known.ranks} ranks and there are {known.machine.devices} devices")
    if not known.machine.is_cpu and not known.half:
        yield _warning("run.precision=fp32 takes several times the hours of training, which are planned for bf16")
    for name, training in (("sft", known.sft), ("kd", known.kd)):
        rows = known.run.micro_batch
        if known.to_do(name) and rows != "auto" and rows * known.ranks > training.global_batch:
            yield _warning(
                f"{known.ranks} ranks × run.micro_batch {rows} is more than {name}.global_batch "
                f"{training.global_batch}: a rank gets {-(-training.global_batch // known.ranks)} rows at once"
                + (", some get none" if known.ranks > training.global_batch else "")
            )
    if known.has_weights and known.to_do("logits"):
        yield from _of_parts_on_a_cpu(known) if known.machine.is_cpu else _of_tensor_parallel(known)


def _of_parts_on_a_cpu(known: PlanInputs) -> Iterator[Problem]:
    if (parts := known.scoring.pipeline_parallel) > 1:
        yield _stop(f"scoring.pipeline_parallel is {parts}, and {NOT_ON_A_CPU}")


def _of_tensor_parallel(known: PlanInputs) -> Iterator[Problem]:
    devices = known.machine.devices
    others = {f"teacher of {other.categories}": other.size for other in known.others}
    asked = [("scoring", known.scoring.tensor_parallel, {"teacher": known.teacher, **others})]
    if known.evaluation.engine == "vllm":
        asked.append(("evaluation", known.evaluation.tensor_parallel, known.roles))
    for setting, parallel, models in asked:
        if parallel > devices:
            yield _stop(f"{setting}.tensor_parallel is {parallel} and there are {devices} devices")
            continue
        for role, size in models.items():
            if parallel and not size.splits_over(parallel):
                fit = [n for n in range(1, devices + 1) if all(of.splits_over(n) for of in models.values())]
                yield _stop(
                    f"{setting}.tensor_parallel {parallel} does not divide the {role}'s {size.heads} attention heads "
                    f"and {size.kv_heads} key/value heads: use {_one_of(fit)}"
                )
    scoring = known.scoring_of(known.teacher)
    if scoring.is_elsewhere:
        return
    if scoring.gpus_each > devices >= scoring.tensor_parallel:
        yield _stop(
            f"scoring.pipeline_parallel {scoring.pipeline_parallel} × tensor_parallel {scoring.tensor_parallel} are "
            f"{scoring.gpus_each} devices for one teacher, and there are {devices}"
        )
    elif scoring.engines > (fit_at_once := known.engines_that_fit(scoring)) and scoring.gpus_each <= devices:
        yield _stop(
            f"scoring.engines is {scoring.engines}, each on {scoring.gpus_each} of {devices} devices: "
            f"at most {fit_at_once} fit (0 takes as many as fit)"
        )


def _of_rows(known: PlanInputs) -> Iterator[Problem]:
    limits = [("sft", known.sft.max_length), ("scoring", known.scoring.max_length), ("kd", known.kd.max_length)]
    for limit in sorted({limit for _name, limit in limits}):
        names = ", ".join(f"{name}.max_length" for name, its in limits if its == limit)
        yield from _left_out("rows", known.lengths.fitting(limit).share, limit, names)
    limit = known.evaluation.max_length
    yield from _left_out("held-out rows", known.heldout_lengths.fitting(limit).share, limit, "evaluation.max_length")


def _left_out(rows: str, share: float, limit: int, names: str) -> Iterator[Problem]:
    if share == 0.0:
        yield _stop(f"none of the {rows} has less than {limit:,} tokens: raise {names}")
    elif share < 1.0:
        yield _warning(f"{1 - share:.1%} of the {rows} are longer than {limit:,} tokens and left out: raise {names}")


def _of_money(known: PlanInputs) -> Iterator[Problem]:
    yield from _of_api_teacher(known)
    found, budget = known.agents, known.augmentation.budget_usd
    if found is None or known.agents_are_free or not known.to_do("augment"):
        return
    if not known.agents_price_known:
        text = "LiteLLM knows no price of the agents' model: set augmentation.usd_per_million_tokens"
        yield _stop(text) if budget is not None else _warning(text)
    elif budget is not None and found.total.cost_usd > budget:
        yield _warning(
            f"the agents cost about ${found.total.cost_usd:,.2f} and augmentation.budget_usd is ${budget:,.2f}, which "
            f"reaches about {budget / found.total.cost_usd:.0%} of the seeds"
        )


def _of_api_teacher(known: PlanInputs) -> Iterator[Problem]:
    used, budget = known.teacher_usage, known.scoring.api.budget_usd
    if used is None or not known.to_do("teacher_answers"):
        return
    if not used.cost_usd:
        yield _warning("LiteLLM knows no price of the teacher: set scoring.api.usd_per_million_tokens")
    elif budget is not None and used.cost_usd > budget:
        yield _warning(
            f"the teacher's answers cost about ${used.cost_usd:,.2f} and scoring.api.budget_usd is ${budget:,.2f}, "
            f"which reaches about {budget / used.cost_usd:.0%} of the rows"
        )


def _of_disk(plan: Plan) -> Iterator[Problem]:
    if plan.disk_bytes > plan.disk_free_bytes:
        yield _stop(
            f"scores, models and checkpoints take about {plan.disk_bytes / _GIB:,.0f} GiB under DISTILFLOW_HOME, where "
            f"{plan.disk_free_bytes / _GIB:,.0f} GiB are free: point it at a larger disk, or AWS_ENDPOINT_URL_S3 at "
            "a storage elsewhere"
        )


def _of_memory(known: PlanInputs, plan: Plan) -> Iterator[Problem]:
    device = f"{known.machine.memory / _GIB:.0f} GiB"
    trainings = known.trainings
    said: dict[str, list[str]] = {}
    for stage in _too_large(plan, plan.memory_bytes):
        if stage.name in trainings:
            way = known.placement_of(trainings[stage.name])
            tokens = known.micro_batch_tokens(trainings[stage.name], way.micro_batch)
            lora = trainings[stage.name].lora
            text = advice(known.student.shape, way, known.ranks, tokens, lora, half=known.half)
            said.setdefault(text, []).append(stage.name)
    for text, names in said.items():
        yield _stop(f"{', '.join(names)}: out of memory on devices of {device}: {text}")
    scorings = known.scorings("logits")
    for stage in _too_large(plan, int(plan.memory_bytes * known.scoring.gpu_memory)):
        if stage.name in scorings:
            how = _for_scoring(known, scorings[stage.name][0])
            yield _stop(f"{stage.name}: {_needs(stage)}, more than vLLM may take of {device}: {how}")
    if known.to_do("evaluate") and known.evaluation.engine == "vllm" and not known.machine.is_cpu:
        yield from _of_generation(known, device)
    room = plan.memory_bytes * known.machine.devices
    for stage in _too_large(plan, plan.memory_bytes):
        if stage.name == "evaluate":
            yield _stop(
                f"evaluate: {_needs(stage)} a device for student and teacher on {known.machine.devices} of {device}: "
                + ("lower evaluation.batch_rows" if _weights(known) < room else _for_comparing(known))
            )


def _of_generation(known: PlanInputs, device: str) -> Iterator[Problem]:
    """Every variant answers in vLLM; the teacher is the largest."""
    how, room = known.evaluation_of(known.teacher), known.machine.memory * known.evaluation.gpu_memory
    takes = costs.generation_memory(known.machine, known.teacher, how)
    if takes <= room:
        return
    for parallel in range(how.tensor_parallel + 1, known.machine.devices + 1):
        other = how.model_copy(update={"tensor_parallel": parallel})
        if known.teacher.splits_over(parallel) and costs.generation_memory(known.machine, known.teacher, other) <= room:
            advice = f"set evaluation.tensor_parallel to {parallel}"
            break
    else:
        advice = "use more or larger devices, or a smaller teacher"
    yield _stop(f"evaluate: the teacher takes {takes / _GIB:,.0f} GiB, more than vLLM may take of {device}: {advice}")


def _for_comparing(known: PlanInputs) -> str:
    """What makes the models of an evaluation fit."""
    other = "" if known.evaluation.teacher == "topk" else ", or set evaluation.teacher to topk"
    return f"use more or larger devices{other}"


def _for_scoring(known: PlanInputs, teacher: Size) -> str:
    """What makes the teacher fit."""
    room = known.machine.memory * known.scoring.gpu_memory
    how = known.scoring_of(teacher)
    for parallel in range(how.tensor_parallel + 1, known.machine.devices + 1):
        other = how.model_copy(update={"tensor_parallel": parallel})
        if teacher.splits_over(parallel) and costs.scoring_memory(known.machine, teacher, other) <= room:
            return f"set scoring.tensor_parallel to {parallel}"
    return "use more or larger devices, or a smaller teacher"


def _of_no_gpu(known: PlanInputs, plan: Plan) -> Iterator[Problem]:
    if known.machine.is_cpu and plan.hours > _LONG_ON_A_CPU:
        yield _warning("this is a plan for a CPU: plan for GPUs with hardware.device and hardware.devices (8 × H100)")


def _of_idle_devices(known: PlanInputs, plan: Plan) -> Iterator[Problem]:
    scoring = known.scoring_of(known.teacher)
    for stage in plan.stages:
        idle = known.machine.devices - (stage.devices or known.machine.devices)
        if stage.name in ("logits", "evaluate") and idle > 0 and stage.hours > _IDLE_HOURS:
            too_few = stage.name == "logits" and known.engines(scoring) < known.engines_that_fit(scoring)
            more = ": set scoring.engines to 0" if too_few else ""
            yield _warning(
                f"{stage.name} leaves {idle} of {known.machine.devices} devices idle for {stage.hours:,.1f} hours{more}"
            )


def _too_large(plan: Plan, memory: int) -> Iterator[StagePlan]:
    return (s for s in plan.stages if not s.done and s.memory_bytes is not None and s.memory_bytes > memory)


def _weights(known: PlanInputs) -> int:
    width = costs.weight_bytes(known.machine, known.evaluation.dtype)
    teacher = known.teacher.weights(width) if known.evaluation.teacher == "full" else 0
    return int(known.student.weights(width) + teacher) + CONTEXT


def _needs(stage: StagePlan) -> str:
    return f"takes about {(stage.memory_bytes or 0) / _GIB:,.0f} GiB"


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} billion parameters" if parameters >= 1e7 else f"{parameters / 1e6:.1f} million"


def _one_of(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def _stop(text: str) -> Problem:
    return Problem(stops=True, text=text)


def _warning(text: str) -> Problem:
    return Problem(stops=False, text=text)
