"""What a task category is about, by its words: "barcode" is no code, and "biological" has nothing to do with logic."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

UNNAMED = "general"  # of rows whose category nobody named
TASKS: dict[str, str] = {
    "closed question answering": "a question about a text that is given",
    "open question answering": "a question of fact, answered from what one knows",
    "explanation": "how or why something is as it is",
    "definition": "what a word or a thing is",
    "summarisation": "a given text made shorter",
    "extraction": "names, figures or passages taken out of a given text",
    "classification": "which of some classes a given thing belongs to",
    "sentiment": "what a given text feels about its matter",
    "translation": "a given text in another language",
    "paraphrase": "a given text said otherwise, with the same meaning",
    "editing": "a given text corrected or improved",
    "style transfer": "a given text in another tone, form or for other readers",
    "creative writing": "a story, a poem, a song, a joke",
    "letters and messages": "an e-mail, a letter, a post, a reply",
    "articles and essays": "a longer text on a matter",
    "marketing": "names, slogans, descriptions that sell",
    "brainstorming": "many ideas",
    "planning": "steps, a schedule, a recipe for getting something done",
    "recommendation": "what to choose, read, buy or do",
    "advice": "what to do in a situation of one's life or work",
    "role play": "a conversation in somebody's part",
    "conversation": "small talk, feelings, greetings",
    "comparison": "how things differ, and which is better",
    "opinion and argument": "reasons for or against",
    "mathematics": "something that is computed, solved or proved",
    "logical reasoning": "a puzzle, an inference, a riddle",
    "science": "a question of natural science or engineering that takes its methods",
    "code writing": "a program or function",
    "code debugging": "what is wrong with a given program, and how to mend it",
    "code explanation": "what a given program does",
    "databases and SQL": "a query, or a question about data in tables",
    "data analysis": "what given figures or tables say",
    "structured output": "a table, JSON, XML or another strict format out of given material",
    "other": "none of these",
}  # kinds of task in instruction data, by what the one who answers has to do


class TaskCategories(BaseModel):
    """Some task categories, or all `but` them: the rows that one of several teachers scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    named: tuple[str, ...]
    but: bool = False

    def holds(self, category: str) -> bool:
        return (category in self.named) != self.but

    def identity(self) -> dict[str, Any]:
        return {"categories": {"but" if self.but else "only": sorted(self.named)}}

    @staticmethod
    def of(identity: dict[str, Any]) -> TaskCategories | None:
        """From a spec that has an `identity`; None where it has none."""
        found = identity.get("categories")
        return TaskCategories(named=tuple(*found.values()), but="but" in found) if found else None

    def titled(self, title: str) -> str:
        """What a stage for these is called: as ever where it is for all others."""
        return title if self.but else f"{title} ({', '.join(self.named)})"


def is_of(categories: TaskCategories | None, category: str) -> bool:
    """Whether a row of this category is one of those; of None all are."""
    return categories is None or categories.holds(category)


_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_CODE = {"code", "codes", "coder", "coding", "codegen", "program", "programs", "programming", "python"}
_MATHS = {"math", "maths", "mathematics", "mathematical", "mathqa", "arithmetic", "arithmetics", "arithmetical"}
_MATHS |= {"calculation", "calculations"}
_LOGIC = {"logic", "logical", "reason", "reasoning", "puzzle", "puzzles"}


def is_code(category: str) -> bool:
    """Whether answers are programs."""
    return not _CODE.isdisjoint(_words(category))


def is_python(category: str) -> bool:
    """Whether answers are programs in Python."""
    return "python" in _words(category)


def is_maths(category: str) -> bool:
    """Whether answers can be computed."""
    words = _words(category)
    return not _MATHS.isdisjoint(words) or {"word", "problem"} <= words or {"word", "problems"} <= words


def needs_steps(category: str) -> bool:
    """Whether an answer is better with a chain of thought: reasoning, mathematics and code (the paper, section 3.1)."""
    return is_code(category) or is_maths(category) or not _LOGIC.isdisjoint(_words(category))


def _words(category: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(category)}
