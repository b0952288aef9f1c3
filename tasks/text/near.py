"""Which rows ask nearly what a held-out row asks: the same words in another order, a word or two exchanged.

Texts are compared by the cosine of their character 4-grams within words, each weighed by how rare it is (TF-IDF):
order and endings hardly count, a name or a rare word much. Two texts with different numbers ask two things.
A translation, or a paraphrase that shares few words, is not found: `tasks.text.retold` says which may be one. Memory:
some 50 bytes for each gram of a held-out row.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tasks.rows import Row

_GRAM = 4
FEATURES = 1 << 20
_LONGEST = 2_000  # characters of a text that are compared
_FEWEST_GRAMS = 8  # of texts that can be near to others; shorter ones are equal or not
_KNOWN = 100_000
_WORD = re.compile(r"\w+")
_WITHOUT_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")


@dataclass(frozen=True)
class _Text:
    """A text's grams (as sorted numbers), and the figures that stand in it."""

    grams: NDArray[np.int64]
    numbers: tuple[str, ...]

    @staticmethod
    def of(text: str) -> _Text:
        plain = unicodedata.normalize("NFKC", text[:_LONGEST]).casefold()
        words = _WORD.findall(plain)
        numbers = tuple(sorted(word for word in words if any(map(str.isdigit, word))))
        return _Text(grams_of(words), numbers)


def grams_of(words: Iterable[str]) -> NDArray[np.int64]:
    """The numbers of all grams of some words, each once, in order."""
    grams = {zlib.crc32(gram.encode()) % FEATURES for word in words for gram in _grams(word)}
    return np.fromiter(sorted(grams), np.int64, len(grams))


def _grams(word: str) -> Iterable[str]:
    """A word's beginning, end and what lies between; pairs of signs where a language writes no spaces."""
    if _WITHOUT_SPACES.search(word):
        return (word[start : start + 2] for start in range(max(1, len(word) - 1)))
    whole = f" {word} "
    return (whole[start : start + _GRAM] for start in range(max(1, len(whole) - _GRAM + 1)))


class Rarity:
    """In how many texts each gram stands."""

    def __init__(self) -> None:
        self._texts = 0
        self._with = np.zeros(FEATURES, np.int64)

    @staticmethod
    def of(rows: Iterable[Row], grams_by_text: Callable[[Row], Iterable[NDArray[np.int64]]] | None = None) -> Rarity:
        """From the first rows, which are enough to know; a row's texts are its instruction and its input, or others."""
        found = Rarity()
        for row in islice(rows, _KNOWN):
            for grams in (grams_by_text or _grams_by_text)(row):
                found._with[grams] += 1
                found._texts += 1
        return found

    def weights(self) -> NDArray[np.float32]:
        """The inverse document frequency of each gram: 1 for one of every text, more for rarer ones."""
        return (np.log((1 + self._texts) / (1 + self._with)) + 1).astype(np.float32)


class NearHeldOut:
    """Held-out rows, to ask of others whether they are near to one: questions without earlier turns, of some length."""

    def __init__(self, heldout: Iterable[Row], rarity: Rarity, threshold: float):
        self._threshold = threshold
        self._weights = rarity.weights()
        rows = [(_Text.of(row.instruction), _Text.of(row.input)) for row in heldout if not _goes_on(row)]
        self._numbers = [(instruction.numbers, given.numbers) for instruction, given in rows]
        self._instructions, self._inputs = (self._index([row[part] for row in rows]) for part in (0, 1))

    def is_near(self, row: Row) -> bool:
        """Whether instruction and input are both nearly those of one held-out row."""
        if not self._numbers or _goes_on(row):
            return False
        instruction = _Text.of(row.instruction)
        if len(instruction.grams) < _FEWEST_GRAMS or not self._may_be(instruction):
            return False
        alike = np.flatnonzero(self._alike(self._instructions, instruction))
        if not len(alike):
            return False
        given = _Text.of(row.input)
        alike = alike[self._alike(self._inputs, given)[alike]]
        return any(self._numbers[place] == (instruction.numbers, given.numbers) for place in alike)

    def _may_be(self, text: _Text) -> bool:
        """False where no held-out text has any of the rarest grams, without which no text is near (Cauchy-Schwarz)."""
        squares = self._weights[text.grams] ** 2
        order = np.argsort(-squares)
        needed = np.searchsorted(np.cumsum(squares[order]), (1 - self._threshold**2) * squares.sum()) + 1
        rarest = text.grams[order[:needed]]
        return bool((self._instructions.starts[rarest + 1] > self._instructions.starts[rarest]).any())

    def _index(self, texts: Sequence[_Text]) -> _Index:
        grams = np.concatenate([text.grams for text in texts]) if texts else np.zeros(0, np.int64)
        owners = np.repeat(np.arange(len(texts), dtype=np.int32), [len(text.grams) for text in texts])
        norms = np.sqrt(np.bincount(owners, self._weights[grams] ** 2, minlength=len(texts)))
        starts = np.concatenate([[0], np.cumsum(np.bincount(grams, minlength=FEATURES))])
        few = {place: text.grams.tobytes() for place, text in enumerate(texts) if len(text.grams) < _FEWEST_GRAMS}
        return _Index(owners[np.argsort(grams, kind="stable")], starts, np.maximum(norms, 1e-9), few)

    def _alike(self, index: _Index, text: _Text) -> NDArray[np.bool_]:
        """Of each held-out row, whether its text is near this one; of few grams, whether they are the same."""
        found = np.zeros(len(index.norms), bool)
        if len(text.grams) < _FEWEST_GRAMS:
            whole = text.grams.tobytes()
            found[[place for place, grams in index.few.items() if grams == whole]] = True
            return found
        weights = self._weights[text.grams]
        places = [index.owners[index.starts[gram] : index.starts[gram + 1]] for gram in text.grams]
        squares = np.repeat(weights**2, [len(place) for place in places])
        dots = np.bincount(np.concatenate(places), squares, minlength=len(found))
        found = dots / (index.norms * float(np.linalg.norm(weights))) >= self._threshold
        found[list(index.few)] = False
        return found


@dataclass(frozen=True)
class _Index:
    """Texts by gram: those with gram g are owners[starts[g] : starts[g + 1]]; `few` are the short ones, by place."""

    owners: NDArray[np.int32]
    starts: NDArray[np.int64]
    norms: NDArray[np.float64]
    few: dict[int, bytes]


def _goes_on(row: Row) -> bool:
    """Whether there were turns before, without which nobody knows what is asked."""
    return any(message.role != "system" for message in row.history)


def _grams_by_text(row: Row) -> Iterable[NDArray[np.int64]]:
    return (_Text.of(text).grams for text in (row.instruction, row.input))
