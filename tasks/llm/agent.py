"""An agent: a prompt file, and the JSON that whoever plays it must answer.

What an agent works on goes into the user message as one JSON object, so that no row can end its own quotation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from jinja2 import StrictUndefined, Template, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from tasks.llm.reading import MAX_CHARS, BadAnswer, object_in, quotes
from tasks.rows import Row

AnswerT = TypeVar("AnswerT", bound="AgentAnswer")


def empty_as(empty: Any) -> BeforeValidator:
    """Models say null where there is nothing to say."""
    return BeforeValidator(lambda value: empty if value is None else value)


def _whole(value: Any) -> Any:
    """JSON does not tell 7.0 from 7."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, Field(max_length=MAX_CHARS), empty_as("")]
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CHARS)]
Score = Annotated[int, Field(ge=1, le=10), BeforeValidator(_whole)]


class AgentAnswer(BaseModel):
    """What an agent must answer. The types are strict (no "yes" for true, no true for 1); a field more is left out."""

    model_config = ConfigDict(extra="ignore", strict=True, json_schema_extra={"additionalProperties": False})

    def unfit(self, shown: Mapping[str, Any]) -> str:
        """Why it is no answer to what was shown; empty where it is one."""
        return ""


@dataclass(frozen=True)
class Agent(Generic[AnswerT]):
    """A role for the LLM. Its prompt and schema are part of the stage's fingerprint and of a request's key."""

    name: str
    answer: type[AnswerT]
    package: str  # whose `prompts/` holds the prompt …
    text: str = ""  # … unless this is it, to the letter: no template, whatever stands in it …
    template: str = ""  # … or this, a template of the user's own
    writes: bool = False  # rows, and not judgements
    stage: int = 0  # how far along the rows are that go before it; of requests that wait, the furthest goes first
    sets_aside: bool = False  # what an answer costs is set aside for the agent that comes last
    asks_again: ClassVar[bool] = True  # where an answer is no good, and what it said with it; else it is kept

    @cached_property
    def prompt(self) -> str:
        return (
            self.text
            or self.template
            or resources.files(self.package).joinpath(f"prompts/{self.name}.jinja").read_text()
        )

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
        if row.uses_tools:
            between = [message.model_dump() for message in row.tool_turns]
            calls = [call.model_dump() for call in row.tool_calls]
            told = {"tools": row.definitions, "tool_turns_before_the_response": between, "tool_calls": calls}
            payload |= {name: value for name, value in told.items() if value}
        return self.about({**payload, **settings}, **settings)

    @property
    def settings(self) -> set[str]:
        """What the prompt's template asks to be told."""
        return meta.find_undeclared_variables(_TEMPLATES.parse(self.prompt))

    def about(self, payload: Mapping[str, Any], **settings: Any) -> list[dict[str, str]]:
        """The chat messages that put `payload`, as one JSON object, before this agent."""
        return [
            {"role": "system", "content": self.text or self._template.render(**settings)},
            {"role": "user", "content": json.dumps({"agent": self.name, **payload}, ensure_ascii=False)},
        ]

    def read(self, text: str, shown: str = "") -> AnswerT:
        """The answer in a model's text; BadAnswer where it is not the one JSON object asked for.

        Lenient about form and strict about what could be injected (`tasks.llm.reading`): no text quoted inside an
        answer can pass for the answer, and no field may occur twice. A writer's slips of punctuation are repaired, a
        judge's are not. `shown` is the user message: a verdict that stands there is the row's and not the judge's.
        """
        value, own_text = object_in(text, mend=self.writes)
        try:
            answer = self.answer.model_validate(value)
        except ValidationError as error:
            raise BadAnswer(first_of(error)) from error
        if not self.writes and quotes(answer.model_dump(mode="json"), own_text, shown):
            raise BadAnswer("quotes the row")
        if shown and (why := answer.unfit(json.loads(shown))):
            raise BadAnswer(why)
        return answer


class Said(AgentAnswer):
    """Free text."""

    text: str


@dataclass(frozen=True)
class FreeText(Agent[Said]):
    """No role: a conversation goes to the model as it is, and what it says is the answer.

    Each is asked once and paid once: one that is cut off or empty is kept too, and is no answer the next time either.
    """

    asks_again: ClassVar[bool] = False

    @property
    def schema(self) -> None:  # type: ignore[override]
        return None

    def read(self, text: str, shown: str = "") -> Said:
        return Said(text=text)


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the object"
    return f"{where[:100]}: {first['msg']}"


_TEMPLATES = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)
