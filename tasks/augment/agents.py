"""The four agents: a prompt file each, the JSON that each must answer, and their identity.

What an agent works on goes into the user message as one JSON object, so that no seed can end its own
quotation; what it answers is validated against the schema here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, Generic, TypeVar

from jinja2 import Environment, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field

from infra.artifacts import digest_of
from tasks.rows import Row

Answer = TypeVar("Answer", bound=BaseModel)
_MAX_CHARS = 20_000
_STEP_BY_STEP = ("reason", "math", "code", "coding", "logic")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewInstruction(_Answer):
    instruction: str = Field(min_length=1, max_length=_MAX_CHARS)
    input: str = Field(max_length=_MAX_CHARS)


class Expansions(_Answer):
    instructions: list[NewInstruction]


class Rewritten(_Answer):
    instruction: str = Field(min_length=1, max_length=_MAX_CHARS)
    response: str = Field(min_length=1, max_length=_MAX_CHARS)


class Scores(_Answer):
    informativeness: int = Field(ge=1, le=10)
    helpfulness: int = Field(ge=1, le=10)
    generality: int = Field(ge=1, le=10)
    reason: str


class Verdict(_Answer):
    correct: bool
    evidence: str


@dataclass(frozen=True)
class Agent(Generic[Answer]):
    """A role for the LLM. Its prompt and schema are part of the stage's fingerprint."""

    name: str
    answer: type[Answer]

    @property
    def prompt(self) -> str:
        return resources.files("tasks.augment").joinpath(f"prompts/{self.name}.jinja").read_text()

    def messages(self, row: Row, **settings: Any) -> list[dict[str, str]]:
        """The chat messages that put `row` before this agent."""
        payload: dict[str, Any] = {
            "agent": self.name,
            "task_category": row.task_category,
            "instruction": row.instruction,
            "input": row.input,
        }
        if self.name != "expansion":
            payload["response"] = row.response
        if row.history:
            payload["history"] = [message.model_dump() for message in row.history]
        system = _TEMPLATES.from_string(self.prompt).render(task_category=row.task_category, **settings)
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": json.dumps({**payload, **settings}, ensure_ascii=False)},
        ]


_TEMPLATES = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)  # plain text, not HTML

EXPANSION = Agent("expansion", Expansions)
REWRITING = Agent("rewriting", Rewritten)
SELECTION = Agent("selection", Scores)
VERIFICATION = Agent("verification", Verdict)
AGENTS: tuple[Agent[Any], ...] = (EXPANSION, REWRITING, SELECTION, VERIFICATION)


def agents_digest() -> str:
    """Changes when a prompt or a response schema changes."""
    return digest_of([[a.name, a.prompt, a.answer.model_json_schema()] for a in AGENTS])[:16]


def wants_chain_of_thought(task_category: str) -> bool:
    """The paper asks for chain of thought on reasoning, mathematics and code, and not elsewhere."""
    return any(word in task_category.lower() for word in _STEP_BY_STEP)
