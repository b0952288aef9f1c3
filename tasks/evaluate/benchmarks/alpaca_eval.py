"""AlpacaEval 2.0: each answer against a reference's, in both orders, with win rates raw and length-controlled.

The benchmark itself shows each pair once in a random order; here the judge sees both, so that a preference for a
position cancels, and is measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.evaluate.benchmarks.judges import PAIR, Case, Judgment, reasons_not_judged
from tasks.evaluate.benchmarks.length_control import length_controlled
from tasks.evaluate.benchmarks.questions import Conversation

REFERENCE_FIRST, MODEL_FIRST = "reference first", "model first"
_SIGNIFICANT = 0.01


def cases(conversations: Sequence[Conversation]) -> list[Case]:
    """Two a conversation: the reference's output first, then the model's first."""
    return [
        Case(
            conversation.question.id,
            part,
            PAIR,
            {
                "instruction": conversation.question.turns[0],
                "outputs": [{"model_identifier": name, "output": text} for name, text in zip("mM", shown, strict=True)],
            },
        )
        for conversation in conversations
        for part, shown in _orders(conversation).items()
    ]


def _orders(conversation: Conversation) -> dict[str, tuple[str, str]]:
    reference, model = conversation.question.references[0], conversation.answers[0]
    return {REFERENCE_FIRST: (reference, model), MODEL_FIRST: (model, reference)}


@dataclass(frozen=True)
class PositionBias:
    """How a judge's preference follows the place at which an output is shown.

    `first` is the mean preference for the first place, 0.5 without bias. Of the pairs that it decides
    differently in the two orders, `p_value` is that of an exact sign test between both-first and both-second.
    """

    first: float
    both_first: int
    both_second: int
    agreeing: int
    p_value: float
    detected: bool

    def sentence(self) -> str:
        undecided = self.both_first + self.both_second
        pairs = f"{undecided} of {undecided + self.agreeing} pairs are decided by the order alone"
        if not self.detected:
            return f"no position bias is detected: {pairs} (p = {self.p_value:.2g})"
        place = "first" if self.both_first > self.both_second else "second"
        return (
            f"the judge favours the {place} position: {pairs} (p = {self.p_value:.2g}); "
            "both orders are averaged, but such pairs count as ties"
        )


def preferences(judgments: Sequence[Judgment]) -> dict[str, float]:
    """By item, the probability that the model's output is the better one: the mean of both orders.

    An item that was judged in one order only is left out, for one order alone is biased.
    """
    return {item: (second + 1.0 - first) / 2 for item, (second, first) in _both_orders(judgments).items()}


def outcomes(judgments: Sequence[Judgment]) -> dict[str, float]:
    """By item, 1 where the model's output is preferred in both orders, −1 where the reference's is, else 0."""
    return {
        item: float((second > 0.5 and first < 0.5) - (second < 0.5 and first > 0.5))
        for item, (second, first) in _both_orders(judgments).items()
    }


def _both_orders(judgments: Sequence[Judgment]) -> dict[str, tuple[float, float]]:
    """By item, the preference for the second place with the reference first, and with the model first."""
    found: dict[str, dict[str, float]] = {}
    for judgment in judgments:
        if judgment.value is not None:
            found.setdefault(judgment.item, {})[judgment.part] = judgment.value
    return {item: (of[REFERENCE_FIRST], of[MODEL_FIRST]) for item, of in found.items() if len(of) == 2}


def position_bias(judgments: Sequence[Judgment]) -> PositionBias:
    """Over the pairs that were judged in both orders; raises ValueError where there is none."""
    pairs = list(_both_orders(judgments).values())
    first = statistics.mean(1.0 - value for pair in pairs for value in pair)
    both_first = sum(a < 0.5 and b < 0.5 for a, b in pairs)
    both_second = sum(a > 0.5 and b > 0.5 for a, b in pairs)
    p_value = sign_test(both_first, both_second)
    agreeing = len(pairs) - both_first - both_second
    return PositionBias(first, both_first, both_second, agreeing, p_value, p_value < _SIGNIFICANT)


def sign_test(one: int, other: int) -> float:
    """Two-sided exact binomial p-value of `one` against `other` at even odds."""
    total, fewer = one + other, min(one, other)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)


def result(
    conversations: Sequence[Conversation], judgments: Sequence[Judgment], gamed: Sequence[Mapping[str, float]] = ()
) -> dict[str, Any]:
    """Win rates between 0 and 1 over the pairs judged in both orders, and what is known of the judge.

    `gamed` are the rows of `questions.gamed_baselines`.
    """
    numbers = {
        "questions": len(conversations),
        "not_judged": reasons_not_judged(judgments),
        "cost_usd": sum(judgment.cost_usd for judgment in judgments),
    }
    preferred = preferences(judgments)
    judged = [conversation for conversation in conversations if conversation.question.id in preferred]
    numbers["judged"] = len(judged)
    if not judged:
        return numbers
    values = [preferred[conversation.question.id] for conversation in judged]
    model_chars = [len(conversation.answers[0]) for conversation in judged]
    reference_chars = [len(conversation.question.references[0]) for conversation in judged]
    difficulty = {str(int(row["index"])): row["instruction_difficulty"] for row in gamed}
    has_difficulty = bool(gamed) and all(conversation.question.id in difficulty for conversation in judged)
    control = length_controlled(
        values,
        model_chars,
        reference_chars,
        [difficulty[conversation.question.id] for conversation in judged] if has_difficulty else None,
        gamed if has_difficulty else (),
    )
    bias = position_bias(judgments)
    made = [judgment for judgment in judgments if judgment.value is not None]
    return {
        **numbers,
        "win_rate": statistics.mean(values),
        "win_rate_standard_error": statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None,
        "length_controlled": asdict(control),
        "length_control": "length_controlled_v1" if has_difficulty else "length_controlled_minimal",
        "mean_chars": {"model": statistics.mean(model_chars), "reference": statistics.mean(reference_chars)},
        "weighted_by_logprobs": sum(judgment.weighted for judgment in made) / len(made),
        "position_bias": asdict(bias),
        "position_bias_sentence": bias.sentence(),
    }
