"""The dataset card: what an augmented dataset holds, what was left out and why, and what it cost. Markdown.

The same dataset has the same card, whoever paid for the answers, for the card is part of the artifact's digest.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined

from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from infra.store.parquet import unpacked
from tasks.rows import CONVERSATIONS, DIFFICULTIES, DIFFICULTY, KEPT, TRAIN, Message, Row, rows_of, without_nulls
from tasks.text.answers import without_fences
from tasks.text.units import word_count

NAME = "card.md"
_SAMPLES = 3
_SAMPLE_CHARS = 600
_MARKUP = str.maketrans({sign: f"&#{ord(sign)};" for sign in "&<>|`*[]\\"})


def _inline(text: str) -> str:
    """A user's text in one line of Markdown, as text and nothing else."""
    return " ".join(text.split()).translate(_MARKUP)


_TEMPLATES = Environment(
    loader=PackageLoader("tasks.augment"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters["inline"] = _inline


def describe(work: Workspace, batches: int) -> dict[str, Any]:
    """Categories, languages, writers, difficulties and lengths of the kept rows, and a few of them.

    One file is in memory at a time. Words of reasoning are those of the response without its code.
    """
    categories, languages, writers = Counter[str](), Counter[str](), Counter[str]()
    lengths: dict[str, Counter[int]] = {"instruction": Counter(), "input": Counter(), "response": Counter()}
    hard, words = Counter[str](), Counter[str]()
    samples: list[dict[str, Any]] = []
    conversations = 0
    for index in range(batches):
        table = unpacked(work.read(f"{KEPT}{index:05}.parquet"))
        categories.update(table["task_category"].to_pylist())
        languages.update(table["language"].to_pylist())
        writers.update("expansion" if "expansion" in steps else "seed" for steps in table["lineage"].to_pylist())
        for response, verdicts in zip(table["response"].to_pylist(), table["verdicts"].to_pylist(), strict=True):
            for difficulty in (one["verdict"] for one in verdicts if one["by"] == DIFFICULTY):
                hard[difficulty] += 1
                words[difficulty] += word_count(without_fences(response))
        turns = [table[name].to_pylist() for name in ("history", "tool_turns") if name in table.column_names]
        conversations += sum(any(map(_is_answer, itertools.chain(*of_row))) for of_row in zip(*turns, strict=True))
        for name, counter in lengths.items():
            counter.update(pc.utf8_length(table[name]).to_pylist())
        if len(samples) < _SAMPLES:
            samples += map(_sample, rows_of(table.slice(0, _SAMPLES - len(samples))))
    return {
        "by_category": dict(categories.most_common()),
        "by_language": dict(languages.most_common()),
        "by_origin": dict(writers.most_common()),
        "by_difficulty": {
            difficulty: {"rows": hard[difficulty], "words": round(words[difficulty] / hard[difficulty])}
            for difficulty in DIFFICULTIES
            if hard[difficulty]
        },
        "characters": {name: _summary(counter) for name, counter in lengths.items()},
        "samples": samples,
        CONVERSATIONS: conversations,
    }


def _is_answer(turn: dict[str, Any]) -> bool:
    return Message(**without_nulls(turn)).is_answer


def _sample(row: Row) -> dict[str, str]:
    shown = {
        "task_category": row.task_category,
        "history": _lines(row.history),
        "instruction": row.instruction,
        "input": row.input,
        **({"tool_turns": _lines(row.tool_turns)} if row.tool_turns else {}),
        "response": row.response_text,
    }
    return {name: text[:_SAMPLE_CHARS] for name, text in shown.items()}


def _lines(turns: Iterable[Message]) -> str:
    return "\n".join(f"{turn.role}: {' '.join(filter(None, turn.texts))}" for turn in turns)


def categories(seeds: ArtifactRef) -> dict[str, int]:
    """How many seeds there are of each task category."""
    found = Counter[str]()
    for _name, data in ArtifactReader(seeds).stream(TRAIN):
        found.update(unpacked(data)["task_category"].to_pylist())
    return dict(found.most_common())


def render(work: Workspace, counts: Mapping[str, int], facts: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    usage = facts["usage"]
    total = {
        name: sum(numbers[name] for numbers in usage.values())
        for name in ("requests", "from_cache", "prompt_tokens", "completion_tokens", "cost_usd")
    }
    drift = counts.get("drifted", 0) / max(counts.get("category_checked", 0), 1)
    return _TEMPLATES.get_template("card.md.jinja").render(
        work=work, counts=counts, facts=facts, rows=facts["rows"], usage=usage, total=total, drift=drift
    )


def _summary(lengths: Counter[int]) -> dict[str, float]:
    """Mean and percentiles of a histogram."""
    total = sum(lengths.values())
    found = {"mean": round(sum(length * count for length, count in lengths.items()) / max(total, 1), 1)}
    for percent in (50, 95, 100):
        seen = 0
        for length in sorted(lengths):
            seen += lengths[length]
            if seen >= total * percent / 100:
                found[f"p{percent}"] = length
                break
    return found
