"""The *seeds* task."""

from __future__ import annotations

from infra.orchestration.stage_task import stage_task
from infra.orchestration.view import stage_view
from infra.store.artifacts import ArtifactRef, facts_of
from tasks.seeds.account import sentences
from tasks.seeds.references import named
from tasks.seeds.stage import Sources, load


@stage_task(name="seeds")
def load_seeds(sources: Sources, heldout_share: float, response_required: bool) -> ArtifactRef:
    """Check the user's data whole and bring them into storage."""
    with stage_view("seeds", "reading seeds") as view:
        ref = load(sources, heldout_share=heldout_share, response_required=response_required)
        counts = ref.counts
        text = f"{counts['seeds']:,} seeds, {counts['heldout']:,} held-out rows, {counts['databases']} databases"
        facts = facts_of(ref)
        for sentence in sentences(facts):
            view.warn(sentence)
        if facts["references_fail"]:
            view.warn(f"of the references that fail, the {named(facts['references_fail'])}")
        return view.done(ref, text)
