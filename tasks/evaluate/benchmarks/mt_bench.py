"""MT-Bench: two turns, each graded 1 to 10 by a judge on its own (Zheng et al., arXiv 2306.05685).

Maths, reasoning and coding are graded against a reference answer, as in FastChat; where the questions bring none,
they are graded without, and the result says how many.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tasks.evaluate.benchmarks.judges import GRADE, GRADE_WITH_REFERENCE, Case, Judgment, reasons_not_judged
from tasks.evaluate.benchmarks.questions import Conversation

NEEDS_REFERENCE = frozenset({"math", "reasoning", "coding"})


def cases(conversations: Sequence[Conversation]) -> list[Case]:
    """One a turn; the judge of a turn sees the turns before it."""
    return [
        _case(conversation, turn) for conversation in conversations for turn in range(len(conversation.question.turns))
    ]


def _case(conversation: Conversation, turn: int) -> Case:
    question = conversation.question
    shown = zip(question.turns[: turn + 1], conversation.answers, strict=False)
    payload: dict[str, Any] = {"conversation": [{"user": user, "assistant": answer} for user, answer in shown]}
    agent = GRADE
    if _has_reference(conversation, turn):
        agent = GRADE_WITH_REFERENCE
        payload["reference_answers"] = list(question.references[: turn + 1])
    return Case(question.id, str(turn + 1), agent, payload)


def _has_reference(conversation: Conversation, turn: int) -> bool:
    question = conversation.question
    known = question.references[turn : turn + 1]
    return question.category in NEEDS_REFERENCE and bool(known and known[0].strip())


def scores(conversations: Sequence[Conversation], judgments: Sequence[Judgment]) -> dict[str, float]:
    """By question, the mean rating of its turns; questions with a turn that was not judged are left out."""
    ratings = defaultdict(list)
    for judgment in judgments:
        if judgment.value is not None:
            ratings[judgment.item].append(judgment.value)
    turns = {conversation.question.id: len(conversation.question.turns) for conversation in conversations}
    return {item: statistics.mean(found) for item, found in ratings.items() if len(found) == turns[item]}


def result(conversations: Sequence[Conversation], judgments: Sequence[Judgment]) -> dict[str, Any]:
    """Mean ratings (1 to 10): of all judged turns, of each turn, of each category, and of both."""
    category = {conversation.question.id: conversation.question.category for conversation in conversations}
    made = [judgment for judgment in judgments if judgment.value is not None]
    numbers: dict[str, Any] = {
        "questions": len(conversations),
        "judged": len(scores(conversations, judgments)),
        "not_judged": reasons_not_judged(judgments),
        "without_reference": sum(
            not _has_reference(conversation, turn)
            for conversation in conversations
            if conversation.question.category in NEEDS_REFERENCE
            for turn in range(len(conversation.question.turns))
        ),
        "cost_usd": sum(judgment.cost_usd for judgment in judgments),
    }
    if not made:
        return numbers
    return {
        **numbers,
        "rating": statistics.mean(_values(made)),
        "by_turn": _means((judgment.part, judgment) for judgment in made),
        "by_category": _means((category[judgment.item], judgment) for judgment in made),
        "by_category_and_turn": {
            name: _means((judgment.part, judgment) for judgment in made if category[judgment.item] == name)
            for name in sorted({category[judgment.item] for judgment in made})
        },
    }


def _means(named: Iterable[tuple[str, Judgment]]) -> dict[str, float]:
    found = defaultdict(list)
    for name, judgment in named:
        found[name].append(judgment)
    return {name: statistics.mean(_values(group)) for name, group in sorted(found.items())}


def _values(judgments: Iterable[Judgment]) -> list[float]:
    return [judgment.value for judgment in judgments if judgment.value is not None]
