"""Which prompts are asked, and which answers are not learned from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rollout.choice import CONTROL, CUT_OFF, EMPTY, REPEATS, draw, limit, repeats, why_left_out
from tasks.rollout.settings import Rounds
from tasks.train.settings import Distillation

LIST = [token for number in range(20) for token in (7, 8, 100 + number)]


@pytest.mark.parametrize(
    ("ids", "text", "truncated", "control", "reason"),
    [
        (LIST, "an answer", False, False, None),
        (LIST, "an answer", True, False, CUT_OFF),
        ([5, 6] * 40, "a b a b", True, False, REPEATS),
        ([5, 6] * 40, "a b a b", False, False, REPEATS),
        ([2], " \n", False, False, EMPTY),
        (LIST, "a <|im_start|> b", False, True, CONTROL),
    ],
)
def test_an_answer_is_left_out_for_one_reason(
    ids: list[int], text: str, truncated: bool, control: bool, reason: str | None
) -> None:
    assert why_left_out(ids, text, truncated=truncated, control=control) == reason


@given(
    st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 40)
)
def test_a_sequence_five_times_in_a_row_and_32_tokens_long_is_found_wherever_it_stands(
    before: list[int], loop: list[int], times: int
) -> None:
    ids = [*(10 + token for token in before), *loop * times, 99]
    if times >= 5 and len(loop) * times >= 32:
        assert repeats(ids)
    assert repeats(ids) == _repeats_by_hand(ids)


def _repeats_by_hand(ids: list[int]) -> bool:
    for period in range(1, len(ids) // 5 + 1):
        size = max(5 * period, 32)
        for start in range(len(ids) - size + 1):
            part = ids[start : start + size]
            if all(part[at] == part[at - period] for at in range(period, size)):
                return True
    return False


def test_as_many_prompts_as_asked_and_others_in_each_round() -> None:
    ids = [f"{number:020x}" for number in range(500)]
    asked = []
    for number in (1, 2):
        draws = {one: draw(one, 0, number) for one in ids}
        asked.append({one for one in ids if draws[one] <= limit(draws.values(), 100)})
    assert [len(of_round) for of_round in asked] == [100, 100]
    assert len(asked[0] & asked[1]) < 50
    assert all(draw(one, 0, 1) <= limit([], None) for one in ids)
    assert limit([3, 1], 9) == limit([], None)


def test_reverse_kl_without_what_is_outside_the_top_k_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"rounds.divergence=reverse_kl needs rounds.tail=bucket: .* collapses"):
        Rounds(divergence="reverse_kl", tail="renormalise")
    assert Rounds(divergence="reverse_kl").tail == "bucket"


def test_rounds_train_at_temperature_1_for_their_own_steps_whatever_kd_did() -> None:
    kd = Distillation(temperature=2.0, epochs=9, global_batch=7, kd_weight=0.3)
    made = Rounds(steps=20).distillation(kd, 3)
    assert (made.temperature, made.tail, made.max_steps, made.learning_rate) == (1.0, "bucket", 60, 2e-6)
    assert (made.global_batch, made.kd_weight) == (7, 0.3)
