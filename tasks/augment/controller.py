"""The controller: puts rows before the agents in the paper's order (section 3.1) and accounts for every one.

Expansion writes rows and its category check drops those that drifted; Rewriting improves them and its check
undoes or drops those that lost their meaning; reasoning that is too long is shortened, where its answer stays;
Selection scores rows; Verification, where a response can be run after running it, has the last word. Rows that use
tools are neither expanded nor rewritten, for nobody can write anew what a tool found. How requests are made is not
known here: `ask` puts a row before an agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.sandbox.python import PythonSandbox
from infra.sandbox.sql import ReadOnlyDatabase
from tasks.augment.agents import (
    CATEGORY,
    EXPANSION,
    PRESERVATION,
    REWRITING,
    SELECTION,
    SHORTENING,
    VERIFICATION,
    NewRow,
    wants_chain_of_thought,
)
from tasks.augment.checks import python_of, run_checks
from tasks.augment.settings import Augmentation
from tasks.llm.usefulness import NoAnswer
from tasks.rows import BEFORE_REWRITING, DIFFICULTY, WITH_TOOLS, Row
from tasks.text.answers import without_fences
from tasks.text.language import language_change
from tasks.text.units import word_count

Ask = Callable[..., Awaitable[Any]]  # ask(agent, row, **settings) -> the agent's answer, or NoAnswer


@dataclass(frozen=True)
class Dropped:
    """A row that was not kept: by whom, why, and in what words."""

    row: Row
    agent: str
    reason: str
    detail: str = ""


@dataclass
class Batch:
    """What a batch became: every row that went in or was written is in exactly one of `rows`, `rejected`, `failed`.

    `rejected` rows were judged and found wanting; `failed` rows got no usable answer.
    """

    rows: list[Row] = field(default_factory=list)
    rejected: list[Dropped] = field(default_factory=list)
    failed: list[Dropped] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    async def settle(self, row: Row, work: Awaitable[Row | Dropped]) -> None:
        """File what becomes of a row."""
        try:
            outcome = await work
        except NoAnswer as failure:
            self.failed.append(Dropped(row, failure.agent, failure.reason, str(failure)))
        else:
            if isinstance(outcome, Row):
                self.rows.append(outcome)
            else:
                self.rejected.append(outcome)


async def write_and_score(
    ask: Ask, seeds: list[Row], options: Augmentation, database_of: Mapping[str, str], tick: Callable[[], None]
) -> Batch:
    """Expansion, Rewriting and Selection's scores, for a batch of seeds side by side.

    `database_of` names the database that an `input` (a schema) belongs to, for rows that can be run.
    """
    batch = Batch()

    async def family(seed: Row) -> None:
        rows = [seed]
        if seed.uses_tools:
            batch.count(WITH_TOOLS)
        elif options.expansions_per_seed:
            rows += await _expand(ask, batch, seed, options.expansions_per_seed, database_of)
        await _all(batch.settle(row, _improve(ask, batch, row, options)) for row in rows)
        tick()

    await _all(family(seed) for seed in seeds)
    return batch


async def verify(
    ask: Ask, rows: list[Row], options: Augmentation, databases: Mapping[str, ReadOnlyDatabase], sandbox: PythonSandbox
) -> Batch:
    """Verification of the rows that Selection keeps."""
    batch = Batch()
    if options.verification:
        await _all(batch.settle(row, _verify(ask, row, databases, sandbox)) for row in rows)
    else:
        batch.rows = rows
    return batch


async def _expand(ask: Ask, batch: Batch, seed: Row, n: int, database_of: Mapping[str, str]) -> list[Row]:
    """New rows from a seed that stay in its category and language; the others are filed in the batch."""
    try:
        answer = await ask(EXPANSION, seed, n=n)
    except NoAnswer:
        batch.count("failed_expansions")
        return []
    written = [_expansion(seed, new, database_of) for new in answer.instructions[:n]]
    batch.count("expanded", len(written))
    if answer.left_out:
        batch.count("expansions_left_out", len(answer.left_out))
    same_language = []
    for row in written:
        if changed := _language_change(seed, row.instruction):
            batch.rejected.append(Dropped(row, "category", "changed the language", changed))
        else:
            same_language.append(row)
    return await _in_category(ask, batch, seed, same_language)


async def _in_category(ask: Ask, batch: Batch, seed: Row, candidates: list[Row]) -> list[Row]:
    if not candidates:
        return []
    shown = [{"instruction": row.instruction, "input": row.input} for row in candidates]
    try:
        verdicts = (await ask(CATEGORY, seed, candidates=shown)).verdicts
        if len(verdicts) != len(candidates):
            raise NoAnswer("category", "no valid answer", f"{len(verdicts)} verdicts on {len(candidates)} rows")
    except NoAnswer as failure:
        batch.failed += [Dropped(row, "category", failure.reason, str(failure)) for row in candidates]
        return []
    batch.count("category_checked", len(candidates))
    kept = []
    for row, verdict in zip(candidates, verdicts, strict=True):
        if verdict.same_category:
            kept.append(row)
        else:
            batch.count("drifted")
            batch.rejected.append(Dropped(row, "category", "drifted to another task category", verdict.category))
    return kept


async def _improve(ask: Ask, batch: Batch, row: Row, options: Augmentation) -> Row | Dropped:
    """Rewriting with its check, then Selection's scores; what uses tools stands as it is."""
    if row.uses_tools and not row.is_answered:
        return Dropped(row, "rewriting", "uses tools and has no response, and rows with tools are not rewritten")
    if options.rewriting and not row.uses_tools:
        improved = await _rewrite(ask, batch, row, options)
        if isinstance(improved, Dropped):
            return improved
        row = await _shorten(ask, batch, improved, options.longest(improved.verdicts.get(DIFFICULTY, "")))
    elif not row.is_answered:
        return Dropped(row, "rewriting", "has no response and rewriting is off")
    if options.selection:
        scores = await ask(SELECTION, row)
        numbers = {name: float(value) for name, value in scores.model_dump(exclude={"reason"}).items()}
        verdicts = {**row.verdicts, "selection": scores.reason}
        row = row.model_copy(update={"scores": numbers, "verdicts": verdicts})
    return row


