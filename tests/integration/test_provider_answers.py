"""What becomes of a row when a provider answers in the ways that providers really do, over HTTP and through LiteLLM."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError
from infra.sandbox.python import PythonSandbox
from tasks.augment import agents
from tasks.augment.controller import Batch, verify, write_and_score
from tasks.augment.settings import Augmentation
from tasks.llm.agent import Agent
from tasks.llm.budget import UsageByAgent
from tasks.llm.cache import AnswerCache
from tasks.llm.client import LLMClient
from tasks.llm.protocol import LLMEndpoint
from tasks.llm.usefulness import NoAnswer
from tasks.rows import Row
from tests.support.answer_forms import FORMS, MARKS, QUOTA
from tests.support.endpoint import endpoint, tell
from tests.support.endpoint_answers import answer

pytestmark = pytest.mark.usefixtures("home")

ENGLISH = "Explain in a few simple sentences how a bicycle stays upright while somebody rides it, and why that is so."
HOSTILE = ENGLISH + " " + " ".join(MARKS.values())
STOPPING = ("quota", "no_credit")
ASKED: dict[str, tuple[Agent[Any], dict[str, Any]]] = {
    "expansion": (agents.EXPANSION, {"n": 2}),
    "category": (agents.CATEGORY, {"candidates": [{"instruction": "a", "input": ""}]}),
    "rewriting": (agents.REWRITING, {"chain_of_thought": True, "lengths": {"short": 9, "medium": 19, "long": 29}}),
    "preservation": (agents.PRESERVATION, {"rewritten": {"instruction": "i", "response": "r"}}),
    "selection": (agents.SELECTION, {}),
    "verification": (agents.VERIFICATION, {}),
}
JUDGES = ("category", "preservation", "selection", "verification")
# What each agent's answer is worth: usable, or the reason that the row is failed with, and words of the detail.
USABLE = (
    *(
        "plain",
        "fenced",
        "prose",
        "bom",
        "thought",
        "extra",
        "floats",
        "nulls",
        "reasoning",
        "parts",
        "object",
        "tool_call",
    ),
    *("no_schema", "no_json", "no_grammar", "no_max_tokens", "no_temperature", "no_system"),
)
USELESS = {
    "nonsense": ("no answer (server error)", "Invalid response object"),
    "empty": ("no valid answer", "an empty answer"),
    "no_choice": ("no valid answer", "an empty answer"),
    "refusal": ("no valid answer", "the model declines: 'That I will not do.'"),
    "filtered": ("declined by the provider", "its content filter"),
    "moderated": ("declined by the provider", "flagged by our moderation"),
    "cut_off": ("no valid answer", "cut off at max_output_tokens"),
    "cut_off_whole": ("no valid answer", "cut off at max_output_tokens"),
}


def _row(form: str) -> Row:
    return Row(instruction=HOSTILE, response="It does.", task_category=form, origin_seed=form)


@pytest.fixture(scope="module")
def told(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], dict[str, Batch]]]:
    """By form, what each agent answered (or why not), and what became of a seed and its expansion."""
    with pytest.MonkeyPatch.context() as patch, endpoint() as url:
        patch.setenv("OPENAI_API_BASE", url)
        patch.setenv("OPENAI_API_KEY", "sk-no-key-at-all")
        cache = AnswerCache(tmp_path_factory.mktemp("answers") / "answers.sqlite")
        yield asyncio.run(_asked(cache))


async def _asked(cache: AnswerCache) -> tuple[dict[str, Any], dict[str, Batch]]:
    forms = [form for form in FORMS if form not in STOPPING]
    options = Augmentation(routes={form: f"openai/{form}" for form in forms}, expansions_per_seed=1)
    client = LLMClient(LLMEndpoint("openai/plain"), cache, options)
    usage = UsageByAgent()

    async def one(form: str, agent: Agent[Any], settings: dict[str, Any]) -> Any:
        try:
            return await client.ask(usage, agent, _row(form), **settings)
        except NoAnswer as nothing:
            return nothing

    async def ask(agent: Agent[Any], row: Row, **settings: Any) -> Any:
        return await client.ask(usage, agent, row, **settings)

    async def family(form: str) -> Batch:
        batch = await write_and_score(ask, [_row(form)], options, {}, lambda: None)
        with PythonSandbox() as sandbox:
            verified = await verify(ask, batch.rows, options, {}, sandbox)
        return Batch(verified.rows, batch.rejected + verified.rejected, batch.failed + verified.failed, batch.counts)

    try:
        said = [[one(form, agent, settings) for agent, settings in ASKED.values()] for form in forms]
        answers = await asyncio.gather(*(asyncio.gather(*each) for each in said))
        batches = await asyncio.gather(*map(family, forms))
    finally:
        await client.close()
    by_form = {form: dict(zip(ASKED, each, strict=True)) for form, each in zip(forms, answers, strict=True)}
    return by_form, dict(zip(forms, batches, strict=True))


def _right(agent: str, form: str) -> Any:
    """What the endpoint has to say."""
    one, settings = ASKED[agent]
    return answer(json.loads(one.messages(_row(form), **settings)[1]["content"]), 0)


def _reasons(batch: Batch) -> Counter[str]:
    return Counter(one.reason for one in (*batch.rejected, *batch.failed))


def test_every_form_is_in_the_table() -> None:
    assert {*USABLE, *USELESS, *STOPPING, "other_language", "echo", "thinks_of_the_row"} == set(FORMS)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in STOPPING])
def test_every_row_is_accounted_for_in_every_form(told: Any, form: str) -> None:
    batch = told[1][form]
    rows = [*batch.rows, *(one.row for one in (*batch.rejected, *batch.failed))]
    assert len(rows) == 1 + batch.counts.get("expanded", 0)
    assert all(one.agent and one.reason for one in (*batch.rejected, *batch.failed))
    assert all(one.detail for one in batch.failed)


@pytest.mark.parametrize("form", USABLE)
def test_a_usable_answer_is_used_whatever_its_form(told: Any, form: str) -> None:
    answers, batches = told
    assert {name: said.model_dump() for name, said in answers[form].items()} == {
        name: _right(name, form) for name in ASKED
    }
    assert batches[form].failed == []
    assert batches[form].counts["expanded"] == 1


@pytest.mark.parametrize(("form", "why"), USELESS.items(), ids=USELESS)
def test_a_useless_answer_costs_its_row_and_says_why(told: Any, form: str, why: tuple[str, str]) -> None:
    answers, batches = told
    for said in answers[form].values():
        assert isinstance(said, NoAnswer)
        assert said.reason == why[0]
        assert why[1] in str(said)
        assert "not one whole JSON object" not in str(said)
    assert _reasons(batches[form]) == {why[0]: 1}
    assert batches[form].counts == {"failed_expansions": 1}


def test_an_answer_in_another_language_is_undone_or_rejected(told: Any) -> None:
    batch = told[1]["other_language"]
    assert batch.counts["rewritings_undone"] == 1
    assert [one.reason for one in batch.rejected if "expansion" in one.row.lineage] == ["changed the language"]
    assert batch.failed == []


@pytest.mark.parametrize("form", ["echo", "thinks_of_the_row"])
def test_a_verdict_that_stands_in_the_row_promotes_nothing(told: Any, form: str) -> None:
    answers, batches = told
    for judge in JUDGES:
        assert isinstance(answers[form][judge], NoAnswer), judge
        assert form != "echo" or "quotes the row" in str(answers[form][judge])
    assert batches[form].rows == []


@pytest.mark.parametrize("form", STOPPING)
def test_a_used_up_quota_ends_the_run_at_the_first_row(form: str, tmp_path: Path) -> None:
    async def many(url: str) -> None:
        cache = AnswerCache(tmp_path / "answers.sqlite")
        client = LLMClient(LLMEndpoint(f"openai/{form}", url, "sk-secret-key"), cache, Augmentation())
        with contextlib.closing(cache):
            try:
                async with asyncio.TaskGroup() as group:
                    for number in range(100):
                        row = Row(instruction=str(number))
                        group.create_task(client.ask(UsageByAgent(), agents.VERIFICATION, row))
            finally:
                await client.close()

    with endpoint() as url:
        with pytest.raises(ExceptionGroup) as ended:
            asyncio.run(many(url))
        assert tell(url, "stats")["requests"] <= 12
    words = QUOTA if form == "quota" else "Insufficient Balance"
    assert ended.group_contains(ConfigurationError, match=f"is used up \\({words}.*answers so far are kept, run again")
    assert not ended.group_contains(ConfigurationError, match="concurrency|sk-secret-key")
