"""How long rows are in tokens, from a sample: what of them fits a stage, and what it comes to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.rows import Row, Turns
from tasks.tokens.rows import Skipped, tokenise

_ANY_LENGTH = 10**9
_BYTES_PER_TOKEN = 4.0  # of UTF-8, in English and in Chinese, for tokenizers of 150,000 tokens
_TEMPLATE_TOKENS = 30  # Qwen2.5's default system prompt and the marks of the turns


@dataclass(frozen=True)
class Fitting:
    """The rows of a stage: their share of all rows, and tokens a row on average. `long_row` is the 95th percentile."""

    share: float
    tokens: float
    supervised_tokens: float
    long_row: float


@dataclass(frozen=True)
class Lengths:
    """Supervised and other tokens of each sampled row. `guessed` where no tokenizer could be reached."""

    others: Sequence[int]
    supervised: Sequence[int]
    unusable: int = 0  # rows with control tokens in them
    guessed: bool = False

    def fitting(self, max_length: int) -> Fitting:
        """What is left where longer rows are skipped."""
        supervised = np.asarray(self.supervised, dtype=np.int64)
        totals = np.asarray(self.others, dtype=np.int64) + supervised
        fits = totals <= max_length
        if not fits.any():
            return Fitting(0.0, 0.0, 0.0, 0.0)
        return Fitting(
            share=float(fits.sum() / (len(totals) + self.unusable)),
            tokens=float(totals[fits].mean()),
            supervised_tokens=float(supervised[fits].mean()),
            long_row=float(np.percentile(totals[fits], 95)),
        )


def measured(rows: Iterable[Row], tokenizer: Any, turns: Turns) -> Lengths:
    """With the student's tokenizer and its chat template, as training does it."""
    tokenised = [tokenise(row, tokenizer, _ANY_LENGTH, turns) for row in rows]
    usable = [row for row in tokenised if not isinstance(row, Skipped)]
    supervised = [row.supervised_tokens for row in usable]
    others = [len(row.ids) - row.supervised_tokens for row in usable]
    return Lengths(others, supervised, len(tokenised) - len(usable))


def guessed(rows: Iterable[Row], turns: Turns) -> Lengths:
    """From the length of the text."""
    others, supervised = [], []
    for row in rows:
        earlier = row.earlier_answers if turns == "all" else []
        messages = row.messages
        answers = [*(messages[place] for place in earlier), messages[-1]]
        answered = sum(len(text.encode()) for answer in answers for text in answer.texts)
        said = len(row.tools.encode()) + sum(len(text.encode()) for message in messages for text in message.texts)
        others.append(_TEMPLATE_TOKENS + round((said - answered) / _BYTES_PER_TOKEN))
        supervised.append(len(answers) + round(answered / _BYTES_PER_TOKEN))
    return Lengths(others, supervised, guessed=True)
