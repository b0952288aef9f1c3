"""What one answer has that the other has not, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import NamedTuple

_WORD = re.compile(r"\s+|[\u3040-\u9fff]|[^\W\u3040-\u9fff]+|[^\w\s]")  # a CJK character is a word
_LONGEST = 2_000  # words that are compared; the time grows with their square


class Piece(NamedTuple):
    """Some of a text. `is_new`: the other text does not have it at this place."""

    text: str
    is_new: bool


def unlike(text: str, other: str) -> list[Piece]:
    """All of `text` in pieces, with those marked that `other` lacks. Very long texts are not compared."""
    ours, theirs = _WORD.findall(text), _WORD.findall(other)
    if max(len(ours), len(theirs)) > _LONGEST:
        return [Piece(text, False)]
    pieces, at = [], 0
    for block in SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks():
        pieces += _new("".join(ours[at : block.b]))
        at = block.b + block.size
        pieces.append(Piece("".join(ours[block.b : at]), False))
    return [piece for piece in pieces if piece.text]


def _new(text: str) -> list[Piece]:
    """A new piece without the space around it, which is none that a reader looks for."""
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    if start >= end:
        return [Piece(text, False)]
    return [Piece(text[:start], False), Piece(text[start:end], True), Piece(text[end:], False)]
