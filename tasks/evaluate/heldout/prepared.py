"""Held-out rows in the tokens of a model, and which of them a variant and its teacher can both take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infra.errors import ConfigurationError
from tasks.models import ModelSource, load_tokenizer
from tasks.rows import Row
from tasks.tokens.rows import Skipped, TokenisedRow, tokenise


@dataclass(frozen=True)
class Prepared:
    """Rows by id as a model takes them, and the reason of those that it cannot take; `digest` is its tokenizer's."""

    digest: str
    tokenizer: Any
    tokens: dict[str, TokenisedRow]
    reasons: dict[str, str]


def prepare_rows(rows: Iterable[Row], source: ModelSource, digest: str, max_length: int) -> Prepared:
    tokenizer = load_tokenizer(source)
    tokens, reasons = {}, {}
    for row in rows:
        tokenised = tokenise(row, tokenizer, max_length)
        if isinstance(tokenised, Skipped):
            reasons[row.id] = tokenised.reason
        else:
            tokens[row.id] = tokenised
    return Prepared(digest, tokenizer, tokens, reasons)


def usable(mine: Prepared, theirs: Prepared) -> tuple[dict[str, TokenisedRow], dict[str, int]]:
    """The rows that model and teacher can both take, by id and shortest first; how many were skipped for what.

    Raises ConfigurationError where there is none.
    """
    skipped = Counter((theirs.reasons | mine.reasons).values())
    both = [tokens for row_id, tokens in mine.tokens.items() if row_id in theirs.tokens]
    if not both:
        raise ConfigurationError(f"no held-out row is usable for evaluation: {dict(skipped)}")
    return {row.row_id: row for row in sorted(both, key=lambda row: (len(row.ids), row.row_id))}, dict(skipped)
