"""The paper's figure: seeds → augment → sft → logits → kd (→ on-policy rounds) (→ quantise) → evaluate.

`distill` runs it, `plan` asks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flows.recipe import Recipe
from flows.rounds import on_policy, set_aside
from infra.stage import Stage
from infra.store.artifacts import ArtifactRef
from tasks.augment.naming import NameCategories
from tasks.augment.stage import Augment
from tasks.evaluate.benchmarks.harness import LmEval
from tasks.evaluate.benchmarks.protect import ProtectBenchmarks
from tasks.evaluate.benchmarks.stage import AnswerBenchmarks, JudgeBenchmarks
from tasks.evaluate.stage import Evaluate
from tasks.evaluate.variants import variants
from tasks.fit.stage import ChooseRows, ScoreStudent
from tasks.logits.api.stage import AskTeacher
from tasks.logits.api.stored import StoreAnswers
from tasks.logits.stage import ScoreHeldout, ScoreTeacher
from tasks.models import ModelSource
from tasks.quantise.settings import Quantisation
from tasks.quantise.stage import Quantise
from tasks.rows import holds_conversations
from tasks.seeds.stage import LoadSeeds
from tasks.text.categories import TaskCategories
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


class Nothing(dict[str, ArtifactRef]):
    """Artifacts of a stage of which nothing is known: references to nothing."""

    def __missing__(self, name: str) -> ArtifactRef:
        return ArtifactRef(kind=name, uri="", sha256="", fingerprint="")


def load_seeds(recipe: Recipe) -> LoadSeeds:
    """The first stage: without agents, seeds need responses of their own."""
    return LoadSeeds(
        sources=recipe.sources,
        heldout_share=recipe.heldout_share,
        response_required=not recipe.settings.augmentation.enabled,
        reading=recipe.settings.data,
    )


_NO_OTHERS: Mapping[str, ModelSource] = {}


def pipeline(
    run: Run,
    recipe: Recipe,
    base: ModelSource,
    teacher: ModelSource | None,
    others: Mapping[str, ModelSource] = _NO_OTHERS,
) -> Results:
    """Every stage of `recipe`, in order, each given to `run` once what it is made from is known.

    A `teacher` that is None is the API model that `recipe` names: it answers the rows' prompts instead of scoring them.
    `others` are the teachers of `recipe.routes`, by name.
    """
    how, seed = recipe.settings, recipe.seed

    read = run(load_seeds(recipe))
    named = _if_needed(run, NameCategories(seeds=read, agent_model=recipe.agent_model, options=how.augmentation))
    seeds = named or read
    protected = _if_needed(run, ProtectBenchmarks(options=how.benchmarks))
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
    stored = how.scoring.stored(recipe.k)
    scorings: list[ScoreTeacher] = []
    if teacher:
        one = ScoreTeacher(rows=rows, teacher=teacher, k=stored, scoring=how.scoring, turns=turns)
        scorings = _by_category(one, recipe.routes, others)
    of_fit = _chosen_for(base, run, recipe, scorings) if scorings and how.fit.chooses else {}
    asked = {} if scorings else _asked_of_api(run, recipe, rows, stored)
    only = of_fit.get(ChooseRows.kind)
    aside = set_aside(run, recipe, only or rows)
    only = aside.get("trained_rows", only)
    chosen = only or asked.get(AskTeacher.kind) or rows
    sft = run(Train(name="sft", model=base, data=chosen, training=how.sft, run=how.run, seed=seed, turns=turns))
    by_api = StoreAnswers(answers=chosen, model=recipe.teacher, k=stored, scoring=how.scoring)
    scores, *routed = (run(scoring) for scoring in scorings) if scorings else [run(by_api)]
    tuned = ModelSource(name="sft", artifact=sft)
    more_sft = how.kd.training()
    control = run(
        Train(name="sft_control", model=tuned, data=chosen, training=more_sft, run=how.run, seed=seed, turns=turns)
    )
    fewer = recipe.k if recipe.k < stored else None
    first = tuned if recipe.order == "sft_kd" else base
    distilled = Train(
        name="kd", model=first, data=scores, training=recipe.kd, run=how.run, seed=seed, only=only, k=fewer
    )
    distilled = distilled.model_copy(update={"routed": tuple(routed)})
    kd = run(distilled)
    before: dict[str, ArtifactRef] = {}
    if recipe.order == "kd_sft":
        before = {"kd_before_sft": kd}
        of_kd = ModelSource(name="kd", artifact=kd)
        kd = run(
            Train(name="sft_after_kd", model=of_kd, data=chosen, training=how.sft, run=how.run, seed=seed, turns=turns)
        )
    last = ModelSource(name="kd", artifact=kd)
    of_rounds = on_policy(run, recipe, distilled, last, scorings, chosen, seeds, aside.get("validation_rows"))
    students = {"sft_control": control, "kd": kd} | {
        name: ref for name, ref in of_rounds.items() if name in variants(how.rounds.rounds)
    }
    quantised = _quantised(run, how.quantise, {"sft": sft, **students})
    models = {
        "base": base,
        "sft": tuned,
        **{name: ModelSource(name=name, artifact=ref) for name, ref in (students | quantised).items()},
    }
    compared: dict[str, ArtifactRef] = {}
    if teacher:
        models["teacher"] = teacher
        compared = _teacher_on_heldout_rows(run, recipe, teacher, seeds)
    evaluations = run(
        Evaluate(
            models=models,
            teacher=teacher,
            seeds=seeds,
            evaluation=how.evaluation,
            teacher_scores=compared.get("heldout_scores"),
        )
    )
    verdicts = _benchmarks(run, recipe, models, evaluations)
    stages = {"seeds": read, "augment": rows, "sft": sft, "logits": scores, "sft_control": control, "kd": kd}
    if named:
        stages[NameCategories.kind] = named
    stages |= {scoring.title: store for scoring, store in zip(scorings[1:], routed, strict=True)}
    return Results(stages | before | asked | of_fit | aside | of_rounds | quantised | compared, evaluations, verdicts)


def titles(
    recipe: Recipe, base: ModelSource, teacher: ModelSource | None, others: Mapping[str, ModelSource]
) -> list[str]:
    """The stages that are foreseen for `recipe`, in order; looks at no file and asks no store."""
    found: list[str] = []

    def note(stage: Stage[R]) -> R:
        found.append(stage.title)
        return stage.result(Nothing())

    pipeline(note, recipe, base, teacher, others)
    return found


def _if_needed(run: Run, stage: Stage[R]) -> R | None:
    return run(stage) if stage.is_needed else None


def _by_category(
    scoring: ScoreTeacher, routes: Mapping[str, tuple[str, ...]], others: Mapping[str, ModelSource]
) -> list[ScoreTeacher]:
    """Scoring by each teacher, the run's own first, which has the rows that are of no other."""
    if not routes:
        return [scoring]
    routed = tuple(category for categories in routes.values() for category in categories)
    first = scoring.model_copy(update={"categories": TaskCategories(named=routed, but=True)})
    return [
        first,
        *(
            scoring.model_copy(update={"teacher": others[name], "categories": TaskCategories(named=categories)})
            for name, categories in routes.items()
        ),
    ]


