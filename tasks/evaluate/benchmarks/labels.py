"""People's labels on what a judge judges (`judging.labels`), from a path, storage or the hub.

JSON lines, a JSON list or CSV with the fields `question` (its id, or its text), `variant` and `verdict`: win, tie or
loss of the variant's answer against AlpacaEval's reference, or a score from 1 to 10 of its answers in MT-Bench, of one
`turn` where that is given. A question may have several labels, as of several people.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import ConfigurationError
from tasks.evaluate.benchmarks.data_files import entries, is_missing, whole_text
from tasks.evaluate.benchmarks.questions import ALPACA_EVAL, MT_BENCH, Question

OURS, THEIRS = "ours", "theirs"  # the distilled student, and the reference that it is compared with
_STUDENT = "kd"
_OUTCOMES = {"loss": -1.0, "tie": 0.0, "win": 1.0}
_LOWEST, _HIGHEST = 1.0, 10.0


@dataclass(frozen=True)
class Label:
    """One person's verdict on one answer: −1, 0 or 1 for AlpacaEval, 1 to 10 for MT-Bench."""

    benchmark: str
    question: str
    variant: str
    value: float
    turn: str = ""


def read(source: str) -> list[Label]:
    """All labels; ConfigurationError, with its place, for the first that is none."""
    return [_label(where, entry) for where, entry in _entries(source)]


def preflight(source: str, questions: Mapping[str, Sequence[Question]], variants: Iterable[str]) -> None:
    """Refuse labels of which none can be on a judged answer, before anything is spent."""
    known, named = {name: ids(of) for name, of in questions.items()}, list(variants)
    labels = read(source)
    if not known:
        raise ConfigurationError(
            f"{source}: labels are compared with verdicts on AlpacaEval or MT-Bench: set benchmarks.alpaca_eval or "
            "benchmarks.mt_bench, or leave out judging.labels"
        )
    if not any(label.variant in named and known.get(label.benchmark, {}).get(label.question) for label in labels):
        first = labels[0]
        raise ConfigurationError(
            f"{source}: none of its {len(labels):,} labels is on an answer that will be judged: the first one is on "
            f"question {first.question[:50]!r}, variant {first.variant[:50]!r}; a question is named by its id or text "
            f"in the benchmark ({', '.join(known)}), a variant is one of {', '.join(named)}, ours or theirs"
        )


def ids(questions: Iterable[Question]) -> dict[str, str | None]:
    """A question's id by its id and by its text; None for a text that several questions have."""
    found: dict[str, str | None] = {}
    by_id = {}
    for question in questions:
        text = _plain(question.turns[0])
        found[text] = None if text in found else question.id
        by_id[question.id] = question.id
    return found | by_id


def _plain(text: str) -> str:
    return " ".join(text.split())


def _entries(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = whole_text(source)
    if text.lstrip()[:1] in ("[", "{"):
        yield from entries(source, "labels")
        return
    count = 0
    try:
        for count, row in enumerate(csv.DictReader(io.StringIO(text), strict=True), 1):
            yield f"{source}, row {count}", row
    except csv.Error as error:
        raise ConfigurationError(f"{source} is neither JSON nor CSV: {error}") from error
    if not count:
        raise ConfigurationError(f"{source} holds no labels: expected JSON lines or CSV with a header")


def _label(where: str, entry: Mapping[str, Any]) -> Label:
    question, variant, verdict = (_text(where, entry, name) for name in ("question", "variant", "verdict"))
    outcome, turn = _OUTCOMES.get(verdict.lower()), "" if _is_empty(entry.get("turn")) else _text(where, entry, "turn")
    if outcome is None:
        if variant == THEIRS:
            raise ConfigurationError(f"{where}: a score is of a variant's answer, and `variant` is 'theirs'")
        return Label(MT_BENCH, question, _STUDENT if variant == OURS else variant, _score(where, verdict), turn)
    if turn:
        raise ConfigurationError(f"{where}: `turn` goes with a score from 1 to 10, and `verdict` is {verdict!r}")
    if variant == THEIRS:
        outcome = 0.0 - outcome
    return Label(ALPACA_EVAL, question, _STUDENT if variant in (OURS, THEIRS) else variant, outcome)


def _text(where: str, entry: Mapping[str, Any], field: str) -> str:
    """A text, or a whole number, which ids and scores may be."""
    value = entry.get(field)
    if _is_empty(value):
        raise ConfigurationError(f"{where}: no `{field}`: a label has `question`, `variant` and `verdict`")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigurationError(f"{where}: `{field}` should be a text or a number, not {str(value)[:50]!r}")
    return _plain(str(int(value) if isinstance(value, float) and value.is_integer() else value))


def _is_empty(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def _score(where: str, verdict: str) -> float:
    try:
        score = float(verdict)
    except ValueError:
        score = 0.0
    if not _LOWEST <= score <= _HIGHEST:
        raise ConfigurationError(
            f"{where}: `verdict` should be win, tie, loss or a score from 1 to 10, not {verdict[:50]!r}"
        )
    return score
