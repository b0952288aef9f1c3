"""Which held-out rows a row may ask for in other words or another language: likely ones, for somebody to judge.

A retold question shares few words with the first one, a translated one next to none; but names, numbers, code and
words of Latin stand in both, and still more so in their answers. So question and answer are compared as one text,
without accents, by the cosine of the 4-grams that are rarest in it (TF-IDF). Two texts that share nothing of this are
never likely. Memory: 1 KB a held-out row, and some more while the index is built.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from tasks.rows import Row
from tasks.text.near import FEATURES, Rarity, grams_of

_MOST_GRAMS = 256  # of a text, the rarest
_LONGEST = 2_000  # characters of a question, and of an answer
_WORD = re.compile(r"\w+")


class Retold:
    """Held-out rows, to ask of others how alike they are."""

    def __init__(self, heldout: Iterable[Row], rarity: Rarity):
        self._weights = rarity.weights()
        texts = [self._rarest(row) for row in heldout]
        sizes = [len(grams) for grams in texts]
        grams = np.concatenate(texts) if texts else np.zeros(0, np.int64)
        owners = np.repeat(np.arange(len(texts), dtype=np.int32), sizes)
        self._norms = np.sqrt(np.bincount(owners, self._weights[grams] ** 2, minlength=len(texts)))
        self._owners = owners[np.argsort(grams, kind="stable")]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(grams, minlength=FEATURES))])

    @staticmethod
    def of(heldout: Iterable[Row], others: Callable[[], Iterable[Row]]) -> Retold:
        """`others` are rows of the same data, from which it is known which grams are rare."""
        return Retold(heldout, Rarity.of(others(), lambda row: [_grams(row)]))

    def alike_N(self, row: Row) -> NDArray[np.float64]:
        """How alike each of the N held-out rows is to the row, from 0 (nothing is shared) to 1."""
        grams = self._rarest(row)
        found = [self._owners[self._starts[gram] : self._starts[gram + 1]] for gram in grams]
        if not sum(map(len, found)):
            return np.zeros(len(self._norms))
        squares = self._weights[grams] ** 2
        shared = np.repeat(squares, list(map(len, found)))
        dots_N = np.bincount(np.concatenate(found), shared, minlength=len(self._norms))
        return dots_N / (np.maximum(self._norms, 1e-9) * np.sqrt(squares.sum()))

    def _rarest(self, row: Row) -> NDArray[np.int64]:
        grams = _grams(row)
        return grams[np.argsort(-self._weights[grams], kind="stable")[:_MOST_GRAMS]]


def _grams(row: Row) -> NDArray[np.int64]:
    """Of all that is said in a row but for its system prompt."""
    said = [message.content for message in row.prompt if message.role != "system"]
    text = f"{' '.join(said)[-_LONGEST:]} {row.response[:_LONGEST]}"
    apart = unicodedata.normalize("NFKD", text).casefold()
    return grams_of(_WORD.findall("".join(sign for sign in apart if not unicodedata.combining(sign))))
