"""Which rows make which shard: decided by the rows alone, so that any worker makes the same plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.logits.store.reader import SHARDS
from tasks.tokens.rows import TokenisedRow, cut


@dataclass(frozen=True)
class Shard:
    """Rows that are scored and stored together: what a worker claims, and what a kill costs."""

    name: str
    rows: Sequence[TokenisedRow]

    @property
    def supervised_tokens(self) -> int:
        return sum(row.supervised_tokens for row in self.rows)


def plan(rows: Iterable[TokenisedRow], tokens_per_shard: int) -> list[Shard]:
    """Rows by length (little padding), cut where a shard would exceed its tokens (prompts count: they are scored)."""
    by_length = sorted(rows, key=lambda row: (len(row.ids), row.row_id))
    groups = cut(by_length, tokens_per_shard)
    return [Shard(f"{SHARDS}{index:05}.topk", group) for index, group in enumerate(groups)]
