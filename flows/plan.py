"""What a run will take and what will go wrong, before anything is spent: `distill(..., plan_only=True)`.

Asks no LLM, trains nothing, and leaves nothing in storage but the seeds. Where the hub, a key or a server is
missing, a plan still comes out, with what is known, and says what is missing.
"""

from __future__ import annotations

import dataclasses
import shutil
from urllib.parse import urlparse

from flows.benchmarks import check_benchmarks
from flows.params import Preset
from flows.preflight import check_models, check_settings
from infra import settings
from infra.errors import ConfigurationError, DistilflowError, disk_full
from infra.store import storage
from infra.store.artifacts import ArtifactRef
from tasks.augment import stage as augment
from tasks.augment.estimate import Estimate, estimate, sampled
from tasks.augment.settings import Augmentation
from tasks.demo import endpoint as demo
from tasks.evaluate import stage as evaluate
from tasks.evaluate.benchmarks import artifacts
from tasks.evaluate.benchmarks import stage as answers_stage
from tasks.llm.litellm_pool import Deployment
from tasks.logits import stage as logits
from tasks.models import ModelSource, load_tokenizer, resolve
from tasks.plan.hardware import Hardware, machine
from tasks.plan.known import Known
from tasks.plan.lengths import Lengths, guessed, measured
from tasks.plan.model import Plan, Problem
from tasks.plan.plan import make_plan
from tasks.plan.problems import find
from tasks.plan.sizes import size_of
from tasks.plan.task import publish_plan
from tasks.rows import HELDOUT, KEPT, TRAIN, Row, read_rows
from tasks.seeds.stage import Sources
from tasks.seeds.task import load_seeds
from tasks.train import stage as train

_SAMPLE = 1000
_REHEARSED = 100
_NO_KEY = "none"  # a rehearsal sends nothing, so no key is needed to know prices and tokens
_HERE = {"127.0.0.1", "localhost", "::1"}


def plan(
    student: str,
    teacher: str,
    sources: Sources,
    k: int,
    agent_model: str,
    heldout_share: float,
    seed: int,
    preset: Preset,
    hardware: Hardware,
    judge_model: str,
) -> Plan:
    """The plan of the run that the same parameters would start, published among the run's artifacts.

    Raises ConfigurationError for data that cannot be read, and for a model whose size nobody knows.
    """
    problems: list[Problem] = []
    base, teacher_model = _resolved(student, "student", problems), _resolved(teacher, "teacher", problems)
    student_size, teacher_size = size_of(student, base), size_of(teacher, teacher_model)
    _check(base, teacher_model, preset, problems)
    storage.ensure_bucket()
    options = preset.augment
    data = load_seeds(sources, heldout_share, response_required=not options.enabled)
    done = _done(data, base, teacher_model, k, seed, agent_model, preset)
    agents = None
    if options.enabled and "augment" not in done:
        agents = _rehearsed(data, options, agent_model, problems)
    examples = _examples(data, done.get("augment"), agents)
    free = shutil.disk_usage(settings.home()).free
    if free < settings.min_free_mib() * 2**20:
        problems.append(Problem(stops=True, text=str(disk_full(settings.home()))))
    answers, judged = _benchmarks(preset, judge_model, data.counts["heldout"], problems)
    known = Known(
        title=f"{student} distilled from {teacher}",
        student=student_size,
        teacher=teacher_size,
        augmentation=options,
        sft=preset.sft,
        scoring=preset.scoring,
        kd=preset.kd,
        evaluation=preset.evaluation,
        run=preset.run,
        k=k,
        machine=machine(hardware, preset.run.processes),
        seeds=data.counts["seeds"],
        heldout=data.counts["heldout"],
        rows=_rows(data, options, done.get("augment"), agents),
        rows_at_most=options.enabled and "augment" not in done,
        lengths=_lengths(examples, base),
        heldout_lengths=_lengths(sampled(read_rows(data, HELDOUT), _SAMPLE), base),
        agents=agents,
        agents_are_free=agent_model == "demo",
        done=done,
        disk_free=free,
        stores_here=urlparse(settings.s3_endpoint() or "").hostname in _HERE,
        judge_requests=judged,
        judge_budget_usd=preset.judging.budget_usd,
        benchmark_answers=answers,
        benchmark_tokens=preset.benchmarks.max_new_tokens,
        harness=bool(preset.benchmarks.harness),
    )
    made = make_plan(known, lambda known, plan: [*problems, *find(known, plan)])
    publish_plan(made)
    return made


def _resolved(name: str, role: str, problems: list[Problem]) -> ModelSource | None:
    """The model; None, and a problem, where it cannot be reached."""
    try:
        return resolve(name, role)
    except ConfigurationError as error:
        problems.append(Problem(stops=True, text=str(error)))
        return None


