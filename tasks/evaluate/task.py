"""The *evaluate* task."""

from __future__ import annotations

from collections.abc import Iterable

from infra.devices import gpu_slots, gpus
from infra.orchestration.limits import GPU, held
from infra.orchestration.stage_task import stage_task
from infra.orchestration.view import skipped_note, stage_view
from infra.store.artifacts import ArtifactRef, Workspace, facts_of
from infra.store.claims import made_once
from tasks.evaluate import stage
from tasks.evaluate.settings import Evaluation
from tasks.models import ModelSource


@stage_task(name="evaluate")
def evaluate(
    models: dict[str, ModelSource], teacher: ModelSource, seeds: ArtifactRef, evaluation: Evaluation
) -> dict[str, ArtifactRef]:
    """Numbers of each variant on the same held-out rows; only what changed is evaluated."""
    works = {name: stage.workspace(model, teacher, seeds, evaluation) for name, model in models.items()}
    with stage_view("evaluate", "evaluating") as view:

        def make(missing: dict[str, Workspace]) -> dict[str, ArtifactRef]:
            with held(GPU, gpu_slots(gpus()), view.note):
                return stage.evaluate(missing, models, teacher, seeds, evaluation, view.follow(stage.describe))

        refs = made_once(works, make, view.note)
        new = [ref for ref in refs.values() if not ref.cached]
        shown = refs["kd"]
        skipped = skipped_note(_most(facts_of(ref)["skipped"] for ref in refs.values()))
        spent = shown.model_copy(update={"seconds": sum(ref.seconds for ref in refs.values()), "cached": not new})
        view.done(
            spent,
            f"{len(works)} variants on {shown.counts['rows']:,} held-out rows, {len(new)} of them new{skipped}",
        )
        return refs


def _most(skipped: Iterable[dict[str, int]]) -> dict[str, int]:
    """For each reason, the rows of the variant that it took most from."""
    most: dict[str, int] = {}
    for reasons in skipped:
        for reason, rows in reasons.items():
            most[reason] = max(rows, most.get(reason, 0))
    return most
