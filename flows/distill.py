"""One student, the whole pipeline: seeds → augment → sft → logits → kd → evaluate → report (`flows.pipeline`)."""

from __future__ import annotations

import time
from typing import Annotated, Any, TypeVar

import prefect.runtime
from prefect import flow
from pydantic import Field

from flows.outcome import Outcome, publish_latest
from flows.params import OfPreset, StudentName, TeacherName
from flows.pipeline import pipeline, titles
from flows.plan import plan
from flows.preflight import check, check_seeds
from flows.recipe import Recipe, settings_for
from infra.orchestration.names import run_name
from infra.orchestration.progress import RunProgress
from infra.orchestration.remote_run import leaves_result
from infra.orchestration.run import Stages
from infra.stage import Stage
from infra.store.artifacts import ArtifactRef
from tasks.augment.settings import Augmentation
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging
from tasks.evaluate.settings import Evaluation
from tasks.fit.settings import Fit
from tasks.logits.settings import Scoring
from tasks.plan.hardware import Hardware, offered
from tasks.plan.model import Plan
from tasks.quantise.settings import Quantisation
from tasks.report.stage import Report
from tasks.rollout.settings import Rounds
from tasks.rows import Turns
from tasks.seeds.settings import Reading
from tasks.seeds.stage import LoadSeeds
from tasks.train.settings import Distillation, Order, Training, TrainingRun

R = TypeVar("R")


def _run_name() -> str:
    return run_name("{student}-from-{teacher}-k{k}".format(**prefect.runtime.flow_run.parameters))


@flow(name="distill", flow_run_name=_run_name, retries=0, validate_parameters=True)
@leaves_result
def distill(
    student: StudentName = "demo",
    teacher: TeacherName = "demo",
    seeds: str = "demo",
    heldout: str | None = None,
    agent_model: str = "demo",
    k: Annotated[int, Field(ge=1, le=256)] = 10,
    augmentation: Annotated[Augmentation | None, OfPreset("augmentation")] = None,
    kd: Annotated[Distillation | None, OfPreset("kd")] = None,
    stages_on: str | None = None,
    plan_only: bool = False,
    teachers: dict[str, TeacherName] | None = None,
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    databases: str | None = None,
    seed: Annotated[int, Field(ge=0)] = 0,
    turns: Turns = "all",
    order: Order = "sft_kd",
    sft: Annotated[Training | None, OfPreset("sft")] = None,
    scoring: Annotated[Scoring | None, OfPreset("scoring")] = None,
    evaluation: Annotated[Evaluation | None, OfPreset("evaluation")] = None,
    run: Annotated[TrainingRun | None, OfPreset("run")] = None,
    benchmarks: Annotated[Benchmarks | None, OfPreset("benchmarks")] = None,
    judging: Annotated[Judging | None, OfPreset("judging")] = None,
    judge_model: str = "demo",
    data: Annotated[Reading | None, OfPreset("data")] = None,
    fit: Annotated[Fit | None, OfPreset("fit")] = None,
    rounds: Annotated[Rounds | None, OfPreset("rounds")] = None,
    quantise: Annotated[Quantisation | None, OfPreset("quantise")] = None,
    job_variables: dict[str, Any] | None = None,
    hardware: Hardware | None = None,
) -> Outcome | Plan:
    """Distil `teacher` into `student` on your data, as in DistilQwen2.5 (arXiv 2504.15027).

    Finished stages are found by their records in storage and not done again, so a rerun continues where the
    last run stopped, and a changed parameter redoes only what depends on it. Nested settings need only the
    fields that differ from the student's preset (the run form tells it; the defaults of --help are the paper's).
    What people change most comes first, here and in the run form.

    Args:
        student: demo, 0.5B, 1.5B, 3B, 7B (Qwen2.5-Instruct), a folder, or a hub name
        teacher: demo, 14B, 32B, 72B (Qwen2.5-Instruct), a folder, or a hub name; with scoring.engine=api any LiteLLM
            model name
        seeds: instructions: file, folder, pattern, s3:// address or prefix, hub:OWNER/DATASET[:split], or several with
            commas between (Alpaca, Dolly, ShareGPT, messages, logs, …; JSON, CSV or Parquet, packed or not); or demo
        heldout: rows to evaluate on, in the same formats; without it a share of the seeds
        agent_model: LLM behind the four agents: any LiteLLM model name, or demo (rule-based, SQL only)
        k: teacher log-probabilities kept per token (paper: 10)
        augmentation: how the agents work
        kd: distillation, and its control run
        stages_on: deployment that training, scoring and evaluation run in, such as stage/gpu; without it they run here
        plan_only: say what the run will take (rows, tokens, memory, hours, money) and what will go wrong; spend nothing
        teachers: other teachers of some task categories, each by a category, such as {"code writing": "32B"}; `teacher`
            scores all other rows, and is what students are compared with
        heldout_share: share of the questions held out where there is no heldout file
        databases: folder or s3:// prefix of *.sql dumps that SQL answers are run on
        seed: decides the order of rows in training
        turns: which answers of a conversation are trained on and scored: all of the assistant's, or the last
        order: SFT, then KD (the paper); KD alone, for as many steps as both; or KD, then SFT
        sft: supervised fine-tuning
        scoring: how the teacher scores
        evaluation: how variants are compared
        run: how training is run; of it only run.precision can change a result
        benchmarks: which benchmarks the variants answer (none by default), each by its data
        judging: how the benchmarks' judge is asked
        judge_model: LLM that judges: any LiteLLM model name, or demo (by rule, for benchmarks.alpaca_eval=demo only)
        data: what of your files is read
        fit: which of the rows this student is trained on
        rounds: rounds after kd in which the student learns from the teacher's scores of its own answers (default: 0)
        quantise: formats that the student is made in and compared in as well: GGUF, INT8, FP8 (default: none)
        job_variables: variables of that deployment's work pool, such as {"gpus": 4}; they win over what a stage needs
        hardware: what to plan for; and of what the machines are that `stages_on` takes GPUs, memory and cores from
    """
    recipe = Recipe(
        student=student,
        teacher=teacher,
        teachers=teachers,
        seeds=seeds,
        k=k,
        agent_model=agent_model,
        heldout=heldout,
        heldout_share=heldout_share,
        databases=databases,
        seed=seed,
        turns=turns,
        order=order,
        judge_model=judge_model,
        settings=settings_for(
            student,
            k,
            augmentation,
            sft,
            scoring,
            kd,
            evaluation,
            run,
            benchmarks,
            judging,
            data,
            fit,
            rounds,
            quantise,
        ),
    )
    if plan_only:
        return plan(recipe, hardware or Hardware())
    started = time.time()
    models = check(recipe, elsewhere=stages_on is not None)
    given = recipe, models.student, models.teacher, models.others
    progress = RunProgress([*titles(*given), Report.kind])
    stages = Stages(stages_on, offered(hardware), job_variables, progress)

    def run_checked(stage: Stage[R]) -> R:
        """Seeds that no chat template renders are told of once they are read, before anything is spent on them."""
        result = stages.run(stage)
        if isinstance(stage, LoadSeeds) and isinstance(result, ArtifactRef):
            check_seeds(result, recipe, models)
        return result

    made = pipeline(run_checked, *given)
    page = stages.run(
        Report(
            stages=made.stages,
            evaluations=made.evaluations,
            verdicts=made.verdicts,
            about=recipe.about(prefect.runtime.flow_run.name or ""),
            labels=recipe.settings.judging.labels,
        )
    )
    progress.ends()
    return publish_latest(Outcome.of(stages.made, page, time.time() - started))
