"""The plan: a run in rows, tokens, memory, hours and money, made from what is known before it.

Maths alone; `flows.plan` finds out what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tasks.plan import costs
from tasks.plan.known import AGENT_TOKENS_S, PlanInputs
from tasks.plan.model import AgentPlan, Plan, Problem
from tasks.plan.stages import stages_of
from tasks.train.memory import checkpoint_bytes
from tasks.train.pace import WRITE_BYTES_S, interval_s
from tasks.train.placement import describe


def make_plan(known: PlanInputs, problems: Callable[[PlanInputs, Plan], Sequence[Problem]]) -> Plan:
    """The plan, and what `problems` finds in it."""
    stages = stages_of(known)
    sft, scored = known.fitting(known.sft.max_length), known.fitting(known.scoring.max_length)
    rows = known.rows * scored.share
    prompts = rows * (scored.tokens - scored.supervised_tokens)
    store = costs.store_bytes(known.teacher, known.k, known.scoring.max_error, rows * scored.supervised_tokens, prompts)
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
        supervised_tokens_per_row=sft.supervised_tokens,
        tokens_per_epoch=round(usable * sft.tokens),
        supervised_tokens_per_epoch=round(usable * sft.supervised_tokens),
        store_bytes=store,
        disk_bytes=_disk(known, store),
        disk_free_bytes=known.disk_free,
        agents=_agents(known),
        judge_requests={name: known.variants * requests for name, requests in known.judge_requests.items()},
        judge_usd_at_most=_judge_usd(known),
        stages=stages,
        chosen=_chosen(known),
        problems=[],
        assumptions=_assumptions(known),
    )
    return plan.model_copy(update={"problems": list(problems(known, plan))})


def _agents(known: PlanInputs) -> list[AgentPlan]:
    """And a teacher behind an API, which is asked as they are."""
    asked = known.teacher_usage if known.to_do("teacher_answers") else None
    if asked is None:
        return _of_agents(known)
    tokens = {"prompt_tokens": asked.prompt_tokens, "completion_tokens": asked.completion_tokens}
    return [
        *_of_agents(known),
        AgentPlan(agent="teacher", requests=asked.requests, **tokens, usd=asked.cost_usd or None),
    ]


def _of_agents(known: PlanInputs) -> list[AgentPlan]:
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


def _judge_usd(known: PlanInputs) -> float | None:
    """What all budgets together allow; None where there is none."""
    if known.judge_budget_usd is None or not known.judge_requests:
        return None
    return known.variants * len(known.judge_requests) * known.judge_budget_usd


def _disk(known: PlanInputs, store: int) -> int:
    """What is still to be written: with our own S3 the store, models and kept checkpoints, and always a scratch one.

    Checkpoints stay beside each of the trainings' models.
    """
    to_do = [training for name, training in known.trainings.items() if known.to_do(name)]
    scratch = max((checkpoint_bytes(known.student.parameters, training.lora) for training in to_do), default=0)
    rounds = sum(_to_score(known, f"logits_{number}") for number in range(1, known.rounds.rounds + 1))
    # the teacher's scores of the answers and the student's own: not less, and as many rows of them
    stores = store * (_to_score(known, "logits") + 2 * rounds * known.answers / max(known.rows, 1))
    if not known.stores_here:
        return scratch
    kept = sum(
        known.run.checkpoints_kept * checkpoint_bytes(known.student.parameters, training.lora) for training in to_do
    )
    models = len(to_do) * known.weight_width * known.student.parameters
    quantised = sum(
        costs.quantised_bytes(known.student, form, known.weight_width)
        for name, form in known.quantise.names.items()
        if known.to_do(name)
    )
    return round(stores) + models + quantised + kept + scratch


def _to_score(known: PlanInputs, stage: str) -> float:
    """Share of its rows that are not scored yet."""
    return sum(share for name, (_size, share) in known.scorings(stage).items() if known.to_do(name))


def _chosen(known: PlanInputs) -> list[str]:
    """What nobody set and the run will choose, in the names of the settings."""
    said = []
    if "auto" in (known.run.zero_stage, known.run.offload, known.run.micro_batch, known.run.gradient_checkpointing):
        trainings = [("sft", known.sft), ("kd", known.kd)]
        said += [f"{name} {describe(known.placement_of(how))}" for name, how in trainings if known.to_do(name)]
    if known.machine.is_cpu:
        return said
    loads = known.has_weights and not known.scoring.is_elsewhere
    if loads and not known.scoring.tensor_parallel and known.to_do("logits"):
        said.append(f"scoring.tensor_parallel {known.scoring_of(known.teacher).tensor_parallel}")
    if not known.evaluation.tensor_parallel and known.evaluation.engine == "vllm" and known.to_do("evaluate"):
        by_role = [f"{known.evaluation_of(size).tensor_parallel} ({role})" for role, size in known.roles.items()]
        said.append(f"evaluation.tensor_parallel {', '.join(by_role)}")
    return said


def _assumptions(known: PlanInputs) -> list[str]:
    machine = known.machine
    said = [f"{machine.utilisation:.0%} of a device's {machine.tflops:,.3g} TFLOP/s are used (hardware.utilisation)"]
    if known.rows_at_most:
        said.append("the agents reject nothing")
    if known.agents is not None and known.to_do("augment") and not known.agents_are_free:
        said.append(f"their LLM writes {AGENT_TOKENS_S:.0f} tokens a second to each request")
        if known.augmentation.batch:
            said.append("they are asked in batches, and how long a provider lets each wait is not in the hours")
    if known.lengths.guessed:
        said.append("a token has 4 bytes of text (the student's tokenizer was not reached)")
    if tabled := [role for role, size in known.roles.items() if size.from_table]:
        said.append(f"{' and '.join(tabled)} are as large as in the built-in table of Qwen2.5")
    trainings = [training for name, training in (("sft", known.sft), ("kd", known.kd)) if known.to_do(name)]
    if trainings:
        held = max(checkpoint_bytes(known.student.parameters, training.lora) for training in trainings)
        pause = interval_s(held / WRITE_BYTES_S, known.run.checkpoint_every_s)
        said.append(
            f"a checkpoint holds {held / 1e9:,.3g} GB and is written every {pause:,.0f} s (until its cost is measured; "
            f"a disk takes {WRITE_BYTES_S / 1e9:.0f} GB/s): a kill costs at most that time"
        )
    if known.scoring.is_elsewhere:
        said.append("the teacher scores on a server of its own, whose hours and money are not in it")
    if known.rounds.rounds:
        said.append("the student's answers are as long as the rows' own")
        if known.rounds.least_agreement or known.aside:
            said.append(f"all {known.rounds.rounds} rounds are done, which end early where they do not help")
    if known.harness:
        said.append("lm-eval's tasks are not in it")
    said.append("memory is good to about a fifth, hours to a factor of two")
    return said
