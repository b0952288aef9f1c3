"""What finished batches leave in storage, and the record over all of them: counts that add up, and the dataset card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra.errors import ConfigurationError
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace, facts_of
from tasks.augment import card, comparing
from tasks.augment.batches import done_name
from tasks.augment.controller import Batch
from tasks.llm.budget import UsageByAgent
from tasks.rows import CONVERSATIONS, FAILED, KEPT, REJECTED, Row, from_parquet, to_parquet
from tasks.seeds.account import private_data


def publish(work: Workspace, batches: int, compared: int) -> ArtifactRef:
    """The record over kept, rejected and failed rows, and the dataset card; the counts add up."""
    counts = {"seeds": work.inputs["seeds"].counts["seeds"], "expanded": 0, "rows": 0, "rejected": 0, "failed": 0}
    facts: dict[str, Any] = {"rejected": {}, "failed": {}}
    usage = UsageByAgent()
    for index in range(batches):
        for part in ("written", "verified"):
            summary = work.get_json(done_name(part, index))
            usage.merge(summary["usage"])
            for name, value in summary["counts"].items():
                counts[name] = counts.get(name, 0) + value
            for outcome in ("rejected", "failed"):
                for agent, reason, number in summary[outcome]:
                    by_reason = facts[outcome].setdefault(agent, {})
                    by_reason[reason] = by_reason.get(reason, 0) + number
                    counts[outcome] += number
        counts["rows"] += summary["rows"]
    for index in range(compared):
        summary = work.get_json(done_name(comparing.PART, index))
        usage.merge(summary["usage"])
        for name, value in summary["counts"].items():
            counts[name] = counts.get(name, 0) + value
        for reason, number in summary["not_compared"].items():
            reasons = facts.setdefault("not_compared", {})
            reasons[reason] = reasons.get(reason, 0) + number
    if counts["seeds"] + counts["expanded"] != counts["rows"] + counts["rejected"] + counts["failed"]:
        raise AssertionError(f"rows were lost or doubled: {counts}")
    if counts["rows"] == 0:
        raise ConfigurationError(
            f"the agents kept none of {counts['rejected'] + counts['failed']} rows "
            f"(rejected: {facts['rejected']}, failed: {facts['failed']}): check the agents' model, "
            "or lower `augmentation.min_score`"
        )
    facts["usage"] = usage.plain()
    facts["rows"] = card.describe(work, batches)
    facts["seeds_by_category"] = card.categories(work.inputs["seeds"])
    of_seeds = facts_of(work.inputs["seeds"])
    facts["private"] = {"rows": private_data(of_seeds), "handling": of_seeds.get("handling", "keep")}
    counts[CONVERSATIONS] = facts["rows"][CONVERSATIONS]
    work.put(card.NAME, card.render(work, counts, facts).encode())
    return work.publish((KEPT, REJECTED, FAILED, card.NAME), counts, facts)


def put_batch(work: Workspace, part: str, index: int, batch: Batch, usage: UsageByAgent) -> None:
    """A batch's files, its JSON last. Sorted, so that timing leaves no trace."""
    rows = sorted(batch.rows, key=lambda row: row.id)
    place = f"{KEPT}{index:05}" if part == "verified" else f"written/{index:05}-rows"
    work.put(f"{place}.parquet", to_parquet(rows))
    summary: dict[str, Any] = {"rows": len(rows), "counts": batch.counts, "usage": usage.plain()}
    for outcome, prefix, dropped in (("rejected", REJECTED, batch.rejected), ("failed", FAILED, batch.failed)):
        dropped = sorted(dropped, key=lambda d: (d.row.id, d.agent, d.reason, d.detail))
        extra = {name: [getattr(d, name) for d in dropped] for name in ("agent", "reason", "detail")}
        if dropped:
            work.put(f"{prefix}{index:05}-{part}.parquet", to_parquet([d.row for d in dropped], extra))
        else:  # one that was killed here may have left some
            storage.delete(f"{work.uri}{prefix}{index:05}-{part}.parquet")
        reasons = sorted({(d.agent, d.reason) for d in dropped})
        summary[outcome] = [[*reason, sum((d.agent, d.reason) == reason for d in dropped)] for reason in reasons]
    work.put_json(done_name(part, index), summary)


def written(work: Workspace, index: int) -> Iterator[Row]:
    return from_parquet(work.read(f"written/{index:05}-rows.parquet"))
