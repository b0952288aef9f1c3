"""Names the task category of rows that have none: routes, chain of thought, balance and slices all go by it."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from infra.stage import Made, OneArtifact, View
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, facts_of
from tasks.augment.agents import NAMING, agents_digest
from tasks.augment.batches import requests_of
from tasks.augment.controller import Ask
from tasks.augment.own_prompts import prompts_of
from tasks.augment.settings import Augmentation
from tasks.llm.budget import UsageByAgent
from tasks.llm.endpoint import llm_endpoint, provider_slots
from tasks.llm.protocol import LLMEndpoint
from tasks.llm.session import connected, run_async
from tasks.llm.usefulness import BUDGET_REACHED, NoAnswer
from tasks.rows import HELDOUT, TRAIN, Row, from_parquet, to_parquet
from tasks.seeds.stage import DATABASES, ROWS_PER_FILE
from tasks.text.categories import TASKS, UNNAMED

KIND = "categories"
STAGE_VERSION = 1
_SEEDS_A_REQUEST = 10
_SHOWN = {"instruction": 1_000, "input": 300}  # characters: the kind of work shows at the beginning
_OTHER = "other"


class NameCategories(OneArtifact):
    """The seeds with a task category each, held-out rows too. A category of the user's own stays."""

    kind: ClassVar = "categories"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "naming task categories"

    seeds: ArtifactRef
    agent_model: str
    options: Augmentation

    @property
    def is_needed(self) -> bool:
        """Whether there is a row without a category, and an agent to name it."""
        return is_named(self.seeds, self.options)

    def workspace(self) -> Workspace:
        spec = {
            "model": self._model,
            "fallbacks": list(self.options.fallbacks),
            "routes": self.options.routes,
            "temperature": self.options.temperature,
            "budget_usd": self.options.budget_usd,
            "categories": categories_of(self.options),
            "agent": agents_digest([prompts_of(self.options.prompts)[NAMING]]),
        }
        return Workspace(KIND, STAGE_VERSION, spec, {"seeds": self.seeds})

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return provider_slots(self.agent_model, self.options)

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        with llm_endpoint(self.agent_model, self.options, view.note) as endpoint:
            return run_async(_name(work, self.seeds, self.options, endpoint, view))

    def show(self, made: Made, view: View) -> str:
        named, counts = facts_of(made.shown)["named"], made.shown.counts
        table = [{"task category": name, "rows named": rows} for name, rows in named.items()]
        if table:
            view.table("categories", table, "task categories that were named")
        if counts["unnamed"]:
            view.warn(f"{counts['unnamed']:,} rows have no task category still: they count as {UNNAMED!r}")
        return f"{counts['named']:,} rows named, in {len(named)} categories"

    @property
    def _model(self) -> str:
        return self.options.routes.get(NAMING.name, self.agent_model)


def is_named(seeds: ArtifactRef, options: Augmentation) -> bool:
    """Whether an agent names task categories of these seeds."""
    return options.enabled and options.name_categories and bool(seeds.counts.get("unnamed"))


def categories_of(options: Augmentation) -> dict[str, str]:
    """The categories to choose from, each with what it means (the user's own say it by their names)."""
    if not options.categories:
        return TASKS
    return {**dict.fromkeys(options.categories, ""), _OTHER: "none of these"}


async def named(ask: Ask, rows: Iterable[Row], categories: Mapping[str, str], tick: Callable[[int], None]) -> list[Row]:
    """The rows in their order, with a category if an agent could name one; `tick` is told how many more are done."""
    rows = list(rows)
    found: dict[str, str] = {}

    async def name(group: tuple[Row, ...]) -> None:
        found.update(zip((row.id for row in group), await _names(ask, group, categories), strict=True))
        tick(len(group))

    async with asyncio.TaskGroup() as tasks:
        for group in requests_of((row for row in rows if row.task_category == UNNAMED), _SEEDS_A_REQUEST):
            tasks.create_task(name(group))
    return [row.model_copy(update={"task_category": found.get(row.id, row.task_category)}) for row in rows]


async def _names(ask: Ask, rows: tuple[Row, ...], categories: Mapping[str, str]) -> list[str]:
    """A row that nobody can name, or that is refused, costs the others of its request no name."""
    seeds = [{field: getattr(row, field)[:length] for field, length in _SHOWN.items()} for row in rows]
    try:
        answer = await ask(NAMING, rows[0], categories=categories, seeds=seeds)
    except NoAnswer as failure:
        if len(rows) == 1 or failure.reason == BUDGET_REACHED:
            return [UNNAMED] * len(rows)
        half = len(rows) // 2
        return [*await _names(ask, rows[:half], categories), *await _names(ask, rows[half:], categories)]
    return [UNNAMED if name == _OTHER else name for name in answer.categories]


def _files_at_once(options: Augmentation) -> int:
    """With `batch`, as many as fill the provider's batches: else each file would wait for a batch of its own."""
    return max(1, options.in_flight * _SEEDS_A_REQUEST // ROWS_PER_FILE) if options.batch else 1


async def _name(
    work: Workspace, seeds: ArtifactRef, options: Augmentation, endpoint: LLMEndpoint, view: View
) -> ArtifactRef:
    """A file at a time (more with `batch`); what a killed process had been told is in the answer cache."""
    usage, before, after = UsageByAgent(), Counter[str](), Counter[str]()
    reader, prompts, categories = ArtifactReader(seeds), prompts_of(options.prompts), categories_of(options)
    done = 0

    def more(rows: int) -> None:
        nonlocal done
        done += rows
        view.tick(done, seeds.counts["unnamed"])

    async with connected(endpoint, options, note=view.note) as client:

        async def ask(*asked: Any, **settings: Any) -> Any:
            return await prompts.ask(client, usage, *asked, **settings)

        async def name_file(name: str, data: bytes) -> None:
            rows = list(from_parquet(data))
            with_names = await named(ask, rows, categories, more)
            before.update(row.task_category for row in rows)
            after.update(row.task_category for row in with_names)
            work.put(name, to_parquet(with_names))

        files = itertools.chain.from_iterable(map(reader.stream, (TRAIN, HELDOUT)))
        while some := list(itertools.islice(files, _files_at_once(options))):
            async with asyncio.TaskGroup() as tasks:
                for name, data in some:
                    tasks.create_task(name_file(name, data))
    for name, data in reader.stream(DATABASES):
        work.put(name, data)
    new = {name: rows - before[name] for name, rows in after.most_common() if rows > before[name]}
    counts = {**seeds.counts, "named": sum(new.values()), "unnamed": after[UNNAMED]}
    facts = {**facts_of(seeds), "named": new, "usage": usage.plain()}
    return work.publish((TRAIN, HELDOUT, DATABASES), counts, facts)
