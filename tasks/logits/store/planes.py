"""Non-negative integers as byte planes: the layer of the shard format below rows (see FORMAT.md).

A matrix of R ranks and T tokens becomes one symbol byte an entry, and further bytes for the entries that do
not fit a symbol. Each rank's symbols are compressed by themselves, because each rank has its own statistics;
zstd then codes them with a Huffman table, which is within 1 % of their entropy and decodes at memory speed.

symbol     value
0–191      the value itself
192–253    192 + 256·(symbol − 192) + one byte of the `low` plane
254        four bytes of the `raw` planes
255        no value
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

DIRECT, RAW, ABSENT = 192, 254, 255
LIMIT = DIRECT + 256 * (RAW - DIRECT)  # the first value that needs `raw`
_FRAME_BYTES = 4096  # ranks of short blocks share a frame until it holds this much
_ZSTD = pa.Codec("zstd", compression_level=3)  # higher levels look for repeats, and there are none


@dataclass(frozen=True)
class Planes:
    """R × T integers as symbols, and the further bytes in the order of the entries that need them."""

    symbols_RT: np.ndarray
    low: np.ndarray
    raw: np.ndarray

    def values(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values (R, T) int32, flat indices of those from `raw`, and these. Entries without a value are −1."""
        values_RT = self.symbols_RT.astype(np.int32)
        flat, symbols = values_RT.ravel(), self.symbols_RT.ravel()
        extended = np.flatnonzero(symbols >= DIRECT)
        kinds = symbols[extended]
        in_low = kinds < RAW
        flat[extended[in_low]] = DIRECT + ((kinds[in_low].astype(np.int32) - DIRECT) << 8) + self.low
        where_raw = extended[kinds == RAW]
        flat[where_raw] = self.raw
        flat[extended[kinds == ABSENT]] = -1
        return values_RT, where_raw, self.raw


def encode(values_RT: np.ndarray, is_raw_RT: np.ndarray | None = None) -> list[bytes]:
    """Compressed frames of R × T integers below 2³²; −1 stands for no value.

    `is_raw_RT` marks entries to store in `raw` whatever their size (they mean something else to the caller).
    """
    symbols_RT = np.where(values_RT < DIRECT, values_RT, DIRECT + ((values_RT - DIRECT) >> 8))
    is_raw_RT = values_RT >= LIMIT if is_raw_RT is None else is_raw_RT
    symbols_RT[is_raw_RT] = RAW
    symbols_RT[values_RT < 0] = ABSENT
    symbols_RT = symbols_RT.astype(np.uint8)
    low = ((values_RT[(symbols_RT >= DIRECT) & (symbols_RT < RAW)] - DIRECT) & 255).astype(np.uint8)
    raw = values_RT[symbols_RT == RAW].astype("<u4")
    planes = raw.view(np.uint8).reshape(-1, 4).T
    pieces = [symbols_RT[ranks] for ranks in _frames(symbols_RT.shape)]
    return [_compress(piece) for piece in [*pieces, low, *planes]]


def decode(shape: tuple[int, int], frames: Iterator[bytes | memoryview]) -> Planes:
    """Inverse of `encode`, taking as many frames as it needs; the digest of the frames was checked."""
    symbols_RT = np.empty(shape, dtype=np.uint8)
    for ranks in _frames(shape):
        piece = symbols_RT[ranks]
        piece[:] = _decompress(next(frames), piece.size).reshape(piece.shape)
    in_raw = int(np.count_nonzero(symbols_RT == RAW))
    in_low = int(np.count_nonzero(symbols_RT >= DIRECT) - np.count_nonzero(symbols_RT == ABSENT)) - in_raw
    low = _decompress(next(frames), in_low)
    planes = [_decompress(next(frames), in_raw) for _ in range(4)]
    raw = np.stack(planes, axis=1).view("<u4").ravel().astype(np.int64)
    return Planes(symbols_RT, low, raw)


def pack(values: np.ndarray) -> bytes:
    """One small array of non-negative integers: differences in zigzag, four byte planes, one zstd frame."""
    steps = np.diff(values.astype(np.int64), prepend=0)
    zigzag = ((steps << 1) ^ (steps >> 63)).astype("<u4")
    return _compress(zigzag.view(np.uint8).reshape(-1, 4).T)


def unpack(data: bytes | memoryview, count: int) -> np.ndarray:
    """Inverse of `pack`: int64."""
    planes = _decompress(data, 4 * count).reshape(4, count)
    zigzag = np.ascontiguousarray(planes.T).view("<u4").ravel().astype(np.int64)
    return np.cumsum((zigzag >> 1) ^ -(zigzag & 1))


def pack_bytes(data: bytes) -> bytes:
    return _compress(np.frombuffer(data, dtype=np.uint8))


def unpack_bytes(data: bytes | memoryview, size: int) -> bytes:
    return _decompress(data, size).tobytes()


def _frames(shape: tuple[int, int]) -> list[slice]:
    """Which ranks each frame of symbols holds."""
    ranks, tokens = shape
    together = max(1, _FRAME_BYTES // max(tokens, 1))
    return [slice(first, min(first + together, ranks)) for first in range(0, ranks, together)]


def _compress(array: np.ndarray) -> bytes:
    if not array.size:
        return b""
    packed: bytes = _ZSTD.compress(np.ascontiguousarray(array), asbytes=True)
    return packed


def _decompress(data: bytes | memoryview, size: int) -> np.ndarray:
    if size == 0:
        return np.empty(0, dtype=np.uint8)
    return np.frombuffer(_ZSTD.decompress(data, decompressed_size=size), dtype=np.uint8)
