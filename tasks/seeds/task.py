"""The *seeds* task."""

from __future__ import annotations

from infra.artifacts import ArtifactRef, facts_of
from infra.stage_task import stage_task
from infra.ui import stage_view
from tasks.seeds.account import sentences
from tasks.seeds.stage import Sources, load


@stage_task(name="seeds")
def load_seeds(sources: Sources, heldout_share: float, response_required: bool) -> ArtifactRef:
    """Check the user's data whole and bring them into storage."""
    with stage_view("seeds", "reading seeds") as view:
        ref = load(sources, heldout_share=heldout_share, response_required=response_required)
        counts = ref.counts
        text = f"{counts['seeds']:,} seeds, {counts['heldout']:,} held-out rows, {counts['databases']} databases"
        for sentence in sentences(facts_of(ref)):
            view.warn(sentence)
        return view.done(ref, text)
