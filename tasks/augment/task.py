"""The *augment* task: the agents' endpoint, the stage, and what the UI shows of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from infra.artifacts import ArtifactRef, facts_of
from infra.demo import endpoint as demo
from infra.stage_task import stage_task
from infra.ui import StageView, publish_table, stage_view
from tasks.augment import stage
from tasks.augment.client import Endpoint, check_endpoint
from tasks.augment.settings import Augmentation


@stage_task(name="augment")
def augment(seeds: ArtifactRef, agent_model: str, options: Augmentation) -> ArtifactRef:
    """Four agents turn seeds into training rows (paper, section 3.1)."""
    work = stage.workspace(seeds, options, agent_model)
    with stage_view("augment", "agents at work") as view:
        ref = work.find()
        if ref is None and not options.enabled:
            ref = stage.copy_seeds(work, seeds)
        elif ref is None:
            with _endpoint(agent_model, options, view) as endpoint:
                ref = stage.augment(work, seeds, options, endpoint, view.tick)
        _publish_rejects(ref)
        counts = ref.counts
        if not options.enabled:
            return view.done(ref, f"{counts['rows']:,} rows, the seeds' own responses (augmentation is off)")
        text = f"{counts['rows']:,} rows kept of {counts['rows'] + counts['rejected']:,} written"
        return view.done(ref, f"{text} from {counts['seeds']:,} seeds")


@contextlib.contextmanager
def _endpoint(agent_model: str, options: Augmentation, view: StageView) -> Iterator[Endpoint]:
    if agent_model != "demo":
        endpoint = Endpoint(agent_model, options.api_base)
        check_endpoint(endpoint)
        yield endpoint
        return
    view.note(demo.LABEL)
    with demo.demo_llm() as address:
        yield Endpoint(demo.MODEL, address, "demo")


def _publish_rejects(ref: ArtifactRef) -> None:
    rejected = facts_of(ref).get("rejected", {})
    rows = [
        {"agent": agent, "reason": reason, "rows": count}
        for agent, reasons in sorted(rejected.items())
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
    ]
    if rows:
        publish_table("augment-rejected", rows, f"{ref.counts['rejected']:,} rows rejected, by agent and reason")
