"""Rows that ask what is held out in other words or another language: likely ones come before an agent, no others."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks.augment import candidates as candidates_module
from tasks.augment.candidates import Candidates, ComparedPair
from tasks.augment.comparing import compared
from tasks.llm.usefulness import BUDGET_REACHED, NoAnswer
from tasks.rows import Message, Row
from tests.support.fake_agents import FakeAgents
from tests.support.leak_rows import heldout_rows, others_with_their_words, retold_rows, translated_rows

HELD = [*heldout_rows(), *others_with_their_words(200, seed=1)]
OTHERS = list(others_with_their_words(1_000, seed=2))


def _pairs(place: Path, rows: list[Row], held: list[Row], most: int) -> list[ComparedPair]:
    """The pairs of rows that come in batches of 100."""
    parts = [rows[start : start + 100] for start in range(0, len(rows), 100)]
    candidates = Candidates(place / "pairs.sqlite", held, lambda: rows, most)
    for index, part in enumerate(parts):
        candidates.add(index, json.loads(json.dumps(candidates.likely(part))))
    candidates.choose()
    pairs = [pair for _index, some in candidates.batches(lambda index: parts[index]) for pair in some()]
    candidates.close()
    return pairs


@pytest.mark.parametrize(("with_answers", "retold", "translated"), [(True, 10, 9), (False, 6, 8)])
def test_planted_questions_that_reach_the_agent_by_kind(
    tmp_path: Path, with_answers: bool, retold: int, translated: int
) -> None:
    """The README tells these figures: 5 pairs of a held-out row and language, among 1,000 others."""
    planted = {"retold": retold_rows(), "translated": translated_rows()}
    if not with_answers:
        planted = {kind: [row.model_copy(update={"response": ""}) for row in rows] for kind, rows in planted.items()}
    pairs = _pairs(tmp_path, [*OTHERS, *planted["retold"], *planted["translated"]], HELD, most=5)
    asked = {(pair.first["asked"], pair.second["asked"]) for pair in pairs}
    found = {
        kind: sum((row.instruction, held.instruction) in asked for row, held in zip(rows, HELD, strict=False))
        for kind, rows in planted.items()
    }
    assert found == {"retold": retold, "translated": translated}


def test_a_held_out_row_has_so_many_pairs_and_not_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its likest, of its own language and of others; deleting now and then what cannot be chosen changes nothing."""
    pairs = _pairs(tmp_path, OTHERS, HELD, most=4)
    languages = {held.instruction: held.language for held in HELD}
    by_side = Counter((pair.second["asked"], pair.language == languages[pair.second["asked"]]) for pair in pairs)
    assert max(by_side.values()) == 4
    assert len(pairs) == by_side.total() > 2 * 3 * len(HELD), "most have as many as they may"
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(candidates_module, "_AT_ONCE", 1_000)
    assert _pairs(tmp_path / "again", OTHERS, HELD, most=4) == pairs
    (tmp_path / "none").mkdir()
    assert _pairs(tmp_path / "none", OTHERS, HELD, most=0) == []


def test_the_agent_sees_what_was_asked_and_answered_and_the_earlier_turns(tmp_path: Path) -> None:
    history = (Message(role="system", content="Be brief."), Message(role="user", content="Where is Ulm?"))
    answer = Message(role="assistant", content="In Germany.")
    row = Row(instruction="Which river is there?", input="Ulm", response="The Danube" * 200, history=(*history, answer))
    (pair,) = _pairs(tmp_path, [row], [Row(instruction="The river in Ulm", response="Danube")], most=1)
    assert pair.first["asked"] == "user: Where is Ulm?\nassistant: In Germany.\nuser: Which river is there?\n\nUlm"
    assert len(pair.first["answered"]) == 500
    assert pair.second == {"asked": "The river in Ulm", "answered": "Danube"}


def _judged(say: Any, count: int = 23) -> tuple[dict[str, bool], Counter[str], list[str]]:
    agents = FakeAgents(say)
    pairs = [
        ComparedPair(0, f"{n:02}", "en", {"asked": f"q{n:02}", "answered": ""}, {"asked": "h"}) for n in range(count)
    ]
    judged, unanswered = asyncio.run(compared(agents, pairs))
    return {pair.row: same for pair, same in judged}, unanswered, agents.asked


def _even(_agent: str, shown: dict[str, Any]) -> dict[str, Any]:
    same = [int(pair["first"]["asked"][1:]) % 2 == 0 for pair in shown["pairs"]]
    return {"verdicts": [{"difference": "" if is_same else "x", "same": is_same} for is_same in same]}


def test_ten_pairs_go_in_a_request_and_each_verdict_is_of_its_pair() -> None:
    judged, unanswered, asked = _judged(_even)
    assert asked == ["comparison"] * 3
    assert judged == {f"{n:02}": n % 2 == 0 for n in range(23)}
    assert not unanswered


def test_a_pair_that_nobody_can_judge_costs_the_others_nothing() -> None:
    def say(agent: str, shown: dict[str, Any]) -> Any:
        return "no" if any(pair["first"]["asked"] == "q07" for pair in shown["pairs"]) else _even(agent, shown)

    judged, unanswered, _asked = _judged(say)
    assert judged == {f"{n:02}": n % 2 == 0 for n in range(23) if n != 7}
    assert unanswered == {"no valid answer": 1}


def test_without_money_each_request_is_tried_once() -> None:
    judged, unanswered, asked = _judged(lambda agent, shown: NoAnswer("comparison", BUDGET_REACHED))
    assert (judged, unanswered, len(asked)) == ({}, {BUDGET_REACHED: 23}, 3)