async def _rewrite(ask: Ask, batch: Batch, row: Row, options: Augmentation) -> Row | Dropped:
    """Of a row that takes reasoning, the agent says first how hard it is, and keeps to the length for that."""
    if wants_chain_of_thought(row.task_category):
        answer = await ask(REWRITING, row, chain_of_thought=True, lengths=options.aims)
        row = row.model_copy(update={"verdicts": {**row.verdicts, DIFFICULTY: answer.difficulty}})
    else:
        answer = await ask(REWRITING, row, chain_of_thought=False)
    if (answer.instruction, answer.response) == (row.instruction, row.response):
        return row.model_copy(update={"lineage": (*row.lineage, "rewriting")})
    if changed := _language_change(row, answer.instruction):
        return _undone(batch, row, "changed the language", changed)
    rewritten = {"instruction": answer.instruction, "response": answer.response}
    judged = await ask(PRESERVATION, row, rewritten=rewritten)
    if "changed" in (judged.instruction, judged.answer):
        return _undone(batch, row, "changed the meaning", judged.reason)
    verdicts = {**row.verdicts, "preservation": judged.reason}
    if row.response and judged.answer != "same":
        verdicts[BEFORE_REWRITING] = row.response
    return row.model_copy(update={**rewritten, "lineage": (*row.lineage, "rewriting"), "verdicts": verdicts})


async def _shorten(ask: Ask, batch: Batch, row: Row, words: int) -> Row:
    """Reasoning that is longer than so many words (0: any length is right) made shorter, where its answer stays."""
    if not words or not wants_chain_of_thought(row.task_category) or word_count(without_fences(row.response)) <= words:
        return row
    batch.count("long_reasoning")
    try:
        shorter = (await ask(SHORTENING, row, words=words)).response
        rewritten = {"instruction": row.instruction, "response": shorter}
        judged = await ask(PRESERVATION, row, rewritten=rewritten)
    except NoAnswer:
        return row
    if word_count(shorter) >= word_count(row.response) or (judged.instruction, judged.answer) != ("same", "same"):
        return row
    batch.count("shortened")
    verdicts = {**row.verdicts, "shortening": judged.reason}
    return row.model_copy(update={"response": shorter, "lineage": (*row.lineage, "shortening"), "verdicts": verdicts})


def _undone(batch: Batch, row: Row, reason: str, detail: str) -> Row | Dropped:
    """Back to the row before Rewriting, where it can stand by itself."""
    if not row.response:
        return Dropped(row, "rewriting", reason, detail)
    batch.count("rewritings_undone")
    return row.model_copy(update={"verdicts": {**row.verdicts, "preservation": f"undone, it {reason}: {detail}"}})


async def _verify(
    ask: Ask, row: Row, databases: Mapping[str, ReadOnlyDatabase], sandbox: PythonSandbox
) -> Row | Dropped:
    """Running outranks the agent: what fails is rejected unasked, what passes the agent's tests is kept."""
    verdicts = dict(row.verdicts)
    outcome = await run_checks(row, databases, sandbox)
    if outcome is not None:
        verdicts["check"] = f"{outcome.result}: {outcome.detail}" if outcome.detail else outcome.result
        if outcome.result == "failed":
            return Dropped(_with(row, verdicts), "verification", "fails when it is run or computed", outcome.detail)
    verdict = await ask(VERIFICATION, row)
    correct, evidence = verdict.correct, verdict.evidence
    code = python_of(row)
    if code and verdict.tests:
        tested = await sandbox.run(code, verdict.tests)
        verdicts["tests"] = f"{tested.result}: {tested.detail}" if tested.detail else tested.result
        if tested.result != "unknown":
            correct = tested.result == "passed"
            evidence = tested.detail or evidence
    verdicts["verification"] = verdict.evidence
    row = _with(row, verdicts)
    return row if correct else Dropped(row, "verification", "judged incorrect", evidence)


def _with(row: Row, verdicts: dict[str, str]) -> Row:
    return row.model_copy(update={"verdicts": verdicts, "lineage": (*row.lineage, "verification")})


def _expansion(seed: Row, new: NewRow, database_of: Mapping[str, str]) -> Row:
    return Row(
        instruction=new.instruction,
        input=new.input,
        response=new.response.strip(),
        task_category=seed.task_category,
        language=seed.language,
        origin_seed=seed.origin_seed,
        lineage=(*seed.lineage, "expansion"),
        database=database_of.get(new.input) or (seed.database if new.input and new.input == seed.input else ""),
    )


def _language_change(row: Row, after: str) -> str | None:
    """In words, where it is sure and not what the task is about."""
    if "transl" in row.task_category.lower():
        return None
    return language_change(row.instruction, after)


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Wait for all; on the first error cancel the rest, so that nothing more is asked and paid."""
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(_coroutine(one))


async def _coroutine(work: Awaitable[None]) -> None:
    await work
