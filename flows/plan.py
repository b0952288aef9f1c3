"""What a run will take and what will go wrong, before anything is spent: `distill(..., plan_only=True)`.

Asks no LLM, trains nothing, and leaves nothing in storage but the seeds. Where the hub, a key or a server is
missing, a plan still comes out, with what is known, and says what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections import Counter
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlparse

import prefect.runtime
from prefect import flow

from flows.checks import check_benchmarks, check_routes, check_run, check_tools
from flows.pipeline import Nothing, load_seeds, pipeline
from flows.recipe import Recipe
from infra import settings
from infra.errors import ConfigurationError, DistilflowError, disk_full
from infra.orchestration.names import run_name
from infra.orchestration.run import Stages
from infra.orchestration.view import publish_markdown, publish_table
from infra.stage import Stage
from infra.store import storage
from infra.store.artifacts import ArtifactRef
from tasks.augment.estimate import Estimate, estimate, sampled
from tasks.augment.settings import Augmentation
from tasks.engines.sizes import Size
from tasks.evaluate.benchmarks import artifacts
from tasks.llm.budget import Usage
from tasks.llm.protocol import LLMEndpoint
from tasks.logits.api.estimate import usage_of
from tasks.models import ModelSource, load_tokenizer, resolve
from tasks.plan.hardware import Hardware, machine
from tasks.plan.known import OtherTeacher, PlanInputs
from tasks.plan.lengths import Lengths, guessed, measured
from tasks.plan.model import Plan, Problem
from tasks.plan.plan import make_plan
from tasks.plan.problems import find
from tasks.plan.sizes import size_of
from tasks.plan.view import plan_markdown, stage_rows
from tasks.rollout.checks import STOPS
from tasks.rollout.settings import Rounds
from tasks.rows import HELDOUT, KEPT, TRAIN, Row, Turns, read_rows
from tasks.shipped import LLMS

R = TypeVar("R")
_SAMPLE = 1000
_REHEARSED = 100
_NO_KEY = "none"  # a rehearsal sends nothing, so no key is needed to know prices and tokens
_HERE = {"127.0.0.1", "localhost", "::1"}


class Finder:
    """Looks stages up instead of running them; `found` holds the artifacts of those that are finished, by title."""

    def __init__(self) -> None:
        self.found: dict[str, ArtifactRef] = {}

    def find(self, stage: Stage[R]) -> R:
        """Its artifacts; references to nothing for those that are not there, from which nothing is made yet either."""
        with contextlib.suppress(DistilflowError):  # a model or data that cannot be reached: said among the problems
            works = stage.workspaces()
            refs = {name: work.find() or ArtifactRef.missing(work) for name, work in works.items()}
            if refs and all(ref.exists for ref in refs.values()):
                self.found[stage.title] = next(iter(refs.values()))
            return stage.result(refs)
        return stage.result(Nothing())


def _run_name() -> str:
    recipe = prefect.runtime.flow_run.parameters["recipe"]
    return run_name(f"plan {recipe.student}-from-{recipe.teacher}-k{recipe.k}")


@flow(name="plan", flow_run_name=_run_name, retries=0, validate_parameters=False)
def plan(recipe: Recipe, hardware: Hardware) -> Plan:
    """The plan of the run that the same parameters would start, published among the run's artifacts.

    Raises ConfigurationError for data that cannot be read, and for a model whose size nobody knows.
    """
    problems: list[Problem] = []
    planned_for = machine(hardware, recipe.settings.run.processes)
    by_api = recipe.settings.scoring.engine == "api"
    base = _resolved(recipe.student, "student", problems)
    named = () if by_api else (recipe.teacher, *recipe.routes)
    teachers = {name: _resolved(name, "teacher", problems) for name in named}
    student_size, sizes = size_of(recipe.student, base), {name: size_of(name, teachers[name]) for name in teachers}
    here = hardware.device == "here"
    problems += _problems(*check_run(recipe, base, teachers, on_gpu=not planned_for.is_cpu, here=here))
    storage.ensure_bucket()
    seeds = Stages().run(load_seeds(recipe))
    problems += _problems(check_routes(seeds, recipe))
    if base is not None:
        scorers = [scorer for scorer in teachers.values() if scorer]
        if scorers or by_api:
            problems += _problems(*check_tools(seeds, base, *scorers))
    finder = Finder()
    unreached = {name: scorer or _unreached("teacher") for name, scorer in teachers.items()}
    first = unreached.pop(recipe.teacher, None)
    pipeline(finder.find, recipe, base or _unreached("student"), first, unreached)
    done, options = finder.found, recipe.settings.augmentation
    agents = None
    if options.enabled and "augment" not in done:
        agents = _rehearsed(seeds, options, recipe.agent_model, problems)
    examples = _examples(seeds, done.get("augment"), agents)
    rows = _rows(seeds, options, done.get("augment"), agents)
    free = shutil.disk_usage(settings.home()).free
    if free < settings.min_free_mib() * 2**20:
        problems.append(Problem(stops=True, text=str(disk_full(settings.home()))))
    answers, judged = _benchmarks(recipe, seeds.counts["heldout"], problems)
    how = recipe.settings
    known = PlanInputs(
        title=recipe.title,
        student=student_size,
        teacher=student_size if by_api else sizes[recipe.teacher],
        augmentation=options,
        sft=how.sft,
        scoring=how.scoring,
        kd=how.kd,
        order=recipe.order,
        evaluation=how.evaluation,
        teacher_usage=_of_api_teacher(examples, rows, recipe, problems) if by_api else None,
        run=how.run,
        k=how.scoring.stored(recipe.k),
        machine=planned_for,
        seeds=seeds.counts["seeds"],
        heldout=seeds.counts["heldout"],
        rows=rows,
        rows_at_most=options.enabled and "augment" not in done,
        lengths=_lengths(examples, base, recipe.turns),
        heldout_lengths=_lengths(sampled(read_rows(seeds, HELDOUT), _SAMPLE), base, "last"),
        agents=agents,
        agents_are_free=recipe.agent_model in LLMS,
        done=done,
        disk_free=free,
        stores_here=urlparse(settings.s3_endpoint() or "").hostname in _HERE,
        judge_requests=judged,
        judge_budget_usd=how.judging.budget_usd,
        benchmark_answers=answers,
        benchmark_tokens=how.benchmarks.max_new_tokens,
        harness=bool(how.benchmarks.harness),
        keep=how.fit.keep,
        rounds=_that_will_be(how.rounds, done),
        quantise=how.quantise,
        others=_others(recipe, sizes, examples),
    )
    said = list(dict.fromkeys(problems))
    made = make_plan(known, lambda known, plan: [*said, *find(known, plan)])
    publish_table("plan", [dict(row) for row in stage_rows(made)], made.title)
    publish_markdown("plan-summary", plan_markdown(made), made.title)
    return made


def _that_will_be(rounds: Rounds, done: Mapping[str, ArtifactRef]) -> Rounds:
    """As many as asked for, unless a finished check of `done` (overlap_1, validation_2, …) has ended them."""
    for title, ref in done.items():
        if ref.counts.get(STOPS):
            what, _, number = title.rpartition("_")
            return rounds.model_copy(update={"rounds": int(number) - (what == "overlap")})
    return rounds


def _problems(wrong: list[str], remarks: list[str] | None = None) -> list[Problem]:
    stops = [Problem(stops=True, text=text) for text in wrong]
    return stops + [Problem(stops=False, text=text) for text in remarks or ()]


def _others(recipe: Recipe, sizes: Mapping[str, Size], examples: list[Row]) -> tuple[OtherTeacher, ...]:
    """The teachers of some task categories, by the rows that have these, as far as they are named."""
    rows = Counter(row.task_category for row in examples)
    shares = {name: sum(rows[one] for one in named) / max(len(examples), 1) for name, named in recipe.routes.items()}
    return tuple(OtherTeacher(", ".join(named), sizes[name], shares[name]) for name, named in recipe.routes.items())


def _resolved(name: str, role: str, problems: list[Problem]) -> ModelSource | None:
    """The model; None, and a problem, where it cannot be reached."""
    try:
        return resolve(name, role)
    except ConfigurationError as error:
        problems.append(Problem(stops=True, text=str(error)))
        return None


def _unreached(role: str) -> ModelSource:
    """In place of a model that cannot be reached: nothing is made from it."""
    return ModelSource(name=role, artifact=Nothing()[role])


def _rehearsed(data: ArtifactRef, options: Augmentation, agent_model: str, problems: list[Problem]) -> Estimate | None:
    """What the agents will be asked: without a key or a server too, as far as that goes."""
    if agent_model in LLMS:
        return estimate(data, options, LLMEndpoint(LLMS[agent_model].model, None, _NO_KEY), sample=_REHEARSED)
    endpoint = LLMEndpoint(agent_model, options.api_base)
    try:
        return estimate(data, options, endpoint, sample=_REHEARSED)
    except DistilflowError as error:
        problems.append(Problem(stops=True, text=str(error)))
    try:
        nobody = dataclasses.replace(endpoint, api_base=None, api_key=_NO_KEY)
        return estimate(data, options, nobody, sample=_REHEARSED)
    except DistilflowError:  # no model name at all, or a route without a key: that was said already
        return None


def _of_api_teacher(examples: list[Row], rows: int, recipe: Recipe, problems: list[Problem]) -> Usage | None:
    """What a teacher behind an API will be asked; None, and a problem, for one that LiteLLM does not know."""
    calls = recipe.settings.scoring.api
    try:
        return usage_of(examples, rows, calls, LLMEndpoint(recipe.teacher, calls.api_base, _NO_KEY))
    except DistilflowError as error:
        problems.append(Problem(stops=True, text=str(error)))
        return None


def _benchmarks(recipe: Recipe, heldout: int, problems: list[Problem]) -> tuple[int, dict[str, int]]:
    """What each variant and its judge are asked; nothing, and a problem, where the benchmarks cannot run."""
    asked = recipe.settings.benchmarks
    try:
        check_benchmarks(recipe)
        rows = min(heldout, recipe.settings.evaluation.max_rows or heldout)
        return artifacts.turns(asked), artifacts.judge_requests(asked, rows)
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


def _lengths(rows: list[Row], student: ModelSource | None, turns: Turns) -> Lengths:
    return guessed(rows, turns) if student is None else measured(rows, load_tokenizer(student), turns)
