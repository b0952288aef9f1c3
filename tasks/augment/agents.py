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

from jinja2 import Environment, StrictUndefined, Template
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)

from infra.artifacts import digest_of
from tasks import categories
from tasks.augment.reading import MAX_CHARS, BadAnswer, object_in, quotes
from tasks.rows import Row

Answer = TypeVar("Answer", bound="AgentAnswer")


def _or(empty: Any) -> BeforeValidator:
    """Models say null where there is nothing to say."""
    return BeforeValidator(lambda value: empty if value is None else value)


def _whole(value: Any) -> Any:
    """JSON does not tell 7.0 from 7."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, Field(max_length=MAX_CHARS), _or("")]
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CHARS)]
Score = Annotated[int, Field(ge=1, le=10), BeforeValidator(_whole)]


class AgentAnswer(BaseModel):
    """What an agent must answer. The types are strict (no "yes" for true, no true for 1); a field more is left out."""

    model_config = ConfigDict(extra="ignore", strict=True, json_schema_extra={"additionalProperties": False})

    def unfit(self, shown: Mapping[str, Any]) -> str:
        """Why it is no answer to what was shown; empty where it is one."""
        return ""


class NewRow(AgentAnswer):
    instruction: Words
    input: Text
    response: Text

    @model_validator(mode="before")
    @classmethod
    def _input_and_response_may_be_missing(cls, value: Any) -> Any:
        return {"input": "", "response": "", **value} if isinstance(value, dict) else value


class Expansions(AgentAnswer):
    instructions: list[NewRow]
    _left_out: list[str] = PrivateAttr(default_factory=list)

    @property
    def left_out(self) -> list[str]:
        """Why, of each new row that was none; the others are kept."""
        return self._left_out

    @model_validator(mode="wrap")
    @classmethod
    def _without_what_is_no_row(cls, value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
        rows = value.get("instructions") if isinstance(value, dict) else None
        if not isinstance(rows, list):
            return validated(value)
        good: list[NewRow] = []
        left_out = []
        for row in rows:
            try:
                good.append(NewRow.model_validate(row))
            except ValidationError as error:
                left_out.append(_first_of(error))
        answer = validated({**value, "instructions": good or rows})
        answer._left_out = left_out
        return answer

    def unfit(self, shown: Mapping[str, Any]) -> str:
        return "" if self.instructions or not shown.get("n") else "no instruction in it"


class CategoryVerdict(AgentAnswer):
    same_category: bool
    category: Annotated[str, Field(max_length=200), _or("")]


class CategoryVerdicts(AgentAnswer):
    verdicts: list[CategoryVerdict]

    def unfit(self, shown: Mapping[str, Any]) -> str:
        asked = len(shown.get("candidates") or self.verdicts)
        return "" if len(self.verdicts) == asked else f"{len(self.verdicts)} verdicts on {asked} candidates"


class Rewritten(AgentAnswer):
    instruction: Words
    response: Words


class Preservation(AgentAnswer):
    instruction: Literal["same", "changed"]
    answer: Literal["same", "corrected", "changed"]
    reason: Text


class Scores(AgentAnswer):
    informativeness: Score
    helpfulness: Score
    generality: Score
    reason: Text


class Verdict(AgentAnswer):
    correct: bool
    evidence: Text
    tests: Annotated[list[Text], Field(max_length=20), _or([])]


@dataclass(frozen=True)
class Agent(Generic[Answer]):
    """A role for the LLM. Its prompt and schema are part of the stage's fingerprint and of a request's key."""

    name: str
    answer: type[Answer]
    writes: bool = False  # rows, and not judgements
    package: str = "tasks.augment"  # whose `prompts/` holds the prompt …
    text: str = ""  # … unless this is it, to the letter: no template, whatever stands in it

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
            {"role": "system", "content": self.text or self._template.render(**settings)},
            {"role": "user", "content": json.dumps({"agent": self.name, **payload}, ensure_ascii=False)},
        ]

    def read(self, text: str, shown: str = "") -> Answer:
        """The answer in a model's text; BadAnswer where it is not the one JSON object asked for.

        Lenient about form and strict about what could be injected (`tasks.augment.reading`): no text quoted inside an
        answer can pass for the answer, and no field may occur twice. A writer's slips of punctuation are repaired, a
        judge's are not. `shown` is the user message: a verdict that stands there is the row's and not the judge's.
        """
        value, own_text = object_in(text, mend=self.writes)
        try:
            answer = self.answer.model_validate(value)
        except ValidationError as error:
            raise BadAnswer(_first_of(error)) from error
        if not self.writes and quotes(answer.model_dump(mode="json"), own_text, shown):
            raise BadAnswer("quotes the row")
        if shown and (why := answer.unfit(json.loads(shown))):
            raise BadAnswer(why)
        return answer


def _first_of(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the object"
    return f"{where[:100]}: {first['msg']}"


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
