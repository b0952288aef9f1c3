"""The agents: a prompt file each, the JSON that each must answer, and their identity.

The paper's four (Expansion, Rewriting, Selection, Verification) and the two checks that it asks of them:
does an expansion stay in its task category, does a rewriting keep the meaning. What an agent works on goes
into the user message as one JSON object, so that no seed can end its own quotation.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Annotated, Any, Generic, Literal, TypeVar

import json_repair
from jinja2 import Environment, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from infra.artifacts import digest_of
from tasks.rows import Row

Answer = TypeVar("Answer", bound=BaseModel)
_MAX_CHARS = 20_000
_STEP_BY_STEP = ("reason", "math", "arithmetic", "code", "coding", "python", "logic")
_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*)\n\s*```\s*$", re.DOTALL)

Text = Annotated[str, Field(max_length=_MAX_CHARS)]
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_MAX_CHARS)]
Score = Annotated[int, Field(ge=1, le=10)]


class BadAnswer(ValueError):
    """The text is not the JSON object that the agent was asked for; says why."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewRow(_Answer):
    instruction: Words
    input: Text
    response: Text


class Expansions(_Answer):
    instructions: list[NewRow]


class CategoryVerdict(_Answer):
    same_category: bool
    category: str = Field(max_length=200)


class CategoryVerdicts(_Answer):
    verdicts: list[CategoryVerdict]


class Rewritten(_Answer):
    instruction: Words
    response: Words


class Preservation(_Answer):
    instruction: Literal["same", "changed"]
    answer: Literal["same", "corrected", "changed"]
    reason: Text


class Scores(_Answer):
    informativeness: Score
    helpfulness: Score
    generality: Score
    reason: Text


class Verdict(_Answer):
    correct: bool
    evidence: Text
    tests: list[Text] = Field(max_length=20)


@dataclass(frozen=True)
class Agent(Generic[Answer]):
    """A role for the LLM. Its prompt and schema are part of the stage's fingerprint and of a request's key."""

    name: str
    answer: type[Answer]
    writes: bool = False  # rows, and not judgements

    @cached_property
    def prompt(self) -> str:
        return resources.files("tasks.augment").joinpath(f"prompts/{self.name}.jinja").read_text()

    @cached_property
    def schema(self) -> dict[str, Any]:
        return self.answer.model_json_schema()

    def messages(self, row: Row, **settings: Any) -> list[dict[str, str]]:
        """The chat messages that put `row` before this agent."""
        payload: dict[str, Any] = {
            "agent": self.name,
            "task_category": row.task_category,
            "language": row.language,
            "instruction": row.instruction,
            "input": row.input,
        }
        if row.response:
            payload["response"] = row.response
        if row.history:
            payload["history"] = [message.model_dump() for message in row.history]
        system = _TEMPLATES.from_string(self.prompt).render(**settings)
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": json.dumps({**payload, **settings}, ensure_ascii=False)},
        ]

    def read(self, text: str) -> Answer:
        """The answer in a model's text; BadAnswer where it is not the one JSON object asked for.

        Strict, so that no text quoted inside an answer can pass for the answer: nothing may stand around the
        object but one code fence, and no field may occur twice. A writer's slips of punctuation are repaired,
        a judge's are not; nor is an object that was cut off, for its last text would be half a text.
        """
        fenced = _FENCE.match(text)
        text = (fenced.group(1) if fenced else text).strip()
        try:
            value = json.loads(text, object_pairs_hook=_without_repeats)
        except (json.JSONDecodeError, RecursionError) as error:
            value = _repaired(text) if self.writes else None
            if not isinstance(value, dict):
                raise BadAnswer("not one whole JSON object") from error
        try:
            return self.answer.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the object"
            raise BadAnswer(f"{where}: {first['msg']}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadAnswer("a field occurs twice")
    return found


def _repaired(text: str) -> Any:
    """A writer's object with slips of punctuation mended; None where it is not one whole object."""
    if not (text.startswith("{") and text.endswith("}") and len(text) < 10 * _MAX_CHARS):
        return None
    try:
        return json_repair.loads(text, skip_json_loads=True, strict=True)
    except (ValueError, RecursionError):
        return None


_TEMPLATES = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)  # plain text, not HTML

EXPANSION = Agent("expansion", Expansions, writes=True)
CATEGORY = Agent("category", CategoryVerdicts)
REWRITING = Agent("rewriting", Rewritten, writes=True)
PRESERVATION = Agent("preservation", Preservation)
SELECTION = Agent("selection", Scores)
VERIFICATION = Agent("verification", Verdict)
AGENTS: tuple[Agent[Any], ...] = (EXPANSION, CATEGORY, REWRITING, PRESERVATION, SELECTION, VERIFICATION)


def agents_digest() -> str:
    """Changes when a prompt or a response schema changes."""
    return digest_of([[a.name, a.prompt, a.schema] for a in AGENTS])[:16]


def wants_chain_of_thought(task_category: str) -> bool:
    """The paper asks for chain of thought on reasoning, mathematics and code, and not elsewhere."""
    return any(word in task_category.lower() for word in _STEP_BY_STEP)
