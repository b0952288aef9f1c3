"""The stage around the controller: batches of rows in and out of storage, any number of workers side by side.

A batch is claimed, done, and written with its JSON last: that it is there means that it is finished. What a
killed worker had been told by the agents is in the answer cache, so no batch is paid twice.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from infra import settings
from infra.errors import ConfigurationError
from infra.sandbox.python import PythonSandbox
from infra.stage import Made, OneArtifact, View
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, facts_of
from infra.store.claims import Claims
from tasks.augment import candidates, card, comparing, selection
from tasks.augment.agents import COMPARISON, agents_digest
from tasks.augment.batches import AsTask, Batches
from tasks.augment.controller import Dropped, verify, write_and_score
from tasks.augment.own_prompts import prompts_of
from tasks.augment.record import publish, put_batch, written
from tasks.augment.settings import Augmentation
from tasks.llm.budget import UsageByAgent
from tasks.llm.endpoint import llm_endpoint, provider_slots
from tasks.llm.protocol import LLMEndpoint
from tasks.llm.session import connected, run_async
from tasks.rows import (
    CONVERSATIONS,
    HELDOUT,
    KEPT,
    PASSAGES,
    REJECTED,
    TRAIN,
    Row,
    databases_by_input,
    from_parquet,
    read_rows,
    to_parquet,
)
from tasks.seeds.stage import open_databases
from tasks.text.leaks import BENCHMARK, RETOLD, Leaks
from tasks.text.overlap import HeldOut

KIND = "augment"
STAGE_VERSION = 3
_SEEDS_PER_BATCH = 100
_BATCHES_AT_ONCE = 2  # at least, so that requests are in flight while the last rows of a batch are waited for
Tick = Callable[[int, int], None]


class Augment(OneArtifact):
    """Four agents turn seeds into training rows (paper, section 3.1); with augmentation off, the seeds' own responses.

    Any number of processes make it together, a batch at a time. `near_heldout` is as in `tasks.seeds.settings`;
    `protected` holds passages that no row may have.
    """

    kind: ClassVar = "augment"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "agents at work"

    seeds: ArtifactRef
    agent_model: str
    options: Augmentation
    near_heldout: float | None = None
    protected: ArtifactRef | None = None

    @property
    def is_shared(self) -> bool:
        return True

    def workspace(self) -> Workspace:
        spec: dict[str, Any] = {"enabled": self.options.enabled}
        if self.options.enabled:
            spec |= {
                "options": self.options.identity(),
                "model": self.agent_model,
                "agents": agents_digest(prompts_of(self.options.prompts).agents),
            }
            spec |= {"near_heldout": self.near_heldout} if self.near_heldout is not None else {}
            if self.options.compare_heldout:
                spec["comparison"] = agents_digest([prompts_of(self.options.prompts)[COMPARISON]])
        protected = {"protected": self.protected} if self.protected else {}
        return Workspace(KIND, STAGE_VERSION, spec, {"seeds": self.seeds, **protected})

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return provider_slots(self.agent_model, self.options) if self.options.enabled else {}

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        if not self.options.enabled:
            return copy_seeds(work, self.seeds, self.protected)
        with llm_endpoint(self.agent_model, self.options, view.note) as endpoint:
            leaks = _leaks(self.seeds, self.near_heldout, self.protected)
            return augment(work, self.seeds, self._affordable, endpoint, view.tick, view.batch, leaks, view.note)

    @property
    def _affordable(self) -> Augmentation:
        """The settings with what naming the seeds' categories left of the budget."""
        if self.options.budget_usd is None:
            return self.options
        named = facts_of(self.seeds).get("usage", {}).values()
        left = self.options.budget_usd - sum(usage["cost_usd"] for usage in named)
        return self.options.model_copy(update={"budget_usd": max(left, 1e-9)})

    def show(self, made: Made, view: View) -> str:
        ref, counts = made.shown, made.shown.counts
        if not self.options.enabled:
            if counts["rejected"]:
                view.warn(f"{counts['rejected']:,} rows are left out: each {BENCHMARK}")
            return f"{counts['rows']:,} rows, the seeds' own responses (augmentation is off)"
        facts = facts_of(ref)
        view.markdown("augment-card", ArtifactReader(ref).read(card.NAME).decode(), "the augmented dataset")
        left_out = [
            {"outcome": outcome, "agent": agent, "reason": reason, "rows": count}
            for outcome in ("rejected", "failed")
            for agent, reasons in sorted(facts[outcome].items())
            for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
        ]
        if left_out:
            view.table("augment-left-out", left_out, "rows left out, by agent and reason")
        if counts["failed"]:
            reasons = [
                f"{one['agent']}, {one['reason']}: {one['rows']:,}" for one in left_out if one["outcome"] == "failed"
            ]
            view.warn(f"{counts['failed']:,} rows got no usable answer: {'; '.join(reasons)}")
        if counts.get("not_compared"):
            reasons = [f"{reason}: {pairs:,}" for reason, pairs in facts["not_compared"].items()]
            view.warn(
                f"{counts['not_compared']:,} rows were not compared with the held-out rows that they are likest "
                f"({'; '.join(reasons)}): some may ask what is held out"
            )
        written = counts["seeds"] + counts["expanded"]
        return f"{counts['rows']:,} rows kept of {written:,} written from {counts['seeds']:,} seeds"


