"""What augmentation will ask and cost, before anything is spent.

A sample of the seeds goes through the controller itself. In a rehearsal every agent is played by words as long
as the seeds' own, so nothing is asked and nothing is rejected: requests and prompt tokens come out a little
high. With `paid` the sample goes through the real agents, and the estimate is what they took; their answers
stay in the cache, so a run does not pay for them again.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from infra import settings
from infra.sandbox.python import PythonSandbox
from infra.store.artifacts import ArtifactRef
from tasks.augment import agents, candidates
from tasks.augment.agents import COMPARISON, NAMING
from tasks.augment.comparing import compared
from tasks.augment.controller import Ask, Batch, Dropped, verify, write_and_score
from tasks.augment.naming import categories_of, named
from tasks.augment.own_prompts import prompts_of
from tasks.augment.settings import Augmentation
from tasks.llm.agent import Agent
from tasks.llm.budget import Usage, UsageByAgent
from tasks.llm.protocol import LLMEndpoint
from tasks.llm.session import connected
from tasks.rows import HELDOUT, TRAIN, Row, databases_by_input, read_rows
from tasks.seeds.stage import open_databases

_TYPICAL_RESPONSE = "word " * 200  # where no seed of the sample has a response
_REASON = "word " * 25
_DIFFERENCE = "word " * 10
_OTHER = "other"
_LONGEST = 10_000  # characters: half of what an agent may write


@dataclass(frozen=True)
class Estimate:
    """Requests, tokens and $ by agent for all `seeds`, from `sample` of them; `rows` reach verification's end.

    `examples` are the sample's rows that do, in a rehearsal as long as they may become. Of what was `asked`, `became`
    has every row, kept or not.
    """

    seeds: int
    sample: int
    paid: bool
    rows: int
    usage: dict[str, Usage] = field(default_factory=dict)
    priced: bool = True
    examples: tuple[Row, ...] = ()
    asked: tuple[Row, ...] = ()
    became: tuple[Row | Dropped, ...] = ()

    @property
    def total(self) -> Usage:
        total = UsageByAgent()
        for used in self.usage.values():
            total.merge({"all": vars(used)})
        return total["all"]


def estimate(
    seeds: ArtifactRef, options: Augmentation, endpoint: LLMEndpoint, *, sample: int = 100, paid: bool = False
) -> Estimate:
    """The estimate for a seeds artifact. Raises what the stage would raise for a wrong model, key or address."""
    rows = sampled(read_rows(seeds, TRAIN), sample)
    return asyncio.run((_measure if paid else _rehearse)(rows, seeds, options, endpoint))


async def _measure(rows: list[Row], seeds: ArtifactRef, options: Augmentation, endpoint: LLMEndpoint) -> Estimate:
    """Put the sample before the real agents."""
    usage = UsageByAgent()
    scale = seeds.counts["seeds"] / len(rows)
    async with connected(endpoint, options) as client:
        ask = functools.partial(prompts_of(options.prompts).ask, client, usage)
        rows = await _named(ask, rows, options)
        written = await write_and_score(ask, rows, options, databases_by_input(rows), lambda: None)
        pairs = _pairs(written.rows, seeds, options)
        await compared(ask, pairs)
        kept = _reaching_verification(written.rows, options, scale)
        with PythonSandbox() as sandbox:
            checked = await verify(ask, kept, options, open_databases(seeds), sandbox)
        priced = all([any(await client.price(route)) for route in client.routes])
    scales = _scales(scale, kept, options) | _scale_of_pairs(pairs, written.rows, scale, seeds, options)
    scaled = {agent: _scaled(used, scales[agent]) for agent, used in usage.items()}
    rows_out = round(len(checked.rows) * scales["verification"])
    dropped = [*checked.rejected, *checked.failed, *written.rejected, *written.failed, *_low(written, kept)]
    became: tuple[Row | Dropped, ...] = (*checked.rows, *dropped)
    count = seeds.counts["seeds"]
    return Estimate(count, len(rows), True, rows_out, scaled, priced, tuple(checked.rows), tuple(rows), became)


async def _rehearse(rows: list[Row], seeds: ArtifactRef, options: Augmentation, endpoint: LLMEndpoint) -> Estimate:
    """Play the agents in words of the seeds' length, and count the tokens of what would be asked and answered."""
    scale = seeds.counts["seeds"] / len(rows)
    rehearsal = _Rehearsal(rows, options, endpoint.model)
    await _named(rehearsal.ask, rows, options)
    written = await write_and_score(rehearsal.ask, rows, options, databases_by_input(rows), lambda: None)
    pairs = _pairs(written.rows, seeds, options)
    await compared(rehearsal.ask, pairs)
    kept = _reaching_verification(written.rows, options, scale)
    if options.verification:
        for row in kept:
            await rehearsal.ask(agents.VERIFICATION, row)
    scales = _scales(scale, kept, options) | _scale_of_pairs(pairs, written.rows, scale, seeds, options)
    usage, priced = UsageByAgent(), True
    async with connected(endpoint, options.model_copy(update={"budget_usd": None})) as client:
        for (agent, route), texts in rehearsal.said.items():
            price = await client.price(route)
            priced &= any(price)
            prompt, answer = [sum(await client.tokens(route, side)) for side in zip(*texts, strict=True)]
            cost = prompt * price[0] + answer * price[1]
            usage.merge({agent: vars(_scaled(Usage(len(texts), 0, prompt, answer, cost), scales[agent]))})
    rows_out = round(len(kept) * scales["verification"])
    return Estimate(seeds.counts["seeds"], len(rows), False, rows_out, dict(usage), priced, tuple(kept))


