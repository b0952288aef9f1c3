"""The *evaluate* task."""

from __future__ import annotations

from infra.artifacts import ArtifactRef, facts_of
from infra.limits import GPU, held
from infra.models import ModelSource
from infra.stage_task import stage_task
from infra.ui import skipped_note, stage_view
from tasks.evaluate import stage
from tasks.evaluate.settings import Evaluation


@stage_task(name="evaluate")
def evaluate(
    models: dict[str, ModelSource], teacher: ModelSource, seeds: ArtifactRef, evaluation: Evaluation
) -> dict[str, ArtifactRef]:
    """Numbers of each variant on the same held-out rows; only what changed is evaluated."""
    works = {name: stage.workspace(model, teacher, seeds, evaluation) for name, model in models.items()}
    with stage_view("evaluate", "evaluating") as view:
        refs = {name: ref for name, work in works.items() if (ref := work.find())}
        missing = {name: work for name, work in works.items() if name not in refs}
        if missing:
            with held(GPU, 1, view.note):
                refs |= stage.evaluate(missing, models, teacher, seeds, evaluation, view.follow(stage.describe))
        shown = refs["kd"]
        skipped = skipped_note(facts_of(shown)["skipped"])
        spent = shown.model_copy(update={"seconds": sum(ref.seconds for ref in refs.values()), "cached": not missing})
        view.done(
            spent,
            f"{len(works)} variants on {shown.counts['rows']:,} held-out rows, {len(missing)} of them new{skipped}",
        )
        return {name: refs[name] for name in works}