def _check(base: ModelSource | None, teacher: ModelSource | None, preset: Preset, problems: list[Problem]) -> None:
    """What a run would refuse at its start."""
    try:
        check_settings(preset.kd)
    except ConfigurationError as error:
        problems.append(Problem(stops=True, text=str(error)))
    if base is not None and teacher is not None:
        wrong, remarks = check_models(base, teacher, preset.kd)
        problems.extend(Problem(stops=True, text=text) for text in wrong)
        problems.extend(Problem(stops=False, text=text) for text in remarks)


def _done(
    data: ArtifactRef,
    base: ModelSource | None,
    teacher: ModelSource | None,
    k: int,
    seed: int,
    agent_model: str,
    preset: Preset,
) -> dict[str, ArtifactRef]:
    """The stages whose records exist, found as the run itself would find them."""
    done: dict[str, ArtifactRef] = {}
    if (rows := augment.workspace(data, preset.augment, agent_model).find()) is None:
        return done
    done["augment"] = rows
    if teacher and (topk := logits.workspace(rows, teacher, k, preset.scoring).find()):
        done["logits"] = topk
    if base is None or (tuned := train.workspace("sft", base, rows, preset.sft, seed).find()) is None:
        return done
    done["sft"] = tuned
    start = ModelSource(name="sft", artifact=tuned)
    if control := train.workspace("sft_control", start, rows, preset.kd.training(), seed).find():
        done["sft_control"] = control
    if "logits" in done and (distilled := train.workspace("kd", start, done["logits"], preset.kd, seed).find()):
        done["kd"] = distilled
    if teacher and {"sft_control", "kd"} <= done.keys():
        trained = [ModelSource(name=name, artifact=done[name]) for name in ("sft_control", "kd")]
        models = [base, start, *trained, teacher]
        found = [evaluate.workspace(model, teacher, data, preset.evaluation).find() for model in models]
        if all(found) and found[0]:
            done["evaluate"] = found[0]
        if answers := _answered(models, preset):
            done["benchmarks"] = answers
    return done


def _answered(models: list[ModelSource], preset: Preset) -> ArtifactRef | None:
    """The first of all variants' answers to all benchmarks; None where one is missing, or a benchmark's data."""
    named = {str(place): model for place, model in enumerate(models)}  # two models may have one name
    try:
        works = answers_stage.workspaces(named, preset.benchmarks, preset.evaluation).values()
    except DistilflowError:  # which `_benchmarks` tells
        return None
    found = [work.find() for work in works]
    return found[0] if found and all(found) else None


def _rehearsed(data: ArtifactRef, options: Augmentation, agent_model: str, problems: list[Problem]) -> Estimate | None:
    """What the agents will be asked: without a key or a server too, as far as that goes."""
    if agent_model == "demo":
        return estimate(data, options, Deployment(demo.MODEL, None, _NO_KEY), sample=_REHEARSED)
    endpoint = Deployment(agent_model, options.api_base)
    try:
        return estimate(data, options, endpoint, sample=_REHEARSED)
    except DistilflowError as error:
        problems.append(Problem(stops=True, text=str(error)))
    try:
        nobody = dataclasses.replace(endpoint, api_base=None, api_key=_NO_KEY)
        return estimate(data, options, nobody, sample=_REHEARSED)
    except DistilflowError:  # no model name at all, or a route without a key: that was said already
        return None


def _benchmarks(preset: Preset, judge_model: str, heldout: int, problems: list[Problem]) -> tuple[int, dict[str, int]]:
    """What each variant and its judge are asked; nothing, and a problem, where the benchmarks cannot run."""
    try:
        check_benchmarks(preset.benchmarks, judge_model)
        rows = min(heldout, preset.evaluation.max_rows or heldout)
        return artifacts.turns(preset.benchmarks), artifacts.judge_requests(preset.benchmarks, rows)
    except DistilflowError as error:
        problems.append(Problem(stops=True, text=str(error)))
        return 0, {}


def _rows(data: ArtifactRef, options: Augmentation, rows: ArtifactRef | None, agents: Estimate | None) -> int:
    """Training rows: counted where they exist, else the most that there can be."""
    if rows is not None:
        return rows.counts["rows"]
    seeds = data.counts["seeds"]
    if not options.enabled:
        return seeds
    most = agents.rows if agents else seeds * (1 + options.expansions_per_seed)
    return most if options.max_rows is None else min(most, options.max_rows)


def _examples(data: ArtifactRef, rows: ArtifactRef | None, agents: Estimate | None) -> list[Row]:
    """Rows like those that will be trained on."""
    if rows is not None:
        return sampled(read_rows(rows, KEPT), _SAMPLE)
    return list(agents.examples) if agents else sampled(read_rows(data, TRAIN), _SAMPLE)


def _lengths(rows: list[Row], student: ModelSource | None) -> Lengths:
    return guessed(rows) if student is None else measured(rows, load_tokenizer(student))