def copy_seeds(work: Workspace, seeds: ArtifactRef, protected: ArtifactRef | None = None) -> ArtifactRef:
    """Augmentation is off: the seeds as they are, but for those that hold what is protected."""
    kept = rejected = conversations = 0
    leaks = Leaks(HeldOut(), None, _passages(protected))
    for index, (_name, data) in enumerate(ArtifactReader(seeds).stream(TRAIN)):
        rows = [(row, leaks.quotes_benchmark(row)) for row in from_parquet(data)]
        good, bad = ([row for row, quotes in rows if quotes is which] for which in (False, True))
        work.put(f"{KEPT}{index:05}.parquet", to_parquet(good))
        if bad:
            extra = {"agent": ["selection"] * len(bad), "reason": [BENCHMARK] * len(bad), "detail": [""] * len(bad)}
            work.put(f"{REJECTED}{index:05}.parquet", to_parquet(bad, extra))
        kept, rejected = kept + len(good), rejected + len(bad)
        conversations += sum(bool(row.earlier_answers) for row in good)
    counts = {"seeds": kept + rejected, "expanded": 0, "rows": kept, "rejected": rejected, "failed": 0}
    counts[CONVERSATIONS] = conversations
    if not kept:
        raise ConfigurationError(f"every row {BENCHMARK}: leave the benchmark out, or train on other rows")
    return work.publish(
        (KEPT, REJECTED), counts, {"rejected": {"selection": {BENCHMARK: rejected}}} if rejected else {}
    )


def _leaks(seeds: ArtifactRef, near: float | None, protected: ArtifactRef | None) -> Leaks:
    return Leaks.of(lambda: read_rows(seeds, HELDOUT), lambda: read_rows(seeds, TRAIN), near, _passages(protected))


def _passages(protected: ArtifactRef | None) -> frozenset[int]:
    """Hashes of protected passages."""
    data = ArtifactReader(protected).read(PASSAGES) if protected else b""
    return frozenset(np.frombuffer(data, "<u8").tolist())


async def _directly(_name: str, do: Callable[[], Awaitable[None]]) -> None:
    await do()


