"""The agents: a prompt file each, the JSON that each must answer, and their identity.

The paper's four (Expansion, Rewriting, Selection, Verification) and the two checks that it asks of them:
does an expansion stay in its task category, does a rewriting keep the meaning. Beside them, one names task
categories and one compares rows with held-out rows, several a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, ValidatorFunctionWrapHandler, model_validator

from infra.store.artifacts import digest_of
from tasks.llm.agent import Agent, AgentAnswer, AnswerT, Score, Text, Words, empty_as, first_of
from tasks.rows import Row
from tasks.text import categories

_PACKAGE = "tasks.augment"


class Categories(AgentAnswer):
    categories: list[Words]

    def unfit(self, shown: Mapping[str, Any]) -> str:
        seeds, known = shown.get("seeds") or self.categories, shown.get("categories") or self.categories
        if len(self.categories) != len(seeds):
            return f"{len(self.categories)} categories of {len(seeds)} seeds"
        others = [name for name in self.categories if name not in known]
        return f"{others[0][:50]!r} is none of the categories" if others else ""


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
                left_out.append(first_of(error))
        answer = validated({**value, "instructions": good or rows})
        answer._left_out = left_out
        return answer

    def unfit(self, shown: Mapping[str, Any]) -> str:
        return "" if self.instructions or not shown.get("n") else "no instruction in it"


class CategoryVerdict(AgentAnswer):
    same_category: bool
    category: Annotated[str, Field(max_length=200), empty_as("")]


class CategoryVerdicts(AgentAnswer):
    verdicts: list[CategoryVerdict]

    def unfit(self, shown: Mapping[str, Any]) -> str:
        asked = len(shown.get("candidates") or self.verdicts)
        return "" if len(self.verdicts) == asked else f"{len(self.verdicts)} verdicts on {asked} candidates"


class PairVerdict(AgentAnswer):
    difference: Text
    same: bool


class PairVerdicts(AgentAnswer):
    verdicts: list[PairVerdict]

    def unfit(self, shown: Mapping[str, Any]) -> str:
        asked = len(shown.get("pairs") or self.verdicts)
        return "" if len(self.verdicts) == asked else f"{len(self.verdicts)} verdicts on {asked} pairs"


class Rewritten(AgentAnswer):
    """`difficulty` comes first, for it decides how long the reasoning becomes; empty where nothing is reasoned."""

    difficulty: Literal["easy", "medium", "hard", ""]
    instruction: Words
    response: Words

    @model_validator(mode="before")
    @classmethod
    def _difficulty_may_be_missing(cls, value: Any) -> Any:
        return {**value, "difficulty": value.get("difficulty") or ""} if isinstance(value, dict) else value

    def unfit(self, shown: Mapping[str, Any]) -> str:
        return "no difficulty in it" if shown.get("chain_of_thought") and not self.difficulty else ""


class Shortened(AgentAnswer):
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
    tests: Annotated[list[Text], Field(max_length=20), empty_as([])]


@dataclass(frozen=True)
class SortingAgent(Agent[AnswerT]):
    """Works on several rows at a time, which its settings hold."""

    def messages(self, row: Row, **settings: Any) -> list[dict[str, str]]:
        return self.about(settings, **settings)


NAMING = SortingAgent("naming", Categories, _PACKAGE)
COMPARISON = SortingAgent("comparison", PairVerdicts, _PACKAGE, stage=4)
EXPANSION = Agent("expansion", Expansions, _PACKAGE, writes=True, stage=0)
CATEGORY = Agent("category", CategoryVerdicts, _PACKAGE, stage=1)
REWRITING = Agent("rewriting", Rewritten, _PACKAGE, writes=True, stage=2)
SHORTENING = Agent("shortening", Shortened, _PACKAGE, writes=True, stage=3)
PRESERVATION = Agent("preservation", Preservation, _PACKAGE, stage=3)
SELECTION = Agent("selection", Scores, _PACKAGE, stage=4, sets_aside=True)
VERIFICATION = Agent("verification", Verdict, _PACKAGE, stage=5)
AGENTS: tuple[Agent[Any], ...] = (EXPANSION, CATEGORY, REWRITING, SHORTENING, PRESERVATION, SELECTION, VERIFICATION)


def agents_digest(agents: Iterable[Agent[Any]] | None = None) -> str:
    """Changes when a prompt or a response schema changes."""
    return digest_of([[a.name, a.prompt, a.schema] for a in (AGENTS if agents is None else agents)])[:16]


def wants_chain_of_thought(task_category: str) -> bool:
    """The paper asks for chain of thought on reasoning, mathematics and code, and not elsewhere."""
    return categories.needs_steps(task_category)
