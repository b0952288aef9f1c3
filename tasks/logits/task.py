"""The *logits* task."""

from __future__ import annotations

from infra.devices import gpu_slots
from infra.orchestration.limits import GPU, held
from infra.orchestration.stage_task import stage_task
from infra.orchestration.view import publish_table, skipped_note, stage_view
from infra.store.artifacts import ArtifactRef, facts_of
from tasks.logits import stage
from tasks.logits.settings import Scoring
from tasks.models import ModelSource


@stage_task(name="logits")
def score_logits(rows: ArtifactRef, teacher: ModelSource, k: int, scoring: Scoring) -> ArtifactRef:
    """The teacher's top-K log-probabilities of every response token (paper, section 3.2)."""
    work = stage.workspace(rows, teacher, k, scoring)
    with stage_view("logits", f"scoring with the teacher, top {k}") as view:
        ref = work.find()
        if ref is None:
            with held(GPU, gpu_slots(scoring.tensor_parallel), view.note):
                ref = stage.score(work, rows, teacher, k, scoring, view.follow(stage.describe))
        facts = facts_of(ref)
        for repaired in [] if ref.cached else facts["shards_repaired"]:
            view.warn(f"{repaired}; its rows were scored again")
        coverage = facts["coverage"]
        if coverage["warning"]:
            view.warn(coverage["warning"])
        tables = {"task category": coverage["by_category"], "position in the response": coverage["by_position"]}
        rows_shown = [{"by": by, "of": name, **mass} for by, table in tables.items() for name, mass in table.items()]
        publish_table("top-k-mass", rows_shown, f"Mean probability that the teacher's top {k} hold")
        text = f"{ref.counts['tokens']:,} tokens, top {k} hold {coverage['mean']:.1%} of the probability"
        return view.done(ref, f"{text}, {facts['bytes_per_token']:g} bytes a token{skipped_note(facts['skipped'])}")
