"""The stage around the controller: batches in and out of storage, so that a kill costs at most one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any, TypeVar

from infra import settings
from infra.artifacts import ArtifactReader, ArtifactRef, Workspace
from infra.errors import ConfigurationError, DistilflowError
from tasks.augment.agents import agents_digest
from tasks.augment.client import AnswerCache, Endpoint, LLMClient
from tasks.augment.controller import Batch, Rejected, candidate, select, verify, write_and_score
from tasks.augment.settings import Augmentation
from tasks.rows import KEPT, REJECTED, TRAIN, Row, from_parquet, read_rows, to_parquet
from tasks.seeds.stage import open_databases

KIND = "augment"
STAGE_VERSION = 1
_SEEDS_PER_BATCH = 50
Result = TypeVar("Result")
Tick = Callable[[int, int], None]


def workspace(seeds: ArtifactRef, options: Augmentation, model: str) -> Workspace:
    """Rows made from `seeds` by agents that `model` plays; with augmentation off, the seeds' own responses."""
    spec: dict[str, Any] = {"enabled": options.enabled}
    if options.enabled:
        spec |= {"options": options.identity(), "model": model, "agents": agents_digest()}
    return Workspace(KIND, STAGE_VERSION, spec, {"seeds": seeds})


def copy_seeds(work: Workspace, seeds: ArtifactRef) -> ArtifactRef:
    """Augmentation is off: the seeds as they are."""
    count = 0
    for index, (_name, data) in enumerate(ArtifactReader(seeds).stream(TRAIN)):
        rows = from_parquet(data)
        count += len(rows)
        work.put(f"{KEPT}{index:05}.parquet", to_parquet(rows))
    return work.publish((KEPT,), {"seeds": count, "expanded": 0, "rows": count, "rejected": 0}, {})


def augment(work: Workspace, seeds: ArtifactRef, options: Augmentation, endpoint: Endpoint, tick: Tick) -> ArtifactRef:
    """Run the agents over all seeds and publish kept and rejected rows.

    Written rows = kept + rejected, where written is every seed and every expansion.
    """
    return _run(_augment(work, seeds, options, endpoint, tick))


async def _augment(
    work: Workspace, seeds: ArtifactRef, options: Augmentation, endpoint: Endpoint, tick: Tick
) -> ArtifactRef:
    cache = AnswerCache(settings.cache_dir() / "answers.sqlite")
    client = LLMClient(endpoint, cache, concurrency=options.concurrency, temperature=options.temperature)
    total = seeds.counts["seeds"]
    batches = await _write(work, seeds, options, client, lambda done: tick(done, 2 * total))
    reasons = select(
        (
            candidate((index, position), row)
            for index in range(batches)
            for position, row in enumerate(_written(work, index))
        ),
        options.min_score,
        options.max_rows,
    )
    databases = open_databases(seeds)
    for index in range(batches):
        tick(total + total * index // batches, 2 * total)
        if work.has(f"verified/{index:05}.json"):
            continue
        rows = [(row, reasons.get((index, position))) for position, row in enumerate(_written(work, index))]
        batch = await verify(client, [row for row, reason in rows if reason is None], databases)
        batch.rejected += [Rejected(row, "selection", reason) for row, reason in rows if reason is not None]
        _put_batch(work, f"verified/{index:05}", batch, client)
    return _publish(work, batches)


async def _write(
    work: Workspace, seeds: ArtifactRef, options: Augmentation, client: LLMClient, tick: Callable[[int], None]
) -> int:
    """Write and score rows for every batch of seeds that is not done yet; the number of batches."""
    database_of = {row.input: row.database for row in read_rows(seeds, TRAIN) if row.database and row.input}
    done = batches = 0

    def one_seed() -> None:
        nonlocal done
        done += 1
        tick(done)

    for index, batch_seeds in enumerate(_batches(seeds)):
        batches += 1
        if work.has(f"written/{index:05}.json"):
            done += len(batch_seeds)
            continue
        batch = await write_and_score(client, batch_seeds, options.expansions_per_seed, database_of, one_seed)
        _put_batch(work, f"written/{index:05}", batch, client)
    return batches


def _publish(work: Workspace, batches: int) -> ArtifactRef:
    """Kept rows, and rejected rows with agent and reason; the counts add up."""
    counts = {
        "seeds": work.inputs["seeds"].counts["seeds"],
        "expanded": 0,
        "rows": 0,
        "rejected": 0,
        "failed_expansions": 0,
    }
    rejects: dict[str, dict[str, int]] = {}
    usage: dict[str, float] = {}
    for index in range(batches):
        kept = _rows(work, f"verified/{index:05}-rows.parquet")
        for part in ("written", "verified"):
            told = work.get_json(f"{part}/{index:05}.json")
            for name, value in told["usage"].items():
                usage[name] = usage.get(name, 0) + value
            counts["expanded"] += told["expanded"]
            counts["failed_expansions"] += told["failed_expansions"]
            for agent, reason in told["rejected"]:
                by_reason = rejects.setdefault(agent, {})
                by_reason[reason] = by_reason.get(reason, 0) + 1
                counts["rejected"] += 1
            data = work.read(f"{part}/{index:05}-rejected.parquet")
            work.put(f"{REJECTED}{index:05}-{part}.parquet", data)
        counts["rows"] += len(kept)
        work.put(f"{KEPT}{index:05}.parquet", to_parquet(kept))
    if counts["seeds"] + counts["expanded"] != counts["rows"] + counts["rejected"]:
        raise AssertionError(f"rows were lost or doubled: {counts}")
    if counts["rows"] == 0:
        raise ConfigurationError(
            f"the agents kept none of {counts['rejected']} rows (reasons: {rejects}): "
            "check the agents' model, or lower `augmentation.min_score`"
        )
    return work.publish((KEPT, REJECTED), counts, {"rejected": rejects, "usage": usage})


def _put_batch(work: Workspace, name: str, batch: Batch, client: LLMClient) -> None:
    """A batch's files, its JSON last: being there means being finished. Sorted, so that timing leaves no trace."""
    rows = sorted(batch.rows, key=lambda row: row.id)
    rejected = sorted(batch.rejected, key=lambda r: (r.row.id, r.agent, r.reason))
    work.put(f"{name}-rows.parquet", to_parquet(rows))
    extra = {"agent": [r.agent for r in rejected], "reason": [r.reason for r in rejected]}
    work.put(f"{name}-rejected.parquet", to_parquet([r.row for r in rejected], extra))
    told = {
        "rejected": [[r.agent, r.reason] for r in rejected],
        "expanded": batch.expanded,
        "failed_expansions": batch.failed_expansions,
        "usage": client.take_usage(),
    }
    work.put_json(f"{name}.json", told)


def _written(work: Workspace, index: int) -> list[Row]:
    return _rows(work, f"written/{index:05}-rows.parquet")


def _rows(work: Workspace, name: str) -> list[Row]:
    return from_parquet(work.read(name))


def _batches(seeds: ArtifactRef) -> Any:
    rows = read_rows(seeds, TRAIN)
    while batch := list(islice(rows, _SEEDS_PER_BATCH)):
        yield batch


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """asyncio.run, with our own error out of the group that the task group raises."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        ours, others = group.split(DistilflowError)
        if ours is None or others is not None:
            raise
        error: BaseException = ours
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
