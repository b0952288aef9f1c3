"""A block of the shard format: some rows as columns of integers, and back (see FORMAT.md). No I/O here.

Log-probs are rounded to a grid and stored as steps from rank to rank, so that errors do not add up; a token
id is its place in the shard's dictionary; the actual token is its rank among the top K, where it is there.

R supervised tokens of a row; of a block T supervised tokens, P others, N of the T outside the top K; K kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.logits.store import planes
from tasks.logits.store.planes import Planes
from tasks.tokens.scored import ScoredRow
from tasks.tokens.spans import Span

_DEEPEST = 2.0**15  # a log-prob below −this is a probability of 0 in any float: stored as −inf


@dataclass(frozen=True)
class Coding:
    """What all blocks of a shard share: K, the grid's step in nats, the dictionary of token ids."""

    k: int
    step: float
    dictionary: np.ndarray


class Block:
    """A block's rows, decompressed but not yet expanded: 25 bytes a token. The digest of `data` was checked."""

    def __init__(
        self,
        data: bytes,
        coding: Coding,
        row_ids: Sequence[str],
        prompts: np.ndarray,
        responses: np.ndarray,
        earlier: Sequence[tuple[Span, ...]],
    ):
        """`responses` are the rows' numbers of supervised tokens, `prompts` those of all others."""
        self._coding = coding
        self._row_ids = row_ids
        self._earlier = earlier
        self._prompt_ends = np.cumsum([0, *prompts])
        self._response_ends = np.cumsum([0, *responses])
        prompt, tokens, k = int(self._prompt_ends[-1]), int(self._response_ends[-1]), coding.k
        frames = _frames(data)
        self._prompt = planes.decode((1, prompt), frames)
        self._topk_ids = planes.decode((k, tokens), frames)
        self._gaps = planes.decode((k, tokens), frames)
        self._places = planes.decode((1, tokens), frames).values()[0][0]
        self._outside = self._places == k
        others = int(self._outside.sum())
        self._other_ids = planes.decode((1, others), frames)
        self._other_logprobs = planes.decode((1, others), frames)

    def rows(self) -> Iterator[ScoredRow]:
        """All rows of the block, in order; their arrays share memory."""
        prompt_P = self._ids(self._prompt)[0]
        ids_T, actual_T, topk_ids_TK, logprobs_TK = self._responses()
        for number, (row_id, earlier) in enumerate(zip(self._row_ids, self._earlier, strict=True)):
            prompt = slice(*self._prompt_ends[number : number + 2])
            own = slice(*self._response_ends[number : number + 2])
            ids: Any = np.concatenate([prompt_P[prompt], ids_T[own]])
            start = int(prompt.stop - prompt.start) + sum(span.stop - span.start for span in earlier)
            row = ScoredRow(row_id, ids, start, actual_T[own], topk_ids_TK[own], logprobs_TK[own], earlier)
            if earlier:
                others, places_R = _others(row), row.places_R
                ids[others], ids[places_R] = prompt_P[prompt], ids_T[own]
            yield row

    def _responses(self) -> tuple[np.ndarray, ...]:
        """Response ids, actual log-probs, top-K ids, log-probs of all the block's rows."""
        topk_ids_KT = self._ids(self._topk_ids)
        gaps_KT = self._gaps.values()[0]
        unknown_KT = gaps_KT < 0
        if unknown := bool(unknown_KT.any()):
            gaps_KT[unknown_KT] = 0
        logprobs_KT = self._logprobs(np.cumsum(gaps_KT, axis=0, dtype=np.int32))
        if unknown:
            logprobs_KT[unknown_KT] = -np.inf
        topk_ids_TK, logprobs_TK = np.ascontiguousarray(topk_ids_KT.T), np.ascontiguousarray(logprobs_KT.T)

        places_T = self._places.copy()
        places_T[self._outside] = 0
        ids_T = np.take_along_axis(topk_ids_TK, places_T[:, None], axis=1)[:, 0]
        actual_T = np.take_along_axis(logprobs_TK, places_T[:, None], axis=1)[:, 0]
        ids_T[self._outside] = self._ids(self._other_ids)[0]
        actual_T[self._outside] = self._grid(self._other_logprobs)
        return ids_T, actual_T, topk_ids_TK, logprobs_TK

    def _ids(self, stored: Planes) -> np.ndarray:
        indices_RT, where_raw, raw = stored.values()
        if not len(self._coding.dictionary):  # then all are raw
            return indices_RT
        ids_RT = self._coding.dictionary.take(indices_RT, mode="clip")
        ids_RT.ravel()[where_raw] = raw
        return ids_RT

    def _grid(self, stored: Planes) -> np.ndarray:
        values = stored.values()[0][0]
        return np.where(values < 0, np.float32(-np.inf), self._logprobs(values))

    def _logprobs(self, grid: np.ndarray) -> np.ndarray:
        return np.multiply(grid, np.float32(-self._coding.step), dtype=np.float32)


