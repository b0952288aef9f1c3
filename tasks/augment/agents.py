"""The agents: a prompt file each, the JSON that each must answer, and their identity.

The paper's four (Expansion, Rewriting, Selection, Verification) and the two checks that it asks of them:
does an expansion stay in its task category, does a rewriting keep the meaning. What an agent works on goes
into the user message as one JSON object, so that no seed can end its own quotation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Annotated, Any, Generic, Literal, TypeVar

import json_repair
from jinja2 import Environment, StrictUndefined, Template
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from infra.artifacts import digest_of
from tasks import categories
from tasks.answers import answer_of
from tasks.rows import Row

Answer = TypeVar("Answer", bound=BaseModel)
_MAX_CHARS = 20_000

Text = Annotated[str, Field(max_length=_MAX_CHARS)]
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_MAX_CHARS)]
Score = Annotated[int, Field(ge=1, le=10)]


class BadAnswer(ValueError):
    """The text is not the JSON object that the agent was asked for; says why."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)  # no "yes" for true, no true for 1


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
    package: str = "tasks.augment"  # whose `prompts/` holds the prompt …
    text: str = ""  # … unless this is it

    @cached_property
    def prompt(self) -> str:
        return self.text or resources.files(self.package).joinpath(f"prompts/{self.name}.jinja").read_text()

    @cached_property
    def _template(self) -> Template:
        return _TEMPLATES.from_string(self.prompt)

    @cached_property
    def schema(self) -> dict[str, Any]:
        return self.answer.model_json_schema()

    def messages(self, row: Row, **settings: Any) -> list[dict[str, str]]:
        """The chat messages that put `row` before this agent."""
        payload: dict[str, Any] = {
            "task_category": row.task_category,
            "language": row.language,
            "instruction": row.instruction,
            "input": row.input,
        }
        if row.response:
            payload["response"] = row.response
        if row.history:
            payload["history"] = [message.model_dump() for message in row.history]
        return self.about({**payload, **settings}, **settings)

    def about(self, payload: Mapping[str, Any], **settings: Any) -> list[dict[str, str]]:
        """The chat messages that put `payload`, as one JSON object, before this agent."""
        return [
            {"role": "system", "content": self._template.render(**settings)},
            {"role": "user", "content": json.dumps({"agent": self.name, **payload}, ensure_ascii=False)},
        ]

    def read(self, text: str, shown: str = "") -> Answer:
        """The answer in a model's text; BadAnswer where it is not the one JSON object asked for.

        Strict, so that no text quoted inside an answer can pass for the answer: nothing may stand around the
        object but one code fence, and no field may occur twice. A writer's slips of punctuation are repaired,
        a judge's are not; nor is an object that was cut off, for its last text would be half a text. `shown` is the
        user message: a verdict that stands there word for word is the row's and not the judge's.
        """
        text = _unfenced(text)
        try:
            value = json.loads(text, object_pairs_hook=_without_repeats)
        except BadAnswer:
            raise
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of thousands of digits
            value = _repaired(text) if self.writes else None
            if value is None:
                raise BadAnswer("not one whole JSON object") from error
        try:
            answer = self.answer.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the object"
            raise BadAnswer(f"{where[:100]}: {first['msg']}") from error
        if not self.writes and json.dumps(text, ensure_ascii=False)[1:-1] in shown:
            raise BadAnswer("quotes the row")
        return answer


def _unfenced(text: str) -> str:
    """Without a thought before it and the one code fence around it.

    No regular expression: they take quadratic time on hostile text.
    """
    text = answer_of(text, may_begin_within=False).strip()
    if text.startswith("```") and text.endswith("```"):
        label, _, inside = text[3:-3].partition("\n")
        if label.strip() in ("", "json"):
            return inside.strip()
    return text


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadAnswer("a field occurs twice")
    return found


def _repaired(text: str) -> dict[str, Any] | None:
    """A writer's object with slips of punctuation mended; None where it is not one whole object."""
    if not (text.startswith("{") and text.endswith("}") and len(text) < 10 * _MAX_CHARS):
        return None
    try:
        value = json_repair.loads(text, skip_json_loads=True, strict=True)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not value:
        return None
    closing = "]" if isinstance([*value.values()][-1], list) else "\"'"
    return value if text[:-1].rstrip(" \t\r\n,")[-1:] in closing else None  # else the brace is one of an inner text


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
    return categories.needs_steps(task_category)
