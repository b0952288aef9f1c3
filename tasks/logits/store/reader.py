"""The top-K store: rows scored by the teacher, in shards (see FORMAT.md), keyed by row id.

A shard is written whole, so one that is there is finished. Whoever reads the store streams it; that a shard's head says
where each block lies is for readers of other makes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from tasks.logits.store.format import (
    MAX_ERROR,
    Head,
    ShardError,
    decode_head,
    decode_shard,
    encode_shard,
)
from tasks.models import ModelSource
from tasks.rows import Turns
from tasks.text.categories import TaskCategories
from tasks.tokens.chat import Turn, turn_of
from tasks.tokens.scored import ScoredRow
from tasks.tokens.vocabulary import Vocabulary

__all__ = [
    "SHARDS",
    "TOKENIZER",
    "ScoredRow",
    "ShardError",
    "TopKReader",
    "bytes_a_token",
    "read_shard",
    "write_shard",
    "write_tokenizer",
]

SHARDS = "shards/"
TOKENIZER = "tokenizer.json"  # beside the shards: with it the store can be read without the teacher


def write_shard(work: Workspace, name: str, rows: Sequence[ScoredRow], max_error: float = MAX_ERROR) -> None:
    """Put a finished shard into the store that is being made."""
    work.put(name, encode_shard(rows, max_error=max_error, belongs_to=f"{work.fingerprint}/{name}"))


def read_shard(work: Workspace, name: str) -> tuple[int, Iterator[ScoredRow]]:
    """The size of a shard of the store that is being made, and its rows; ShardError where it is not whole."""
    data = work.read(name)
    _checked(decode_head(data, work.uri + name), f"{work.fingerprint}/{name}")
    return len(data), decode_shard(data, work.uri + name)


def write_tokenizer(work: Workspace, teacher: ModelSource) -> None:
    """Keep the teacher's tokens with the store that is being made."""
    tokens = {"tokenizer_json": teacher.text_file("tokenizer.json"), "turn": vars(turn_of(teacher))}
    work.put_json(TOKENIZER, tokens)


class TopKReader:
    """Reads a finished store in order, digests checked; one shard is in memory at a time.

    Of each token's log-probs the `k` largest are read, where fewer are wanted than are stored (best first).
    """

    def __init__(self, ref: ArtifactRef, k: int | None = None):
        self._reader = ArtifactReader(ref)
        stored: int = self._reader.record.spec["k"]
        self.k = stored if k is None else k
        if self.k > stored:
            raise ConfigurationError(f"{ref.uri} holds {stored} log-probabilities a token, and {k} are asked for")
        self._cuts = self.k < stored
        self.turns: Turns = self._reader.record.spec.get("turns", "last")
        self.categories = TaskCategories.of(self._reader.record.spec)
        self.tokenizer_digest: dict[str, str] = self._reader.record.spec["tokenizer"]

    def __iter__(self) -> Iterator[ScoredRow]:
        for name, data in self._reader.stream(SHARDS):
            rows = decode_shard(data, self._reader.ref.uri + name)
            yield from map(self._cut, rows) if self._cuts else rows

    def _cut(self, row: ScoredRow) -> ScoredRow:
        return replace(row, topk_ids_RK=row.topk_ids_RK[:, : self.k], logprobs_RK=row.logprobs_RK[:, : self.k])

    @property
    def skipped(self) -> int:
        """How many of the rows could not be scored."""
        return self._reader.record.counts["skipped"]

    @property
    def teacher(self) -> str:
        """Whose scores they are (`ModelSource.identity`)."""
        return str(self._reader.record.spec["teacher"])

    @property
    def rows(self) -> ArtifactRef:
        """The rows that were scored."""
        return self._reader.record.inputs["rows"]

    def vocabulary(self) -> Vocabulary:
        """The teacher's tokens."""
        tokens = self._reader.read_json(TOKENIZER)
        return Vocabulary.of(tokens["tokenizer_json"], Turn(**tokens["turn"]))


def bytes_a_token(store: ArtifactRef, k: int, rows: int = 512) -> float:
    """What a store of `k` log-probabilities a token would take, told by some of the rows of this one."""
    first = list(itertools.islice(TopKReader(store, k), rows))
    return len(encode_shard(first)) / max(sum(len(row.topk_ids_RK) for row in first), 1)


def _checked(head: Head, place: str) -> Head:
    if head.belongs_to != place:
        raise ShardError(f"shard {head.name} is not the one that belongs there: it is {head.belongs_to or 'nameless'}")
    return head
