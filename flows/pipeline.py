"""The paper's figure: seeds → augment → sft → logits → kd → evaluate. `distill` runs it, `plan` asks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from flows.recipe import Recipe
from infra.stage import Stage
from infra.store.artifacts import ArtifactRef
from tasks.augment.naming import NameCategories
from tasks.augment.stage import Augment
from tasks.evaluate.benchmarks import artifacts
from tasks.evaluate.benchmarks.harness import LmEval
from tasks.evaluate.benchmarks.protect import ProtectBenchmarks
from tasks.evaluate.benchmarks.stage import AnswerBenchmarks, JudgeBenchmarks
from tasks.evaluate.stage import Evaluate
from tasks.fit.stage import ChooseRows, ScoreStudent
from tasks.logits.stage import ScoreHeldout, ScoreTeacher
from tasks.models import ModelSource
from tasks.rows import holds_conversations
from tasks.seeds.stage import LoadSeeds
from tasks.train.stage import Train

R = TypeVar("R")


class Run(Protocol):
    """What is done with each stage: it is run, or only looked up."""

    def __call__(self, stage: Stage[R]) -> R: ...


@dataclass(frozen=True)
class Results:
    """What a report is made from: artifacts by stage, evaluations by variant, verdicts by variant and benchmark."""

    stages: dict[str, ArtifactRef]
    evaluations: dict[str, ArtifactRef]
    verdicts: dict[str, ArtifactRef]


def load_seeds(recipe: Recipe) -> LoadSeeds:
    """The first stage: without agents, seeds need responses of their own."""
    return LoadSeeds(
        sources=recipe.sources,
        heldout_share=recipe.heldout_share,
        response_required=not recipe.settings.augmentation.enabled,
        reading=recipe.settings.data,
    )


def pipeline(run: Run, recipe: Recipe, base: ModelSource, teacher: ModelSource) -> Results:
    """Every stage of `recipe`, in order, each given to `run` once what it is made from is known."""
    how, seed = recipe.settings, recipe.seed

    seeds = read = run(load_seeds(recipe))
    naming = NameCategories(seeds=read, agent_model=recipe.agent_model, options=how.augmentation)
    if naming.is_needed:
        seeds = run(naming)
    protection = ProtectBenchmarks(options=how.benchmarks)
    protected = run(protection) if protection.is_needed else None
    rows = run(
        Augment(
            seeds=seeds,
            agent_model=recipe.agent_model,
            options=how.augmentation,
            near_heldout=how.data.near_heldout,
            protected=protected,
        )
    )
    turns = recipe.turns if holds_conversations(rows) else "last"  # the same, and found as it ever was
    scoring = ScoreTeacher(rows=rows, teacher=teacher, k=recipe.k, scoring=how.scoring, turns=turns)
    chosen, of_fit = rows, {}
    if how.fit.chooses:
        untrained = run(ScoreStudent(rows=rows, teacher=base, k=1, scoring=how.scoring, turns=turns))
        chosen = run(ChooseRows(rows=rows, student=untrained, teacher=run(scoring), fit=how.fit))
        of_fit = {"student_scores": untrained, "fit": chosen}
    sft = run(Train(name="sft", model=base, data=chosen, training=how.sft, run=how.run, seed=seed, turns=turns))
    scores = run(scoring)
    tuned = ModelSource(name="sft", artifact=sft)
    more_sft = how.kd.training()
    control = run(
        Train(name="sft_control", model=tuned, data=chosen, training=more_sft, run=how.run, seed=seed, turns=turns)
    )
    only = chosen if how.fit.chooses else None
    kd = run(Train(name="kd", model=tuned, data=scores, training=how.kd, run=how.run, seed=seed, only=only))

    variants = {
        "base": base,
        "sft": tuned,
        "sft_control": ModelSource(name="sft_control", artifact=control),
        "kd": ModelSource(name="kd", artifact=kd),
        "teacher": teacher,
    }
    compared = _teacher_on_heldout_rows(run, recipe, teacher, seeds)
    evaluations = run(
        Evaluate(
            models=variants,
            teacher=teacher,
            seeds=seeds,
            evaluation=how.evaluation,
            teacher_scores=compared.get("heldout_scores"),
        )
    )
    verdicts = _benchmarks(run, recipe, variants, evaluations)
    stages = {"seeds": read, "augment": rows, "sft": sft, "logits": scores, "sft_control": control, "kd": kd}
    if naming.is_needed:
        stages["categories"] = seeds
    return Results(stages | of_fit | compared, evaluations, verdicts)


def _teacher_on_heldout_rows(
    run: Run, recipe: Recipe, teacher: ModelSource, seeds: ArtifactRef
) -> dict[str, ArtifactRef]:
    """Its stored scores, where variants are compared with those: by default evaluation loads the teacher."""
    how = recipe.settings.evaluation
    if how.teacher == "full":
        return {}
    scoring = recipe.settings.scoring.model_copy(update={"max_length": how.max_length})
    stage = ScoreHeldout(rows=seeds, teacher=teacher, k=how.kl_tokens, scoring=scoring, max_rows=how.max_rows)
    return {stage.title: run(stage)}


def _benchmarks(
    run: Run, recipe: Recipe, variants: dict[str, ModelSource], evaluations: dict[str, ArtifactRef]
) -> dict[str, ArtifactRef]:
    """Those that have data: none by default."""
    how, asked = recipe.settings, recipe.settings.benchmarks
    answers: dict[str, ArtifactRef] = {}
    verdicts: dict[str, ArtifactRef] = {}
    if artifacts.asked_for(asked):
        answers = run(AnswerBenchmarks(models=variants, options=asked, evaluation=how.evaluation))
    if answers or asked.probes:
        judged = JudgeBenchmarks(
            answers=answers,
            evaluations=evaluations,
            options=asked,
            judging=how.judging,
            judge_model=recipe.judge_model,
        )
        verdicts = run(judged)
    if asked.harness:
        by_tasks = run(LmEval(models=variants, options=asked, scoring=how.scoring))
        verdicts = verdicts | by_tasks
    return verdicts
