"""One student, the whole pipeline: seeds → augment → sft → logits → kd → evaluate → report."""

from __future__ import annotations

import time
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.outcome import Outcome, publish_latest
from flows.params import preset_for, with_preset
from flows.preflight import check
from infra.models import ModelSource
from tasks.augment.settings import Augmentation
from tasks.augment.task import augment
from tasks.evaluate.settings import Evaluation
from tasks.evaluate.task import evaluate
from tasks.logits.settings import Scoring
from tasks.logits.task import score_logits
from tasks.report.task import report
from tasks.seeds.stage import Sources
from tasks.seeds.task import load_seeds
from tasks.train.settings import Distillation, Training, TrainingRun
from tasks.train.task import train


@flow(name="distill", flow_run_name="{student}-from-{teacher}-k{k}", retries=0, validate_parameters=True)
def distill(
    student: Annotated[
        str, Field(description="student: demo, 0.5B, 1.5B, 3B, 7B (Qwen2.5-Instruct), a folder, or a hub name")
    ] = "demo",
    teacher: Annotated[
        str, Field(description="teacher: demo, 14B, 32B, 72B (Qwen2.5-Instruct), a folder, or a hub name")
    ] = "demo",
    seeds: Annotated[
        str,
        Field(description="instructions: path or s3:// URI (Alpaca, Self-Instruct, messages, Parquet), or demo"),
    ] = "demo",
    k: Annotated[int, Field(ge=1, le=256, description="teacher log-probabilities kept per token (paper: 10)")] = 10,
    agent_model: Annotated[
        str, Field(description="LLM behind the four agents: any LiteLLM model name, or demo (rule-based, SQL only)")
    ] = "demo",
    heldout: Annotated[
        str | None, Field(description="rows to evaluate on (same formats); default: a share of the seeds")
    ] = None,
    heldout_share: Annotated[
        float, Field(gt=0, lt=1, description="share of the seeds held out without `heldout`")
    ] = 0.1,
    databases: Annotated[
        str | None, Field(description="folder or s3:// prefix of *.sql dumps that SQL answers are run on")
    ] = None,
    seed: Annotated[int, Field(ge=0, description="decides the order of rows in training")] = 0,
    augmentation: Annotated[Augmentation | None, Field(description="how the agents work")] = None,
    sft: Annotated[Training | None, Field(description="supervised fine-tuning")] = None,
    scoring: Annotated[Scoring | None, Field(description="how the teacher scores")] = None,
    kd: Annotated[Distillation | None, Field(description="distillation, and its control run")] = None,
    evaluation: Annotated[Evaluation | None, Field(description="how variants are compared")] = None,
    run: Annotated[TrainingRun | None, Field(description="how training is run; never changes a result")] = None,
) -> Outcome:
    """Distil `teacher` into `student` on your data, as in DistilQwen2.5 (arXiv 2504.15027).

    Finished stages are found by their records in storage and not done again, so a rerun continues where the
    last run stopped, and a changed parameter redoes only what depends on it.
    """
    started = time.time()
    preset = preset_for(student)
    agents = with_preset(augmentation, preset.augment)
    sft_settings, kd_settings = with_preset(sft, preset.sft), with_preset(kd, preset.kd)
    how, running = with_preset(evaluation, preset.evaluation), with_preset(run, preset.run)
    scoring_settings = with_preset(scoring, preset.scoring)
    base, teacher_model = check(student, teacher, kd_settings)

    data = load_seeds(Sources.of(seeds, heldout, databases), heldout_share, response_required=not agents.enabled)
    rows = augment(data, agent_model, agents)
    tuned = train("sft", base, rows, sft_settings, running, seed)
    topk = score_logits(rows, teacher_model, k, scoring_settings)
    start = ModelSource(name="sft", artifact=tuned)
    control = train("sft_control", start, rows, kd_settings.training(), running, seed)
    distilled = train("kd", start, topk, kd_settings, running, seed)
    models = {
        "base": base,
        "sft": start,
        "sft_control": ModelSource(name="sft_control", artifact=control),
        "kd": ModelSource(name="kd", artifact=distilled),
        "teacher": teacher_model,
    }
    evaluations = evaluate(models, teacher_model, data, how)
    stages = {"seeds": data, "augment": rows, "sft": tuned, "logits": topk, "sft_control": control, "kd": distilled}
    about = {
        "title": f"{student} distilled from {teacher}",
        "student": student,
        "teacher": teacher,
        "k": k,
        "seed": seed,
        "demo": "demo" in (student, teacher, agent_model),
        "settings": {
            "augmentation": agents.identity() if agents.enabled else "off",
            "sft": sft_settings.model_dump(),
            "kd": kd_settings.model_dump(),
            "evaluation": how.identity(),
        },
    }
    page = report(stages, evaluations, about)
    return publish_latest(Outcome.of(stages, evaluations, page, time.time() - started))