def _chosen_for(
    student: ModelSource, run: Run, recipe: Recipe, scorings: Sequence[ScoreTeacher]
) -> dict[str, ArtifactRef]:
    """The rows that the untrained student is to be trained on, and its scores, by kind."""
    scores, *routed = (run(scoring) for scoring in scorings)
    one = {"teacher": student, "k": 1, "scoring": scorings[0].scoring.here(), "categories": None}
    untrained = run(ScoreStudent(**{**dict(scorings[0]), **one}))
    by = {"student": untrained, "teacher": scores, "routed": tuple(routed)}
    chosen = run(ChooseRows(rows=scorings[0].rows, **by, fit=recipe.settings.fit))
    return {ScoreStudent.kind: untrained, ChooseRows.kind: chosen}


def _asked_of_api(run: Run, recipe: Recipe, rows: ArtifactRef, k: int) -> dict[str, ArtifactRef]:
    """The rows as the API teacher answers them, by kind."""
    calls = recipe.settings.scoring.api
    return {AskTeacher.kind: run(AskTeacher(rows=rows, model=recipe.teacher, k=k, calls=calls))}


def _quantised(run: Run, how: Quantisation, students: dict[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """One of the students in every format that is asked for, by variant; none of a round that was not done."""
    if how.student not in students:
        return {}
    return {
        name: run(Quantise(name=name, student=students[how.student], format=form)) for name, form in how.names.items()
    }


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
    run: Run, recipe: Recipe, models: dict[str, ModelSource], evaluations: dict[str, ArtifactRef]
) -> dict[str, ArtifactRef]:
    """Of those that have data: none by default."""
    how, asked = recipe.settings, recipe.settings.benchmarks
    answers = _if_needed(run, AnswerBenchmarks(models=models, options=asked, evaluation=how.evaluation))
    judged = _if_needed(
        run,
        JudgeBenchmarks(
            answers=answers or {},
            evaluations=evaluations,
            options=asked,
            judging=how.judging,
            judge_model=recipe.judge_model,
        ),
    )
    by_tasks = _if_needed(run, LmEval(models=models, options=asked, scoring=how.scoring.here()))
    return (judged or {}) | (by_tasks or {})
