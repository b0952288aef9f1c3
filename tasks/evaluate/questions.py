"""The benchmarks' questions, from a path or the hub, and a variant's answers to them.

One shape serves all: an id, one or two user turns, a category. Where the answers come from is a `Generate`,
which takes whole conversations, so that this module knows no engine.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from infra import storage
from infra.errors import ConfigurationError, TransientError
from infra.models import DEMO
from tasks.rows import Message

HUB = "hub:"
DEMO_DATA = "demo"
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


class Prompt(BaseModel):
    """What to generate one answer to."""

    model_config = ConfigDict(frozen=True)

    messages: tuple[Message, ...]
    temperature: float = 0.0
    max_new_tokens: int = 2048


Generate = Callable[[Sequence[Prompt]], Sequence[str]]


def answered(questions: Sequence[Question], generate: Generate, max_new_tokens: int) -> list[Conversation]:
    """Ask all first turns at once, then all second turns with the first answers before them."""
    answers: dict[str, list[str]] = {question.id: [] for question in questions}
    for turn in range(max((len(question.turns) for question in questions), default=0)):
        asked = [question for question in questions if len(question.turns) > turn]
        prompts = [
            Prompt(
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
    questions = []
    for place, entry in enumerate(_entries(source)):
        _need(entry, ("instruction", "output"), source, place)
        questions.append(
            Question(
                id=str(place),
                turns=(f"{entry['instruction']}\n\n{entry['input']}" if entry.get("input") else entry["instruction"],),
                category=str(entry.get("dataset") or ""),
                references=(entry["output"],),
            )
        )
    return questions


def mt_bench(source: str, references: str | None = None) -> list[Question]:
    """FastChat's questions: `question_id`, `category`, two `turns` and sometimes `reference`.

    `references` is FastChat's file of reference answers: `question_id` and `choices[0].turns`.
    """
    known: dict[str, Sequence[str]] = {}
    for place, entry in enumerate(_entries(references) if references else ()):
        _need(entry, ("question_id", "choices"), str(references), place)
        known[str(entry["question_id"])] = entry["choices"][0]["turns"]
    questions = []
    for place, entry in enumerate(_entries(source)):
        _need(entry, ("question_id", "category", "turns"), source, place)
        name = str(entry["question_id"])
        questions.append(
            Question(
                id=name,
                turns=tuple(entry["turns"]),
                category=entry["category"],
                references=tuple(known.get(name) or entry.get("reference") or ()),
                temperature=MT_BENCH_TEMPERATURES.get(entry["category"], 0.0),
            )
        )
    return questions


def ifeval(source: str) -> list[Question]:
    """IFEval's prompts: `key`, `prompt`, `instruction_id_list` and `kwargs` of equal length."""
    questions = []
    for place, entry in enumerate(_entries(source)):
        _need(entry, ("key", "prompt", "instruction_id_list", "kwargs"), source, place)
        names, arguments = entry["instruction_id_list"], entry["kwargs"]
        if len(names) != len(arguments):
            raise ConfigurationError(
                f"{source}, entry {place + 1}: {len(names)} instructions and {len(arguments)} `kwargs`"
            )
        known = [{name: value for name, value in one.items() if value is not None} for one in arguments]
        instructions = tuple(zip(names, known, strict=True))
        questions.append(Question(id=str(entry["key"]), turns=(entry["prompt"],), instructions=instructions))
    return questions


def gamed_baselines(source: str) -> list[dict[str, float]]:
    """AlpacaEval's df_gamed.csv: preferences of its concise and verbose baselines, and difficulties.

    Columns: `index`, `preference` in 0 … 1, `std_delta_len`, `instruction_difficulty`.
    """
    columns = ("index", "preference", "std_delta_len", "instruction_difficulty")
    rows = list(csv.DictReader(io.StringIO(_text(source))))
    for place, row in enumerate(rows):
        _need(row, columns, source, place)
    return [{name: float(row[name]) for name in columns} for row in rows if row["preference"] != ""]


def digest(source: str | None) -> str | None:
    """sha256 of a source's bytes: what goes into a fingerprint."""
    return hashlib.sha256(_bytes(source)).hexdigest() if source else None


def _entries(source: str) -> list[dict[str, Any]]:
    text = _text(source)
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else _json_lines(text)
    except ValueError as error:
        raise ConfigurationError(f"{source} is neither a JSON list nor JSON lines: {error}") from error
    if not found or not all(isinstance(entry, dict) for entry in found):
        raise ConfigurationError(f"{source} holds no questions: expected JSON objects")
    return found


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]  # splitlines() splits inside strings


def _need(entry: Mapping[str, Any], fields: Sequence[str], source: str, place: int) -> None:
    if missing := [name for name in fields if entry.get(name) is None]:
        raise ConfigurationError(f"{source}, entry {place + 1}: no `{missing[0]}`, which this benchmark needs")


def _text(source: str) -> str:
    try:
        return _bytes(source).decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source} is no UTF-8 text: {error}") from error


def _bytes(source: str) -> bytes:
    if source.startswith("s3://"):
        data = storage.get(source)
        if data is None:
            raise ConfigurationError(f"{source} does not exist")
        return data
    if source == DEMO_DATA:
        return (DEMO / "heldout.jsonl").read_bytes()
    path = _from_hub(source) if source.startswith(HUB) else Path(source)
    if not path.is_file():
        raise ConfigurationError(f"{source} does not exist: name a file, s3://… or hub:OWNER/DATASET/FILE")
    return path.read_bytes()


def _from_hub(source: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    parts = source.removeprefix(HUB).split("/", 2)
    if len(parts) != 3:
        raise ConfigurationError(f"{source!r} names no file of the hub: expected hub:OWNER/DATASET/FILE")
    try:
        return Path(hf_hub_download(f"{parts[0]}/{parts[1]}", parts[2], repo_type="dataset"))
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, RepositoryNotFoundError | EntryNotFoundError) and not isinstance(
            error, LocalEntryNotFoundError
        ):
            raise ConfigurationError(f"{source} does not exist on the hub (or needs HF_TOKEN)") from error
        raise TransientError(f"the hub cannot be reached for {source}: download it and name the file") from error