def augment(
    work: Workspace,
    seeds: ArtifactRef,
    options: Augmentation,
    endpoint: LLMEndpoint,
    tick: Tick,
    as_task: AsTask = _directly,
    leaks: Leaks | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> ArtifactRef:
    """Run the agents over all seeds and publish kept, rejected and failed rows.

    Seeds + expansions = kept + rejected + failed. `as_task` runs a named batch. Several workers may be here
    with the same workspace at a time; with a budget they take turns, so that it is kept.
    """
    leaks = leaks or _leaks(seeds, None, None)
    return run_async(_augment(work, seeds, options, endpoint, tick, as_task, leaks, note))


def _at_once(options: Augmentation) -> int:
    """Batches of seeds at a time: with `batch`, as many as have the rows that may wait in a provider's batches."""
    rows = _SEEDS_PER_BATCH * (1 + options.expansions_per_seed)
    return max(_BATCHES_AT_ONCE, options.in_flight // rows) if options.batch else _BATCHES_AT_ONCE


async def _augment(
    work: Workspace,
    seeds: ArtifactRef,
    options: Augmentation,
    endpoint: LLMEndpoint,
    tick: Tick,
    as_task: AsTask,
    leaks: Leaks,
    note: Callable[[str], None],
) -> ArtifactRef:
    count = (seeds.counts["seeds"] + _SEEDS_PER_BATCH - 1) // _SEEDS_PER_BATCH
    progress = _progress(seeds.counts["seeds"], tick)
    database_of = databases_by_input(read_rows(seeds, TRAIN))
    databases, prompts = open_databases(seeds), prompts_of(options.prompts)
    min_score = options.min_score if options.selection else 0.0
    pairing = candidates.opened(
        settings.work_dir(), read_rows(seeds, HELDOUT), lambda: read_rows(seeds, TRAIN), options.compare_heldout
    )
    with PythonSandbox() as sandbox, Claims(work.uri + "claims/") as claims, pairing as pairs:
        async with connected(endpoint, options, options.max_rows, note) as client:
            batches = Batches(work, claims, as_task, _at_once(options), whole=options.budget_usd is not None)

            async def write(index: int, rows: list[Row]) -> None:
                usage = UsageByAgent()
                ask = functools.partial(prompts.ask, client, usage)
                batch = await write_and_score(ask, rows, options, database_of, progress)
                if options.compare_heldout:
                    likely = await asyncio.to_thread(pairs.likely, filter(may_be_kept, batch.rows))
                    await asyncio.to_thread(comparing.put_likely, work, index, likely)
                await asyncio.to_thread(put_batch, work, "written", index, batch, usage)

            def may_be_kept(row: Row) -> bool:
                return selection.score_of(row) >= min_score and leaks.reason(row) is None

            async def compare(index: int, some: Callable[[], list[candidates.ComparedPair]]) -> None:
                usage = UsageByAgent()
                await comparing.compare(work, index, functools.partial(prompts.ask, client, usage), usage, some)

            async def check(index: int, chosen: selection.Selection) -> None:
                usage = UsageByAgent()
                rows, dropped = _selected(work, index, chosen, retold.get(index, {}))
                batch = await verify(functools.partial(prompts.ask, client, usage), rows, options, databases, sandbox)
                batch.rejected += dropped
                await asyncio.to_thread(put_batch, work, "verified", index, batch, usage)
                progress(min(_SEEDS_PER_BATCH, seeds.counts["seeds"] - index * _SEEDS_PER_BATCH))

            await batches.each("written", lambda: _batches(seeds), write)
            for index in range(count) if options.compare_heldout else ():
                pairs.add(index, comparing.likely(work, index))
            pairs.choose()
            await batches.each(comparing.PART, lambda: pairs.batches(functools.partial(written, work)), compare)
            retold = comparing.retold(work, pairs.batch_count)
            with selection.opened(settings.work_dir()) as chosen:
                for index in range(count):
                    chosen.add(index, written(work, index), leaks, retold.get(index, {}))
                chosen.decide(
                    min_score=min_score,
                    near_duplicate=options.near_duplicate if options.selection else None,
                    max_rows=options.max_rows,
                )
                client.ledger.verify()
                await batches.each("verified", lambda: ((index, chosen) for index in range(count)), check)
        compared = pairs.batch_count
    return publish(work, count, compared)


def _progress(seeds: int, tick: Tick) -> Callable[..., None]:
    """A counter that ticks: each seed counts once when it is written and once when it is verified."""
    done = 0

    def one(by: int = 1) -> None:
        nonlocal done
        done += by
        tick(min(done, 2 * seeds), 2 * seeds)

    return one


def _selected(
    work: Workspace, index: int, chosen: selection.Selection, retold: Mapping[str, str]
) -> tuple[list[Row], list[Dropped]]:
    reasons = chosen.reasons(index)
    rows, dropped = [], []
    for position, row in enumerate(written(work, index)):
        if reasons.get(position) == RETOLD:
            dropped.append(Dropped(row, COMPARISON.name, RETOLD, retold[row.id]))
        elif position in reasons:
            dropped.append(Dropped(row, "selection", reasons[position]))
        else:
            rows.append(row)
    return rows, dropped


def _batches(seeds: ArtifactRef) -> Iterator[tuple[int, list[Row]]]:
    rows = read_rows(seeds, TRAIN)
    for index in range(seeds.counts["seeds"]):
        if not (batch := list(islice(rows, _SEEDS_PER_BATCH))):
            return
        yield index, batch
