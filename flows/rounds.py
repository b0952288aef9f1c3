"""On-policy rounds after KD: the student answers, both models score its answers, and it learns from the teacher's.

Rounds are in the pipeline's figure; here is what one is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.recipe import Recipe
from infra.store.artifacts import ArtifactRef
from tasks.evaluate.variants import CONTINUED
from tasks.logits.stage import ScoreTeacher
from tasks.models import ModelSource
from tasks.rollout.checks import STOPS, CheckRound, CompareRollouts, ScoreOwn, SetAside
from tasks.rollout.stage import Rollout, ScoreRollouts
from tasks.train.settings import Part
from tasks.train.stage import Train

if TYPE_CHECKING:
    from flows.pipeline import Run


def set_aside(run: Run, recipe: Recipe, rows: ArtifactRef) -> dict[str, ArtifactRef]:
    """`rows` in two parts, by title, where rounds are to be checked on rows that nothing of the run is trained on."""
    how, parts = recipe.settings.rounds, ("trained", "validation")
    if not (how.rounds and how.validation_rows):
        return {}
    stages = [SetAside(rows=rows, number=how.validation_rows, part=part, seed=recipe.seed) for part in parts]
    return {stage.title: run(stage) for stage in stages}


def on_policy(
    run: Run,
    recipe: Recipe,
    kd: Train,
    student: ModelSource,
    scorings: Sequence[ScoreTeacher],
    rows: ArtifactRef,
    seeds: ArtifactRef,
    validation: ArtifactRef | None,
) -> dict[str, ArtifactRef]:
    """What comes of every round, by title, and `student` trained for as many steps on the rows of `kd` alone.

    Rounds end early where `CompareRollouts` or `CheckRound` says so.
    """
    how, share = recipe.settings.rounds, recipe.settings.rounds.on_policy_share
    longest = min(recipe.settings.kd.max_length, recipe.settings.scoring.max_length)
    made: dict[str, ArtifactRef] = {}
    done, kd_student = 0, student
    overlap = checked = None

    def check(number: int) -> ArtifactRef | None:
        if validation is None:
            return None
        own = _by_itself(scorings[0], student, validation, of="validation", round=number)
        stage = CheckRound(
            teacher=kd.data, routed=kd.routed, student=run(own), before=checked, rounds=how, round=number
        )
        made[stage.title] = run(stage)
        return made[stage.title]

    if how.rounds:
        checked = check(0)
    for number in range(1, how.rounds + 1):
        rollout = Rollout(
            model=student, rows=rows, seeds=seeds, rounds=how, round=number, max_length=longest, seed=recipe.seed
        )
        answers = run(rollout)
        of_answers = {"rows": answers, "turns": "last", "round": number}
        scored = [ScoreRollouts(**{**dict(scoring), **of_answers}) for scoring in scorings]
        stores = {scoring.title: run(scoring) for scoring in scored}
        by_teacher, *others = stores.values()
        part = Part(scores=by_teacher, routed=tuple(others), share=share)
        own = _by_itself(scorings[0], student, answers, of="rollouts", round=number, turns="last")
        by_student = run(own)
        compared = CompareRollouts(
            rollouts=answers,
            teacher=by_teacher,
            routed=part.routed,
            student=by_student,
            before=overlap,
            rounds=how,
            round=number,
        )
        overlap = run(compared)
        made |= {rollout.title: answers, **stores, own.title: by_student, compared.title: overlap}
        if overlap.counts.get(STOPS):
            break
        data = {"also": (part,)} if share < 1 else {"data": by_teacher, "routed": part.routed, "only": None}
        of_round = {"name": "kd_round", "round": number, "model": student}
        of_round |= {"training": how.distillation(recipe.settings.kd)} | data
        training = kd.model_copy(update=of_round)
        made[training.title] = run(training)
        student, done = ModelSource(name=training.title, artifact=made[training.title]), number
        checked = check(number)
        if checked and checked.counts.get(STOPS):
            break
    if not done:
        return made
    continued = {"name": CONTINUED, "model": kd_student, "training": how.distillation(recipe.settings.kd, done)}
    return {CONTINUED: run(kd.model_copy(update=continued))} | made


def _by_itself(scoring: ScoreTeacher, student: ModelSource, rows: ArtifactRef, **of: Any) -> ScoreOwn:
    """The student in its teacher's place, over as few GPUs as hold it."""
    how = scoring.scoring.here().model_copy(update={"tensor_parallel": 0})
    by_itself = {"rows": rows, "teacher": student, "scoring": how, "categories": None}
    return ScoreOwn(**{**dict(scoring), **by_itself, **of})
