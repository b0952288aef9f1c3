"""Puts pairs of a row and a held-out row before an agent, ten a request: do both ask for the same thing?

So rows are found that ask what is held out in other words or in another language (`tasks.augment.candidates`). A pair
without an answer is counted, and its row stays.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from infra.store.artifacts import Workspace
from tasks.augment.agents import COMPARISON
from tasks.augment.batches import done_name, requests_of
from tasks.augment.candidates import ComparedPair, Likely
from tasks.augment.controller import Ask
from tasks.llm.budget import UsageByAgent
from tasks.llm.usefulness import BUDGET_REACHED, NoAnswer
from tasks.rows import Row

PART = "compared"
PAIRS_A_REQUEST = 10
_DETAIL = 300  # characters of the held-out question that a row left out is told with


async def compared(ask: Ask, pairs: Iterable[ComparedPair]) -> tuple[list[tuple[ComparedPair, bool]], Counter[str]]:
    """The pairs, each with whether both ask for the same thing, and how many have no answer, by reason."""
    judged: list[tuple[ComparedPair, bool]] = []
    unanswered = Counter[str]()

    async def judge(group: Sequence[ComparedPair]) -> None:
        shown = [{"first": pair.first, "second": pair.second} for pair in group]
        try:
            answer = await ask(COMPARISON, Row(instruction="", language=group[0].language), pairs=shown)
        except NoAnswer as failure:
            if len(group) == 1 or failure.reason == BUDGET_REACHED:
                unanswered[failure.reason] += len(group)
                return
            half = len(group) // 2
            await judge(group[:half])
            await judge(group[half:])
        else:
            judged.extend(zip(group, (verdict.same for verdict in answer.verdicts), strict=True))

    async with asyncio.TaskGroup() as tasks:
        for group in requests_of(pairs, PAIRS_A_REQUEST):
            tasks.create_task(judge(group))
    return judged, unanswered


async def compare(
    work: Workspace, index: int, ask: Ask, usage: UsageByAgent, pairs: Callable[[], list[ComparedPair]]
) -> None:
    """Compare a batch of pairs, and put what came of it where `results` reads it."""
    judged, unanswered = await compared(ask, await asyncio.to_thread(pairs))
    same = sorted({(pair.batch, pair.row, pair.second["asked"][:_DETAIL]) for pair, is_same in judged if is_same})
    summary: dict[str, Any] = {
        "usage": usage.plain(),
        "counts": {"compared": len(judged), "not_compared": unanswered.total()},
        "not_compared": dict(sorted(unanswered.items())),
        "same": same,
    }
    await asyncio.to_thread(work.put_json, done_name(PART, index), summary)


def retold(work: Workspace, batches: int) -> dict[int, dict[str, str]]:
    """By batch of seeds, the rows that ask what is held out, by id, and the beginning of what that is."""
    found: dict[int, dict[str, str]] = {}
    for index in range(batches):
        for batch, row_id, detail in work.get_json(done_name(PART, index))["same"]:
            found.setdefault(batch, {})[row_id] = detail
    return found


def put_likely(work: Workspace, batch: int, likely: list[Likely]) -> None:
    work.put(_likely(batch), json.dumps(likely).encode())


def likely(work: Workspace, batch: int) -> list[Likely]:
    """What `put_likely` put."""
    return [(row, place, own, alike) for row, place, own, alike in work.get_json(_likely(batch))]


def _likely(batch: int) -> str:
    return f"written/{batch:05}-likely.json"
