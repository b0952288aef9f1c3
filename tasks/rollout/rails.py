"""When rounds stop, and what is told of them: decisions and their sentences. Maths alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LENGTH = 1.5  # between two rounds, beyond which an answer's mean length runs away
_ENTROPY = 0.5  # of the round before, below which a student's entropy collapses


def too_far_apart(agreement: float, least: float) -> str | None:
    """Why no round is trained; None where the two agree enough.

    What a teacher says of texts that it would hardly write is little to learn from: rounds succeed where student and
    teacher overlap from the start (Li et al. 2604.13016, who name no number).
    """
    if agreement >= least:
        return None
    return (
        f"no on-policy round: student and teacher find the same token likeliest at {agreement:.1%} of the student's "
        f"own tokens, less than {least:.0%} (rounds.least_agreement), so the run goes on with kd; distil for longer "
        "first, or choose a teacher that is nearer to the student"
    )


def no_gain(number: int, before: float, after: float, least: float) -> str | None:
    """Why no further round follows; None where the KL on the validation part fell by more than the share `least`."""
    if after < before * (1 - least):
        return None
    wanted = f", not by more than {least:.1%} (rounds.least_gain)" if least else ""
    return (
        f"rounds end after round {number}: KL to the teacher on the validation part went from {before:.4f} to "
        f"{after:.4f} nats a token{wanted}"
    )


def running_away(number: int, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What should be looked at between the answers of the round before and those of round `number`, a sentence each."""
    said = []
    ratio = now["answer_tokens"] / before["answer_tokens"] if before["answer_tokens"] else math.inf
    if not 1 / _LENGTH <= ratio <= _LENGTH:
        said.append(
            f"the student's answers {'grew' if ratio > 1 else 'shrank'} from {before['answer_tokens']:,.0f} to "
            f"{now['answer_tokens']:,.0f} tokens by round {number}: look at them before you trust it"
        )
    if now["entropy"] < _ENTROPY * before["entropy"]:
        said.append(
            f"the student's entropy fell from {before['entropy']:.3f} to {now['entropy']:.3f} nats a token by round "
            f"{number}: it has fewer and fewer ways to answer"
        )
    return said
