"""How long rows are in tokens, from a sample: what of them fits a stage, and what it comes to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.rows import Row
from tasks.tokens.rows import Skipped, tokenise

_ANY_LENGTH = 10**9
_BYTES_PER_TOKEN = 4.0  # of UTF-8, in English and in Chinese, for tokenizers of 150,000 tokens
_TEMPLATE_TOKENS = 30  # Qwen2.5's default system prompt and the marks of the turns


@dataclass(frozen=True)
class Fitting:
    """The rows of a stage: their share of all rows, and tokens a row on average. `long_row` is the 95th percentile."""

    share: float
    tokens: float
    response_tokens: float
    long_row: float


@dataclass(frozen=True)
class Lengths:
    """Prompt and response tokens of each sampled row. `guessed` where no tokenizer could be reached."""

    prompts: Sequence[int]
    responses: Sequence[int]
    unusable: int = 0  # rows with control tokens in them
    guessed: bool = False

    def fitting(self, max_length: int) -> Fitting:
        """What is left where longer rows are skipped."""
        responses = np.asarray(self.responses, dtype=np.int64)
        totals = np.asarray(self.prompts, dtype=np.int64) + responses
        fits = totals <= max_length
        if not fits.any():
            return Fitting(0.0, 0.0, 0.0, 0.0)
        return Fitting(
            share=float(fits.sum() / (len(totals) + self.unusable)),
            tokens=float(totals[fits].mean()),
            response_tokens=float(responses[fits].mean()),
            long_row=float(np.percentile(totals[fits], 95)),
        )


def measured(rows: Iterable[Row], tokenizer: Any) -> Lengths:
    """With the student's tokenizer and its chat template, as training does it."""
    tokenised = [tokenise(row, tokenizer, _ANY_LENGTH) for row in rows]
    usable = [row for row in tokenised if not isinstance(row, Skipped)]
    responses = [row.response_tokens for row in usable]
    prompts = [row.response_start for row in usable]
    return Lengths(prompts, responses, len(tokenised) - len(usable))


def guessed(rows: Iterable[Row]) -> Lengths:
    """From the length of the text."""
    prompts, responses = [], []
    for row in rows:
        prompt = sum(len(message.content.encode()) for message in row.prompt)
        prompts.append(_TEMPLATE_TOKENS + round(prompt / _BYTES_PER_TOKEN))
        responses.append(1 + round(len(row.response.encode()) / _BYTES_PER_TOKEN))
    return Lengths(prompts, responses, guessed=True)
