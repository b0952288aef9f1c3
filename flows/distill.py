"""One student, the whole pipeline: seeds → augment → sft → logits → kd → evaluate → report."""

from __future__ import annotations

import time
from typing import Annotated

import prefect.runtime
from prefect import flow
from pydantic import Field

from flows.benchmarks import benchmark_settings, benchmarked
from flows.outcome import Outcome, publish_latest
from flows.params import OfPreset, Preset, Student, Teacher, preset_for, with_preset
from flows.plan import plan
from flows.preflight import check
from flows.reproduce import command
from flows.stage import placed
from infra.orchestration.names import run_name
from infra.orchestration.remote_run import answers
from tasks.augment.settings import Augmentation
from tasks.augment.task import augment
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging
from tasks.evaluate.settings import Evaluation
from tasks.evaluate.task import evaluate
from tasks.logits.settings import Scoring
from tasks.logits.task import score_logits
from tasks.models import ModelSource
from tasks.plan.hardware import Hardware
from tasks.plan.model import Plan
from tasks.report.task import report
from tasks.seeds.stage import Sources
from tasks.seeds.task import load_seeds
from tasks.train.settings import Distillation, Training, TrainingRun
from tasks.train.task import train


def _run_name() -> str:
    return run_name("{student}-from-{teacher}-k{k}".format(**prefect.runtime.flow_run.parameters))


@flow(name="distill", flow_run_name=_run_name, retries=0, validate_parameters=True)
@answers
def distill(
    student: Student = "demo",
    teacher: Teacher = "demo",
    seeds: str = "demo",
    k: Annotated[int, Field(ge=1, le=256)] = 10,
    agent_model: str = "demo",
    heldout: str | None = None,
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    databases: str | None = None,
    seed: Annotated[int, Field(ge=0)] = 0,
    augmentation: Annotated[Augmentation | None, OfPreset("augment")] = None,
    sft: Annotated[Training | None, OfPreset("sft")] = None,
    scoring: Annotated[Scoring | None, OfPreset("scoring")] = None,
    kd: Annotated[Distillation | None, OfPreset("kd")] = None,
    evaluation: Annotated[Evaluation | None, OfPreset("evaluation")] = None,
    run: Annotated[TrainingRun | None, OfPreset("run")] = None,
    benchmarks: Annotated[Benchmarks | None, OfPreset("benchmarks")] = None,
    judging: Annotated[Judging | None, OfPreset("judging")] = None,
    judge_model: str = "demo",
    stages_on: str | None = None,
    plan_only: bool = False,
    hardware: Hardware | None = None,
) -> Outcome | Plan:
    """Distil `teacher` into `student` on your data, as in DistilQwen2.5 (arXiv 2504.15027).

    Finished stages are found by their records in storage and not done again, so a rerun continues where the
    last run stopped, and a changed parameter redoes only what depends on it. Nested settings need only the
    fields that differ from the student's preset (the run form tells it; the defaults of --help are the paper's).

    Args:
        student: demo, 0.5B, 1.5B, 3B, 7B (Qwen2.5-Instruct), a folder, or a hub name
        teacher: demo, 14B, 32B, 72B (Qwen2.5-Instruct), a folder, or a hub name
        seeds: instructions: path or s3:// address (Alpaca, Dolly, ShareGPT, messages, …; JSON or Parquet), or demo
        k: teacher log-probabilities kept per token (paper: 10)
        agent_model: LLM behind the four agents: any LiteLLM model name, or demo (rule-based, SQL only)
        heldout: rows to evaluate on, in the same formats; without it a share of the seeds
        heldout_share: share of the questions held out where there is no heldout file
        databases: folder or s3:// prefix of *.sql dumps that SQL answers are run on
        seed: decides the order of rows in training
        augmentation: how the agents work
        sft: supervised fine-tuning
        scoring: how the teacher scores
        kd: distillation, and its control run
        evaluation: how variants are compared
        run: how training is run; never changes a result
        benchmarks: which benchmarks the variants answer (none by default), each by its data
        judging: how the benchmarks' judge is asked
        judge_model: LLM that judges: any LiteLLM model name, or demo (by rule, for benchmarks.alpaca_eval=demo only)
        stages_on: deployment that training, scoring and evaluation run in, such as stage/gpu; without it they run here
        plan_only: say what the run will take (rows, tokens, memory, hours, money) and what will go wrong; spend nothing
        hardware: what to plan for
    """
    started = time.time()
    preset = preset_for(student)
    agents = with_preset(augmentation, preset.augment)
    sft_settings, kd_settings = with_preset(sft, preset.sft), with_preset(kd, preset.kd)
    how, running = with_preset(evaluation, preset.evaluation), with_preset(run, preset.run)
    scoring_settings = with_preset(scoring, preset.scoring)
    judged = with_preset(benchmarks, preset.benchmarks), with_preset(judging, preset.judging)
    resolved = Preset(agents, sft_settings, kd_settings, scoring_settings, how, running, *judged)
    sources = Sources.of(seeds, heldout, databases)
    if plan_only:
        machine = hardware or Hardware()
        return plan(student, teacher, sources, k, agent_model, heldout_share, seed, resolved, machine, judge_model)
    base, teacher_model = check(student, teacher, kd_settings, sources, judged[0], judge_model)

    data = load_seeds(sources, heldout_share, response_required=not agents.enabled)
    rows = augment(data, agent_model, agents)
    tuned = placed(train, stages_on)("sft", base, rows, sft_settings, running, seed)
    topk = placed(score_logits, stages_on)(rows, teacher_model, k, scoring_settings)
    start = ModelSource(name="sft", artifact=tuned)
    control = placed(train, stages_on)("sft_control", start, rows, kd_settings.training(), running, seed)
    distilled = placed(train, stages_on)("kd", start, topk, kd_settings, running, seed)
    models = {
        "base": base,
        "sft": start,
        "sft_control": ModelSource(name="sft_control", artifact=control),
        "kd": ModelSource(name="kd", artifact=distilled),
        "teacher": teacher_model,
    }
    evaluations = placed(evaluate, stages_on)(models, teacher_model, data, how)
    verdicts = benchmarked(models, evaluations, *judged, judge_model, how, scoring_settings, stages_on)
    stages = {"seeds": data, "augment": rows, "sft": tuned, "logits": topk, "sft_control": control, "kd": distilled}
    named = {"student": student, "teacher": teacher, "k": k, "seed": seed}
    given = {"seeds": seeds, "agent_model": agent_model, "heldout": heldout, "heldout_share": heldout_share}
    about = {
        "title": f"{student} distilled from {teacher}",
        **named,
        "demo": "demo" in (student, teacher, agent_model),
        "settings": {
            "augmentation": agents.identity() if agents.enabled else "off",
            "sft": sft_settings.model_dump(),
            "kd": kd_settings.model_dump(),
            "evaluation": how.identity(),
            **benchmark_settings(*judged, judge_model),
        },
        "reproduce": command({**named, **given, "databases": databases, "judge_model": judge_model}, resolved, preset),
    }
    page = report(stages, evaluations, about, verdicts)
    return publish_latest(Outcome.of(stages, evaluations, page, time.time() - started, verdicts))
