"""An `ask` for the controller's tests: real messages out, a scripted model's text in, read as the client reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tasks.llm.agent import Agent
from tasks.llm.reading import BadAnswer
from tasks.llm.usefulness import NoAnswer
from tasks.rows import Row

Say = Callable[[str, dict[str, Any]], str]  # (agent, what it was shown) -> the model's text


def honest(agent: str, shown: dict[str, Any]) -> dict[str, Any]:
    """What an agent that likes everything says."""
    new = {"instruction": "Name a colour of the rainbow", "input": "", "response": "Red"}
    answers: dict[str, Any] = {
        "naming": {"categories": [next(iter(shown.get("categories", ["x"]))) for _ in shown.get("seeds", [])]},
        "expansion": {
            "instructions": [{**new, "instruction": f"{new['instruction']} ({n})"} for n in range(shown.get("n", 0))]
        },
        "category": {"verdicts": [{"same_category": True, "category": "x"} for _ in shown.get("candidates", [])]},
        "comparison": {"verdicts": [{"difference": "all of it", "same": False} for _ in shown.get("pairs", [])]},
        "rewriting": {
            "difficulty": "medium",
            "instruction": shown.get("instruction", "")[:20_000],
            "response": "A better response.",
        },
        "shortening": {"response": "In short."},
        "preservation": {"instruction": "same", "answer": "same", "reason": "kept"},
        "selection": {"informativeness": 8, "helpfulness": 8, "generality": 8, "reason": "fine"},
        "verification": {"correct": True, "evidence": "checked", "tests": []},
    }
    return answers[agent]


def unkind(agent: str, shown: dict[str, Any]) -> dict[str, Any]:
    """What honest agents say where every judge refuses what it is shown."""
    answers: dict[str, Any] = {
        "category": {"verdicts": [{"same_category": False, "category": "y"} for _ in shown.get("candidates", [])]},
        "preservation": {"instruction": "changed", "answer": "changed", "reason": "lost"},
        "selection": {"informativeness": 1, "helpfulness": 1, "generality": 1, "reason": "poor"},
        "verification": {"correct": False, "evidence": "wrong", "tests": []},
    }
    return answers.get(agent) or honest(agent, shown)


class FakeAgents:
    """`ask` as a callable; `asked` holds the name of each agent that was asked, in order."""

    def __init__(self, say: Callable[[str, dict[str, Any]], Any] = honest):
        self._say = say
        self.asked: list[str] = []

    async def __call__(self, agent: Agent[Any], row: Row, **settings: Any) -> Any:
        self.asked.append(agent.name)
        content = agent.messages(row, **settings)[1]["content"]
        said = self._say(agent.name, json.loads(content))
        if isinstance(said, Exception):
            raise said
        try:
            return agent.read(said if isinstance(said, str) else json.dumps(said), content)
        except BadAnswer as bad:
            raise NoAnswer(agent.name, "no valid answer", str(bad)) from bad
