"""What an API model wrote, token by token, out of the log-probs that its provider told. Maths alone.

Providers tell tokens by text or bytes and no ids, so a token is its bytes here. T tokens of an answer, K alternatives.
Nothing of a reply is trusted: tokens that do not spell the answer, and numbers that are no log-probs, are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.tokens.chat import Turn
from tasks.tokens.scored import ScoredRow
from tasks.tokens.vocabulary import tokenizer_of

NOT_TOLD = "came without log-probs"
NOT_SPELLED = "has tokens that do not spell it"
NO_LOGPROBS = "has log-probs that are none"
TURN = Turn(before="", after="", end="<end>")
_ROUNDING = 1e-3  # that a log-prob may be above 0 …
NEVER = -9999.0  # providers' word for a token that is not among the likeliest
_TOO_MUCH = 1.01  # … and the probability of all alternatives together
_REPLACED = "\ufffd".encode()  # in place of bytes that are no text by themselves

Alternatives = tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Spoken:
    """The token that was written, its log-prob, and the likeliest tokens at its place, best first.

    `alternatives` has none where the provider's text hides where the token begins (in the middle of a character).
    """

    token: bytes
    logprob: float
    alternatives: Alternatives


@dataclass(frozen=True)
class Answer:
    """An answer's tokens. Of some providers `ends` says the token that ended it; others tell nothing of that."""

    tokens: tuple[Spoken, ...]
    end: Spoken | None = None


class Untold(ValueError):
    """An answer without log-probs to learn from; says why."""


def answer_of(text: str, told: Any, k: int, *, stopped: bool) -> Answer:
    """The answer `text` in the tokens that were `told` of it ([token, log-prob, alternatives] each); raises Untold.

    `stopped`: the model ended it itself. Whitespace around an answer does not count, for servers trim it.
    """
    if not told:
        raise Untold(NOT_TOLD)
    tokens = _trusted([_spoken(one, k) for one in told])
    spelled, wanted = b"".join(one.token for one in tokens), text.strip().encode("utf-8", "replace")
    if spelled.strip() == wanted:
        return Answer(tuple(tokens))
    *inside, last = tokens
    if stopped and last.token.strip() and b"".join(one.token for one in inside).strip() == wanted:
        return Answer(tuple(inside), last)
    raise Untold(NOT_SPELLED)


def _spoken(told: Any, k: int) -> Spoken:
    try:
        token, logprob, alternatives = told
        others = [(other, value) for other, value in alternatives]
    except (TypeError, ValueError):
        raise Untold(NO_LOGPROBS) from None
    others = [(_bytes(other), _logprob(value)) for other, value in others]
    known = sorted((one for one in others if one[0] and _REPLACED not in one[0]), key=lambda one: -one[1])
    if sum(math.exp(value) for _other, value in others) > _TOO_MUCH:
        raise Untold(NO_LOGPROBS)
    best: dict[bytes, float] = {}  # two tokens may have the same bytes
    for other, value in known:
        best.setdefault(other, value)
    return Spoken(_bytes(token), _logprob(logprob), tuple(best.items())[:k])


def _bytes(token: Any) -> bytes:
    if isinstance(token, str):
        return token.encode("utf-8", "replace")
    try:
        return bytes(token if isinstance(token, list) else [token])
    except (TypeError, ValueError):
        raise Untold(NOT_SPELLED) from None


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= _ROUNDING:  # nor NaN
        raise Untold(NO_LOGPROBS)
    return min(float(max(value, NEVER)), 0.0)


def _trusted(tokens: Sequence[Spoken]) -> list[Spoken]:
    """Some servers tell the bytes of a character with its last token: neither that nor those before it are in place."""
    hidden = [not one.token for one in tokens]
    return [
        Spoken(one.token, one.logprob, ()) if hides or before else one
        for one, hides, before in zip(tokens, hidden, [False, *hidden], strict=False)
    ]


class ToldTokens:
    """The tokens of some answers under ids of our own: an API model's tokenizer as far as it was seen.

    A token that ended an answer, and is in the text of none, is the end of turn wherever it is an alternative.
    """

    def __init__(self, answers: Iterable[Answer]):
        texts: set[bytes] = set()
        written: set[bytes] = set()
        ends: set[bytes] = set()
        for answer in answers:
            for one in answer.tokens:
                written.add(one.token)
                texts.update(other for other, _value in one.alternatives)
            if answer.end is not None:
                ends.add(answer.end.token)
                texts.update(other for other, _value in answer.end.alternatives)
        self._ends = ends - written
        self._texts = sorted((texts | written) - self._ends)
        self._ids = {text: number for number, text in enumerate(self._texts)} | dict.fromkeys(self._ends, self.end)

    @property
    def end(self) -> int:
        return len(self._texts)

    def tokenizer_json(self) -> str:
        """As a model's own would be read (`tasks.tokens.vocabulary`); its turn is `TURN`."""
        return tokenizer_of(self._texts, TURN.end)

    def scored(self, row_id: str, answer: Answer, k: int) -> ScoredRow:
        """The answer as a row of a store, its prompt left out: how the model cuts that, nobody tells."""
        ended = answer.end is not None and answer.end.token in self._ends
        tokens = [*answer.tokens, answer.end] if ended and answer.end else list(answer.tokens)
        ids_TK = np.zeros((len(tokens), k), np.int32)
        logprobs_TK = np.full((len(tokens), k), -np.inf, np.float32)
        for place, one in enumerate(tokens):
            best: dict[int, float] = {}
            for other, value in one.alternatives:
                best.setdefault(self._ids[other], value)  # a model may have several ends
            ids_TK[place, : len(best)], logprobs_TK[place, : len(best)] = list(best), list(best.values())
        actual_T = np.array([one.logprob for one in tokens], np.float32)
        ids = [self._ids[one.token] for one in tokens]
        return ScoredRow(row_id, ids, 0, actual_T, ids_TK, logprobs_TK)
