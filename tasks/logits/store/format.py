"""The shard: scored rows as bytes and back (FORMAT.md describes the bytes for other programs). No I/O here.

A shard is a head (what it holds, an index of rows and blocks, a dictionary of token ids) and blocks of some
thousand supervised tokens. A block is the unit of compression, of digests and of range reads; within a block a
row's tokens are expanded without the others'.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.errors import ConfigurationError
from tasks.logits.store import planes
from tasks.logits.store.blocks import Block, Coding, Content, dictionary_of
from tasks.tokens.scored import ScoredRow
from tasks.tokens.spans import Span

__all__ = ["ShardError", "decode_shard", "encode_shard"]

VERSION = 2  # of shards in which a row has several spans; all others are still of version 1
MAX_ERROR = 1 / 128  # nat
PREAMBLE_BYTES = 48
BLOCK_TOKENS = 8192
_PROMPT_WEIGHT = 1 / 8  # a prompt token costs about as much as this part of a supervised token with its top K
_MAGIC = b"\x89DFTOPK\n"
_PREAMBLE = struct.Struct("<8sHHIIIQ16s")  # magic, version, 0, lengths of meta, index, dictionary, shard; digest
_INDEX = {1: struct.Struct("<7I"), 2: struct.Struct("<9I")}  # by version: lengths of its parts, and of the row ids
_DIGEST_BYTES = 16


class ShardError(ConfigurationError):
    """A shard that cannot be read: not one of ours, of a newer version, cut short, or altered."""


@dataclass(frozen=True)
class Head:
    """What a shard says of itself, before any block is read."""

    name: str
    belongs_to: str
    coding: Coding
    row_ids: list[str]
    prompt_tokens: np.ndarray
    response_tokens: np.ndarray
    block_rows: np.ndarray  # first row of each block, and the number of rows
    block_offsets: np.ndarray  # of each block from the start of the shard, and the shard's size
    block_digests: list[bytes]
    earlier: list[tuple[Span, ...]]  # of each row

    @property
    def max_error(self) -> float:
        """The bound on the absolute error of every log-prob, in nats."""
        return self.coding.step / 2

    @property
    def blocks(self) -> int:
        return len(self.block_digests)

    @property
    def size(self) -> int:
        """The shard's length in bytes."""
        return int(self.block_offsets[-1])

    def block_range(self, block: int) -> tuple[int, int]:
        """Where a block lies: (offset, length) in bytes."""
        start, end = (int(offset) for offset in self.block_offsets[block : block + 2])
        return start, end - start

    def block(self, block: int, data: bytes) -> Block:
        """Block number `block` out of its bytes; raises ShardError where they are others."""
        length = self.block_range(block)[1]
        if len(data) != length:
            raise ShardError(f"shard {self.name} is cut short: block {block} has {len(data)} of {length} bytes")
        if _digest(data) != self.block_digests[block]:
            raise ShardError(f"shard {self.name} is corrupt: the digest of its block {block} is wrong")
        rows = slice(*(int(row) for row in self.block_rows[block : block + 2]))
        tokens = self.prompt_tokens[rows], self.response_tokens[rows]
        return Block(data, self.coding, self.row_ids[rows], *tokens, self.earlier[rows])


def encode_shard(
    rows: Sequence[ScoredRow], *, max_error: float = MAX_ERROR, belongs_to: str = "", block_tokens: int = BLOCK_TOKENS
) -> bytes:
    """Rows as one shard whose log-probs are off by at most `max_error` nats.

    `belongs_to` says which store the shard is part of, and as what. Raises ValueError on a row that is not as
    `ScoredRow` says.
    """
    k = _checked_k(rows)
    exponent = math.floor(math.log2(2 * max_error))  # a power of two: then scaling is exact in float32
    spans = _block_spans(rows, block_tokens)
    contents = [Content.of(rows[first:last], k, 2.0**exponent) for first, last in spans]
    dictionary = dictionary_of(contents)
    blocks = [content.encode(dictionary) for content in contents]
    meta = {
        "k": k,
        "step_log2": exponent,
        "max_abs_error_nats": 2.0**exponent / 2,
        "belongs_to": belongs_to,
        "rows": len(rows),
        "blocks": len(blocks),
        "dictionary": len(dictionary),
    }
    head = [json.dumps(meta, sort_keys=True).encode(), _index(rows, spans, blocks), planes.pack(dictionary)]
    size = PREAMBLE_BYTES + sum(map(len, head)) + sum(map(len, blocks))
    fields = (_MAGIC, _version(rows), 0, *map(len, head), size)
    digest = _digest(_PREAMBLE.pack(*fields, b"")[:-_DIGEST_BYTES], *head)
    return b"".join([_PREAMBLE.pack(*fields, digest), *head, *blocks])


def decode_shard(data: bytes, name: str) -> Iterator[ScoredRow]:
    """Inverse of `encode_shard`, a block at a time; `name` is for the message of a ShardError."""
    head = decode_head(data, name)
    if len(data) != head.size:
        raise ShardError(f"shard {name} is cut short: {len(data)} of {head.size} bytes")
    for number in range(head.blocks):
        start, length = head.block_range(number)
        yield from head.block(number, data[start : start + length]).rows()


