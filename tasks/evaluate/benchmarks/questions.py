"""The benchmarks' questions, from a path or the hub, and a variant's answers to them.

One shape serves all: an id, one or two user turns, a category. Where the answers come from is a `Generate`,
which takes whole conversations, so that this module knows no engine.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from infra.errors import ConfigurationError
from tasks.evaluate.benchmarks.data_files import entries, is_missing, listed, needed, text_of, texts_of, whole_text
from tasks.rows import Message

ALPACA_EVAL, MT_BENCH, IFEVAL = "alpaca_eval", "mt_bench", "ifeval"
# FastChat's: creative categories are sampled, the ones with one right answer are greedy.
MT_BENCH_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}


class Question(BaseModel):
    """What a variant is asked. `references` are the benchmark's own answers, one a turn."""

    model_config = ConfigDict(frozen=True)

    id: str
    turns: tuple[str, ...]
    category: str = ""
    references: tuple[str, ...] = ()
    temperature: float = 0.0
    instructions: tuple[tuple[str, dict[str, Any]], ...] = ()  # IFEval: instruction id and its arguments


class Conversation(BaseModel):
    """A variant's answers to a question, one a turn."""

    model_config = ConfigDict(frozen=True)

    question: Question
    answers: tuple[str, ...]


class ConversationPrompt(BaseModel):
    """What to generate one answer to."""

    model_config = ConfigDict(frozen=True)

    messages: tuple[Message, ...]
    temperature: float = 0.0
    max_new_tokens: int = 2048


Generate = Callable[[Sequence[ConversationPrompt]], Sequence[str]]


def answered(questions: Sequence[Question], generate: Generate, max_new_tokens: int) -> list[Conversation]:
    """Ask all first turns at once, then all second turns with the first answers before them."""
    answers: dict[str, list[str]] = {question.id: [] for question in questions}
    for turn in range(max((len(question.turns) for question in questions), default=0)):
        asked = [question for question in questions if len(question.turns) > turn]
        prompts = [
            ConversationPrompt(
                messages=tuple(messages(question, answers[question.id])),
                temperature=question.temperature,
                max_new_tokens=max_new_tokens,
            )
            for question in asked
        ]
        for question, text in zip(asked, generate(prompts), strict=True):
            answers[question.id].append(text)
    return [Conversation(question=question, answers=tuple(answers[question.id])) for question in questions]


def messages(question: Question, answers: Sequence[str]) -> Iterable[Message]:
    """The conversation up to the turn that comes after `answers`."""
    for user, assistant in zip(question.turns, answers, strict=False):
        yield Message(role="user", content=user)
        yield Message(role="assistant", content=assistant)
    yield Message(role="user", content=question.turns[len(answers)])


def alpaca_eval(source: str) -> list[Question]:
    """AlpacaEval's reference outputs: `instruction` and `output`, in the benchmark's order.

    An entry may have an `input` too, as rows in Alpaca's format do, which follows the instruction as it does in
    training: so one's own held-out rows are a benchmark. `demo` are those of the demo.
    """
    asked: list[Question] = []
    for where, entry in entries(source):
        instruction, output = text_of(where, entry, "instruction"), text_of(where, entry, "output", or_empty=True)
        if earlier := next((name for name in ("system", "history") if entry.get(name)), None):
            raise ConfigurationError(f"{where}: has a `{earlier}`, which AlpacaEval cannot ask: leave the entry out")
        given = text_of(where, entry, "input", or_empty=True) if not is_missing(entry.get("input")) else ""
        asked.append(
            Question(
                id=str(len(asked)),
                turns=(f"{instruction}\n\n{given}" if given else instruction,),
                category=str(entry.get("dataset") or ""),
                references=(output,),
            )
        )
    return asked


def mt_bench(source: str, references: str | None = None) -> list[Question]:
    """FastChat's questions: `question_id`, `category`, two `turns` and sometimes `reference`.

    `references` is FastChat's file of reference answers: `question_id` and `choices[0].turns`.
    """
    known: dict[str, tuple[str, ...]] = {}
    for where, entry in entries(references) if references else ():
        choices = needed(where, entry, "choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ConfigurationError(f"{where}: `choices` should be a list of objects with `turns`")
        known[str(needed(where, entry, "question_id"))] = texts_of(f"{where}, `choices`", choices[0], "turns")
    asked: list[Question] = []
    for where, entry in entries(source):
        name, category = str(needed(where, entry, "question_id")), str(needed(where, entry, "category"))
        own = () if is_missing(entry.get("reference")) else texts_of(where, entry, "reference", or_empty=True)
        asked.append(
            Question(
                id=name,
                turns=texts_of(where, entry, "turns"),
                category=category,
                references=known.get(name) or own,
                temperature=MT_BENCH_TEMPERATURES.get(category, 0.0),
            )
        )
    return asked


def ifeval(source: str) -> list[Question]:
    """IFEval's prompts: `key`, `prompt`, `instruction_id_list` and `kwargs` of equal length."""
    asked: list[Question] = []
    for where, entry in entries(source):
        name, prompt = str(needed(where, entry, "key")), text_of(where, entry, "prompt")
        names, arguments = texts_of(where, entry, "instruction_id_list"), listed(needed(where, entry, "kwargs"))
        if not isinstance(arguments, list) or not all(one is None or isinstance(one, dict) for one in arguments):
            raise ConfigurationError(f"{where}: `kwargs` should be a list of objects")
        if len(names) != len(arguments):
            raise ConfigurationError(f"{where}: {len(names)} instructions and {len(arguments)} `kwargs`")
        known = [{key: value for key, value in (one or {}).items() if value is not None} for one in arguments]
        asked.append(Question(id=name, turns=(prompt,), instructions=tuple(zip(names, known, strict=True))))
    return asked


def gamed_baselines(source: str) -> list[dict[str, float]]:
    """AlpacaEval's df_gamed.csv: preferences of its concise and verbose baselines, and difficulties.

    Columns: `index`, `preference` in 0 … 1, `std_delta_len`, `instruction_difficulty`.
    """
    columns = ("index", "preference", "std_delta_len", "instruction_difficulty")
    found = []
    try:
        rows = list(csv.DictReader(io.StringIO(whole_text(source))))
    except csv.Error as error:
        raise ConfigurationError(f"{source} is no CSV: {error}") from error
    for place, row in enumerate(rows, 1):
        where = f"{source}, row {place}"
        numbers = {name: _number(where, name, needed(where, row, name)) for name in columns}
        if math.isnan(numbers["preference"]):
            continue
        if not all(map(math.isfinite, numbers.values())) or not 0 <= numbers["preference"] <= 1:
            raise ConfigurationError(f"{where}: expected finite numbers and a `preference` in 0 … 1, found {numbers}")
        found.append(numbers)
    return found


def _number(where: str, name: str, text: str) -> float:
    """A number; NaN where nobody gave one."""
    try:
        return float(text) if text.strip() else math.nan
    except ValueError as error:
        raise ConfigurationError(f"{where}: `{name}` should be a number, not {text[:50]!r}") from error
