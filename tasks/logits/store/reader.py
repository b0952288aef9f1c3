"""The top-K store: rows scored by the teacher, in shards (see FORMAT.md), keyed by row id.

A shard is written whole, so one that is there is finished. Training streams the store; `row` reads one row by
its id, and of its shard the head and one block only.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from infra import settings
from infra.errors import ConfigurationError
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from infra.store.range_cache import RangeCache
from tasks.logits.store.blocks import Block
from tasks.logits.store.format import (
    MAX_ERROR,
    Head,
    ShardError,
    decode_head,
    decode_shard,
    encode_shard,
    head_bytes,
)
from tasks.models import ModelSource
from tasks.tokens.chat import Turn, turn_of
from tasks.tokens.scored import ScoredRow
from tasks.tokens.vocabulary import Vocabulary

__all__ = [
    "SHARDS",
    "TOKENIZER",
    "ScoredRow",
    "ShardError",
    "TopKReader",
    "read_shard",
    "write_shard",
    "write_tokenizer",
]

SHARDS = "shards/"
TOKENIZER = "tokenizer.json"  # beside the shards: with it the store can be read without the teacher
T = TypeVar("T")
_HEAD_GUESS = 1 << 15  # bytes that usually hold a head, so that one request is enough
_BLOCKS_KEPT = 4


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
    told = {"tokenizer_json": teacher.text_file("tokenizer.json"), "turn": vars(turn_of(teacher))}
    work.put_json(TOKENIZER, told)


class TopKReader:
    """Reads a finished store, digests checked: all rows in order, or one by its id.

    Memory does not grow with the store, but for its row ids once `row` is used. What was fetched stays in
    the local cache, up to `settings.topk_cache_bytes()`.
    """

    def __init__(self, ref: ArtifactRef, cache: RangeCache | None = None):
        self._reader = ArtifactReader(ref)
        self._cache = cache or RangeCache(settings.cache_dir() / "topk", settings.topk_cache_bytes())
        self._entries = {entry.name: entry for entry in self._reader.record.files if entry.name.startswith(SHARDS)}
        self._places: dict[str, tuple[Head, int]] | None = None
        self._blocks: dict[tuple[str, int], Block] = {}
        self.k: int = self._reader.record.spec["k"]
        self.tokenizer_digest: dict[str, str] = self._reader.record.spec["tokenizer"]

    def __iter__(self) -> Iterator[ScoredRow]:
        """All rows, one shard in memory at a time."""
        for name in self._entries:
            yield from decode_shard(self._shard(name), self._uri(name))

    @property
    def rows(self) -> ArtifactRef:
        """The rows that were scored."""
        return self._reader.record.inputs["rows"]

    def vocabulary(self) -> Vocabulary:
        """The teacher's tokens."""
        told = self._reader.read_json(TOKENIZER)
        return Vocabulary.of(told["tokenizer_json"], Turn(**told["turn"]))

    def row_ids(self) -> list[str]:
        """The ids of all rows, from the heads of the shards alone."""
        return list(self._index())

    def row(self, row_id: str) -> ScoredRow:
        """One row; fetches the block that holds it, where it is not in the cache."""
        if row_id not in self._index():
            raise ConfigurationError(f"row {row_id!r} is not in the top-K store {self._reader.ref.uri}")
        head, row = self._index()[row_id]
        number = head.block_of(row)
        key = (head.name, number)
        if key not in self._blocks:
            while len(self._blocks) >= _BLOCKS_KEPT:
                del self._blocks[next(iter(self._blocks))]
            name = head.name.removeprefix(self._reader.ref.uri)
            self._blocks[key] = self._parsed(name, *head.block_range(number), lambda data: head.block(number, data))
        return self._blocks[key].row(row - int(head.block_rows[number]))

    def _index(self) -> dict[str, tuple[Head, int]]:
        if self._places is None:
            heads = [self._head(name) for name in self._entries]
            self._places = {row_id: (head, row) for head in heads for row, row_id in enumerate(head.row_ids)}
        return self._places

    def _head(self, name: str) -> Head:
        uri, place = self._uri(name), f"{self._reader.record.fingerprint}/{name}"
        length = self._parsed(name, 0, _HEAD_GUESS, lambda start: head_bytes(start, uri))
        return self._parsed(name, 0, max(length, _HEAD_GUESS), lambda data: _checked(decode_head(data, uri), place))

    def _shard(self, name: str) -> bytes:
        sha256 = self._entries[name].sha256
        data = self._cache.read(sha256, lambda: self._reader.read(name))
        if hashlib.sha256(data).hexdigest() != sha256:  # the copy is damaged; what the artifact's reader gives is not
            self._cache.drop(sha256)
            data = self._cache.read(sha256, lambda: self._reader.read(name))
        return data

    def _parsed(self, name: str, start: int, length: int, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of a piece of a shard; a damaged local copy is fetched anew."""
        sha256 = self._entries[name].sha256
        if self._cache.has(sha256):  # the whole shard lies here; what is parsed has digests of its own
            with contextlib.suppress(ShardError):
                return parse(self._cache.read(sha256, lambda: self._reader.read(name), start=start, length=length))
            self._cache.drop(sha256)

        def fetch() -> bytes:
            data = storage.get_range(self._uri(name), start, length)
            if data is None:
                raise ConfigurationError(f"{self._uri(name)} is missing from storage: {self._reader.repair}")
            return data

        key = f"{sha256}-{start}-{length}"
        with contextlib.suppress(ShardError):
            return parse(self._cache.read(key, fetch))
        self._cache.drop(key)  # a damaged copy, or damage in storage: that shows when it is fetched anew
        try:
            return parse(self._cache.read(key, fetch))
        except ShardError as error:
            self._cache.drop(key)
            raise ShardError(f"{error}; {self._reader.repair}") from error

    def _uri(self, name: str) -> str:
        return self._reader.ref.uri + name


def _checked(head: Head, place: str) -> Head:
    if head.belongs_to != place:
        raise ShardError(f"shard {head.name} is not the one that belongs there: it is {head.belongs_to or 'nameless'}")
    return head