class _Rehearsal:
    """Answers as agents would, as far as lengths go, and keeps what was said by agent and route."""

    def __init__(self, rows: list[Row], options: Augmentation, model: str):
        self.said: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        self._options = options
        self._prompts = prompts_of(options.prompts)
        self._model = model
        answered = sorted((row.response for row in rows if row.response), key=len)
        self._typical = answered[len(answered) // 2] if answered else _TYPICAL_RESPONSE

    async def ask(self, agent: Agent[Any], row: Row, **settings: Any) -> Any:
        answer = agent.answer.model_validate(self._answer(agent, row, settings))
        agent = self._prompts[agent]
        prompt = "\n".join([m["content"] for m in agent.messages(row, **settings)] + [json.dumps(agent.schema)])
        route = self._options.route(agent.name, row.task_category, row.language) or self._model
        self.said[agent.name, route].append((prompt, answer.model_dump_json()))
        return answer

    def _answer(self, agent: Agent[Any], row: Row, settings: dict[str, Any]) -> dict[str, Any]:
        response = (row.response or self._typical)[:_LONGEST]
        instruction = row.instruction[:_LONGEST]
        match agent.name:
            case "naming":
                return {"categories": [_OTHER] * len(settings["seeds"])}
            case "expansion":
                new = {"instruction": instruction, "input": row.input[:_LONGEST], "response": response}
                return {"instructions": [new] * settings["n"]}
            case "category":
                verdict = {"same_category": True, "category": row.task_category[:200]}
                return {"verdicts": [verdict] * len(settings["candidates"])}
            case "comparison":
                return {"verdicts": [{"difference": _DIFFERENCE, "same": False}] * len(settings["pairs"])}
            case "rewriting":
                steps, difficulty = (response, "medium") if settings["chain_of_thought"] else ("", "")
                return {"difficulty": difficulty, "instruction": f"{instruction}.", "response": steps + response}
            case "shortening":
                return {"response": "word " * settings["words"]}
            case "preservation":
                return {"instruction": "same", "answer": "same", "reason": _REASON}
            case "selection":
                return {"informativeness": 10, "helpfulness": 10, "generality": 10, "reason": _REASON}
        return {"correct": True, "evidence": _REASON, "tests": []}


async def _named(ask: Ask, rows: list[Row], options: Augmentation) -> list[Row]:
    """The sample with its task categories named, where the run would name them."""
    if not options.name_categories:
        return rows
    return await named(ask, rows, categories_of(options), lambda more: None)


def sampled(rows: Iterable[Row], size: int) -> list[Row]:
    """`size` rows of a stream, each as likely as any other (reservoir), the same ones every time."""
    rng = random.Random(0)
    chosen: list[Row] = []
    for number, row in enumerate(rows):
        if number < size:
            chosen.append(row)
        elif (place := rng.randrange(number + 1)) < size:
            chosen[place] = row
    return chosen


def _reaching_verification(rows: list[Row], options: Augmentation, scale: float) -> list[Row]:
    """The sample's share of what `min_score` and `max_rows` leave."""
    enough = [row for row in rows if not row.scores or statistics.mean(row.scores.values()) >= options.min_score]
    most = len(enough) if options.max_rows is None else max(1, round(options.max_rows / scale))
    return enough[:most]


def _low(written: Batch, kept: list[Row]) -> list[Dropped]:
    """What did not reach Verification."""
    reached = {row.id for row in kept}
    why = "scored too low, or more than augmentation.max_rows"
    return [Dropped(row, "selection", why) for row in written.rows if row.id not in reached]


def _pairs(rows: list[Row], seeds: ArtifactRef, options: Augmentation) -> list[candidates.ComparedPair]:
    """The sample's rows with the held-out rows that they would be compared with, were there no others."""
    of_heldout, of_seeds = (functools.partial(read_rows, seeds, part) for part in (HELDOUT, TRAIN))
    with candidates.opened(settings.work_dir(), of_heldout(), of_seeds, options.compare_heldout) as found:
        found.add(0, found.likely(rows))
        found.choose()
        return [pair for _index, pairs in found.batches(lambda _batch: rows) for pair in pairs()]


def _scale_of_pairs(
    pairs: list[candidates.ComparedPair], rows: list[Row], scale: float, seeds: ArtifactRef, options: Augmentation
) -> dict[str, float]:
    """From the sample's pairs to the most that there can be; of all seeds, to themselves."""
    if scale == 1 or not pairs:
        return {COMPARISON.name: 1.0}
    several = len({row.language for row in rows}) > 1
    heldout, most = seeds.counts["heldout"], options.compare_heldout
    all_of_them = candidates.most_pairs(len(rows) * scale, heldout, most, several_languages=several)
    return {COMPARISON.name: all_of_them / len(pairs)}


def _scales(scale: float, kept: list[Row], options: Augmentation) -> dict[str, float]:
    """By agent, from the sample to everything; Verification sees no more than `max_rows`."""
    most = float("inf") if options.max_rows is None else options.max_rows
    verified = min(len(kept) * scale, most) / max(len(kept), 1)
    return {agent.name: verified if agent is agents.VERIFICATION else scale for agent in (NAMING, *agents.AGENTS)}


def _scaled(used: Usage, scale: float) -> Usage:
    """`paid_usd` stays what the sample itself took out of the purse."""
    whole = {name: round(getattr(used, name) * scale) for name in ("prompt_tokens", "completion_tokens")}
    requests = round((used.requests + used.from_cache) * scale)
    return Usage(requests=requests, cost_usd=used.cost_usd * scale, paid_usd=used.paid_usd, **whole)