@dataclass(frozen=True)
class Content:
    """A block's rows as matrices: what the planes will hold."""

    prompt_1P: np.ndarray
    topk_ids_KT: np.ndarray
    gaps_KT: np.ndarray
    places_1T: np.ndarray
    other_ids_1N: np.ndarray
    other_grid_1N: np.ndarray

    @staticmethod
    def of(rows: Sequence[ScoredRow], k: int, step: float) -> Content:
        ids = [np.asarray(row.ids, dtype=np.int64) for row in rows]
        prompt_P = np.concatenate([i[_others(row)] for i, row in zip(ids, rows, strict=True)])
        ids_T = np.concatenate([i[row.places_R] for i, row in zip(ids, rows, strict=True)])
        topk_ids_TK = np.concatenate([row.topk_ids_RK for row in rows]).astype(np.int64)
        grid_TK = to_grid(np.concatenate([row.logprobs_RK for row in rows]), step)
        actual_T = to_grid(np.concatenate([row.actual_logprobs_R for row in rows]), step)
        if min((array.min() for array in (prompt_P, ids_T, topk_ids_TK) if array.size), default=0) < 0:
            raise ValueError("token ids are not negative")
        known_TK = grid_TK >= 0
        gaps_TK = np.where(known_TK, np.diff(grid_TK, axis=1, prepend=0), -1)
        if (gaps_TK[known_TK] < 0).any() or (known_TK[:, 1:] & ~known_TK[:, :-1]).any():
            raise ValueError("log-probs come best first")
        same_TK = (topk_ids_TK == ids_T[:, None]) & (grid_TK == actual_T[:, None])
        inside_T = same_TK.any(axis=1)
        places_T = np.where(inside_T, same_TK.argmax(axis=1), k)
        return Content(
            prompt_P[None],
            np.ascontiguousarray(topk_ids_TK.T),
            np.ascontiguousarray(gaps_TK.T),
            places_T[None],
            ids_T[~inside_T][None],
            actual_T[~inside_T][None],
        )

    def encode(self, dictionary: np.ndarray) -> bytes:
        frames = [
            *_encode_ids(self.prompt_1P, dictionary),
            *_encode_ids(self.topk_ids_KT, dictionary),
            *planes.encode(self.gaps_KT),
            *planes.encode(self.places_1T),
            *_encode_ids(self.other_ids_1N, dictionary),
            *planes.encode(self.other_grid_1N),
        ]
        return struct.pack(f"<{len(frames) + 1}I", len(frames), *map(len, frames)) + b"".join(frames)


def dictionary_of(contents: Sequence[Content]) -> np.ndarray:
    """Ids by frequency; those that come once are cheaper where they come.

    Within a class of similar frequency ids ascend, which makes the dictionary small and costs nothing elsewhere.
    """
    used = [
        ids.ravel() for content in contents for ids in (content.prompt_1P, content.topk_ids_KT, content.other_ids_1N)
    ]
    ids, counts = np.unique(np.concatenate(used), return_counts=True) if used else (np.empty(0, int), np.empty(0, int))
    order = np.lexsort((ids, -counts))[: planes.LIMIT]
    order = order[counts[order] > 1]
    similar = np.frexp(counts[order])[1]
    similar[: planes.DIRECT] = 99
    return ids[order][np.lexsort((ids[order], -similar))]


def to_grid(logprobs: np.ndarray, step: float) -> np.ndarray:
    """The nearest point of the grid, as a count of steps below 0; −1 for −inf."""
    logprobs = np.asarray(logprobs, dtype=np.float32)
    if np.isnan(logprobs).any() or (logprobs > step / 2).any():
        raise ValueError("log-probs are numbers up to 0")
    known = logprobs > -_DEEPEST
    return np.where(known, np.rint(np.where(known, -logprobs, 0) / np.float32(step)), -1).astype(np.int64)


def _others(row: ScoredRow) -> np.ndarray:
    """Which of the row's tokens are not supervised."""
    others = np.ones(len(row.ids), dtype=bool)
    others[row.places_R] = False
    return others


def _encode_ids(ids: np.ndarray, dictionary: np.ndarray) -> list[bytes]:
    if not len(dictionary):
        return planes.encode(ids, np.ones(ids.shape, dtype=bool))
    order = np.argsort(dictionary)
    found = order[np.searchsorted(dictionary, ids, sorter=order).clip(max=len(dictionary) - 1)]
    is_raw = dictionary[found] != ids
    return planes.encode(np.where(is_raw, ids, found), is_raw)


def _frames(data: bytes) -> Iterator[memoryview]:
    (count,) = struct.unpack_from("<I", data)
    lengths = struct.unpack_from(f"<{count}I", data, 4)
    start, view = 4 * (count + 1), memoryview(data)
    for length in lengths:
        yield view[start : start + length]
        start += length
