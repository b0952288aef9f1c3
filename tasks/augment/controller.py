"""The controller: seeds in, augmented rows out, every row accounted for.

Expansion and Rewriting write rows, Selection scores them, the controller keeps a task-balanced subset, and
Verification checks that subset (paper, section 3.1). Work is done in batches that are kept as they finish.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from infra.sandbox import QueryError, ReadOnlyDatabase
from tasks.augment.agents import EXPANSION, REWRITING, SELECTION, VERIFICATION, wants_chain_of_thought
from tasks.augment.client import LLMClient, Refused
from tasks.rows import Row, language_of


@dataclass(frozen=True)
class Rejected:
    """A row that was not kept, by whom and why."""

    row: Row
    agent: str
    reason: str


@dataclass
class Batch:
    """What a batch became: every row that went in or was written is in `rows` or in `rejected`."""

    rows: list[Row] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    expanded: int = 0
    failed_expansions: int = 0


async def write_and_score(
    client: LLMClient,
    seeds: list[Row],
    expansions: int,
    database_of: Mapping[str, str],
    tick: Callable[[], None],
) -> Batch:
    """Expansion, then Rewriting and Selection's scores, for a batch of seeds side by side.

    `database_of` names the database that an `input` (a schema) belongs to, for rows that can be run.
    """
    batch = Batch()

    async def one(row: Row) -> None:
        try:
            rewritten = await client.ask(REWRITING, row, chain_of_thought=wants_chain_of_thought(row.task_category))
            row = row.model_copy(
                update={
                    "instruction": rewritten.instruction,
                    "response": rewritten.response,
                    "language": language_of(rewritten.instruction),
                    "lineage": (*row.lineage, "rewriting"),
                }
            )
            scores = await client.ask(SELECTION, row)
        except Refused as refused:
            batch.rejected.append(
                Rejected(row.model_copy(update={"verdict": str(refused)}), refused.agent, "no valid answer")
            )
            return
        batch.rows.append(row.model_copy(update={"scores": _numbers(scores.model_dump())}))

    async def family(seed: Row) -> None:
        rows = [seed]
        if expansions:
            try:
                answer = await client.ask(EXPANSION, seed, n=expansions)
                batch.expanded += len(answer.instructions[:expansions])
                for new in answer.instructions[:expansions]:
                    rows.append(_expanded(seed, new.instruction, new.input, database_of.get(new.input, "")))
            except Refused:
                batch.failed_expansions += 1
        await _all(one(row) for row in rows)
        tick()

    await _all(family(seed) for seed in seeds)
    return batch


async def verify(client: LLMClient, rows: list[Row], databases: Mapping[str, ReadOnlyDatabase]) -> Batch:
    """Verification; where a response can be run (SQL with its database), running it outranks the opinion."""
    batch = Batch()

    async def one(row: Row) -> None:
        try:
            if row.database in databases:
                databases[row.database].run(row.response)
            verdict = await client.ask(VERIFICATION, row)
        except QueryError as error:
            row = row.model_copy(update={"verdict": f"does not run: {error}"})
            batch.rejected.append(Rejected(row, "verification", "does not run"))
        except Refused as refused:
            batch.rejected.append(
                Rejected(row.model_copy(update={"verdict": str(refused)}), refused.agent, "no valid answer")
            )
        else:
            row = row.model_copy(update={"verdict": verdict.evidence, "lineage": (*row.lineage, "verification")})
            if verdict.correct:
                batch.rows.append(row)
            else:
                batch.rejected.append(Rejected(row, "verification", "judged incorrect"))

    await _all(one(row) for row in rows)
    return batch


@dataclass(frozen=True)
class Candidate:
    """What selection needs to know of a row; all that is held in memory of a large dataset."""

    place: tuple[int, int]  # batch, position in the batch
    text_digest: bytes
    task_category: str
    score: float


def candidate(place: tuple[int, int], row: Row) -> Candidate:
    text = " ".join(f"{row.instruction} {row.input}".lower().split())
    scores = list(row.scores.values())
    digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
    return Candidate(place, digest, row.task_category, sum(scores) / max(len(scores), 1))


def select(candidates: Iterable[Candidate], min_score: float, max_rows: int | None) -> dict[tuple[int, int], str]:
    """Reason of rejection by place, for the rows that Selection does not keep.

    Rejects low scores and repeated instructions, then fills `max_rows` evenly over task categories (a
    category with too few rows leaves its places to the others), best scores first.
    """
    reasons: dict[tuple[int, int], str] = {}
    seen: set[bytes] = set()
    by_category: dict[str, list[Candidate]] = {}
    for one in sorted(candidates, key=lambda c: (-c.score, c.text_digest, c.place)):
        if one.score < min_score:
            reasons[one.place] = f"score below {min_score:g}"
        elif one.text_digest in seen:
            reasons[one.place] = "duplicate instruction"
        else:
            seen.add(one.text_digest)
            by_category.setdefault(one.task_category, []).append(one)
    kept = sum(map(len, by_category.values()))
    if max_rows is not None and kept > max_rows:
        for category, quota in balanced_quotas({c: len(v) for c, v in by_category.items()}, max_rows).items():
            for one in by_category[category][quota:]:
                reasons[one.place] = "over the balanced share of its task category"
    return reasons


def balanced_quotas(available: Mapping[str, int], total: int) -> dict[str, int]:
    """Places per category, as even as supply allows; sums to min(total, supply)."""
    quotas: dict[str, int] = {}
    left = total
    for position, (category, supply) in enumerate(sorted(available.items(), key=lambda item: (item[1], item[0]))):
        quotas[category] = min(supply, left // (len(available) - position))
        left -= quotas[category]
    return quotas


def _expanded(seed: Row, instruction: str, context: str, database: str) -> Row:
    return Row(
        instruction=instruction,
        input=context,
        task_category=seed.task_category,
        language=language_of(instruction),
        origin_seed=seed.origin_seed,
        lineage=(*seed.lineage, "expansion"),
        database=database,
    )


def _numbers(scores: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items() if isinstance(value, int)}


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Wait for all; on the first error cancel the rest, so that nothing more is asked and paid."""
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(_coroutine(one))


async def _coroutine(work: Awaitable[None]) -> None:
    await work
