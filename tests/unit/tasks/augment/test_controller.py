"""The controller: every row is accounted for, checks have the last word, and switches do what they say."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.errors import ConfigurationError
from infra.sandbox.python import PythonSandbox
from infra.sandbox.sql import ReadOnlyDatabase
from tasks.augment.controller import Batch, verify, write_and_score
from tasks.augment.settings import Augmentation
from tasks.llm.usefulness import NoAnswer
from tasks.rows import BEFORE_REWRITING, WITH_TOOLS, Function, Message, Row, ToolCall, databases_by_input
from tests.support.fake_agents import FakeAgents, honest, unkind

ENGLISH = "Explain in a few sentences how a bicycle stays upright while somebody rides it."
GERMAN = "Erkläre in ein paar Sätzen, wie ein Fahrrad beim Fahren aufrecht bleibt und warum."
DATABASE = "CREATE TABLE t(id INTEGER); INSERT INTO t VALUES (1), (2);"
SEED = Row(instruction=ENGLISH, response="It does.", origin_seed="s")


def _write(agents: FakeAgents, *seeds: Row, database_of: dict[str, str] | None = None, **options: Any) -> Batch:
    chosen = Augmentation(**{"expansions_per_seed": 0, **options})
    return asyncio.run(write_and_score(agents, list(seeds), chosen, database_of or {}, lambda: None))


def _verify(agents: FakeAgents, *rows: Row, **options: Any) -> Batch:
    async def run() -> Batch:
        with PythonSandbox() as sandbox:
            databases = {"shop": ReadOnlyDatabase(DATABASE)}
            return await verify(agents, list(rows), Augmentation(**options), databases, sandbox)

    return asyncio.run(run())


def _saying(**changes: Any) -> FakeAgents:
    """Honest agents but for those named, which give the answer (or the error) named."""
    return FakeAgents(lambda agent, shown: changes.get(agent) or honest(agent, shown))


@st.composite
def _moods(draw: st.DrawFn) -> FakeAgents:
    """Agents that now like, now dislike, now fail, now talk nonsense, now answer the wrong number of times."""
    choices = draw(st.lists(st.sampled_from(["honest", "unkind", "fails", "nonsense", "other"]), min_size=1))
    count = 0

    def say(agent: str, shown: dict[str, Any]) -> Any:
        nonlocal count
        count += 1
        mood = choices[count % len(choices)]
        if mood == "fails":
            return NoAnswer(agent, "no answer (timeout)", transient=True)
        if mood == "other":
            return {"expansion": {"instructions": []}, "category": {"verdicts": []}}.get(agent, "")
        if mood == "nonsense":
            return "I would rather not."
        return {"honest": honest, "unkind": unkind}[mood](agent, shown)

    return FakeAgents(say)


@hypothesis_settings(deadline=None, max_examples=60)
@given(_moods(), st.integers(0, 3), st.booleans(), st.booleans(), st.booleans(), st.lists(st.sampled_from(["", "An."])))
def test_every_row_ends_in_exactly_one_place(
    agents: FakeAgents, n: int, rewriting: bool, selection: bool, verification: bool, responses: list[str]
) -> None:
    seeds = [Row(instruction=ENGLISH, response=text, origin_seed=str(i)) for i, text in enumerate(responses)]
    written = _write(agents, *seeds, expansions_per_seed=n, rewriting=rewriting, selection=selection)
    dropped = [one.row for one in (*written.rejected, *written.failed)]
    came_in = len(seeds) + written.counts.get("expanded", 0)
    assert len(written.rows) + len(dropped) == came_in
    families = Counter(row.origin_seed for row in (*written.rows, *dropped) if "expansion" not in row.lineage)
    assert families == {row.origin_seed: 1 for row in seeds}
    verified = _verify(agents, *written.rows, verification=verification)
    assert len(verified.rows) + len(verified.rejected) + len(verified.failed) == len(written.rows)
    places = (*verified.rows, *(one.row for one in (*verified.rejected, *verified.failed)))
    assert Counter((r.origin_seed, "expansion" in r.lineage) for r in places) == Counter(
        (r.origin_seed, "expansion" in r.lineage) for r in written.rows
    )


def test_an_error_of_the_whole_stage_is_not_filed_as_a_rows() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        _write(_saying(selection=ConfigurationError("no key")), SEED, SEED)
    assert raised.group_contains(ConfigurationError, match="no key")


def test_a_row_carries_where_it_comes_from_and_what_was_said_of_it() -> None:
    batch = _write(FakeAgents(), SEED, expansions_per_seed=1)
    seed, new = sorted(batch.rows, key=lambda row: len(row.lineage))
    assert seed.lineage == ("seed", "rewriting")
    assert new.lineage == ("seed", "expansion", "rewriting")
    assert (new.origin_seed, new.task_category, new.language) == ("s", SEED.task_category, SEED.language)
    assert seed.response == new.response == "A better response."
    assert seed.scores == {"informativeness": 8.0, "helpfulness": 8.0, "generality": 8.0}
    assert seed.verdicts == {"preservation": "kept", "selection": "fine"}
    (kept,) = _verify(FakeAgents(), seed).rows
    assert kept.lineage == ("seed", "rewriting", "verification")
    assert kept.verdicts == {**seed.verdicts, "verification": "checked"}


def test_more_expansions_than_asked_for_are_left_out() -> None:
    many = {"instructions": [{"instruction": f"Number {n}?", "input": "", "response": ""} for n in range(9)]}
    batch = _write(_saying(expansion=many), SEED, expansions_per_seed=2)
    assert batch.counts["expanded"] == 2
    assert len(batch.rows) == 3


def test_a_translation_task_may_be_in_any_language() -> None:
    new = [{"instruction": GERMAN, "input": "", "response": ""}]
    seed = SEED.model_copy(update={"task_category": "Translation"})
    rewritten = {"instruction": GERMAN, "response": "Ja."}
    batch = _write(_saying(expansion={"instructions": new}, rewriting=rewritten), seed, expansions_per_seed=1)
    assert batch.rejected == []
    assert {row.instruction for row in batch.rows} == {GERMAN}


def test_an_expansion_that_is_no_row_is_counted_and_costs_no_other() -> None:
    new = [{"instruction": "Count.", "input": None}, {"instruction": None}, {"instruction": "Add.", "response": 7}]
    batch = _write(_saying(expansion={"instructions": new}), SEED, expansions_per_seed=3)
    assert (batch.counts["expanded"], batch.counts["expansions_left_out"]) == (1, 2)
    assert len(batch.rows) == 2


def test_expansions_that_change_language_or_category_are_rejected_and_counted() -> None:
    new = [{"instruction": text, "input": "", "response": ""} for text in (GERMAN, ENGLISH + " Now!", ENGLISH + "?")]
    verdicts = [{"same_category": False, "category": "poetry"}, {"same_category": True, "category": "x"}]
    agents = _saying(expansion={"instructions": new}, category={"verdicts": verdicts})
    batch = _write(agents, SEED, expansions_per_seed=3)
    assert [(d.row.instruction, d.agent, d.reason, d.detail) for d in batch.rejected] == [
        (GERMAN, "category", "changed the language", "from en to de"),
        (ENGLISH + " Now!", "category", "drifted to another task category", "poetry"),
    ]
    assert batch.counts == {"expanded": 3, "category_checked": 2, "drifted": 1}
    assert {row.instruction for row in batch.rows} == {ENGLISH, ENGLISH + "?"}


def test_a_category_check_that_misses_a_row_decides_on_none() -> None:
    agents = _saying(category={"verdicts": [{"same_category": True, "category": "x"}]})
    batch = _write(agents, SEED, expansions_per_seed=2)
    assert [(d.agent, d.reason) for d in batch.failed] == [("category", "no valid answer")] * 2
    assert len(batch.rows) == 1


def test_a_seed_that_cannot_be_expanded_stays_a_row() -> None:
    batch = _write(_saying(expansion=NoAnswer("expansion", "declined by the provider")), SEED, expansions_per_seed=2)
    assert batch.counts == {"failed_expansions": 1}
    assert len(batch.rows) == 1


def test_an_expansion_on_a_known_schema_belongs_to_its_database() -> None:
    new = {"instructions": [{"instruction": "Count.", "input": x, "response": ""} for x in ("schema", "another")]}
    batch = _write(_saying(expansion=new), SEED, expansions_per_seed=2, database_of={"schema": "shop"})
    assert {row.input: row.database for row in batch.rows} == {"": "", "schema": "shop", "another": ""}


def test_an_expansion_on_its_seeds_own_schema_runs_on_its_seeds_own_database() -> None:
    """Two databases may have one schema, which then says nothing of the database."""
    seeds = [Row(instruction=f"count {name}", input="schema", response="1", database=name) for name in ("a", "b")]
    assert databases_by_input([*seeds, Row(instruction="x", input="other", database="c")]) == {
        "schema": "",
        "other": "c",
    }
    new = {"instructions": [{"instruction": "count all of them", "input": "schema", "response": "1"}]}
    batch = _write(_saying(expansion=new), *seeds, expansions_per_seed=1, database_of=databases_by_input(seeds))
    written = [row for row in batch.rows if "expansion" in row.lineage]
    assert sorted(row.database for row in written) == ["a", "b"]


LONG = " ".join(["so"] * 50)
SAME, LOST = ({"instruction": "same", "answer": answer, "reason": "r"} for answer in ("same", "changed"))


def _reasoned(
    shorter: str,
    *,
    checked: dict[str, str] = SAME,
    category: str = "mathematics",
    difficulty: str = "hard",
    words: Any = 20,
) -> Row:
    """What Shortening makes of a long rewriting, whose own check is content."""

    def say(agent: str, shown: dict[str, Any]) -> Any:
        if agent == "preservation":
            return checked if shown["rewritten"]["response"] == shorter else SAME
        rewritten = {"difficulty": difficulty, "instruction": SEED.instruction, "response": LONG}
        said = {"rewriting": rewritten, "shortening": {"response": shorter}}
        return said.get(agent) or honest(agent, shown)

    seed = SEED.model_copy(update={"task_category": category})
    batch = _write(FakeAgents(say), seed, longest_reasoning=words)
    [row] = batch.rows
    assert batch.counts.get("shortened", 0) == (row.response == shorter)
    return row


def test_long_reasoning_is_shortened_where_the_answer_stays() -> None:
    row = _reasoned("So it is.")
    assert (row.response, row.lineage[-1]) == ("So it is.", "shortening")
    assert row.verdicts["shortening"] == "r"


@pytest.mark.parametrize(
    "how",
    [
        {"checked": LOST},
        {"category": "poetry"},
        {"words": 0},
        {"words": 50},
        {"words": {"short": 10, "medium": 20, "long": 50}},
    ],
    ids=["the answer changed", "no reasoning", "switched off", "short enough", "short enough for a hard one"],
)
def test_reasoning_stays_as_it_is_otherwise(how: dict[str, Any]) -> None:
    assert _reasoned("So it is.", **how).response == LONG


@pytest.mark.parametrize("difficulty", ["easy", "medium"])
def test_what_is_long_goes_by_the_difficulty(difficulty: str) -> None:
    row = _reasoned("So it is.", difficulty=difficulty, words={"short": 10, "medium": 49, "long": 50})
    assert (row.response, row.verdicts["difficulty"]) == ("So it is.", difficulty)


def test_rewriting_is_told_the_lengths_where_it_reasons_and_the_row_keeps_the_difficulty() -> None:
    told: list[Any] = []

    def say(agent: str, shown: dict[str, Any]) -> Any:
        if agent == "rewriting":
            told.append(shown.get("lengths"))
        return honest(agent, shown)

    seeds = [SEED.model_copy(update={"task_category": category}) for category in ("mathematics", "poetry")]
    batch = _write(FakeAgents(say), *seeds, reasoning_words={"short": 7, "medium": 70, "long": 700})
    assert sorted(told, key=bool) == [None, {"short": 7, "medium": 70, "long": 400}], "400 is shortened"
    found = {row.task_category: row.verdicts.get("difficulty") for row in batch.rows}
    assert found == {"mathematics": "medium", "poetry": None}


def test_what_became_no_shorter_is_not_taken() -> None:
    assert _reasoned(f"{LONG} so").response == LONG


@pytest.mark.parametrize(("instruction", "answer"), [("changed", "same"), ("same", "changed"), ("changed", "changed")])
def test_a_rewriting_that_changes_the_meaning_is_undone(instruction: str, answer: str) -> None:
    lost = {"instruction": instruction, "answer": answer, "reason": "other sum"}
    batch = _write(_saying(preservation=lost), SEED, SEED.model_copy(update={"response": ""}))
    (row,) = batch.rows
    assert (row.instruction, row.response, row.lineage) == (SEED.instruction, SEED.response, ("seed",))
    assert row.verdicts["preservation"] == "undone, it changed the meaning: other sum"
    (dropped,) = batch.rejected  # there is nothing to go back to
    assert (dropped.agent, dropped.reason, dropped.detail) == ("rewriting", "changed the meaning", "other sum")
    assert batch.counts == {"rewritings_undone": 1}


def test_a_rewriting_into_another_language_is_undone_unasked() -> None:
    agents = _saying(rewriting={"instruction": GERMAN, "response": "Durch Lenken."})
    (row,) = _write(agents, SEED).rows
    assert row.instruction == ENGLISH
    assert row.verdicts["preservation"] == "undone, it changed the language: from en to de"
    assert "preservation" not in agents.asked


def test_a_corrected_answer_is_kept_with_the_one_before() -> None:
    fixed = {"instruction": "same", "answer": "corrected", "reason": "was wrong"}
    said = _saying(preservation=fixed)
    (row,) = _write(said, SEED).rows
    assert row.response == "A better response."
    assert row.verdicts[BEFORE_REWRITING] == SEED.response
    assert BEFORE_REWRITING in _verify(FakeAgents(), row).rows[0].verdicts
    (written,) = _write(said, SEED.model_copy(update={"response": ""})).rows
    assert BEFORE_REWRITING not in written.verdicts  # there was none


def test_switches_switch_off() -> None:
    agents = FakeAgents()
    batch = _write(agents, SEED, SEED.model_copy(update={"response": ""}), rewriting=False, selection=False)
    assert agents.asked == []
    assert batch.rows == [SEED]
    assert [(d.agent, d.reason) for d in batch.rejected] == [("rewriting", "has no response and rewriting is off")]
    wrong = Row(instruction="Add.", response="2 + 2 = 5", task_category="math")
    assert _verify(agents, wrong, verification=False).rows == [wrong]
    assert agents.asked == []


def test_what_fails_when_it_is_run_is_rejected_whatever_the_agent_would_say() -> None:
    wrong = [
        Row(instruction="Add.", response="2 + 2 = 5", task_category="math"),
        Row(instruction="Count.", input="schema", response="SELECT nonsense FROM t", database="shop"),
        Row(instruction="Print.", response="```python\nprint(1/0)\n```", task_category="python"),
    ]
    agents = FakeAgents()
    batch = _verify(agents, *wrong)
    assert [d.reason for d in batch.rejected] == ["fails when it is run or computed"] * 3
    assert {d.detail for d in batch.rejected} >= {"2 + 2 is not 5", "no such column: nonsense"}
    assert all(d.row.verdicts["check"].startswith("failed: ") for d in batch.rejected)
    assert agents.asked == []  # and no money was spent on it


def test_what_runs_is_still_judged() -> None:
    right = [
        Row(instruction="Add.", response="2 + 2 = 4", task_category="math"),
        Row(instruction="Count.", input="schema", response="SELECT count(*) FROM t", database="shop"),
    ]
    assert all(row.verdicts["check"] == "passed" for row in _verify(FakeAgents(), *right).rows)
    assert len(_verify(FakeAgents(unkind), *right).rejected) == 2


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(("test", "kept"), [("assert double(2) == 4", True), ("assert double(2) == 5", False)])
def test_tests_outrank_the_agents_opinion(said: bool, test: str, kept: bool) -> None:
    row = Row(instruction="Double.", response="```python\ndef double(x):\n    return 2 * x\n```", task_category="code")
    batch = _verify(_saying(verification={"correct": said, "evidence": "seen", "tests": [test]}), row)
    assert (len(batch.rows), len(batch.rejected)) == (kept, not kept)


@pytest.mark.parametrize("said", [True, False])
def test_tests_that_cannot_be_judged_leave_the_agents_opinion(said: bool) -> None:
    row = Row(instruction="Double.", response="```python\ndef double(x):\n    return 2 * x\n```", task_category="code")
    agents = _saying(verification={"correct": said, "evidence": "seen", "tests": ["import numpy"]})
    batch = _verify(agents, row)
    (judged,) = batch.rows or [one.row for one in batch.rejected]
    assert judged.verdicts["tests"].startswith("unknown: ")
    assert bool(batch.rows) == said


def test_tests_on_a_row_that_is_no_program_are_not_run() -> None:
    row = Row(instruction="Hi", response="Hello")
    says = {"correct": True, "evidence": "fine", "tests": ["assert False"]}
    assert len(_verify(_saying(verification=says), row).rows) == 1


@pytest.mark.parametrize(
    ("agent", "category", "language", "model"),
    [
        ("selection", "math", "zh", "by-agent"),
        ("rewriting", "math", "zh", "by-category"),
        ("rewriting", "general", "zh", "by-language"),
        ("rewriting", "general", "en", None),
    ],
)
def test_an_agents_route_comes_before_a_categorys_and_that_before_a_languages(
    agent: str, category: str, language: str, model: str | None
) -> None:
    routes = {"zh": "by-language", "math": "by-category", "selection": "by-agent"}
    assert Augmentation(routes=routes).route(agent, category, language) == model


def test_json_that_an_agent_is_shown_holds_the_candidates_and_the_rewriting() -> None:
    seen: dict[str, dict[str, Any]] = {}

    def say(agent: str, shown: dict[str, Any]) -> Any:
        seen[agent] = shown
        return honest(agent, shown)

    _write(FakeAgents(say), SEED, expansions_per_seed=1)
    assert seen["category"]["instruction"] == ENGLISH
    assert seen["category"]["candidates"] == [{"instruction": "Name a colour of the rainbow (0)", "input": ""}]
    assert json.dumps(seen["preservation"]["rewritten"]["response"]) == '"A better response."'


CALL = ToolCall(id="call00001", function=Function(name="look_up", arguments='{"word": "bicycle"}'))
TOOL_TURNS = (
    Message(role="assistant", content="", tool_calls=(CALL,)),
    Message(role="tool", content="It leans.", tool_call_id=CALL.id, name="look_up"),
)
DEFINED = '[{"type": "function", "function": {"name": "look_up"}}]'


@pytest.mark.parametrize(
    "change",
    [
        {"tools": DEFINED},
        {"tool_turns": TOOL_TURNS},
        {"response": "", "tool_calls": (CALL,)},
        {"history": (Message(role="user", content="q"), *TOOL_TURNS, Message(role="assistant", content="a"))},
    ],
)
def test_rows_with_tools_are_judged_and_neither_expanded_nor_rewritten(change: dict[str, Any]) -> None:
    row = SEED.model_copy(update=change)
    agents = FakeAgents()
    batch = _write(agents, row, SEED, expansions_per_seed=2)
    assert Counter(agents.asked)["selection"] == 4
    assert Counter(agents.asked)["rewriting"] == 3, "the seed without tools and its two expansions"
    assert batch.counts[WITH_TOOLS] == 1
    [kept] = [one for one in batch.rows if one.uses_tools]
    names = ("instruction", "response", "history", "tools", "tool_turns", "tool_calls", "lineage")
    assert [getattr(kept, name) for name in names] == [getattr(row, name) for name in names]
    assert WITH_TOOLS not in _write(FakeAgents(), SEED).counts


def test_rows_with_tools_without_a_response_are_left_out_with_the_reason() -> None:
    batch = _write(FakeAgents(), SEED.model_copy(update={"response": "", "tools": DEFINED}))
    [dropped] = batch.rejected
    assert dropped.reason == "uses tools and has no response, and rows with tools are not rewritten"


def test_agents_see_what_tools_found_and_nothing_of_it_is_run() -> None:
    shown: dict[str, Any] = {}

    def say(agent: str, seen: dict[str, Any]) -> Any:
        shown.update(seen)
        return honest(agent, seen)

    row = Row(instruction="q", response="Two rows.", tools=DEFINED, tool_turns=TOOL_TURNS, database="shop")
    batch = _verify(FakeAgents(say), row)
    assert [one.id for one in batch.rows] == [row.id], "two rows, in words, are no SQL that fails"
    assert shown["tools"] == json.loads(DEFINED)
    assert shown["tool_turns_before_the_response"] == [
        {"role": "assistant", "content": "", "tool_calls": [CALL.model_dump()]},
        {"role": "tool", "content": "It leans.", "tool_call_id": "call00001", "name": "look_up"},
    ]
    assert "tool_calls" not in shown
