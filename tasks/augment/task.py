"""The *augment* task: the agents' endpoint, the stage, and what the UI shows of it."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from infra.orchestration.limits import held, llm
from infra.orchestration.stage_task import stage_task
from infra.orchestration.view import StageView, publish_table, stage_view
from infra.store.artifacts import ArtifactReader, ArtifactRef, facts_of
from tasks.augment import card, stage
from tasks.augment.settings import Augmentation
from tasks.demo import endpoint as demo
from tasks.llm.litellm_pool import Deployment
from tasks.llm.settings import LLMCalls


@stage_task(name="augment")
def augment(seeds: ArtifactRef, agent_model: str, options: Augmentation) -> ArtifactRef:
    """Four agents turn seeds into training rows (paper, section 3.1)."""
    work = stage.workspace(seeds, options, agent_model)
    with stage_view("augment", "agents at work") as view:
        ref = work.find()
        if ref is None and not options.enabled:
            ref = stage.copy_seeds(work, seeds)
        elif ref is None:
            with llm_endpoint(agent_model, options, view) as endpoint:
                ref = stage.augment(work, seeds, options, endpoint, view.tick, _as_task)
        counts = ref.counts
        if not options.enabled:
            return view.done(ref, f"{counts['rows']:,} rows, the seeds' own responses (augmentation is off)")
        _publish(ref)
        if counts["failed"]:
            view.warn(f"{counts['failed']:,} rows got no usable answer: {_reasons(facts_of(ref)['failed'])}")
        text = f"{counts['rows']:,} rows kept of {counts['seeds'] + counts['expanded']:,} written"
        return view.done(ref, f"{text} from {counts['seeds']:,} seeds")


async def _as_task(name: str, do: Callable[[], Awaitable[None]]) -> None:
    """A batch as a Prefect task of its own; its retries are the stage's."""

    @task(name="augment-batch", task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
    async def batch() -> None:
        await do()

    await batch()


@contextlib.contextmanager
def llm_endpoint(model: str, options: LLMCalls, view: StageView) -> Iterator[Deployment]:
    """Where requests go, with their providers' limits held: the agents', or a judge's. `demo` starts its server."""
    if model != "demo":
        others = {llm(other) for other in (*options.other_models, *options.fallbacks)}
        with contextlib.ExitStack() as stack:
            for provider in sorted({llm(model, options.api_base), *others}):  # one order: no two runs deadlock
                stack.enter_context(held(provider, options.concurrency, view.note))
            yield Deployment(model, options.api_base)
        return
    view.note(demo.LABEL)
    with demo.demo_llm() as address:
        yield Deployment(demo.MODEL, address, "demo")


def _publish(ref: ArtifactRef) -> None:
    """The dataset card, and what was left out, among the run's artifacts."""
    text = ArtifactReader(ref).read(card.NAME).decode()
    create_markdown_artifact(text, key="augment-card", description="the augmented dataset")
    rows = [
        {"outcome": outcome, "agent": agent, "reason": reason, "rows": count}
        for outcome in ("rejected", "failed")
        for agent, reasons in sorted(facts_of(ref)[outcome].items())
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
    ]
    if rows:
        publish_table("augment-left-out", rows, "rows left out, by agent and reason")


def _reasons(by_agent: dict[str, dict[str, int]]) -> str:
    found = [
        f"{agent}, {reason}: {count:,}" for agent, reasons in by_agent.items() for reason, count in reasons.items()
    ]
    return "; ".join(found)
