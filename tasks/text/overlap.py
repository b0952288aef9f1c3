"""Which rows ask what a held-out row asks: none of them may be trained on.

A question is a user turn without case, spacing, final punctuation and Unicode's ways to write the same; its answer and
the system prompt do not matter, nor whether the input stands apart from the instruction, before or after it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tasks.rows import Row

_LONG = 60  # characters from which a follow-up says by itself what it asks ("And now?" does not)
_FINAL = ".?!。…"


@dataclass(frozen=True)
class _Turn:
    """A user turn: what it asks (as hashes, one for each order of instruction and input), and what came before."""

    asks: tuple[int, ...]
    answered: int
    follows_up: bool
    long: bool
    conversation: int  # all user turns up to this one


@dataclass
class HeldOut:
    """The questions of held-out rows, by hash: 64 bits each, a few a row."""

    _alone: set[int] = field(default_factory=set)
    _follow_ups: set[int] = field(default_factory=set)
    _answers: set[tuple[int, int]] = field(default_factory=set)
    _conversations: set[int] = field(default_factory=set)
    _beginnings: set[int] = field(default_factory=set)

    @staticmethod
    def of(rows: Iterable[Row]) -> HeldOut:
        found = HeldOut()
        for row in rows:
            found.add(row)
        return found

    def add(self, row: Row) -> None:
        *earlier, last = _turns(row)
        self._conversations.add(last.conversation)
        self._beginnings.update(turn.conversation for turn in earlier)
        (self._follow_ups if last.follows_up else self._alone).update(last.asks)
        self._answers.update((asked, last.answered) for asked in last.asks)

    def asked_by(self, row: Row) -> bool:
        """Whether a turn of the row asks what a held-out row asks, or the row begins a held-out conversation.

        Of two follow-ups to different turns, equal words are the same question where they are long, or answered alike.
        """
        turns = list(_turns(row))
        return turns[-1].conversation in self._beginnings or any(map(self._asks, turns))

    def _asks(self, turn: _Turn) -> bool:
        if turn.conversation in self._conversations or not self._alone.isdisjoint(turn.asks):
            return True
        same = self._follow_ups.intersection(turn.asks)
        return bool(same) and (
            not turn.follows_up or turn.long or any((asked, turn.answered) in self._answers for asked in same)
        )


def conversations(row: Row) -> list[int]:
    """Hashes of the row's user turns up to the first, the second, …, up to all of them."""
    return [turn.conversation for turn in _turns(row)]


def _turns(row: Row) -> Iterator[_Turn]:
    messages = [message for message in row.messages if message.role != "system"]
    conversation, follows_up = "", False
    for place, message in enumerate(messages):
        if message.role != "user":
            continue
        answer = messages[place + 1] if place + 1 < len(messages) else None
        texts = [message.content]
        if row.input and place == len(messages) - 2 - len(row.tool_turns):
            texts.append(row.input + row.instruction)
        plain = [_plain(text) for text in texts]
        conversation += f"\0{plain[0]}"
        yield _Turn(
            asks=tuple(map(_hash, plain)),
            answered=_hash(_plain("".join(answer.texts))) if answer and answer.role == "assistant" else 0,
            follows_up=follows_up,
            long=len(plain[0]) >= _LONG,
            conversation=_hash(conversation),
        )
        follows_up = True


def _plain(text: str) -> str:
    whole = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return "".join(whole.casefold().split()).rstrip(_FINAL)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
