"""Why a row may not be trained on: it asks what is held out, or nearly, or shares a passage with a benchmark."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator

from tasks.rows import Row
from tasks.text.near import NearHeldOut, Rarity
from tasks.text.overlap import HeldOut

HELD_OUT = "asks what a held-out row asks"
NEAR_HELD_OUT = "asks nearly what a held-out row asks"
RETOLD = "asks what a held-out row asks, in other words or another language"
BENCHMARK = "shares a passage with a question of a benchmark"
_PASSAGE = 13  # words, as in the decontamination of GPT-3's data (Brown et al. 2020)
_SHORTEST = 6  # words of a question that is looked for as a whole
_WORDS = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]|\w+"
)  # a sign is a word where there are no spaces


class Leaks:
    """What is kept out of training: `reason(row)` says why, or None.

    `near` is the similarity from which a question counts as a held-out one (None: equal ones only); `passages` are
    hashes of `passages_of` benchmarks' questions.
    """

    def __init__(self, heldout: HeldOut, near: NearHeldOut | None, passages: Collection[int] = frozenset()):
        self._heldout = heldout
        self._near = near
        self._passages = passages

    @staticmethod
    def of(
        heldout: Callable[[], Iterable[Row]],
        others: Callable[[], Iterable[Row]],
        near: float | None,
        passages: Collection[int] = frozenset(),
    ) -> Leaks:
        """`others` are rows of the same data, from which it is known which words are rare."""
        nearby = NearHeldOut(heldout(), Rarity.of(others()), near) if near is not None else None
        return Leaks(HeldOut.of(heldout()), nearby, passages)

    def reason(self, row: Row) -> str | None:
        if self._heldout.asked_by(row):
            return HELD_OUT
        if self._near is not None and self._near.is_near(row):
            return NEAR_HELD_OUT
        return BENCHMARK if self.quotes_benchmark(row) else None

    def quotes_benchmark(self, row: Row) -> bool:
        """Whether a turn of the row, question or answer, has a passage of a benchmark's question."""
        return bool(self._passages) and any(
            passage in self._passages
            for message in row.messages
            for text in message.texts
            for passage in passages_of(text)
        )


def passages_of(text: str) -> Iterator[int]:
    """Hashes of every 13 words in a row (signs, where a language writes no spaces), or of a shorter text as a whole."""
    words = _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
    if len(words) >= _SHORTEST:
        for start in range(max(1, len(words) - _PASSAGE + 1)):
            passage = " ".join(words[start : start + _PASSAGE])
            yield int.from_bytes(hashlib.blake2b(passage.encode(), digest_size=8).digest(), "big")