def decode_head(data: bytes, name: str) -> Head:
    """The head at the start of `data`; raises ShardError, naming the shard `name`."""
    fields = _preamble(data, name)
    end = PREAMBLE_BYTES + sum(fields[3:6])
    if len(data) < end:
        raise ShardError(f"shard {name} is cut short: {len(data)} of {fields[6]} bytes")
    parts = _split(data, PREAMBLE_BYTES, fields[3:6])
    if _digest(data[: PREAMBLE_BYTES - _DIGEST_BYTES], *parts) != fields[7]:
        raise ShardError(f"shard {name} is corrupt: the digest of its head is wrong")
    meta = json.loads(parts[0])
    rows, blocks = meta["rows"], meta["blocks"]
    index = _INDEX[fields[1]]
    *lengths, ids_bytes = index.unpack_from(parts[1])
    ids, prompts, responses, first_rows, sizes, digests, *spans = _split(parts[1], index.size, lengths)
    dictionary = planes.unpack(parts[2], meta["dictionary"]).astype(np.int32)
    return Head(
        name=name,
        belongs_to=meta["belongs_to"],
        coding=Coding(meta["k"], 2.0 ** meta["step_log2"], dictionary),
        row_ids=planes.unpack_bytes(ids, ids_bytes).decode().split("\n")[:-1],
        prompt_tokens=planes.unpack(prompts, rows),
        response_tokens=planes.unpack(responses, rows),
        block_rows=np.append(planes.unpack(first_rows, blocks), rows),
        block_offsets=np.cumsum([end, *planes.unpack(sizes, blocks)]),
        block_digests=[digests[i : i + _DIGEST_BYTES] for i in range(0, len(digests), _DIGEST_BYTES)],
        earlier=_earlier(rows, *spans),
    )


def _checked_k(rows: Sequence[ScoredRow]) -> int:
    """The K of all rows."""
    k = rows[0].topk_ids_RK.shape[1] if rows else 1
    for row in rows:
        if not row.in_order:
            raise ValueError(f"row {row.row_id}: its spans do not follow each other")
        shape = (row.supervised_tokens, k)
        if (row.topk_ids_RK.shape, row.logprobs_RK.shape, row.actual_logprobs_R.shape) != (shape, shape, shape[:1]):
            raise ValueError(f"row {row.row_id}: its ids and log-probs are not {shape[0]} tokens by K = {k}")
        if "\n" in row.row_id:
            raise ValueError(f"row id {row.row_id!r} contains a line break")
    return k


def _block_spans(rows: Sequence[ScoredRow], block_tokens: int) -> list[tuple[int, int]]:
    """(first, last) row of each block."""
    spans, first, tokens = [], 0, 0.0
    for index, row in enumerate(rows, 1):
        supervised = row.supervised_tokens
        tokens += supervised + (len(row.ids) - supervised) * _PROMPT_WEIGHT
        if tokens >= block_tokens or index == len(rows):
            spans.append((first, index))
            first, tokens = index, 0.0
    return spans


def _index(rows: Sequence[ScoredRow], spans: Sequence[tuple[int, int]], blocks: Sequence[bytes]) -> bytes:
    ids = "".join(f"{row.row_id}\n" for row in rows).encode()
    columns = [
        [len(row.ids) - row.supervised_tokens for row in rows],
        [row.supervised_tokens for row in rows],
        [first for first, _last in spans],
        [len(block) for block in blocks],
    ]
    parts = [planes.pack_bytes(ids), *map(_packed, columns), b"".join(map(_digest, blocks))]
    version = _version(rows)
    if version > 1:
        parts.append(_packed([len(row.earlier) for row in rows]))
        parts.append(_packed([number for row in rows for span in row.earlier for number in span]))
    return _INDEX[version].pack(*map(len, parts), len(ids)) + b"".join(parts)


def _version(rows: Sequence[ScoredRow]) -> int:
    """The first that can hold them."""
    return 2 if any(row.earlier for row in rows) else 1


def _packed(numbers: Sequence[int]) -> bytes:
    return planes.pack(np.array(numbers, dtype=np.int64))


def _earlier(rows: int, counts: bytes = b"", numbers: bytes = b"") -> list[tuple[Span, ...]]:
    """The earlier answers of each row out of the two last parts of the index, which version 1 has not."""
    if not counts:
        return [()] * rows
    ends = np.cumsum([0, *planes.unpack(counts, rows)])
    spans = [Span(*numbers) for numbers in planes.unpack(numbers, 3 * int(ends[-1])).reshape(-1, 3).tolist()]
    return [tuple(spans[start:end]) for start, end in itertools.pairwise(ends.tolist())]


def _preamble(data: bytes, name: str) -> tuple[Any, ...]:
    if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
        raise ShardError(f"{name} is no top-K shard of distilflow: it starts with {data[: len(_MAGIC)]!r}")
    if len(data) < PREAMBLE_BYTES:
        raise ShardError(f"shard {name} is cut short: it has {len(data)} bytes")
    fields = _PREAMBLE.unpack_from(data)
    if fields[1] > VERSION:
        raise ShardError(
            f"shard {name} has format version {fields[1]}, and this program reads up to {VERSION}: update distilflow"
        )
    return fields


def _split(data: bytes, start: int, lengths: Sequence[int]) -> list[bytes]:
    return [data[begin:end] for begin, end in itertools.pairwise(itertools.accumulate([start, *lengths]))]


def _digest(*parts: bytes) -> bytes:
    made = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        made.update(part)
    return made.digest()
