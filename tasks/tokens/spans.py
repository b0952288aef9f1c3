"""Which tokens of a row are supervised: scored by the teacher and trained on.

One place says it for the store of scores, for both trainings and for the alignment of two tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tasks.rows import Turns

RESPONSE = -1  # the turn of a row's own response: the last message
UNSUPERVISED = "unsupervised_answers"
REWRITTEN = "that the chat template renders differently before another turn"
NOT_SCORED = "that the teacher did not score"


class Span(NamedTuple):
    """An answer, with its end-of-turn token, among a row's tokens: from `start` up to `stop`.

    `turn` is the place of its message in the conversation, whatever the tokenizer.
    """

    turn: int
    start: int
    stop: int


class Supervised:
    """A row's tokens `ids`, its response from `response_start` to their end, and `earlier` answers in order.

    R tokens are supervised: those of the earlier answers, then those of the response.
    """

    ids: Any
    response_start: Any
    earlier: Any

    @property
    def spans(self) -> tuple[Span, ...]:
        """All answers that are supervised, the response last."""
        return (*self.earlier, Span(RESPONSE, self.response_start, len(self.ids)))

    @property
    def supervised_tokens(self) -> int:
        """R."""
        return sum(span.stop - span.start for span in self.spans)

    @property
    def places_R(self) -> np.ndarray:
        """Where the supervised tokens stand among the row's."""
        return np.concatenate([np.arange(span.start, span.stop) for span in self.spans])

    @property
    def in_order(self) -> bool:
        """Whether the spans follow each other within the row, as they must."""
        ends = [end for span in self.spans for end in (span.start, span.stop)]
        return ends[0] >= 0 and ends == sorted(ends)

    def parts(self) -> Iterator[tuple[Span, slice]]:
        """Each answer with its own part of the R supervised tokens."""
        first = 0
        for span in self.spans:
            yield span, slice(first, first := first + span.stop - span.start)


def turns_identity(turns: Turns) -> dict[str, Any]:
    """Its part of a stage's identity: nothing for the last turn alone, which was all that there was."""
    return {} if turns == "last" else {"turns": turns}


def unsupervised_fact(answers: Mapping[str, int]) -> dict[str, Any]:
    """Its part of an artifact's facts: earlier answers that were left out, by reason; nothing where there are none."""
    found = {reason: count for reason, count in answers.items() if count}
    return {UNSUPERVISED: found} if found else {}


def unsupervised_note(facts: Mapping[str, Any]) -> str:
    """The same in words."""
    reasons = facts.get(UNSUPERVISED, {}).items()
    return "".join(f"; not supervised are {count:,} earlier answers {reason}" for reason, count in sorted(reasons))
