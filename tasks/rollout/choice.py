"""Which prompts are answered, and which answers are left out and why. Maths alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

REPEATS = "repeats itself"
CUT_OFF = "cut off at the longest answer"
EMPTY = "empty"
CONTROL = "contains a control token of the chat template"
_TIMES, _TOKENS = 5, 32  # in a row, and in all, from which a repeated sequence is no list or table any more


def draw(row_id: str, seed: int, number: int) -> int:
    """A row's number in round `number`, 64 bits: the rows with the least ones are asked."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}:{row_id}".encode()).digest()[:8], "big")


def limit(draws: Iterable[int], prompts: int | None) -> int:
    """The largest number with which a row is asked, so that `prompts` are (None: all)."""
    if prompts is None:
        return 2**64 - 1
    draws_N = np.fromiter(draws, np.uint64)
    return int(np.partition(draws_N, prompts - 1)[prompts - 1]) if prompts < len(draws_N) else 2**64 - 1


def why_left_out(ids: Sequence[int], text: str, *, truncated: bool, control: bool) -> str | None:
    """The reason why an answer is not trained on; None where it is.

    An end after an answer that was cut off would teach to stop in mid-sentence. `text` is the answer without a thought,
    `control` whether there is a mark of the chat template in it.
    """
    if repeats(ids):
        return REPEATS
    if truncated:
        return CUT_OFF
    if not text.strip():
        return EMPTY
    return CONTROL if control else None


def repeats(ids: Sequence[int]) -> bool:
    """Whether some sequence of tokens comes at least five times in a row, and these are at least 32 tokens."""
    ids_T = np.asarray(ids)
    for period in range(1, len(ids_T) // _TIMES + 1):
        wanted = max(_TIMES * period, _TOKENS) - period  # tokens in a row that are as the one a period before
        differs = np.flatnonzero(ids_T[period:] != ids_T[:-period])
        ends = np.concatenate([[-1], differs, [len(ids_T) - period]])
        if int(np.diff(ends).max()) - 1 >= wanted:
            return True
    return False
