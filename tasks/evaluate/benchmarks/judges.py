"""Judges: LLMs that compare, grade or probe answers, asked as augmentation asks its agents.

What a judge judges goes into the user message as one JSON object, so that no answer can end its own quotation
and speak as us; a verdict that the answer itself contains word for word does not count. Every judgment is kept
with its reason; one that was not made, with why.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from infra.store.artifacts import digest_of
from infra.store.parquet import packed, unpacked
from tasks.llm.agent import Agent, AgentAnswer, Score, Text
from tasks.llm.budget import UsageByAgent
from tasks.llm.client import LLMClient
from tasks.llm.usefulness import NoAnswer

PACKAGE = "tasks.evaluate.benchmarks"
_TOP_LOGPROBS = 5
_VERDICT_WITHIN = 60  # characters before the end of a judge's answer
_VERDICT_AT_END = re.compile(r'"better"\s*:\s*"([mM])"\s*\}[\s`]*$')
BUDGET_REACHED = "budget reached"


class _Verdict(AgentAnswer):
    """The reason comes first, so that the verdict follows from it."""

    reason: Text


class Preference(_Verdict):
    better: Literal["m", "M"]


class Grade(_Verdict):
    rating: Score


class Finding(_Verdict):
    present: bool


PAIR = Agent("alpaca_eval", Preference, PACKAGE)
GRADE = Agent("mt_bench", Grade, PACKAGE)
GRADE_WITH_REFERENCE = Agent("mt_bench_reference", Grade, PACKAGE)


def judges_digest(*agents: Agent[Any]) -> str:
    """Changes when a prompt or the form of a verdict changes."""
    return digest_of([[agent.name, agent.prompt, agent.schema] for agent in agents])[:16]


@dataclass(frozen=True)
class Case:
    """One thing to judge: `item` names what it is about, `part` tells its judgments apart (an order, a turn)."""

    item: str
    part: str
    agent: Agent[Any]
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class Judgment:
    """A judge's verdict on a case, or why there is none.

    `value` is the verdict as a number: for a preference the probability that the second text shown is the
    better one, for a grade 1 … 10, for a finding 0 or 1. `weighted`: from the judge's log-probs.
    """

    item: str
    part: str
    value: float | None
    reason: str = ""
    not_judged: str = ""
    weighted: bool = False
    model: str = ""
    cost_usd: float = 0.0


async def judge(
    client: LLMClient,
    usage: UsageByAgent,
    cases: Sequence[Case],
    *,
    logprobs: bool = False,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[Judgment]:
    """A judgment of every case, in order; at most the client's `concurrency` in flight.

    Raises what `LLMClient.converse` raises of the whole stage; a case without a usable answer is not judged.
    """
    done = 0

    async def one(case: Case) -> Judgment:
        nonlocal done
        try:
            messages = case.agent.about(case.payload)
            verdict, reply = await client.converse(
                usage, case.agent, messages, top_logprobs=_TOP_LOGPROBS if logprobs else None
            )
        except NoAnswer as nothing:
            judgment = Judgment(case.item, case.part, None, not_judged=nothing.reason)
        else:
            judgment = _judged(case, verdict, reply)
        done += 1
        tick(done, len(cases))
        return judgment

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(case)) for case in cases]
    return [task.result() for task in tasks]


def reasons_not_judged(judgments: Sequence[Judgment]) -> dict[str, int]:
    """How many judgments are missing, by reason."""
    return dict(sorted(Counter(j.not_judged for j in judgments if j.not_judged).items()))


def _judged(case: Case, verdict: _Verdict, reply: Mapping[str, Any]) -> Judgment:
    weight = None
    if isinstance(verdict, Preference):
        weight = probability_of_second(reply["text"], reply.get("last_logprobs"))
        value = float(verdict.better == "M") if weight is None else weight
    elif isinstance(verdict, Grade):
        value = float(verdict.rating)
    else:
        assert isinstance(verdict, Finding)
        value = float(verdict.present)
    return Judgment(
        case.item,
        case.part,
        value,
        reason=verdict.reason,
        weighted=weight is not None,
        model=reply["model"],
        cost_usd=reply["cost_usd"],
    )


def probability_of_second(text: str, last_logprobs: Sequence[Any] | None) -> float | None:
    """p("M") / (p("m") + p("M")) at the place of the verdict, as AlpacaEval's weighted judge has it.

    None where the verdict is not the last field, or the log-probs do not reach it or are of another text.
    """
    at_end = _VERDICT_AT_END.search(text[-_VERDICT_WITHIN:])
    if at_end is None:
        return None
    place = max(0, len(text) - _VERDICT_WITHIN) + at_end.start(1)
    end = len(text)
    for token, alternatives in reversed(last_logprobs or []):
        start = end - len(token)
        if start < 0 or text[start:end] != token:
            return None
        if start <= place < end:
            return _weighed(token, alternatives, place - start)
        end = start
    return None


def _weighed(token: str, alternatives: Sequence[Sequence[Any]], offset: int) -> float | None:
    """Alternatives count by the letter that they have where the token has the verdict's."""
    mass = {"m": 0.0, "M": 0.0}
    for other, logprob in alternatives:
        if other[:offset] == token[:offset] and other[offset : offset + 1] in mass:
            mass[other[offset]] += math.exp(logprob)
    total = mass["m"] + mass["M"]
    return mass["M"] / total if total > 0 else None


_SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("part", pa.string()),
        ("value", pa.float64()),
        ("reason", pa.string()),
        ("not_judged", pa.string()),
        ("weighted", pa.bool_()),
        ("model", pa.string()),
        ("cost_usd", pa.float64()),
    ]
)


def to_parquet(judgments: Sequence[Judgment]) -> bytes:
    """Judgments row by row, as a person can read them."""
    return packed(pa.Table.from_pylist([vars(judgment) for judgment in judgments], schema=_SCHEMA))


def from_parquet(data: bytes) -> list[Judgment]:
    """Inverse of `to_parquet`."""
    return [Judgment(**row) for row in unpacked(data).to_pylist()]
