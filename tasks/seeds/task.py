"""The *seeds* task."""

from __future__ import annotations

from infra.artifacts import ArtifactRef, facts_of
from infra.stage_task import stage_task
from infra.ui import stage_view
from tasks.seeds.references import named
from tasks.seeds.stage import Sources, load


@stage_task(name="seeds")
def load_seeds(sources: Sources, heldout_share: float, response_required: bool) -> ArtifactRef:
    """Check the user's data whole and bring them into storage."""
    with stage_view("seeds", "reading seeds") as view:
        ref = load(sources, heldout_share=heldout_share, response_required=response_required)
        counts = ref.counts
        if failing := facts_of(ref)["heldout_references_fail"]:
            left_out = f"{counts['heldout_references_fail']:,} held-out rows are left out: their reference SQL fails"
            view.warn(f"{left_out} ({named(failing)})")
        text = f"{counts['seeds']:,} seeds, {counts['heldout']:,} held-out rows, {counts['databases']} databases"
        return view.done(ref, text)
